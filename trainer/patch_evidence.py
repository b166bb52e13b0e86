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

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from threadpoolctl import threadpool_limits

from engine.featurizer import SUBLOCATIONS
from trainer.halves import widened
from trainer.stored_rows import entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainer.stored_rows import Rows

_FLOOR = 1e-6
_GRADIENT = 1e-3  # below it the ranking of images it never saw no longer moves
_CURVATURE_ROWS = 1 << 14
_CHUNK_VALUES = 1 << 19  # 2 MiB of float32: stays in a core's cache between the two times it is read


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
        with _Sweep(X, self.fine, np.arange(len(X)) if rows is None else rows) as sweep:
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

    def __init__(self, channels: Rows, fine: int, rows: np.ndarray) -> None:
        self._x = channels
        self._fine = fine
        self._index = rows
        self.channels = channels.shape[2] - (SUBLOCATIONS - 1) * fine
        step = max(1, _CHUNK_VALUES // (channels.shape[1] * channels.shape[2]))
        self._parts = [slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def __enter__(self) -> Self:
        self._limits = threadpool_limits(1, "blas")
        return self

    def __exit__(self, *_: object) -> None:
        self._limits.unregister()
        self._pool.shutdown()

    def evidence(self, weights: np.ndarray) -> np.ndarray:
        """(n,) log mean exp of the locations' scores."""
        spread = self._spread(weights).astype(np.float32)
        return np.concatenate(
            list(self._pool.map(lambda part: _pool_scores(self._rows(part), spread, 1.0)[0], self._parts))
        )

    def pull(
        self, weights: np.ndarray, sharpness: float, slope: Callable[[np.ndarray, slice], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evidence (n,), the slopes (n,) that `slope` gives for it, and sum_i slope_i sum_p share_ip x_ip (c,)."""
        spread = self._spread(weights).astype(np.float32)

        def one(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            x = self._rows(part)
            evidence, share = _pool_scores(x, spread, sharpness)
            slopes = slope(evidence, part)
            share *= slopes[:, None, None].astype(np.float32)
            return evidence, slopes, x.reshape(-1, x.shape[2]).T @ share.reshape(-1, SUBLOCATIONS)

        evidence, slopes, pulls = zip(*self._pool.map(one, self._parts), strict=True)
        total = np.add.reduce(np.stack(pulls), axis=0, dtype=np.float64)
        return np.concatenate(evidence), np.concatenate(slopes), self._gather(total)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (c,) over all locations of all images."""

        def one(part: slice) -> tuple[np.ndarray, np.ndarray]:
            x = self._rows(part).reshape(-1, self._x.shape[2])
            return x.sum(0, dtype=np.float64), np.einsum("ij,ij->j", x, x, dtype=np.float64)

        total, square = (np.sum(parts, axis=0) for parts in zip(*self._pool.map(one, self._parts), strict=True))
        count = len(self._index) * self._x.shape[1]
        mean, mean_square = self._average(total) / count, self._average(square) / count
        return mean, np.sqrt(np.maximum(mean_square - mean**2, 0)) + _FLOOR

    def some_locations(self) -> np.ndarray:
        """(m, c) float64: up to 16,384 cells' first locations, evenly spread over all images and cells."""
        count = len(self._index) * self._x.shape[1]
        image, cell = np.divmod(np.arange(0, count, -(-count // _CURVATURE_ROWS)), self._x.shape[1])
        rows = entries(self._x, self._index[image], cell).astype(np.float64)
        return np.concatenate([rows[:, : self._fine], rows[:, SUBLOCATIONS * self._fine :]], axis=1)

    def _rows(self, part: slice) -> np.ndarray:
        return widened(self._x[self._index[part]])

    def _blocks(self) -> Iterator[slice]:
        """Columns of each location's own channels."""
        for index in range(SUBLOCATIONS):
            yield slice(index * self._fine, (index + 1) * self._fine)

    def _spread(self, weights: np.ndarray) -> np.ndarray:
        """(4 fine + coarse, 4): column j scores location j of a cell."""
        spread = np.zeros((self._x.shape[2], SUBLOCATIONS))
        for index, block in enumerate(self._blocks()):
            spread[block, index] = weights[: self._fine]
        spread[SUBLOCATIONS * self._fine :] = weights[self._fine :, None]
        return spread

    def _gather(self, pull: np.ndarray) -> np.ndarray:
        """The transpose of `_spread`: (c,) of (4 fine + coarse, 4)."""
        fine = np.sum([pull[block, index] for index, block in enumerate(self._blocks())], axis=0)
        return np.concatenate([fine, pull[SUBLOCATIONS * self._fine :].sum(1)])

    def _average(self, columns: np.ndarray) -> np.ndarray:
        """(c,) of sums over cells (4 fine + coarse,): the fine ones averaged over a cell's locations."""
        fine = np.mean([columns[block] for block in self._blocks()], axis=0)
        return np.concatenate([fine, columns[SUBLOCATIONS * self._fine :]])


def _times(basis: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Weights through the basis; the shift stays."""
    return np.append(basis @ theta[:-1], theta[-1])


def _pool_scores(x: np.ndarray, spread: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (n,) float64 of x (n, cells, columns), and each location's share in it (n, cells, 4) float32."""
    scores = (x.reshape(-1, x.shape[2]) @ spread).reshape(len(x), -1) * np.float32(sharpness)
    peak = scores.max(1, keepdims=True)
    share = np.exp(scores - peak)
    mean = share.mean(1, dtype=np.float64)
    share /= (mean * share.shape[1])[:, None].astype(np.float32)
    return (np.log(mean) + peak[:, 0]) / sharpness, share.reshape(len(x), -1, SUBLOCATIONS)
