"""Patch evidence: one weight vector scores every location, and one bad spot is enough, wherever it lies.

With x_p the channels at location p, standardized by the training locations' mean and deviation, the evidence is
e = (1/r) log mean_p exp(r w.x_p) + b, a smooth maximum. Fitting minimizes
mean_i s_i log(1 + exp(-t_i e_i)) + (l2/2) |w|^2 with t = +1 for a defect and -1 for a good part, and s weighing both
classes the same. Mean and deviation are folded into w and b afterwards: the fitted arrays apply to the raw channels.

Neighbouring channels of a network say much the same, so the loss is a narrow valley in w. L-BFGS walks in
w = (C / 4 + l2)^(-1/2) v instead, C the channels' correlation over locations: about the loss's own curvature where it
starts, and a third of the iterations.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from threadpoolctl import threadpool_limits

from engine.featurizer import SUBLOCATIONS
from engine.streams import cores
from trainer.halves import widened
from trainer.stored_rows import entries

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.stored_rows import Rows

Answer = TypeVar("Answer")

_FLOOR = 1e-6
_GRADIENT = 1e-3  # below it the ranking of images it never saw no longer moves
_CURVATURE_ROWS = 1 << 12
_RUNS_A_THREAD = 4
_KEPT_VALUES = 1 << 25  # 128 MiB of float32
_CHUNK_VALUES = 1 << 18  # 1 MiB of float32: stays in a core's cache between the times it is read


class PatchEvidence(ClassifierMixin, BaseEstimator):
    """scikit-learn classifier on channels in the training graph's layout (see `engine.backbone.build_training_graph`).

    Rows are cells of four locations: X is (n, cells, 4 fine + coarse), float16 or float32; each location has `fine`
    channels of its own and shares the cell's coarse ones. y is (n,), true for a defect.

    Attributes after `fit`:
        weights_: (fine + coarse,) float64, already multiplied by the sharpness r.
        bias_: float, likewise: (log mean_p exp(weights_.x_p) + bias_) / r is the evidence.
        n_iter_: iterations of L-BFGS.
    """

    def __init__(self, fine: int = 0, l2: float = 0.03, sharpness: float = 1.0, max_iter: int = 50) -> None:
        """Channels per location, regularisation, sharpness r of the smooth maximum, bound on the iterations."""
        self.fine = fine
        self.l2 = l2
        self.sharpness = sharpness
        self.max_iter = max_iter

    def fit(self, X: Rows, y: np.ndarray, *, rows: np.ndarray | None = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Fit on all images, or on `rows` (m,) of them without copying them out of X; deterministic."""
        rows = np.arange(len(X)) if rows is None else rows
        defect = np.asarray(y, bool)[rows]
        self.classes_ = np.array([False, True])
        self.n_features_in_ = X.shape[2]
        with _Sweep(X, self.fine, rows) as sweep:
            objective = _Objective(sweep, defect, self.l2, self.sharpness)
            basis = objective.basis()

            def in_basis(theta: np.ndarray) -> tuple[float, np.ndarray]:
                loss, gradient = objective(_times(basis, theta))
                return loss, _times(basis, gradient)

            options = {"maxiter": self.max_iter, "gtol": _GRADIENT}
            start = np.zeros(sweep.channels + 1)
            result = minimize(in_basis, start, jac=True, method="L-BFGS-B", options=options)
        weights, bias = objective.unfold(_times(basis, result.x))
        self.weights_ = weights * self.sharpness
        self.bias_ = bias * self.sharpness
        self.n_iter_ = int(result.nit)
        return self

    def decision_function(self, X: Rows, *, rows: np.ndarray | None = None) -> np.ndarray:  # noqa: N803 - scikit-learn's names
        """Evidence of all images, or of `rows`, as the serving graph computes it with `weights_` and `bias_`."""
        with _Sweep(X, self.fine, np.arange(len(X)) if rows is None else rows, again=False) as sweep:
            evidence: np.ndarray = sweep.evidence(self.weights_) + self.bias_
        return evidence

    def predict(self, X: Rows) -> np.ndarray:  # noqa: N803 - scikit-learn's names
        """True where the evidence speaks for a defect."""
        return self.decision_function(X) > 0


