"""Patch evidence and pooled regression over the frozen featurizer, stacked.

Patch evidence sees the worst spot, pooled logistic regression the whole part at once, which suits large diffuse faults.
Which of the two carries a line's defects is learned from the user's own images, out of fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.heads import Calibration
from trainer.patch_evidence import PatchEvidence

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLOOR = 1e-6


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
    fine: int,
) -> Stacked:
    """Fit both parts and join them by logistic regression on their out-of-fold scores (Wolpert 1992, Platt 1999).

    Args:
        channels: (n, cells, 4 fine + coarse) float16 or float32, as the training graph gives them.
        pooled: (n, d) float32, of which the first `taps_size` values come from the taps and the rest, if any, from the
            embedding.
        defect: (n,) bool.
        folds: (fit, held out) index pairs that keep groups together; every image is held out once.
        taps_size: see `pooled`.
        fine: see `PatchEvidence`.
    """
    evidence = np.empty(len(defect))
    for fit, held in folds:
        evidence[held] = PatchEvidence(fine).fit(channels[fit], defect[fit]).decision_function(channels[held])
    cut = _best_pooled(pooled[:, :taps_size], defect, folds, evidence)
    chosen: dict[str, float | bool | str] = {"evidence_auroc": _auroc(defect, evidence), "taps_auroc": cut.auroc}
    best, uses_embedding = cut, False
    if pooled.shape[1] > taps_size:
        whole = _best_pooled(pooled, defect, folds, evidence)
        chosen["embedding_auroc"] = whole.auroc
        if whole.auroc > cut.auroc + NOISE_AUROC:
            best, uses_embedding = whole, True
    chosen |= {"uses_embedding": uses_embedding, "pooled_strength": best.strength}
    final = PatchEvidence(fine).fit(channels, defect)
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
