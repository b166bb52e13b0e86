"""Scenes made up for tests: a fixture that stays, a part that lies a little differently each time, noise."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from engine.watching import SIDE, Scenes, StreamLimits, soften

NOISE = 2.0
"""Deviation of the sensor's noise in `frame`, in grey values."""


@functools.cache
def picture(scene: int, side: int = SIDE) -> np.ndarray:
    """uint8 (side, side): a scene without its part and without noise, the same for the same number."""
    rng = np.random.default_rng(scene)
    coarse = rng.integers(60, 200, (9, 9), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def frame(scene: int, rng: np.random.Generator, *, right: int = 0, side: int = SIDE) -> np.ndarray:
    """uint8 (side, side, 3): a live picture of the scene with a part somewhere in it, moved by so many cells."""
    still = np.roll(picture(scene, side), right * side // SIDE, axis=1).astype(np.float32)
    x, y = rng.integers(side // 3, side // 2, 2)
    still[y : y + side // 8, x : x + side // 8] += float(rng.uniform(-40, 40))
    noisy = still[..., None] + rng.normal(0, NOISE, (side, side, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def scenes_of(*numbers: int, limit: float = 2.5 / SIDE, likeness: float = 0.8) -> Scenes:
    """What a bundle would hold of these scenes."""
    return Scenes(np.stack([soften(picture(number)) for number in numbers]), limit, likeness)


def limits_of(*numbers: int) -> StreamLimits:
    """Of a bundle that knows these scenes, the noise, and that images are about 1 away."""
    return StreamLimits(noise=NOISE / 4, scenes=scenes_of(*numbers) if numbers else None, drift=2.0)
