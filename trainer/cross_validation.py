"""How good the chosen recipe is on images and groups it has never seen: measured on all images, each judged once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

from trainer.classifier import (
    Scores,
    at_rows,
    calibrate,
    evidence_models,
    held_out_evidence,
    logit,
    pooled_model,
    pooled_out_of_fold,
    pooled_scores,
    probability,
)
from trainer.errors import SplitError
from trainer.evaluate import auroc_intervals, calibration_metrics
from trainer.split import grouped_folds

if TYPE_CHECKING:
    from trainer.classifier import Folds, Recipe, Table

FOLDS = 5
_INNER_FOLDS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Validated:
    """What cross-validation says of n images, each judged once.

    Attributes:
        told: plain values, for the bundle and the summary.
        probability: (n,) float64, calibrated at the training set's own rate of defects, out of fold: from models and a
            calibration that saw neither the image nor any image of its group.
        fold: (n,) int64, number of the fold that the image was held out in, from 0.
    """

    told: dict[str, Any]
    probability: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a recipe says of m images that it was not fitted on.

    Attributes:
        score: (m,) what the recipe decides by, in any unit.
        pooled: (m,) score of the pooled regression alone.
        probability: (m,) calibrated on the images it was fitted on, out of fold.
    """

    score: np.ndarray
    pooled: np.ndarray
    probability: np.ndarray


def cross_validate(data: Table, groups: np.ndarray, recipe: Recipe, *, seed: int) -> Validated:
    """Fit the recipe anew in each of five folds by group and judge the images left out.

    An image's score comes from models, and its probability from a calibration, that saw neither it nor any image of
    its group.

    Args:
        data: of all images.
        groups: (n,) what stays together.
        recipe: as it was chosen.
        seed: decides the folds.

    Returns:
        The probabilities, and told are
        `folds`: how many there were, fewer than five where a class lies in fewer groups;
        `auroc`: of all images' scores together, which asks more than ranking within a fold: one threshold must serve
        all groups; its intervals, and how well probabilities come true, as in `trainer.evaluate`;
        `auroc_mean_of_folds`: the mean of the folds' own; the two with `_pooled_regression`: of the pooled regression
        alone; `by_fold`: each fold's images, defects, groups and AUROC (None where a fold holds one class only).
    """
    defect = data.defect
    folds = grouped_folds(defect, groups, folds=FOLDS, seed=seed)
    score, pooled, probabilities = np.empty(len(defect)), np.empty(len(defect)), np.empty(len(defect))
    fold_of = np.empty(len(defect), np.int64)
    by_fold = []
    for number, (fit, held) in enumerate(folds):
        judged = judge_held_out(data, groups, recipe, fit, held, seed=seed)
        score[held], pooled[held], probabilities[held] = judged.score, judged.pooled, judged.probability
        fold_of[held] = number
        by_fold.append(
            {
                "images": len(held),
                "defects": int(defect[held].sum()),
                "groups": len(np.unique(groups[held])),
                "auroc": _auroc(defect[held], judged.score),
                "auroc_pooled_regression": _auroc(defect[held], judged.pooled),
            }
        )
    told = {
        "folds": len(folds),
        "auroc": _auroc(defect, score),
        **auroc_intervals(defect, score, groups),
        **calibration_metrics(probabilities, defect),
        "auroc_mean_of_folds": _mean([fold["auroc"] for fold in by_fold]),
        "auroc_pooled_regression": _auroc(defect, pooled),
        "auroc_pooled_regression_mean_of_folds": _mean([fold["auroc_pooled_regression"] for fold in by_fold]),
        "by_fold": by_fold,
    }
    return Validated(told, probabilities, fold_of)


def judge_held_out(
    data: Table, groups: np.ndarray, recipe: Recipe, fit: np.ndarray, held: np.ndarray, *, seed: int
) -> Judged:
    """Fit and calibrate the recipe on the rows `fit` and judge the rows `held` (m,)."""
    inner = at_rows(_inner_folds(data.defect[fit], groups[fit], seed), fit)
    within = [rows for rows, _ in inner] if recipe.parts != "pooled" else []
    model, *models = evidence_models(data, [(recipe, rows) for rows in (fit, *within)])
    scores = Scores(
        model.decision_function(data.channels, rows=held), pooled_scores(pooled_model(data, recipe, fit), data, held)
    )
    nothing = np.zeros(len(data.defect))  # of a part that is not asked: fitting it would take as long again
    seen = Scores(
        nothing if recipe.parts == "pooled" else held_out_evidence(data, inner, models),
        nothing if recipe.parts == "evidence" else pooled_out_of_fold(data, inner, recipe),
    ).take(fit)
    calibration = calibrate(seen.evidence, seen.pooled, data.defect[fit], recipe.parts)
    alone = {"evidence": scores.evidence, "pooled": scores.pooled}
    return Judged(
        alone[recipe.parts] if recipe.parts in alone else logit(calibration, scores),
        scores.pooled,
        probability(calibration, scores),
    )


def _inner_folds(defect: np.ndarray, groups: np.ndarray, seed: int) -> Folds:
    """By group, or by image where only one group of a class is left: neither knows the groups that are held out."""
    try:
        return grouped_folds(defect, groups, folds=_INNER_FOLDS, seed=seed)
    except SplitError:
        return grouped_folds(defect, np.arange(len(defect)), folds=_INNER_FOLDS, seed=seed)


def _auroc(defect: np.ndarray, score: np.ndarray) -> float | None:
    both = bool(defect.any() and not defect.all())
    return float(roc_auc_score(defect, score)) if both else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
