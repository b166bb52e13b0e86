"""scikit-learn estimators over the frozen featurizer: patch evidence, pooled, and both stacked.

Patch evidence scores every location with one weight vector and pools the scores by log-mean-exp, a smooth maximum:
one bad spot is enough, wherever it lies. Pooled logistic regression sees the whole part at once, which suits large
diffuse faults. Which of the two carries a line's defects is learned from the user's own images, out of fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.heads import Calibration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FLOOR = 1e-6


class PatchEvidence(ClassifierMixin, BaseEstimator):
    """One weight vector scores every location; log-mean-exp over locations; L2-regularised logistic loss.

    With x_p the channels at location p, standardized by the training locations' mean and deviation, the evidence is
    e = (1/r) log mean_p exp(r w.x_p) + b, and fitting minimizes mean_i s_i log(1 + exp(-t_i e_i)) + (l2/2) |w|^2 with
    t = +1 for a defect, -1 for a good part, and s weighing both classes the same. Mean and deviation are folded into
    w and b afterwards, so that the fitted arrays apply to the raw channels.

    Attributes after `fit`:
        weights_: (c,) float64, already multiplied by the sharpness r.
        bias_: float, likewise: log mean_p exp(weights_.x_p + bias_) / r is the evidence.
        n_iter_: iterations of L-BFGS.
    """

    def __init__(self, l2: float = 0.01, sharpness: float = 2.0, max_iter: int = 150) -> None:
        """Regularisation `l2`, sharpness `r` of the smooth maximum, bound on the iterations."""
        self.l2 = l2
        self.sharpness = sharpness
        self.max_iter = max_iter

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803 - scikit-learn's names
        """Fit on channels (n, locations, c), float16 or float32, and labels (n,), true for a defect."""
        c = X.shape[2]
        defect = np.asarray(y, bool)
        self.classes_ = np.array([False, True])
        mean, deviation = _moments(X)
        sign = np.where(defect, 1.0, -1.0)
        sample_weight = np.where(defect, 0.5 / max(defect.sum(), 1), 0.5 / max((~defect).sum(), 1))

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            # Standardizing is folded into the weights here too: the features are read twice a step and never copied.
            w = theta[:c] / deviation
            shift = theta[c] - float(w @ mean)
            evidence, share_weighted = _evidence_and_pull(X, w, self.sharpness)
            margin = sign * (evidence + shift)
            loss = float(sample_weight @ np.logaddexp(0.0, -margin)) + 0.5 * self.l2 * float(theta[:c] @ theta[:c])
            slope = -sample_weight * sign * expit(-margin)
            pull = share_weighted(slope)
            gradient = np.empty_like(theta)
            gradient[:c] = (pull - slope.sum() * mean) / deviation + self.l2 * theta[:c]
            gradient[c] = slope.sum()
            return loss, gradient

        result = minimize(
            objective, np.zeros(c + 1), jac=True, method="L-BFGS-B", options={"maxiter": self.max_iter, "gtol": 1e-4}
        )
        weights = result.x[:c] / deviation
        self.weights_ = weights * self.sharpness
        self.bias_ = float(result.x[c] - weights @ mean) * self.sharpness
        self.n_iter_ = int(result.nit)
        self.n_features_in_ = c
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803 - scikit-learn's names
        """Evidence (n,) of channels (n, locations, c), as the serving graph computes it with these weights."""
        evidence, _ = _evidence_and_pull(X, self.weights_, 1.0)
        return evidence + self.bias_

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803 - scikit-learn's names
        """True where the evidence speaks for a defect."""
        return self.decision_function(X) > 0


_CHUNK_VALUES = 1 << 22  # 16 MiB of float32: small enough to stay in cache between the two reads


def _chunks(X: np.ndarray) -> list[slice]:  # noqa: N803 - scikit-learn's names
    step = max(1, _CHUNK_VALUES // (X.shape[1] * X.shape[2]))
    return [slice(start, start + step) for start in range(0, len(X), step)]


def _moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803 - scikit-learn's names
    """Mean and deviation (c,) float64 over all locations of all images."""
    total, square, count = np.zeros(X.shape[2]), np.zeros(X.shape[2]), X.shape[0] * X.shape[1]
    for part in _chunks(X):
        x = X[part].reshape(-1, X.shape[2]).astype(np.float32)
        total += x.sum(0, dtype=np.float64)
        square += np.einsum("ij,ij->j", x, x, dtype=np.float64)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - mean**2, 0)) + _FLOOR


def _evidence_and_pull(  # scikit-learn's names
    X: np.ndarray,  # noqa: N803
    w: np.ndarray,
    r: float,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Evidence (n,) without bias, and a function from slopes (n,) to sum_i slope_i sum_p share_ip x_ip (c,)."""
    w32 = w.astype(np.float32)
    evidence = np.empty(len(X))
    share = np.empty(X.shape[:2], np.float32)
    for part in _chunks(X):
        x = X[part].astype(np.float32, copy=False)
        scores = r * (x.reshape(-1, x.shape[2]) @ w32).reshape(x.shape[:2])
        peak = scores.max(1, keepdims=True)
        power = np.exp(scores - peak)
        mean = power.mean(1, dtype=np.float64)
        evidence[part] = (np.log(mean) + peak[:, 0]) / r
        share[part] = power / (mean[:, None] * X.shape[1])

    def pull(slope: np.ndarray) -> np.ndarray:
        total = np.zeros(X.shape[2])
        for part in _chunks(X):
            x = X[part].astype(np.float32, copy=False)
            weight = share[part] * slope[part, None].astype(np.float32)
            total += weight.reshape(-1) @ x.reshape(-1, x.shape[2])
        return total

    return evidence, pull


