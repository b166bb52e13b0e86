"""Good parts' patch features as one Gaussian over all locations, and how far images lie from it.

Summed up chunk by chunk: memory does not grow with the number of images, and since sums can be taken away again, the
Gaussian without a fold is all less that fold. Chunks are fixed and added in order, so that the number of threads
changes no bit. One Gaussian for all locations, not one for each: parts need not lie in the same place.

Where there are as many defects to judge by as `pcb` has, a nearest-neighbour search over stored patches ranks no better
and needs the patches in the bundle.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from engine.featurizer import SUBLOCATIONS
from engine.patch_distance import PatchDistance
from engine.streams import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RIDGE = 0.01
"""Share of the covariance that is replaced by its diagonal. From .0003 to .01 AUROC on `pcb` and on the rendered line
moves by .004 at most, with 10, with 40 and with hundreds of images; .1 costs .01 to .03. The largest of these, since no
direction is then stretched more than tenfold, and with it what fp16 and bfloat16 round off. Not fitted to the number
of locations (Ledoit and Wolf 2004): those of one image are not independent."""

SHARPNESS = 32.0
"""Of the smooth maximum over locations. From 16 on AUROC stays within .007 of that of the maximum itself on `pcb` and
on the rendered line; at 8 it lost .03 on `pcb`. The sharper, the less a good part's own hottest location glows on a
heatmap: there a location is shown as if all were like it."""

_FLOOR = 1e-6
_Made = TypeVar("_Made")
_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over locations of c channels, the fine ones first.

    Attributes:
        count: of locations.
        total, square: (c,) and (c, c) float64 sums of x and of x x'.
    """

    count: int
    total: np.ndarray
    square: np.ndarray

    def __add__(self, other: Self) -> Moments:
        """Of both."""
        return Moments(self.count + other.count, self.total + other.total, self.square + other.square)

    def __sub__(self, other: Self) -> Moments:
        """Of what `other` does not hold."""
        return Moments(self.count - other.count, self.total - other.total, self.square - other.square)

    def distance(self, fine: int, ridge: float = RIDGE) -> PatchDistance:
        """The distance from these locations. Raises GraphError where they have no usable covariance."""
        mean = self.total / self.count
        covariance = self.square / self.count - np.outer(mean, mean)
        variance = np.maximum(covariance.diagonal(), 0.0)
        # A channel that never moved has no scale of its own; the floor keeps it finite.
        floor = _FLOOR * max(float(variance.mean()), _FLOOR)
        shrunk = (1 - ridge) * covariance + np.diag(ridge * variance + floor)
        with threadpool_limits(1, "blas"):
            return PatchDistance.of(mean, shrunk, fine)


def moments(channels: Any, fine: int, rows: np.ndarray) -> Moments:
    """Of all locations of some images.

    Args:
        channels: (n, cells, 4 fine + coarse), an array or what is read like one; see `build_training_graph`.
        fine: channels that each location has of its own.
        rows: (m,) of the images, at least one.
    """
    total, *rest = _over(channels, rows, lambda cells: _chunk_moments(cells, fine))
    for part in rest:
        total = total + part
    return total


def evidence(channels: Any, rows: np.ndarray, distance: PatchDistance, sharpness: float = SHARPNESS) -> np.ndarray:
    """(m,) float64 log mean exp over locations of sharpness x distance: what the serving graph gives with that weight.

    Args:
        channels: as for `moments`.
        rows: (m,) of the images.
        distance: from good parts.
        sharpness: divides into units of distance: evidence / sharpness is nearly the largest.
    """

    def one(cells: np.ndarray) -> np.ndarray:
        scores = distance(cells).reshape(len(cells), -1).astype(np.float64) * sharpness
        peak = scores.max(1)
        pooled: np.ndarray = np.log(np.exp(scores - peak[:, None]).mean(1)) + peak
        return pooled

    return np.concatenate([np.empty(0), *_over(channels, rows, one)])


def _over(channels: Any, rows: np.ndarray, one: Callable[[np.ndarray], _Made]) -> list[_Made]:
    """What `one` makes of each chunk of images, in order; one thread a core, no more inside it."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(lambda part: one(np.asarray(channels[rows[part]])), _chunks(channels, len(rows))))


def _chunks(channels: Any, count: int) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // (channels.shape[1] * channels.shape[2]))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _chunk_moments(cells: np.ndarray, fine: int) -> Moments:
    """Shared channels count for each of a cell's locations: multiplied, not repeated."""
    flat = cells.reshape(-1, cells.shape[2]).astype(np.float64)
    own, shared = flat[:, : SUBLOCATIONS * fine].reshape(len(flat), SUBLOCATIONS, fine), flat[:, SUBLOCATIONS * fine :]
    spread = own.sum(1)
    single = own.reshape(-1, fine)
    mixed = spread.T @ shared
    square = np.block([[single.T @ single, mixed], [mixed.T, SUBLOCATIONS * (shared.T @ shared)]])
    total = np.concatenate([spread.sum(0), SUBLOCATIONS * shared.sum(0)])
    return Moments(SUBLOCATIONS * len(flat), total, square)
