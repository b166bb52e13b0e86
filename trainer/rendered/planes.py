"""Small drawing tools: antialiased masks, fillets, slopes and noise, as float32 planes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Plane = npt.NDArray[np.float32]
"""(height_px, width_px) float32; pictures are (height_px, width_px, 3) BGR float32, 0 black to 255 white."""

Size = tuple[int, int]
"""(width_px, height_px), as OpenCV counts."""

Levels = npt.NDArray[np.uint8]
"""What the camera counts, 0 to 255. The optics run on these: faster, and their rounding drowns in the noise."""

_OVERSAMPLING = 4
_SUBPIXEL_BITS = 4


def plane(values: object) -> Plane:
    """The same values as float32, not copied where they already are."""
    return np.asarray(values, np.float32)


def levels(values: npt.NDArray[np.float32]) -> Levels:
    """Rounded to whole grey levels, cut at 0 and 255."""
    return np.asarray(cv2.convertScaleAbs(np.maximum(values, 0)), np.uint8)


def grid(size: Size) -> tuple[Plane, Plane]:
    """Columns and rows, x and y of every pixel, as (1, width_px) and (height_px, 1): they broadcast."""
    return np.arange(size[0], dtype=np.float32)[None, :], np.arange(size[1], dtype=np.float32)[:, None]


def polygon(size: Size, points: npt.ArrayLike) -> Plane:
    """Antialiased mask, 0 to 1, of a closed polygon given as (n, 2) pixel coordinates."""
    fine = np.zeros((size[1] * _OVERSAMPLING, size[0] * _OVERSAMPLING), np.uint8)
    scale = _OVERSAMPLING * (1 << _SUBPIXEL_BITS)
    corners = np.rint((np.asarray(points, np.float64) + 0.5) * scale).astype(np.int32)
    cv2.fillPoly(fine, [corners], [255.0], cv2.LINE_8, _SUBPIXEL_BITS)
    return plane(cv2.resize(fine, size, interpolation=cv2.INTER_AREA)) / np.float32(255)


def disk(size: Size, x_px: float, y_px: float, radius_px: float) -> Plane:
    """Antialiased mask of a disk."""
    x, y = grid(size)
    return plane(np.clip(radius_px + 0.5 - np.hypot(x - np.float32(x_px), y - np.float32(y_px)), 0, 1))


def rounded_box(size: Size, centre: tuple[float, float], half: tuple[float, float], corner_px: float) -> Plane:
    """Antialiased mask of a box with round corners, from its signed distance."""
    x, y = grid(size)
    outside_x = np.abs(x - np.float32(centre[0])) - np.float32(half[0] - corner_px)
    outside_y = np.abs(y - np.float32(centre[1])) - np.float32(half[1] - corner_px)
    beyond_corner = np.hypot(np.maximum(outside_x, 0), np.maximum(outside_y, 0))
    distance = beyond_corner + np.minimum(np.maximum(outside_x, outside_y), 0)
    return plane(np.clip(corner_px + 0.5 - distance, 0, 1))


def lettering(size: Size, text: str, at: tuple[int, int], scale: float, thickness_px: int = 1) -> Plane:
    """Antialiased mask of a line of text, its baseline beginning at `at`."""
    canvas = np.zeros((size[1] * 2, size[0] * 2), np.uint8)
    where = (at[0] * 2, at[1] * 2)
    cv2.putText(canvas, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale * 2, (255.0,), thickness_px * 2, cv2.LINE_AA)
    return plane(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)) / np.float32(255)


def fillet(mask: Plane, width_px: float, depth_px: float) -> Plane:
    """Height in pixels of a body with rounded edges: 0 outside the mask, `depth_px` from `width_px` inwards."""
    fine = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    distance = cv2.distanceTransform(np.rint(fine).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    inwards = cv2.resize(distance, (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_AREA) / 2
    rise = np.clip(1 - inwards / width_px, 0, 1)
    return plane(depth_px * np.sqrt(1 - rise * rise))


def slopes(height: Plane) -> tuple[Plane, Plane]:
    """How steep a height map is along x and y, in pixels of height per pixel."""
    along_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    along_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    return plane(along_x), plane(along_y)


def white(rng: np.random.Generator, size: Size) -> Plane:
    """Independent standard normal values."""
    return rng.standard_normal((size[1], size[0]), np.float32)


def smooth(rng: np.random.Generator, size: Size, grain_x_px: float, grain_y_px: float) -> Plane:
    """Noise of mean 0 and deviation 1 whose grain is a Gaussian of these sigmas; drawn coarse where the grain is."""
    step_x, step_y = max(1, int(grain_x_px / 2)), max(1, int(grain_y_px / 2))
    coarse = (math.ceil(size[0] / step_x) + 8, math.ceil(size[1] / step_y) + 8)
    sigma_x, sigma_y = max(grain_x_px / step_x, 0.3), max(grain_y_px / step_y, 0.3)
    noise = cv2.GaussianBlur(white(rng, coarse), (0, 0), sigma_x, sigmaY=sigma_y)
    noise = cv2.resize(noise, (coarse[0] * step_x, coarse[1] * step_y), interpolation=cv2.INTER_CUBIC)
    noise = noise[step_y * 3 : step_y * 3 + size[1], step_x * 3 : step_x * 3 + size[0]]
    return plane((noise - noise.mean()) / max(float(noise.std()), 1e-6))


def mix(layers: Sequence[tuple[float, Plane]]) -> Plane:
    """The weighted sum of planes of one shape."""
    total = np.zeros_like(layers[0][1])
    for weight, layer in layers:
        total += np.float32(weight) * layer
    return total
