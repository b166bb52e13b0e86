"""Explanations: what is drawn where, and the command that writes it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from engine.bundle import write_bundle
from engine.cli import score
from engine.errors import InputError
from engine.heads import Calibration
from engine.heatmap import heat, overlay, with_caption
from engine.prediction import Prediction
from engine.specs import Region
from tests.bundles import pictures, small_bundle, small_head

if TYPE_CHECKING:
    from pathlib import Path

HEAD = small_head()
POOLED = np.zeros(HEAD.pooled_weights.size, np.float32)


def test_heat_is_the_probability_that_such_a_picture_would_have() -> None:
    scores = np.array([[-50.0, 0.0], [1.5, 1e6]], np.float32)
    warm = heat(scores, HEAD, POOLED)
    assert warm.shape == (2, 2)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert warm[row, column] == pytest.approx(HEAD.probability(float(scores[row, column]), POOLED), abs=2e-6)


def test_a_head_without_evidence_shows_its_strongest_location_alone() -> None:
    blind = replace(HEAD, calibration=Calibration(0.0, 1.0, 0.0))
    warm = heat(np.array([[0.0, 1.0], [5.0, 1.0]], np.float32), blind, POOLED)
    assert warm[1, 0] == 1.0
    assert warm.max() == 1.0
    assert np.delete(warm.ravel(), 2).max() < 0.2
    assert np.isfinite(heat(np.zeros((2, 2), np.float32), blind, POOLED)).all()


def test_the_overlay_is_warm_at_its_place_in_the_region_and_nowhere_else() -> None:
    image = np.full((200, 400, 3), 90, np.uint8)
    warm = np.zeros((10, 10), np.float32)
    warm[2, 7] = 1.0  # its centre: 25 % down and 75 % across the region
    region = Region(0.5, 0.0, 1.0, 1.0)
    drawn = overlay(image, warm, region)
    changed = np.argwhere((drawn != image).any(axis=2))
    assert (image == 90).all()
    assert abs(changed[:, 0].mean() - 50) < 2
    assert abs(changed[:, 1].mean() - 350) < 2
    assert np.ptp(changed[:, 0]) <= 40  # no further than the neighbouring locations' centres
    assert np.ptp(changed[:, 1]) <= 40


def test_a_caption_can_be_read_on_pictures_of_any_size() -> None:
    prediction = Prediction("review", 0.4321, ("band",))
    for width in (40, 240, 2000):
        image = np.zeros((width, width, 3), np.uint8)
        captioned = with_caption(image, prediction)
        assert captioned.shape[1] >= 240
        strip = captioned[: captioned.shape[0] - captioned.shape[1]]
        assert len(strip) >= 22
        assert (strip == 255).any()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    write_bundle(tmp_path / "bundle", small_bundle())
    folder = tmp_path / "set"
    for part in ("a", "b"):
        (folder / part).mkdir(parents=True)
        cv2.imwrite(str(folder / part / "1.jpg"), pictures(1)[0])
    (folder / "broken.png").write_bytes(b"nothing")
    return tmp_path / "bundle", folder


def lines(*arguments: str) -> list[dict[str, object]]:
    done = CliRunner().invoke(score, arguments, catch_exceptions=False, standalone_mode=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_writes_a_picture_for_each_judged_image_and_says_the_same(files: tuple[Path, Path]) -> None:
    bundle, folder = files
    out = folder.parent / "maps"
    plain = lines(str(bundle), str(folder), str(folder / "a" / "1.jpg"))
    drawn = lines(str(bundle), str(folder), str(folder / "a" / "1.jpg"), "--heatmap", str(out))
    assert [line.pop("heatmap") for line in drawn] == [
        str(out / "a/1.png"),
        str(out / "b/1.png"),
        None,
        str(out / "1.png"),
    ]
    assert drawn == plain
    picture = cv2.imread(str(out / "b/1.png"))
    assert picture is not None
    assert picture.shape == (4 * 64 + 22, 4 * 64, 3)


def test_same_names_get_files_of_their_own_and_nothing_is_written_over(files: tuple[Path, Path]) -> None:
    bundle, folder = files
    one, two = str(folder / "a" / "1.jpg"), str(folder / "b" / "1.jpg")
    out = folder.parent / "maps"
    drawn = lines(str(bundle), one, two, "--heatmap", str(out))
    assert [line["heatmap"] for line in drawn] == [str(out / "1.png"), str(out / "1~2.png")]
    with pytest.raises(InputError, match="exists already: expected a new place"):
        lines(str(bundle), one, "--heatmap", str(out))
