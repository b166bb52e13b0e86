"""How good the chosen recipe is on images and groups it has never seen: measured on all images, each judged once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

from trainer.classifier import Scores, at_rows, calibrate, evidence_model, logit, out_of_fold, pooled_model
from trainer.split import grouped_folds

if TYPE_CHECKING:
    from trainer.classifier import Recipe, Table

FOLDS = 5
_INNER_FOLDS = 3


def cross_validate(data: Table, groups: np.ndarray, recipe: Recipe, *, seed: int) -> dict[str, Any]:
    """Fit the recipe anew in each of five folds by group and judge the images left out.

    An image's score comes from models, and where both parts are joined from a calibration, that saw neither it nor any
    image of its group.

    Args:
        data: of all images.
        groups: (n,) what stays together.
        recipe: as it was chosen.
        seed: decides the folds.

    Returns:
        `folds`: how many there were, fewer than five where a class lies in fewer groups;
        `auroc`: of all images' scores together, which asks more than ranking within a fold: one threshold must serve
        all groups; `auroc_mean_of_folds`: the mean of the folds' own; the same two with `_pooled_regression`: of the
        pooled regression alone; `by_fold`: each fold's images, defects, groups and AUROC (None where a fold holds one
        class only).
    """
    defect = data.defect
    folds = grouped_folds(defect, groups, folds=FOLDS, seed=seed)
    joined, pooled = np.empty(len(defect)), np.empty(len(defect))
    by_fold = []
    for fit, held in folds:
        scores = judge_held_out(data, groups, recipe, fit, held, seed=seed)
        joined[held], pooled[held] = scores[recipe.parts], scores["pooled"]
        by_fold.append(
            {
                "images": len(held),
                "defects": int(defect[held].sum()),
                "groups": len(np.unique(groups[held])),
                "auroc": _auroc(defect[held], joined[held]),
                "auroc_pooled_regression": _auroc(defect[held], pooled[held]),
            }
        )
    return {
        "folds": len(folds),
        "auroc": _auroc(defect, joined),
        "auroc_mean_of_folds": _mean([fold["auroc"] for fold in by_fold]),
        "auroc_pooled_regression": _auroc(defect, pooled),
        "auroc_pooled_regression_mean_of_folds": _mean([fold["auroc_pooled_regression"] for fold in by_fold]),
        "by_fold": by_fold,
    }


def judge_held_out(
    data: Table, groups: np.ndarray, recipe: Recipe, fit: np.ndarray, held: np.ndarray, *, seed: int
) -> dict[str, np.ndarray]:
    """Fit the recipe on the rows `fit` and score the rows `held` (m,): by its own parts, and by `pooled` alone."""
    pooled = pooled_model(data, recipe, fit).decision_function(data.pooled[held])
    if recipe.parts == "pooled":
        return {"pooled": pooled}
    evidence = evidence_model(data, recipe, fit).decision_function(data.channels, rows=held)
    if recipe.parts == "evidence":
        return {"evidence": evidence, "pooled": pooled}
    inner = grouped_folds(data.defect[fit], groups[fit], folds=_INNER_FOLDS, seed=seed)
    seen = out_of_fold(data, at_rows(inner, fit), recipe).take(fit)
    calibration = calibrate(seen.evidence, seen.pooled, data.defect[fit])
    return {"both": logit(calibration, Scores(evidence, pooled)), "pooled": pooled}


def _auroc(defect: np.ndarray, score: np.ndarray) -> float | None:
    both = bool(defect.any() and not defect.all())
    return float(roc_auc_score(defect, score)) if both else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
