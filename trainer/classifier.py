"""Patch evidence and pooled regression over the frozen featurizer: one, the other, or both stacked.

Patch evidence sees the worst spot, pooled logistic regression the whole part at once, which suits large diffuse faults.
Which of the two carries a line's defects is learned from the user's own images, out of fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from engine.heads import Calibration
from trainer.patch_evidence import PatchEvidence, fit_together
from trainer.stored_rows import Rows, chunks, first_columns, take
from trainer.turns import AS_TAKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.featurizer import FeaturizerSpec
    from trainer.features import FeatureSet

    Folds = Sequence[tuple[np.ndarray, np.ndarray]]

Parts = Literal["evidence", "pooled", "both"]
PARTS: tuple[Parts, ...] = ("evidence", "pooled", "both")
"""What a verdict may rest on, the simpler first; evidence comes before pooled because it also says where."""

MOST_POOLED = 4000
"""Images that the pooled regression is fitted on: all at once, by scikit-learn, so they are bounded. The evidence, on
which a verdict mostly rests, is fitted on all."""

_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a head is fitted.

    Attributes:
        l2, sharpness: of `PatchEvidence`.
        strength: inverse regularisation of the pooled regression.
        views: of each image that the evidence is fitted on, see `trainer.turns`; it is asked about the first only.
    """

    parts: Parts = "evidence"
    l2: float = 0.03
    sharpness: float = 1.0
    strength: float = 0.03
    views: int = AS_TAKEN

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return {
            "parts": self.parts,
            "l2": self.l2,
            "sharpness": self.sharpness,
            "pooled_strength": self.strength,
            "views": self.views,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Features of n labelled images as one featurizer gives them.

    Attributes:
        channels: (n, cells, 4 fine + coarse) float16 or float32, see `PatchEvidence`; where recipes ask for more than
            one view, n of the next view follow, and so on. They may be on the disk, and so may be
        pooled: (n, d) float32.
        defect: (n,) bool.
        fine: channels that each location has of its own.
    """

    channels: Rows
    pooled: Rows
    defect: np.ndarray
    fine: int


def table(features: FeatureSet, defect: np.ndarray, featurizer: FeaturizerSpec) -> Table:
    """Features that were extracted with the same taps or with more after them; a view, nothing is copied.

    Taps lie behind one another from the shallowest to the deepest, so a network cut earlier has the first of them.
    Only the embedding, which comes last, needs exactly the taps it was extracted with.
    """
    channels = first_columns(features.channels, featurizer.cell_size)
    return Table(channels, first_columns(features.pooled, featurizer.pooled_size), defect, featurizer.fine_channels)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Of both parts, for m images: evidence (m,) and the pooled regression's score (m,)."""

    evidence: np.ndarray
    pooled: np.ndarray

    def take(self, rows: np.ndarray) -> Scores:
        """Of some images."""
        return Scores(self.evidence[rows], self.pooled[rows])

    def of(self, parts: Parts, defect: np.ndarray) -> np.ndarray:
        """One score for each image that was scored out of fold; both parts are joined by `calibrate`."""
        return logit(calibrate(self.evidence, self.pooled, defect, parts), self)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Both parts fitted, over the raw features.

    Attributes:
        evidence_weights, evidence_bias: (c,) float32 and a number, as the serving graph takes them.
        pooled_weights, pooled_bias: (d,) float32 and a number over the pooled vector.
    """

    evidence_weights: np.ndarray
    evidence_bias: float
    pooled_weights: np.ndarray
    pooled_bias: float


def evidence_models(data: Table, asked: Sequence[tuple[Recipe, np.ndarray]]) -> list[PatchEvidence]:
    """Patch evidence fitted on some rows for each (recipe, rows): all at once, so rows should be mostly the same."""
    count = len(data.defect)
    models = [PatchEvidence(data.fine, l2=recipe.l2, sharpness=recipe.sharpness) for recipe, _ in asked]
    every_view = [np.concatenate([rows + view * count for view in range(recipe.views)]) for recipe, rows in asked]
    views = max(recipe.views for recipe, _ in asked)
    fit_together(models, data.channels, np.tile(data.defect, views), every_view)
    return models


def evidence_model(data: Table, recipe: Recipe, rows: np.ndarray) -> PatchEvidence:
    """Patch evidence fitted on `rows`."""
    return evidence_models(data, [(recipe, rows)])[0]


def pooled_model(data: Table, recipe: Recipe, rows: np.ndarray) -> Pipeline:
    """The pooled regression fitted on `rows`, or on `MOST_POOLED` of them.

    By one thread: its steps are so short that several spend ten times as long waiting for each other, and how many
    there are would decide the last bits.
    """
    rows = _spread(rows, data.defect[rows])
    regression = LogisticRegression(C=recipe.strength, class_weight="balanced", max_iter=1000)
    own = data.pooled[rows]  # a copy: scaled in place, so that it is in memory once
    with threadpool_limits(1, "blas"):
        scaler = StandardScaler(copy=False).fit(own)
        regression.fit(scaler.transform(own), data.defect[rows])
    return make_pipeline(scaler.set_params(copy=True), regression)


def _spread(rows: np.ndarray, defect: np.ndarray) -> np.ndarray:
    """So many rows as are fitted on in memory, evenly spread over each class, with the classes' shares kept."""
    if len(rows) <= MOST_POOLED:
        return rows
    places = [np.flatnonzero(defect == label) for label in (False, True)]
    counts = [max(1, MOST_POOLED * len(own) // len(rows)) for own in places]
    taken = [own[np.arange(count) * len(own) // count] for own, count in zip(places, counts, strict=True)]
    return rows[np.sort(np.concatenate(taken))]


def fit_parts(data: Table, recipe: Recipe, rows: np.ndarray) -> Fitted:
    """Fit both parts on `rows`, whichever the recipe rests on: the location map comes from the evidence."""
    evidence = evidence_model(data, recipe, rows)
    weights, bias = _fold_scaler(pooled_model(data, recipe, rows))
    return Fitted(evidence.weights_.astype(np.float32), evidence.bias_, weights.astype(np.float32), bias)


def evidence_out_of_fold(data: Table, folds: Folds, recipes: Sequence[Recipe]) -> list[np.ndarray]:
    """For each recipe the evidence (n,) of each image from a model that saw neither it nor its group."""
    asked = [(recipe, fold) for recipe in recipes for fold in folds]
    models = evidence_models(data, [(recipe, fit) for recipe, (fit, _) in asked])
    each = len(folds)
    return [held_out_evidence(data, folds, models[start : start + each]) for start in range(0, len(models), each)]


def held_out_evidence(data: Table, folds: Folds, models: Sequence[PatchEvidence]) -> np.ndarray:
    """Evidence (n,) of each fold's held-out images, from the fold's model; NaN where no fold holds an image out."""
    scores = np.full(len(data.defect), np.nan)
    for model, (_, held) in zip(models, folds, strict=True):
        scores[held] = model.decision_function(data.channels, rows=held)
    return scores


def pooled_out_of_fold(data: Table, folds: Folds, recipe: Recipe) -> np.ndarray:
    """The pooled regression's score (n,) likewise."""
    scores = np.full(len(data.defect), np.nan)
    for fit, held in folds:
        scores[held] = pooled_scores(pooled_model(data, recipe, fit), data, held)
    return scores


def pooled_scores(model: Pipeline, data: Table, rows: np.ndarray) -> np.ndarray:
    """(m,) what the pooled regression says of some rows."""
    return np.concatenate([model.decision_function(part) for _, part in chunks(take(data.pooled, rows))])


def at_rows(folds: Folds, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of `rows` as folds of the whole table."""
    return [(rows[fit], rows[held]) for fit, held in folds]


def out_of_fold(data: Table, folds: Folds, recipe: Recipe) -> Scores:
    """Both parts' scores, out of fold, likewise."""
    (evidence,) = evidence_out_of_fold(data, folds, [recipe])
    return Scores(evidence, pooled_out_of_fold(data, folds, recipe))


def calibrate(evidence: np.ndarray, score: np.ndarray, defect: np.ndarray, parts: Parts = "both") -> Calibration:
    """Turn out-of-fold scores into a probability (Platt 1999), two of them by stacking (Wolpert 1992).

    Slopes are never negative, so no part can argue backwards, and zero for a part that is not asked. Lightly
    regularised on standardized scores: on a set without a single mistake the slopes would have no bound, and the
    probabilities would claim a certainty that no data supports.
    """
    columns = np.column_stack([evidence, score])
    deviation = columns.std(0) + _FLOOR
    mean = columns.mean(0)
    z = (columns - mean) / deviation
    asked = {"evidence": [0], "pooled": [1], "both": [0, 1]}[parts]
    model = LogisticRegression(C=1.0).fit(z[:, asked], defect)
    if (model.coef_[0] < 0).any():
        asked = [asked[int(np.argmax(model.coef_[0]))]]
        model = LogisticRegression(C=1.0).fit(z[:, asked], defect)
    slopes = np.zeros(2)
    slopes[asked] = np.maximum(model.coef_[0], 0.0)
    raw = slopes / deviation
    return Calibration(float(raw[0]), float(raw[1]), float(model.intercept_[0] - raw @ mean))


def logit(calibration: Calibration, scores: Scores) -> np.ndarray:
    """(m,) log odds of a defect."""
    joined: np.ndarray = (
        calibration.evidence_slope * scores.evidence + calibration.pooled_slope * scores.pooled + calibration.intercept
    )
    return joined


def probability(calibration: Calibration, scores: Scores) -> np.ndarray:
    """(m,) calibrated probability of a defect."""
    values: np.ndarray = expit(logit(calibration, scores))
    return values


def _fold_scaler(pipeline: Pipeline) -> tuple[np.ndarray, float]:
    """Weights and bias over the raw values of a fitted scaler and regression."""
    scaler, model = pipeline[0], pipeline[-1]
    weights = model.coef_[0] / scaler.scale_
    return weights, float(model.intercept_[0] - weights @ scaler.mean_)