POOLED_STRENGTHS = (0.003, 0.03, 0.3)
"""Inverse regularisation of the pooled regression, from which out-of-fold AUROC chooses."""

NOISE_AUROC = 0.002
"""A gain in out-of-fold AUROC below this does not pay for running the rest of the network."""


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """Patch evidence and pooled regression, fitted, with the calibration that joins them.

    Attributes:
        evidence_weights, evidence_bias: (c,) and a number, as the serving graph takes them.
        pooled_weights, pooled_bias: (d,) and a number over the first d values of the pooled vector.
        uses_embedding: the pooled part looks at the embedding, so the whole network must run.
        out_of_fold: (n,) calibrated probabilities, each from a model that saw neither the image nor its group.
        chosen: what was tried and taken, for the report.
    """

    evidence_weights: np.ndarray
    evidence_bias: float
    pooled_weights: np.ndarray
    pooled_bias: float
    calibration: Calibration
    uses_embedding: bool
    out_of_fold: np.ndarray
    chosen: dict[str, float | bool | str]


def fit_stacked(
    channels: np.ndarray,
    pooled: np.ndarray,
    defect: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    taps_size: int,
) -> Stacked:
    """Fit both parts and join them by logistic regression on their out-of-fold scores (Wolpert 1992, Platt 1999).

    Args:
        channels: (n, locations, c) float16 or float32.
        pooled: (n, d) float32, of which the first `taps_size` values come from the taps and the rest, if any, from the
            embedding.
        defect: (n,) bool.
        folds: (fit, held out) index pairs that keep groups together; every image is held out once.
        taps_size: see `pooled`.
    """
    evidence = np.empty(len(defect))
    for fit, held in folds:
        evidence[held] = PatchEvidence().fit(channels[fit], defect[fit]).decision_function(channels[held])
    cut = _best_pooled(pooled[:, :taps_size], defect, folds, evidence)
    chosen: dict[str, float | bool | str] = {"evidence_auroc": _auroc(defect, evidence), "taps_auroc": cut.auroc}
    best, uses_embedding = cut, False
    if pooled.shape[1] > taps_size:
        whole = _best_pooled(pooled, defect, folds, evidence)
        chosen["embedding_auroc"] = whole.auroc
        if whole.auroc > cut.auroc + NOISE_AUROC:
            best, uses_embedding = whole, True
    chosen |= {"uses_embedding": uses_embedding, "pooled_strength": best.strength}
    final = PatchEvidence().fit(channels, defect)
    used = pooled if uses_embedding else pooled[:, :taps_size]
    weights, bias = _fold_scaler(_pooled(best.strength).fit(used, defect))
    return Stacked(
        evidence_weights=final.weights_.astype(np.float32),
        evidence_bias=final.bias_,
        pooled_weights=weights.astype(np.float32),
        pooled_bias=bias,
        calibration=best.calibration,
        uses_embedding=uses_embedding,
        out_of_fold=best.probabilities,
        chosen=chosen,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    strength: float
    auroc: float
    calibration: Calibration
    probabilities: np.ndarray


def _best_pooled(
    pooled: np.ndarray, defect: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], evidence: np.ndarray
) -> _Candidate:
    """The strength whose pooled scores, joined with the evidence, rank best out of fold."""
    candidates = []
    for strength in POOLED_STRENGTHS:
        score = np.empty(len(defect))
        for fit, held in folds:
            score[held] = _pooled(strength).fit(pooled[fit], defect[fit]).decision_function(pooled[held])
        calibration = calibrate(evidence, score, defect)
        logit = calibration.evidence_slope * evidence + calibration.pooled_slope * score + calibration.intercept
        candidates.append(_Candidate(strength, _auroc(defect, logit), calibration, expit(logit)))
    return max(candidates, key=lambda candidate: candidate.auroc)


def calibrate(evidence: np.ndarray, score: np.ndarray, defect: np.ndarray) -> Calibration:
    """Join two out-of-fold scores into a probability; slopes are never negative, so no part can argue backwards.

    Lightly regularised on standardized scores: on a set without a single mistake the slopes would have no bound, and
    the probabilities would claim a certainty that no data supports.
    """
    columns = np.column_stack([evidence, score])
    deviation = columns.std(0) + _FLOOR
    mean = columns.mean(0)
    z = (columns - mean) / deviation
    slopes = np.zeros(2)
    model = LogisticRegression(C=1.0).fit(z, defect)
    if (model.coef_[0] >= 0).all():
        slopes[:] = model.coef_[0]
    else:
        keep = int(np.argmax(model.coef_[0]))
        model = LogisticRegression(C=1.0).fit(z[:, [keep]], defect)
        slopes[keep] = max(float(model.coef_[0, 0]), 0.0)
    raw = slopes / deviation
    return Calibration(float(raw[0]), float(raw[1]), float(model.intercept_[0] - raw @ mean))


def _pooled(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=1000))


def _fold_scaler(pipeline: Pipeline) -> tuple[np.ndarray, float]:
    """Weights and bias over the raw values of a fitted scaler and regression."""
    scaler, model = pipeline[0], pipeline[-1]
    weights = model.coef_[0] / scaler.scale_
    return weights, float(model.intercept_[0] - weights @ scaler.mean_)


def _auroc(defect: np.ndarray, score: np.ndarray) -> float:
    return float(roc_auc_score(defect, score))
