"""A large scene in tiles of one size: the scene cut up, and the tiles' features put together as the scene's own.

A tile is padded at its own edges, so near a seam its features are not those of the whole scene. Training and serving
therefore cut and join with the same functions. Everything here is arithmetic on what the tiles gave: mean, deviation
and log-mean-exp over tiles of equal size are those over all their locations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.backend import Features

if TYPE_CHECKING:
    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec


def split(images: np.ndarray, image: ImageSpec) -> np.ndarray:
    """The images as the graph takes them: each one's tiles row by row, one image after the other.

    Args:
        images: uint8 (n, height_px, width_px, 3) as `image` has them.
        image: says how they are cut.

    Returns:
        uint8 (n * tiles, h, w, 3), C-contiguous where they are cut; the images themselves where they are not.
    """
    if image.tile_px is None:
        return images
    rows, columns = image.tiles
    width_px, height_px = image.tile_px
    cut = images.reshape(len(images), rows, height_px, columns, width_px, 3).swapaxes(2, 3)
    return np.ascontiguousarray(cut).reshape(-1, height_px, width_px, 3)


def join(features: Features, image: ImageSpec, featurizer: FeaturizerSpec) -> Features:
    """Features of tiles, in the order of `split`, as features of whole images; new arrays where they are cut.

    An image's numbers depend on its own tiles alone, a head's on its own column alone, to the last bit.
    """
    if image.tile_px is None:
        return features
    rows, columns = image.tiles
    locations = features.locations
    if locations is not None:
        _, height, width, heads = locations.shape
        cut = locations.reshape(-1, rows, columns, height, width, heads).swapaxes(2, 3)
        locations = np.ascontiguousarray(cut).reshape(-1, rows * height, columns * width, heads)
    return Features(
        _join_evidence(features.evidence, rows * columns), join_pooled(features.pooled, image, featurizer), locations
    )


def join_pooled(pooled: np.ndarray, image: ImageSpec, featurizer: FeaturizerSpec) -> np.ndarray:
    """Pooled vectors of tiles as those of whole images.

    Of each tap the mean of the means, the largest maximum, and the deviation over all locations: the variance within
    the tiles plus that of their means. The embedding is a mean and so averaged.

    Args:
        pooled: (n * tiles, d) float32, in the order of `split`.
        image: says how many tiles an image has.
        featurizer: says where in the vector each tap lies.

    Returns:
        (n, d) float32.
    """
    if image.tile_px is None:
        return pooled
    rows, columns = image.tiles
    parts = pooled.astype(np.float64).reshape(-1, rows * columns, pooled.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number stays none, as out of a backend
        joined = parts.mean(axis=1)
        start = 0
        for block in featurizer.tapped:
            mean, peak, deviation = (
                slice(start + place * block.channels_out, start + (place + 1) * block.channels_out)
                for place in range(3)
            )
            joined[:, peak] = parts[:, :, peak].max(axis=1)
            between = np.square(parts[:, :, mean] - joined[:, None, mean]).mean(axis=1)
            joined[:, deviation] = np.sqrt(np.square(parts[:, :, deviation]).mean(axis=1) + between)
            start = deviation.stop
        vectors: np.ndarray = joined.astype(np.float32)
    return vectors


def _join_evidence(evidence: np.ndarray, tiles: int) -> np.ndarray:
    """(n * tiles, k) -> (n, k): log-mean-exp over tiles, each of which is one over equally many locations."""
    parts = evidence.astype(np.float64).reshape(-1, tiles, evidence.shape[1])
    # One pair after the other: a plain sum takes another order, and so other last bits, where there is a single head.
    total: np.ndarray = np.logaddexp.reduce(parts, axis=1) - np.log(tiles)
    return total.astype(np.float32)
