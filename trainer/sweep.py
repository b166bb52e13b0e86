"""Walks over the channels of many images: scores under several weight vectors, their smooth maximum, and its pull.

The channels are far larger than the caches, so reading them is what costs: an image's evidence, its slope and its pull
on the weights are all computed while its chunk is there, and for all models that are fitted at once. Chunks are fixed
and their sums are added in order: the result does not depend on the number of threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from engine.featurizer import SUBLOCATIONS
from engine.streams import cores
from trainer.halves import widened
from trainer.stored_rows import entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainer.stored_rows import Rows

Answer = TypeVar("Answer")

_RUNS_A_THREAD = 4
_SOME = 1 << 12
_KEPT_VALUES = 1 << 25  # 128 MiB of float32
_CHUNK_VALUES = 1 << 18  # 1 MiB of float32: stays in a core's cache between the times it is read


class Sweep:
    """Some images' channels, walked over once per call, chunk by chunk, one thread a core."""

    def __init__(self, channels: Rows, fine: int, rows: np.ndarray, *, again: bool = True) -> None:
        """Of the images `rows` (n,), in their order; `again` keeps what fits in memory for the next walk."""
        self._x = channels
        self._fine = fine
        self._index = rows
        self.channels = channels.shape[2] - (SUBLOCATIONS - 1) * fine
        step = max(1, _CHUNK_VALUES // (channels.shape[1] * channels.shape[2]))
        self._parts = [slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]
        # What is walked over again and again is widened once, as far as that is no burden on any machine.
        most = _KEPT_VALUES // max(1, channels.shape[1] * channels.shape[2]) if again else 0
        self._kept: dict[int, _Cells | None] = {part.start: None for part in self._parts if part.stop <= most}
        self._threads = cores()
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> Self:
        """Until it ends, BLAS works in the thread that calls it: the cores are taken."""
        self._limits = threadpool_limits(1, "blas")
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what was kept, and the threads."""
        self._kept.clear()
        self._limits.unregister()
        self._pool.shutdown()

    def evidence(self, weights: np.ndarray) -> np.ndarray:
        """(n,) log mean exp of the locations' scores under weights (c,)."""
        own = weights[None].astype(np.float32)

        def one(part: slice) -> np.ndarray:
            peak, _, mean = _pool_scores(self._cells(part), own)
            evidence: np.ndarray = (np.log(mean) + peak)[0]
            return evidence

        return np.concatenate(list(self._walk(one)))

    def pull(
        self, weights: np.ndarray, sharpness: np.ndarray, slope: Callable[[np.ndarray, slice], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of m models with weights (m, c) and sharpness (m,) of the smooth maximum.

        Returns:
            Evidence (m, n); the slopes (m, n) that `slope` gives for the evidence (m, i) of a slice of i images; and
            sum_i slope_i sum_p share_ip x_ip (m, c). An image whose slope is 0 pulls nowhere.
        """
        own = (weights * sharpness[:, None]).astype(np.float32)

        def one(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            cells = self._cells(part)
            peak, share, mean = _pool_scores(cells, own)
            evidence = (np.log(mean) + peak) / sharpness[:, None]
            slopes = slope(evidence, part)
            share *= (slopes / (mean * share.shape[2]))[..., None].astype(np.float32)
            return evidence, slopes, cells.pull(share)

        evidence, slopes, total = [], [], np.zeros((len(weights), self.channels))
        for own_evidence, own_slopes, pulled in self._walk(one):
            evidence.append(own_evidence)
            slopes.append(own_slopes)
            total += pulled  # at once: those of many chunks and models are large
        return np.concatenate(evidence, axis=1), np.concatenate(slopes, axis=1), total

    def moments(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (m, c) over all locations of each model's images, members (m, n) bool."""
        weight = members / np.maximum(members.sum(1, keepdims=True), 1)

        def one(part: slice) -> tuple[np.ndarray, np.ndarray]:
            cells = self._cells(part)
            both = [x.reshape(cells.images, len(x) // cells.images, x.shape[1]) for x in (cells.fine, cells.coarse)]
            mean = np.concatenate([x.mean(1, dtype=np.float64) for x in both], axis=1)
            square = [np.einsum("npc,npc->nc", x, x, dtype=np.float64) / x.shape[1] for x in both]
            return weight[:, part] @ mean, weight[:, part] @ np.concatenate(square, axis=1)

        mean, mean_square = np.zeros((2, len(members), self.channels))
        for own_mean, own_square in self._walk(one):
            mean += own_mean  # at once, as pulls are
            mean_square += own_square
        return mean, np.sqrt(np.maximum(mean_square - mean**2, 0))

    def some_locations(self, members: np.ndarray) -> np.ndarray:
        """(k, c) float64: some cells' first locations, evenly spread over the images `members` (n,) bool."""
        rows = self._index[members]
        count = len(rows) * self._x.shape[1]
        image, cell = np.divmod(np.arange(0, count, -(-count // _SOME)), self._x.shape[1])
        values = entries(self._x, rows[image], cell).astype(np.float64)
        return np.concatenate([values[:, : self._fine], values[:, SUBLOCATIONS * self._fine :]], axis=1)

    def _walk(self, visit: Callable[[slice], Answer]) -> Iterator[Answer]:
        """What `visit` says of each chunk, in their order; a thread is handed a run of them, not one at a time."""

        def along(run: range) -> list[Answer]:
            return [visit(self._parts[number]) for number in run]

        bounds = np.linspace(0, len(self._parts), min(len(self._parts), _RUNS_A_THREAD * self._threads) + 1).astype(int)
        runs = [range(start, stop) for start, stop in pairwise(bounds.tolist())]
        for answers in self._pool.map(along, runs):
            yield from answers

    def _cells(self, part: slice) -> _Cells:
        cells = self._kept.get(part.start)
        if cells is None:
            cells = self._read(part)
            if part.start in self._kept:
                self._kept[part.start] = cells  # no other thread visits this part meanwhile
        return cells

    def _read(self, part: slice) -> _Cells:
        x = self._x[self._index[part]]
        flat, cut = x.reshape(-1, x.shape[2]), SUBLOCATIONS * self._fine
        return _Cells(len(x), widened(flat[:, :cut]).reshape(-1, self._fine), widened(flat[:, cut:]))


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """The channels of some images, those that locations have of their own apart from those that a cell's four share.

    Apart, a score is a vector's product with each: a quarter of the work of a product with four columns that are mostly
    zeros or the same.

    Attributes:
        images: how many.
        fine: (images * cells * 4, fine) float32.
        coarse: (images * cells, coarse) float32.
    """

    images: int
    fine: np.ndarray
    coarse: np.ndarray

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """(m, images, locations) of weights (m, fine + coarse)."""
        own = self.fine.shape[1]
        scores = _products(self.fine, weights[:, :own]).reshape(len(weights), -1, SUBLOCATIONS)
        scores += _products(self.coarse, weights[:, own:])[..., None]
        by_image: np.ndarray = scores.reshape(len(weights), self.images, -1)
        return by_image

    def pull(self, share: np.ndarray) -> np.ndarray:
        """(m, fine + coarse) the transpose of `scores`: locations' sums, weighed by share (m, images, locations)."""
        fours = share.reshape(len(share), -1, SUBLOCATIONS)
        # One by one: numpy's sum over so short an axis takes as long as a product.
        shared = reduce(np.add, (fours[..., sub] for sub in range(SUBLOCATIONS)))
        pulled: np.ndarray = np.concatenate([share.reshape(len(share), -1) @ self.fine, shared @ self.coarse], axis=1)
        return pulled


def _products(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(m, p) of channels (p, c) and weights (m, c). In this order the product is twice as fast as in the other."""
    return np.ascontiguousarray((x @ weights.T).T)


def _pool_scores(cells: _Cells, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of locations' scores: their peak (m, n), exp(score - peak) (m, n, locations) float32, its mean (m, n) float64."""
    scores = cells.scores(weights)
    peak = scores.max(2)
    scores -= peak[..., None]
    share: np.ndarray = np.exp(scores, out=scores)
    return peak, share, share.mean(2, dtype=np.float64)
