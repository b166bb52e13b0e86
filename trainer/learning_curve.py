"""Whether more images would help: the chosen recipe fitted on ever smaller parts of the training groups.

Folds by group as in cross-validation, of which `JUDGED` are judged; the training side of each is halved again and
again, whole groups at a time and with its share of defects, so that every smaller set lies in the larger one. All
points are judged on the same images, and neighbouring points are compared image by image: what a hard board does to
both of them is no difference.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.classifier import Scores, evidence_models, pooled_model
from trainer.errors import SplitError
from trainer.judge import MOST_LOSS, Judge
from trainer.split import grouped_folds

if TYPE_CHECKING:
    from trainer.classifier import Recipe, Table

MOST_IMAGES = 1200
"""Of larger sets a share is drawn: what the curve costs does not grow with the set."""

FOLDS = 3
JUDGED = 2
HALVINGS = 3
FEWEST_PER_CLASS = 4
"""With fewer to train on a model says more about them than about their number."""

FEWEST_JUDGED = 20
"""Of each class: the standard error of an AUROC about .9 is .05 with as many, and no step of a curve is larger."""

_ONE_SIDED = 1.645
_TWO_SIDED = 1.96
_DOUBT = 0.05


def learning_curve(data: Table, groups: np.ndarray, recipe: Recipe, *, seed: int) -> dict[str, Any]:
    """AUROC against the number of training images.

    Args:
        data: of all images.
        groups: (n,) what stays together.
        recipe: as it was chosen; it is the same for every number of images.
        seed: decides which images are left out.

    Returns:
        `points`: from few images to many, of each the mean number of training `images` and `defects` among them,
        `auroc` on the images judged, `low` and `high`, the ends of its 95 % interval by the jackknife over groups;
        `judged`: on how many images; `gain` and `gain_error`: AUROC from the last point but one to the last, and the
        standard error of that (None with fewer than two points); `says`: whether more images would help, a sentence.
    """
    rows = _drawn(data.defect, seed)
    try:
        folds = grouped_folds(data.defect[rows], groups[rows], folds=FOLDS, seed=seed)[:JUDGED]
    except SplitError as error:
        return _told([], None, f"no learning curve: {error}")
    held = np.concatenate([rows[test] for _, test in folds])
    judge = Judge(data.defect[held], groups[held], ())
    if len(np.unique(judge.defect)) < 2:  # noqa: PLR2004 - pass and fail
        return _told([], None, "no learning curve: the images to judge are all of one class")
    nested = [_halved(rows[fit], data.defect, groups, seed) for fit, _ in folds]
    points, scores = [], []
    for level in reversed(range(min(map(len, nested)))):
        fits = [sets[level] for sets in nested]
        score = _scores(data, recipe, fits, [rows[test] for _, test in folds]).of(recipe.parts, judge.defect)
        points.append(_point(judge, score, data.defect, fits))
        scores.append(score)
    steps = [judge.difference(after, before) for before, after in pairwise(scores)]
    return _told(points, steps[-1] if steps else None, _says(points, steps, judge.defect), len(held))


def _told(points: list[dict[str, Any]], step: tuple[float, float] | None, says: str, judged: int = 0) -> dict[str, Any]:
    gain, error = step or (None, None)
    return {"points": points, "judged": judged, "gain": gain, "gain_error": error, "says": says}


def _drawn(defect: np.ndarray, seed: int) -> np.ndarray:
    """All rows, or so many, ascending, with their share of defects."""
    count = len(defect)
    if count <= MOST_IMAGES:
        return np.arange(count)
    random = np.random.default_rng(seed)
    parts = [np.flatnonzero(defect == label) for label in (False, True)]
    sizes = [max(MOST_IMAGES * len(part) // count, min(len(part), FOLDS * FEWEST_PER_CLASS)) for part in parts]
    return np.sort(
        np.concatenate([random.choice(part, size, replace=False) for part, size in zip(parts, sizes, strict=True)])
    )


def _halved(rows: np.ndarray, defect: np.ndarray, groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """The rows, half of them, half of that half, ..., as long as enough of both classes are left."""
    sets = [rows]
    for _ in range(HALVINGS):
        last = sets[-1]
        try:
            half, other = grouped_folds(defect[last], groups[last], folds=2, seed=seed)[0]
        except SplitError:
            break
        # Coarse groups do not halve: the smaller side is called the half.
        smaller = last[min((half, other), key=len)]
        if np.bincount(defect[smaller], minlength=2).min() < FEWEST_PER_CLASS:
            break
        sets.append(smaller)
    return sets


def _scores(data: Table, recipe: Recipe, fits: list[np.ndarray], tests: list[np.ndarray]) -> Scores:
    """Of the images judged, in the order of the folds; a part that the recipe does not rest on is not fitted."""
    evidence = pooled = [np.zeros(len(test)) for test in tests]
    if recipe.parts != "pooled":
        models = evidence_models(data, [(recipe, fit) for fit in fits])
        evidence = [
            model.decision_function(data.channels, rows=test) for model, test in zip(models, tests, strict=True)
        ]
    if recipe.parts != "evidence":
        pooled = [
            pooled_model(data, recipe, fit).decision_function(data.pooled[test])
            for fit, test in zip(fits, tests, strict=True)
        ]
    return Scores(np.concatenate(evidence), np.concatenate(pooled))


def _point(judge: Judge, score: np.ndarray, defect: np.ndarray, fits: list[np.ndarray]) -> dict[str, Any]:
    chance = np.zeros(len(score))  # ranks nothing: its AUROC is one half in every block
    above, error = judge.difference(score, chance)
    auroc = above + 0.5
    low, high = max(0.0, auroc - _TWO_SIDED * error), min(1.0, auroc + _TWO_SIDED * error)
    if auroc == 1:  # no block makes a difference then, which is no certainty: as of none missed among so many
        low = _DOUBT ** (1 / int(np.bincount(judge.defect).min()))
    return {
        "images": round(float(np.mean([len(fit) for fit in fits]))),
        "defects": round(float(np.mean([defect[fit].sum() for fit in fits]))),
        "auroc": auroc,
        "low": low,
        "high": high,
    }


def _says(points: list[dict[str, Any]], steps: list[tuple[float, float]], judged: np.ndarray) -> str:
    """By the last step: it went up beyond noise, it is flat within what anybody would notice, or nobody can tell."""
    if not steps:
        return "too few images, or too few groups of them, to tell whether more would help"
    (few, many), (gain, error) = points[-2:], steps[-1]
    step = (
        f"from {few['images']} to {many['images']} images AUROC went from {few['auroc']:.3f} to {many['auroc']:.3f} "
        f"({gain:+.3f} +- {_TWO_SIDED * error:.3f})"
    )
    if np.bincount(judged, minlength=2).min() < FEWEST_JUDGED:
        return f"{step}: too few images to tell whether more would help"
    if gain + _ONE_SIDED * error <= MOST_LOSS:
        return f"{step}, flat: more of the same would not help; look at the mistakes instead"
    if gain > _ONE_SIDED * error:
        return f"{step}: more images would likely help"
    return f"{step}: too few images to tell whether more would help"
