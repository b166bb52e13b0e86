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

from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin

from trainer.lockstep import minimize_together
from trainer.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.stored_rows import Rows

_FLOOR = 1e-6
_GRADIENT = 1e-3  # below it the ranking of images it never saw no longer moves


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
        fit_together([self], X, y, [np.arange(len(X)) if rows is None else rows])
        return self

    def decision_function(self, X: Rows, *, rows: np.ndarray | None = None) -> np.ndarray:  # noqa: N803 - scikit-learn's names
        """Evidence of all images, or of `rows`, as the serving graph computes it with `weights_` and `bias_`."""
        with Sweep(X, self.fine, np.arange(len(X)) if rows is None else rows, again=False) as sweep:
            evidence: np.ndarray = sweep.evidence(self.weights_) + self.bias_
        return evidence

    def predict(self, X: Rows) -> np.ndarray:  # noqa: N803 - scikit-learn's names
        """True where the evidence speaks for a defect."""
        return self.decision_function(X) > 0


class Objective:
    """Losses and gradients of m models over theta = (standardized weights, shift), each in its own basis.

    Attributes:
        bases: (m, c, c) through which a model's theta becomes its standardized weights.
    """

    def __init__(self, sweep: Sweep, models: Sequence[PatchEvidence], defect: np.ndarray, members: np.ndarray) -> None:
        """Over the sweep's images: defect (n,) bool, and which of them each model is fitted on, members (m, n) bool."""
        self._sweep = sweep
        self._sign = np.where(defect, 1.0, -1.0)
        self._weight = np.zeros(members.shape)
        for label in (False, True):
            own = members & (defect == label)
            self._weight += own * (0.5 / np.maximum(own.sum(1, keepdims=True), 1))
        self._l2 = np.array([model.l2 for model in models])
        self._sharpness = np.array([model.sharpness for model in models], np.float64)
        mean, deviation = sweep.moments(members)
        self._mean, self._deviation = mean, deviation + _FLOOR
        self.bases = np.stack([self._basis(number, own) for number, own in enumerate(members)])

    def __call__(self, which: Sequence[int], theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m,) and (m, c + 1) of the models `which`, ascending, at theta (m, c + 1)."""
        asked = list(which)
        weights, bias = self.unfold(asked, theta)
        weight, sign = self._weight[asked], self._sign

        def slope(evidence: np.ndarray, part: slice) -> np.ndarray:
            margin = sign[part] * (evidence + bias[:, None])
            pushed: np.ndarray = -weight[:, part] * sign[part] * expit(-margin)
            return pushed

        evidence, slopes, pull = self._sweep.pull(weights, self._sharpness[asked], slope)
        standard = weights * self._deviation[asked]
        l2 = self._l2[asked]
        loss = (weight * np.logaddexp(0.0, -sign * (evidence + bias[:, None]))).sum(1)
        loss += 0.5 * l2 * (standard**2).sum(1)
        total = slopes.sum(1)
        gradient = (pull - total[:, None] * self._mean[asked]) / self._deviation[asked] + l2[:, None] * standard
        return loss, np.column_stack([_through(self.bases[asked], gradient), total])

    def unfold(self, which: Sequence[int], theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (m, c) and biases (m,) over the raw channels."""
        asked = list(which)
        weights = _through(self.bases[asked], theta[:, :-1]) / self._deviation[asked]
        return weights, theta[:, -1] - (weights * self._mean[asked]).sum(1)

    def _basis(self, number: int, members: np.ndarray) -> np.ndarray:
        """(c, c), symmetric: (C / 4 + l2)^(-1/2); 1/4 is the logistic loss's largest curvature."""
        locations = (self._sweep.some_locations(members) - self._mean[number]) / self._deviation[number]
        correlation = locations.T @ locations / len(locations)
        values, vectors = np.linalg.eigh(correlation / 4 + self._l2[number] * np.eye(len(correlation)))
        root: np.ndarray = vectors / np.sqrt(np.maximum(values, _FLOOR)) @ vectors.T
        return root


def fit_together(
    models: Sequence[PatchEvidence],
    X: Rows,  # noqa: N803 - scikit-learn's names
    y: np.ndarray,
    rows: Sequence[np.ndarray],
) -> None:
    """Fit several models on X (n, cells, 4 fine + coarse) and y (n,), each on its own rows: see `PatchEvidence.fit`.

    For models whose rows are mostly the same, those of a cross-validation: the channels are read once for all of them.
    Images that a model is not fitted on are computed for it all the same, and count nothing.

    Args:
        models: with the same `fine` and bound on the iterations; l2 and sharpness may differ.
        X: of all images, as `PatchEvidence` takes them.
        y: likewise.
        rows: for each model, which images it is fitted on.
    """
    ((fine,), (most,)) = {model.fine for model in models}, {model.max_iter for model in models}
    together = np.unique(np.concatenate(rows))
    with Sweep(X, fine, together) as sweep:
        members = np.stack([np.isin(together, own) for own in rows])
        objective = Objective(sweep, models, np.asarray(y, bool)[together], members)
        options = {"maxiter": most, "gtol": _GRADIENT}
        start = np.zeros(sweep.channels + 1)
        results = minimize_together(start, objective, count=len(models), options=options)
        weights, bias = objective.unfold(range(len(models)), np.stack([result.x for result in results]))
    for number, (model, result) in enumerate(zip(models, results, strict=True)):
        model.classes_ = np.array([False, True])
        model.n_features_in_ = X.shape[2]
        model.weights_ = weights[number] * model.sharpness
        model.bias_ = float(bias[number]) * model.sharpness
        model.n_iter_ = int(result.nit)


def _through(bases: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(m, c) each vector through its own basis."""
    return np.stack([basis @ vector for basis, vector in zip(bases, vectors, strict=True)])
