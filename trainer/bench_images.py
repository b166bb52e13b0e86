"""Images for the trainer's bench: drawn, so that any number is there, no two alike, half of them with a defect."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_QUALITY = 90


def photo(number: int, width_px: int, height_px: int) -> bytes:
    """One JPEG of a part, defects at odd numbers: blotches and grain as a camera gives them, and a scratch.

    The same number, the same bytes; another number, another image. Of every ten, one good part has a scratch as well
    and one defect none: a set that is told apart without a mistake would say little.
    """
    rng = np.random.default_rng(number)
    coarse = rng.integers(90, 160, (9, 9, 3), np.uint8)
    image = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    middle, radius = (width_px // 2, height_px // 2), min(width_px, height_px) // 3
    cv2.circle(image, middle, radius, rng.integers(40, 90, 3).tolist(), -1, cv2.LINE_AA)
    is_defect = number % 2 == 1
    if is_defect != (number % 20 in {6, 13}):
        angle, at = rng.uniform(0, np.pi), np.array(middle) + rng.uniform(-radius / 2, radius / 2, 2)
        reach = np.array([np.cos(angle), np.sin(angle)]) * radius / 3
        ends = [tuple(np.round(at + sign * reach).astype(int).tolist()) for sign in (-1, 1)]
        cv2.line(image, ends[0], ends[1], (230, 230, 230), max(1, radius // 20), cv2.LINE_AA)
    grain = rng.integers(-12, 13, image.shape, np.int8)
    image = np.clip(image.astype(np.int16) + grain, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()


def write_zip(
    path: Path, count: int, size_px: tuple[int, int], tick: Callable[[int, int], None] = lambda _done, _total: None
) -> None:
    """A train.zip of so many photos in the folders good and fail."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"{'fail' if number % 2 else 'good'}/{number:06d}.jpg", photo(number, *size_px))
            tick(number + 1, count)
