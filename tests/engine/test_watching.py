"""What is kept of an image, and where a mean of such glances fits in a scene."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from engine.watching import REACH, SIDE, Scenes, difference, glance, soften
from tests.scenes import picture, scenes_of


def test_a_glance_keeps_the_noise_and_has_one_size_for_all_images() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((64, 64), (192, 256), (1024, 480)):
        still = np.full((height, width, 3), 120, np.uint8)
        one, other = (np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8) for _ in range(2))
        assert glance(one).shape == (SIDE, SIDE)
        assert difference(glance(one), glance(one)) == 0
        # Two samples of deviation s differ by 2 s / sqrt(pi) in the mean: nothing of the noise is averaged away.
        assert difference(glance(one), glance(other)) == pytest.approx(2 * 2 / np.sqrt(np.pi), rel=0.1)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (5, 0), (-5, 0), (0, 7), (3, -4), (REACH, -REACH)])
def test_a_displacement_is_found_in_both_directions_by_its_sign(right: int, down: int) -> None:
    scenes = scenes_of(1, 2)
    moved = np.roll(picture(2), (down, right), axis=(0, 1)).astype(np.float32)
    found = scenes.match(moved)
    assert found.scene == 1
    assert (found.right, found.down) == (right / SIDE, down / SIDE)
    assert found.distance == pytest.approx(np.hypot(right, down) / SIDE)


def test_light_does_not_move_a_scene() -> None:
    darker = picture(1).astype(np.float32) * 0.5 + 20
    found = scenes_of(1).match(darker)
    assert found.distance == 0
    assert found.likeness == pytest.approx(1, abs=1e-3)


def test_what_is_no_scene_of_these_fits_nowhere() -> None:
    scenes = scenes_of(1, 2)
    assert scenes.match(picture(3).astype(np.float32)).likeness < scenes.likeness
    for tone in (0, 255):
        assert scenes.match(np.full((SIDE, SIDE), tone, np.float32)).likeness == -1, "a blank picture has no place"


def test_a_likely_scene_saves_the_others_only_where_it_fits_at_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = scenes_of(1, 2, 3)
    looks: list[int] = []
    real = cv2.matchTemplate

    def counted(*given: Any) -> Any:
        looks.append(1)
        return real(*given)

    monkeypatch.setattr(cv2, "matchTemplate", counted)
    assert scenes.match(picture(2).astype(np.float32), likely=1).scene == 1
    assert len(looks) == 1
    assert scenes.match(picture(3).astype(np.float32), likely=1).scene == 2
    assert len(looks) == 1 + 4
    moved = np.roll(picture(2), 8, axis=1).astype(np.float32)
    assert scenes.match(moved, likely=1).scene == 1
    assert len(looks) == 5 + 4, "before a camera is said to have moved all scenes are asked"


def test_softening_keeps_the_mean_and_the_dtype() -> None:
    soft = soften(picture(1))
    assert soft.dtype == np.float32
    assert soft.shape == (SIDE, SIDE)
    assert float(soft.mean()) == pytest.approx(float(picture(1).mean()), abs=2)
    assert isinstance(scenes_of(1), Scenes)
