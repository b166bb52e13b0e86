"""What a Python worker does with its parts, without Spark around it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import pytest

from engine import streams
from engine.backbone import FeaturizerSpec
from engine.specs import ImageSpec
from trainer import spark_worker
from trainer.errors import SparkError
from trainer.featurize import Featurizer, Row
from trainer.spark import names_table
from trainer.spark_folder import SharedFolder
from trainer.spark_identity import answer, identity, probe_image
from trainer.spark_job import Job, part_file, parts_of
from trainer.spark_parts import decode
from trainer.spark_reading import Entry
from trainer.spark_worker import JOB_FILE, featurize, look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trainer.spark_parts import PartRow

IMAGE, FEATURIZER = ImageSpec(64, 64), FeaturizerSpec(taps=(4,))
NAMES = "names.parquet"


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker is a process of its own: nothing of it may stay in this one."""
    monkeypatch.setattr(streams, "_sharing", 1)
    monkeypatch.setattr(spark_worker.Worker, "loads", 0)
    yield
    while spark_worker._kept:
        spark_worker._kept.pop().close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(5):
        cv2.imwrite(str(folder / f"{index}.png"), random.integers(0, 256, (70, 80, 3), np.uint8))
    (folder / "3.png").write_bytes(b"not an image")
    return folder


@pytest.fixture
def shared(tmp_path: Path, images: Path) -> SharedFolder:
    return job_at(tmp_path / "job", images)


def job_at(path: Path, images: Path, **differing: str) -> SharedFolder:
    """A job of three parts of two images each; the last image of them is not there."""
    probe = probe_image()
    with Featurizer(IMAGE, FEATURIZER) as running:
        ours = answer(running, probe)
    us = {**identity(IMAGE, FEATURIZER), **differing}
    entries = [Entry(f"{index}.png", f"{index}.png", 1, "") for index in range(6)]
    folder = SharedFolder(str(path))
    folder.write(JOB_FILE, Job(str(images), IMAGE, FEATURIZER, 0, 2, us, (probe, ours)).to_json().encode())
    folder.write(NAMES, names_table(parts_of(entries, 2), [0, 1, 2]))
    return folder


def run(shared: SharedFolder, images: Path, indices: list[int]) -> list[dict[str, Any]]:
    frames = iter([pd.DataFrame({"id": [index]}) for index in indices])
    receipts = pd.concat(featurize(shared.root, NAMES, str(images), frames))
    told: list[dict[str, Any]] = receipts.to_dict("records")
    return told


def rows_of(shared: SharedFolder, part: int) -> list[PartRow]:
    return list(decode(io.BytesIO(shared.read(part_file(part))), IMAGE, FEATURIZER))


def test_parts_hold_what_is_computed_here(shared: SharedFolder, images: Path) -> None:
    receipts = run(shared, images, [2, 0, 1])
    assert [row["part"] for row in receipts] == [2, 0, 1]
    assert [row["images"] for row in receipts] == [2, 2, 2]
    assert [row["set_aside"] for row in receipts] == [1, 0, 1]
    rows = [row for part in range(3) for row in rows_of(shared, part)]
    assert [row.name for row in rows] == [f"{index}.png" for index in range(6)]
    with Featurizer(IMAGE, FEATURIZER) as running:
        expected = running.featurize([(images / f"{index}.png").read_bytes() for index in range(5)])
    for got, here in zip(rows, expected, strict=False):
        if isinstance(here, str):
            assert got.row == here
        else:
            assert isinstance(got.row, Row)
            assert got.row.sha256 == here.sha256
            np.testing.assert_array_equal(got.row.pooled, here.pooled)
            np.testing.assert_array_equal(got.row.channels, here.channels)
    assert [row.unread for row in rows] == [False] * 5 + [True]  # no image is one thing, not readable another


def test_a_part_that_is_done_again_is_the_same(shared: SharedFolder, images: Path) -> None:
    run(shared, images, [0])
    first = shared.read(part_file(0))
    run(shared, images, [0])
    assert shared.read(part_file(0)) == first


def test_a_process_loads_its_model_once(shared: SharedFolder, images: Path) -> None:
    receipts = run(shared, images, [0, 1]) + run(shared, images, [2])
    assert {row["loads"] for row in receipts} == {1}


def test_another_version_is_refused_by_name(tmp_path: Path, images: Path) -> None:
    shared = job_at(tmp_path / "job", images, onnxruntime="0.1")
    frames = [pd.DataFrame({"id": [0]})]
    (told,) = look(shared.root, NAMES, str(images), iter(frames))
    assert "it has onnxruntime" in told["why"][0]
    assert "where this machine has 0.1" in told["why"][0]
    with pytest.raises(SparkError, match="differs from the driver"):
        list(featurize(shared.root, NAMES, str(images), iter(frames)))
    assert not shared.exists(part_file(0))


def test_a_look_tells_what_is_not_to_be_seen(shared: SharedFolder, images: Path, tmp_path: Path) -> None:
    def why(root: str, location: Path) -> str | None:
        (told,) = look(root, NAMES, str(location), iter([pd.DataFrame({"id": [0]})]))
        return told["why"][0]  # type: ignore[no-any-return]

    assert why(shared.root, images) is None
    assert "it cannot read 0.png" in str(why(shared.root, tmp_path / "elsewhere"))
    assert "every executor see" in str(why(str(tmp_path / "none"), images))
