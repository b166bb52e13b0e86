"""What the training images say of the images to come: how flat, how soft, how far away is too far."""

from __future__ import annotations

import numpy as np

from engine.familiarity import FeatureLimits, PixelLimits

PIXEL_SHARE = 0.25
"""Below this share of the flattest (softest) training image's contrast (detail) an image shows no part."""

DISTANCE_FACTOR = 1.5
"""An image further away than this times the furthest held-back training images is not of this line."""

_VARIANCE_KEPT = 0.9
_MOST_DIRECTIONS = 64
_MOST_ROWS = 4000


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


def feature_limits(pooled: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> FeatureLimits:
    """Limits from (n, d) pooled vectors; the distance to allow is measured on groups held back, fold by fold."""
    return limits_of(pooled, np.concatenate(held_back_distances(pooled, folds)))


def held_back_distances(pooled: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Of each fold: the distances of what is held back, in its order, from all else."""
    return [
        np.array([limits.distance(row) for row in pooled[held]])
        for fit, held in folds
        for limits in [_ellipsoid(pooled[fit])]
    ]


def limits_of(pooled: np.ndarray, distances: np.ndarray) -> FeatureLimits:
    """Limits from (n, d) pooled vectors and the distances of those that were held back."""
    limit = DISTANCE_FACTOR * float(np.percentile(distances, 99.5))
    whole = _ellipsoid(pooled)
    return FeatureLimits(whole.mean, whole.scale, whole.directions, whole.deviations, whole.residual, limit)


def _ellipsoid(pooled: np.ndarray) -> FeatureLimits:
    pooled = pooled[:: -(-len(pooled) // _MOST_ROWS)]  # the cost grows with the square, the ellipsoid hardly changes
    mean = pooled.mean(0, dtype=np.float64)
    scale = pooled.std(0, dtype=np.float64) + 1e-3
    z = (pooled - mean) / scale
    _, singular, directions = np.linalg.svd(z, full_matrices=False)
    variance = singular**2
    enough = int(np.searchsorted(np.cumsum(variance) / variance.sum(), _VARIANCE_KEPT)) + 1
    count = min(enough, _MOST_DIRECTIONS, max(1, len(pooled) // 4))
    directions = directions[:count]
    residual = z - (z @ directions.T) @ directions
    return FeatureLimits(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        directions=directions.astype(np.float32),
        deviations=(singular[:count] / np.sqrt(len(pooled)) + 1e-3).astype(np.float32),
        residual=float(np.sqrt(np.mean(np.square(residual)))) + 1e-3,
        limit=float("inf"),
    )
