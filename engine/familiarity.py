"""Does this image look like what the model was trained on? Black, blurred and wholly unfamiliar frames never pass.

Two looks, both cheap. The pixels: an image flatter or softer than any training image by far is the camera's fault.
The features: the distance of the pooled vector to the training set, within and outside its principal directions.
The limits come from the training images themselves and travel in the bundle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from engine.prediction import Reason, Trouble


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Below contrast or detail an image is black, blank or blurred; outside dark and bright it is badly lit.

    Attributes:
        contrast: standard deviation of the grey values, 0 to 127.5.
        detail: mean absolute difference of neighbouring grey values.
        dark, bright: the mean grey value; a bundle from before there were these two allows any.
    """

    contrast: float
    detail: float
    dark: float = 0.0
    bright: float = 255.0


class PixelStatistics(NamedTuple):
    """Of one image, as the limits are expressed."""

    contrast: float
    detail: float
    level: float


def pixel_statistics(image: np.ndarray) -> tuple[float, float]:
    """(contrast, detail) of one image: see `all_pixel_statistics`."""
    return all_pixel_statistics(image)[:2]


def all_pixel_statistics(image: np.ndarray) -> PixelStatistics:
    """Contrast, detail and mean grey value of one uint8 (h, w, 3) image; each side of two pixels or more.

    In whole numbers until the end, on the sum of the colours, which is three times the grey value: exact, and a sixth
    of the time that the same takes in floating point.
    """
    red, green, blue = cv2.split(image)
    total = np.add(red, green, dtype=np.int16)  # (h, w)
    total += blue
    height, width = total.shape
    across = cv2.norm(total[:, 1:], total[:, :-1], cv2.NORM_L1) / (height * (width - 1))
    down = cv2.norm(total[1:], total[:-1], cv2.NORM_L1) / ((height - 1) * width)
    mean = cv2.norm(total, cv2.NORM_L1) / total.size
    variance = max(0.0, cv2.norm(total, cv2.NORM_L2SQR) / total.size - mean**2)
    return PixelStatistics(math.sqrt(variance) / 3, (across + down) / 3, mean / 3)


def trouble(statistics: PixelStatistics, limits: PixelLimits) -> Trouble | None:
    """What is wrong with an image of these statistics, in the word that says most; None: nothing."""
    if statistics.level < limits.dark:
        return "dark"
    if statistics.level > limits.bright:
        return "bright"
    if statistics.contrast < limits.contrast:
        return "blank"
    return "blurred" if statistics.detail < limits.detail else None


@dataclass(frozen=True, slots=True, eq=False)
class FeatureLimits:
    """The training set as an ellipsoid with soft walls in the pooled features' space.

    The distance of a pooled vector v, with z = (v - mean) / scale, is the larger of two ratios: the root mean square
    of z along the principal directions, each in units of its own deviation, and the root mean square of what is left
    of z outside them, in units of the training images' own.

    Attributes:
        mean, scale: (d,) float32.
        directions: (q, d) float32, orthonormal rows.
        deviations: (q,) float32.
        residual: deviation of the training images outside the directions.
        limit: a distance above it is unfamiliar.
    """

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    deviations: np.ndarray
    residual: float
    limit: float

    def distance(self, pooled: np.ndarray) -> float:
        """Distance of one pooled vector (d,); 1 is typical of the training set."""
        z = (pooled - self.mean) / self.scale
        along = self.directions @ z
        outside = z - along @ self.directions
        inside_rms = float(np.sqrt(np.mean(np.square(along / self.deviations))))
        outside_rms = float(np.sqrt(np.mean(np.square(outside)))) / self.residual
        return max(inside_rms, outside_rms)


class Examined(NamedTuple):
    """What one image looks like beside the training images.

    Attributes:
        doubt: why it must not pass on the model's word, or None.
        trouble: what the doubt `camera` is.
        distance: of its features, where its pixels are sound.
    """

    doubt: Reason | None
    trouble: Trouble | None
    distance: float | None


def examine(image: np.ndarray, pooled: np.ndarray, pixels: PixelLimits, features: FeatureLimits) -> Examined:
    """Compare one uint8 (h, w, 3) image and its pooled vector (d,) with the training images."""
    found = trouble(all_pixel_statistics(image), pixels)
    if found is not None:
        return Examined("camera", found, None)
    distance = features.distance(pooled)
    # Written so that a distance that is no number counts as unfamiliar.
    return Examined(None if distance <= features.limit else "out_of_distribution", None, distance)


def unfamiliar(image: np.ndarray, pooled: np.ndarray, pixels: PixelLimits, features: FeatureLimits) -> Reason | None:
    """Why this image must not pass on the model's word, or None."""
    return examine(image, pooled, pixels, features).doubt
