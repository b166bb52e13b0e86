"""The same part, mirrored and turned: more to learn from where there are few images."""

from __future__ import annotations

import numpy as np

AS_TAKEN, MIRRORED = 1, 2
"""Numbers of views: the image as it was taken, and that with its mirror image; `all_turns` gives the most."""


def all_turns(width_px: int, height_px: int) -> int:
    """Eight where quarter turns keep the size, else four."""
    return 8 if width_px == height_px else 4


def turned(images: np.ndarray, turn: int) -> np.ndarray:
    """One view of (n, h, w, 3) images, contiguous. The first two views are the image and its mirror image.

    Args:
        images: any dtype.
        turn: 0 to 7; its bits are left-right, top-bottom, and (square images only) a swap of both axes. Together they
            are the eight symmetries of a square.
    """
    if turn & 4:
        images = images.swapaxes(1, 2)
    if turn & 2:
        images = images[:, ::-1]
    if turn & 1:
        images = images[:, :, ::-1]
    return np.ascontiguousarray(images)
