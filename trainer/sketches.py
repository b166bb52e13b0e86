"""Location features of an image in a few hundred numbers that keep their distances, for comparing every two images.

Random signs and folding: the squared distance of two sketches is, on average over the signs, that of the features
(Charikar, Chen and Farach-Colton 2004, the count sketch), here to within about 6 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.stored_rows import Rows

LENGTH = 509
"""A prime: channels repeat from cell to cell, and must not fall on the same number each time."""

_MEASURED = 512
_CHUNK_VALUES = 1 << 23
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Sketches:
    """Of n images.

    Attributes:
        vectors: (n, 509) float32.
        detail: (n,) how much the features change from one cell to the next, as a length in the same measure: what a
            small displacement changes is a share of it.
    """

    vectors: NDArray[np.float32]
    detail: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sketcher:
    """Channels' mean and deviation (c,) float32: they are standardized, so that none drowns the others."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, channels: Rows) -> Self:
        """Measured on up to 512 images of channels (n, cells, c), evenly spread."""
        rows = np.arange(0, len(channels), max(1, -(-len(channels) // _MEASURED)))
        total, square, count = np.zeros(channels.shape[2]), np.zeros(channels.shape[2]), 0
        chunk = _chunk(channels)
        for start in range(0, len(rows), chunk):
            x = np.asarray(channels[rows[start : start + chunk]], np.float64).reshape(-1, channels.shape[2])
            total, square, count = total + x.sum(0), square + (x * x).sum(0), count + len(x)
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 0)) + _FLOOR
        return cls(mean.astype(np.float32), deviation.astype(np.float32))

    def sketch(self, channels: Rows) -> Sketches:
        """Of channels (n, cells, c), which may be on the disk; one chunk of images at a time."""
        count, cells, width = channels.shape
        signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), cells * width)
        vectors, detail = np.empty((count, LENGTH), np.float32), np.empty(count)
        chunk = _chunk(channels)
        padded = np.zeros((chunk, -(-cells * width // LENGTH) * LENGTH), np.float32)
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            x = (np.asarray(channels[np.arange(part.start, part.stop)], np.float32) - self.mean) / self.deviation
            steps = np.square(np.diff(x, axis=1)).sum((1, 2), dtype=np.float64)
            detail[part] = np.sqrt(steps)
            padded[: len(x), : cells * width] = x.reshape(len(x), -1) * signs
            vectors[part] = padded[: len(x)].reshape(len(x), -1, LENGTH).sum(1)
        return Sketches(vectors, detail)


def _chunk(channels: Rows) -> int:
    """Images that are looked at together: some 32 MiB of them."""
    return max(1, _CHUNK_VALUES // (channels.shape[1] * channels.shape[2]))
