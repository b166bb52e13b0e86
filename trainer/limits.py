"""What the training images say of the images to come: how flat, how soft, how far away is too far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from engine.familiarity import FeatureLimits, PixelLimits
from trainer.stored_rows import chunks, take

if TYPE_CHECKING:
    from trainer.stored_rows import Rows

PIXEL_SHARE = 0.25
"""Below this share of the flattest (softest) training image's contrast (detail) an image shows no part."""

DISTANCE_FACTOR = 1.5
"""An image further away than this times the furthest held-back training images is not of this line."""

_VARIANCE_KEPT = 0.9
_MOST_DIRECTIONS = 64
_SCALE_FLOOR = 1e-3


LIGHT_SHARE = 0.5
"""Below this share of the darkest training image's light, or of what the brightest lacks to white, it is badly lit."""


def pixel_limits(statistics: np.ndarray, levels: np.ndarray | None = None) -> PixelLimits:
    """Limits from (n, 2) contrast and detail of the training images, and where given from their (n,) mean grey values.

    From the first percentile, not the minimum: one black frame among the training images must not let all pass.
    """
    contrast, detail = np.percentile(statistics, 1, axis=0) * PIXEL_SHARE
    if levels is None:
        return PixelLimits(float(contrast), float(detail))
    dark, bright = np.percentile(levels, 1) * LIGHT_SHARE, 255 - (255 - np.percentile(levels, 99)) * LIGHT_SHARE
    return PixelLimits(float(contrast), float(detail), float(dark), float(bright))


def feature_limits(pooled: Rows, folds: list[tuple[np.ndarray, np.ndarray]]) -> FeatureLimits:
    """Limits from (n, d) pooled vectors; the distance to allow is measured on groups held back, fold by fold."""
    return limits_of(pooled, np.concatenate(held_back_distances(pooled, folds)))


def held_back_distances(pooled: Rows, folds: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Of each fold: the distances of what is held back, in its order, from all else."""
    return [
        np.array([limits.distance(row) for _, part in chunks(take(pooled, held)) for row in part])
        for fit, held in folds
        for limits in [_ellipsoid(take(pooled, fit))]
    ]


def limits_of(pooled: Rows, distances: np.ndarray) -> FeatureLimits:
    """Limits from (n, d) pooled vectors and the distances of those that were held back."""
    limit = DISTANCE_FACTOR * float(np.percentile(distances, 99.5))
    whole = _ellipsoid(pooled)
    return FeatureLimits(whole.mean, whole.scale, whole.directions, whole.deviations, whole.residual, limit)


def _ellipsoid(pooled: Rows) -> FeatureLimits:
    """From all rows, a few at a time: the principal directions are the correlation's, whatever the number of rows."""
    count, width = pooled.shape
    total, product = np.zeros(width), np.zeros((width, width))
    for _, part in chunks(pooled):
        total += part.sum(0, dtype=np.float64)
    mean = total / count
    most = min(_MOST_DIRECTIONS, width)
    with threadpool_limits(1, "blas"):  # the order of a sum must not depend on the number of cores
        for _, part in chunks(pooled):
            off = part - mean  # float64; from the mean, so that nothing is lost to rounding
            product += off.T @ off
        scale = np.sqrt(product.diagonal() / count) + _SCALE_FLOOR
        correlation = product / count / np.outer(scale, scale)
        variance, directions = eigh(correlation, subset_by_index=(width - most, width - 1))
    variance, directions = np.maximum(variance[::-1], 0), directions.T[::-1]
    whole = float(correlation.trace())
    enough = int(np.searchsorted(np.cumsum(variance) / whole, _VARIANCE_KEPT)) + 1
    kept = min(enough, most, max(1, count // 4))
    left = max(0.0, whole - float(variance[:kept].sum())) / width
    return FeatureLimits(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        directions=directions[:kept].astype(np.float32),
        deviations=(np.sqrt(variance[:kept]) + _SCALE_FLOOR).astype(np.float32),
        residual=float(np.sqrt(left)) + _SCALE_FLOOR,
        limit=float("inf"),
    )