class _Objective:
    """Loss and gradient over theta = (standardized weights, shift)."""

    def __init__(self, sweep: _Sweep, defect: np.ndarray, l2: float, sharpness: float) -> None:
        self._sweep = sweep
        self._sign = np.where(defect, 1.0, -1.0)
        self._weight = np.where(defect, 0.5 / max(defect.sum(), 1), 0.5 / max((~defect).sum(), 1))
        self._l2 = l2
        self._sharpness = sharpness
        self._mean, self._deviation = sweep.moments()

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = self.unfold(theta)

        def slope(evidence: np.ndarray, part: slice) -> np.ndarray:
            margin = self._sign[part] * (evidence + bias)
            pushed: np.ndarray = -self._weight[part] * self._sign[part] * expit(-margin)
            return pushed

        evidence, slopes, pull = self._sweep.pull(weights, self._sharpness, slope)
        loss = float(self._weight @ np.logaddexp(0.0, -self._sign * (evidence + bias)))
        gradient = np.empty_like(theta)
        gradient[:-1] = (pull - slopes.sum() * self._mean) / self._deviation + self._l2 * theta[:-1]
        gradient[-1] = slopes.sum()
        return loss + 0.5 * self._l2 * float(theta[:-1] @ theta[:-1]), gradient

    def basis(self) -> np.ndarray:
        """(c, c), symmetric: (C / 4 + l2)^(-1/2); 1/4 is the logistic loss's largest curvature."""
        locations = (self._sweep.some_locations() - self._mean) / self._deviation
        correlation = locations.T @ locations / len(locations)
        values, vectors = np.linalg.eigh(correlation / 4 + self._l2 * np.eye(len(correlation)))
        root: np.ndarray = vectors / np.sqrt(np.maximum(values, _FLOOR)) @ vectors.T
        return root

    def unfold(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """Weights and bias over the raw channels."""
        weights = theta[:-1] / self._deviation
        return weights, float(theta[-1] - weights @ self._mean)


class _Sweep:
    """Walks over the channels once per call, chunk by chunk, one thread a core.

    The channels are far larger than the caches, so reading them is what costs: an image's evidence, its slope and its
    pull on the weights are all computed while its chunk is there. Chunks are fixed and their sums are added in order:
    the result does not depend on the number of threads.
    """

    def __init__(self, channels: Rows, fine: int, rows: np.ndarray, *, again: bool = True) -> None:
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
        self._limits = threadpool_limits(1, "blas")
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        self._limits.unregister()
        self._pool.shutdown()

    def evidence(self, weights: np.ndarray) -> np.ndarray:
        """(n,) log mean exp of the locations' scores."""
        own = weights.astype(np.float32)
        return np.concatenate(self._walk(lambda part: _pool_scores(self._cells(part), own, 1.0)[0]))

    def pull(
        self, weights: np.ndarray, sharpness: float, slope: Callable[[np.ndarray, slice], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evidence (n,), the slopes (n,) that `slope` gives for it, and sum_i slope_i sum_p share_ip x_ip (c,)."""
        own = weights.astype(np.float32)

        def one(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            cells = self._cells(part)
            evidence, share = _pool_scores(cells, own, sharpness)
            slopes = slope(evidence, part)
            share *= slopes[:, None].astype(np.float32)
            return evidence, slopes, cells.pull(share)

        evidence, slopes, pulls = zip(*self._walk(one), strict=True)
        total = np.add.reduce(np.stack(pulls), axis=0, dtype=np.float64)
        return np.concatenate(evidence), np.concatenate(slopes), total

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (c,) over all locations of all images."""

        def one(part: slice) -> tuple[np.ndarray, np.ndarray]:
            cells = self._cells(part)
            both = cells.fine, cells.coarse
            total = [x.sum(0, dtype=np.float64) / len(x) for x in both]
            square = [np.einsum("ij,ij->j", x, x, dtype=np.float64) / len(x) for x in both]
            weight = part.stop - part.start
            return np.concatenate(total) * weight, np.concatenate(square) * weight

        total, square = (np.sum(parts, axis=0) for parts in zip(*self._walk(one), strict=True))
        mean, mean_square = total / len(self._index), square / len(self._index)
        return mean, np.sqrt(np.maximum(mean_square - mean**2, 0)) + _FLOOR

    def some_locations(self) -> np.ndarray:
        """(m, c) float64: up to 16,384 cells' first locations, evenly spread over all images and cells."""
        count = len(self._index) * self._x.shape[1]
        image, cell = np.divmod(np.arange(0, count, -(-count // _CURVATURE_ROWS)), self._x.shape[1])
        rows = entries(self._x, self._index[image], cell).astype(np.float64)
        return np.concatenate([rows[:, : self._fine], rows[:, SUBLOCATIONS * self._fine :]], axis=1)

    def _walk(self, visit: Callable[[slice], Answer]) -> list[Answer]:
        """What `visit` says of each chunk, in their order; a thread is handed a run of them, not one at a time."""

        def along(run: range) -> list[Answer]:
            return [visit(self._parts[number]) for number in run]

        bounds = np.linspace(0, len(self._parts), min(len(self._parts), _RUNS_A_THREAD * self._threads) + 1).astype(int)
        runs = [range(start, stop) for start, stop in pairwise(bounds.tolist())]
        return [answer for answers in self._pool.map(along, runs) for answer in answers]

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
        """(images, locations) of weights (fine + coarse,)."""
        own = self.fine.shape[1]
        scores = (self.fine @ weights[:own]).reshape(-1, SUBLOCATIONS)
        scores += (self.coarse @ weights[own:])[:, None]
        by_image: np.ndarray = scores.reshape(self.images, -1)
        return by_image

    def pull(self, share: np.ndarray) -> np.ndarray:
        """(fine + coarse,) the transpose of `scores`: the locations' sum, weighed by share (images, locations)."""
        shared = share.reshape(-1, SUBLOCATIONS).sum(1)
        pulled: np.ndarray = np.concatenate([share.reshape(-1) @ self.fine, shared @ self.coarse])
        return pulled


def _times(basis: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Weights through the basis; the shift stays."""
    return np.append(basis @ theta[:-1], theta[-1])


def _pool_scores(cells: _Cells, weights: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (n,) float64 of n images, and each location's share in it (n, locations) float32."""
    scores = cells.scores(weights) * np.float32(sharpness)
    peak = scores.max(1, keepdims=True)
    share = np.exp(scores - peak)
    mean = share.mean(1, dtype=np.float64)
    share /= (mean * share.shape[1])[:, None].astype(np.float32)
    return (np.log(mean) + peak[:, 0]) / sharpness, share
