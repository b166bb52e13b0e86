"""The trainer's bench at a size that takes a moment: every figure is there, and comes from what was run."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import cv2
import numpy as np

from trainer.bench_images import photo, write_zip
from trainer.bench_train import Plan, bench_train
from trainer.cli_bench import lines

if TYPE_CHECKING:
    from pathlib import Path


def test_drawn_photos_are_distinct_and_the_same_for_the_same_number() -> None:
    photos = [photo(number, 64, 48) for number in range(200)]
    assert len(set(photos)) == 200
    assert photo(7, 64, 48) == photos[7]
    decoded = cv2.imdecode(np.frombuffer(photos[0], np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (48, 64, 3)


def test_the_zip_is_one_to_train_on(tmp_path: Path) -> None:
    write_zip(tmp_path / "set.zip", 6, (64, 64))
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        names = archive.namelist()
    assert [name.split("/")[0] for name in names] == ["good", "fail"] * 3


def test_every_figure_is_measured() -> None:
    told: list[str] = []
    plan = Plan(rounds=1, lap_images=3, photos=6, fit_images=(12, 24), images=(28,), side_px=64)
    result = bench_train(plan, lambda what, _done, _total: told.append(what))
    assert 0 < result["ratio_to_engine"] < 2
    assert 0 < result["ratio_to_engine_by_processor_time"] < 2
    assert [fit["images"] for fit in result["fits"]] == [12, 24]
    assert all(fit["seconds"] > 0 and fit["iterations"] > 0 for fit in result["fits"])
    (peak,) = result["peaks"]
    assert result["peak_mib_28"] == peak["peak_mib"] > 100
    assert peak["computed"] >= 28
    assert {"zip to features", "fit", "draw 28", "train on 28"} == set(told)
    text = "\n".join(lines(result))
    assert "28 images of 64 x 64" in text
    assert f"{result['images_per_s']:.1f}" in text
