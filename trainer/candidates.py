"""Which input size, which cut of the network and which kind of head: by cross-validation on the user's own images.

Every candidate is judged by its out-of-fold AUROC on the same images and the same folds. Of those that are not worse
than the best by more than noise the cheapest is taken, cost being the multiplications of one image: a count, not a
time, so that the same data gives the same bundle on every machine. What is noise says `trainer.judge`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.featurizer import SUBLOCATIONS, FeaturizerSpec, grid, multiply_accumulates
from trainer.classifier import (
    PARTS,
    Parts,
    Recipe,
    Scores,
    at_rows,
    evidence_out_of_fold,
    pooled_out_of_fold,
    table,
)
from trainer.dataset import DEFAULT_SIDE_PX, scaled
from trainer.judge import MOST_LOSS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.specs import ImageSpec, Region
    from trainer.classifier import Table
    from trainer.features import FeatureSet
    from trainer.judge import Judge

IMAGES = 1200
"""Most images that candidates are compared on."""

MOST_VALUES = 1 << 29
MOST_PRODUCTS = 2e12
"""A size that takes more than this on the images compared is not tried: about half a minute on two cores each."""

CLEAR_AUROC = 0.9
_NEARLY = 1.2  # the last size is the one nearest to the images' own
L2 = (0.01, 0.03, 0.1)
SHARPNESS = (0.5, 1.0, 2.0)
STRENGTHS = (0.003, 0.03, 0.3)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to see and judge the images, with its out-of-fold scores (n,)."""

    image: ImageSpec
    featurizer: FeaturizerSpec
    parts: Parts
    scores: np.ndarray
    auroc: float

    @property
    def cost(self) -> int:
        """Multiplications of one image."""
        return multiply_accumulates(self.featurizer, self.image)

    @property
    def rank(self) -> tuple[int, int]:
        """The cheaper, then the simpler first."""
        return self.cost, PARTS.index(self.parts)


def cuts(featurizer: FeaturizerSpec) -> list[FeaturizerSpec]:
    """The featurizers whose features a whole one already holds, the cheapest first.

    A cut keeps at least three taps, of which the last sees wide enough to tell a fault from a texture: cut after the
    second, AUROC fell by .02 to .2 on every set but one, and frames of other things passed as familiar.
    """
    taps = featurizer.taps
    found = [
        replace(featurizer, taps=taps[:count], embedding=False) for count in range(min(3, len(taps)), len(taps) + 1)
    ]
    return [*found, featurizer] if featurizer.embedding else found


def candidates(
    judge: Judge, image: ImageSpec, tables: Sequence[tuple[FeaturizerSpec, Table]], rows: np.ndarray
) -> list[Candidate]:
    """Every cut with every kind of head, at one input size, fitted with the standard recipe.

    Args:
        judge: over m images.
        image: the input size.
        tables: each cut with the features it gives of n images.
        rows: (m,) where in the tables the judge's images are.
    """
    found = []
    evidence: dict[tuple[int, ...], np.ndarray] = {}
    folds = at_rows(judge.folds, rows)
    for featurizer, data in tables:
        if featurizer.taps not in evidence:
            evidence[featurizer.taps] = evidence_out_of_fold(data, folds, [Recipe()])[0][rows]
        scores = Scores(evidence[featurizer.taps], pooled_out_of_fold(data, folds, Recipe())[rows])
        for parts in PARTS:
            if parts == "evidence" and featurizer.embedding and len(tables) > 1:
                continue  # the embedding costs the rest of the network and evidence does not see it
            joined = scores.of(parts, judge.defect)
            found.append(Candidate(image, featurizer, parts, joined, judge.auroc(joined)))
    return found


@dataclass(frozen=True, slots=True)
class Sizes:
    """Input sizes to try: `base` and, from the nearest on, smaller and larger ones."""

    base: ImageSpec
    smaller: tuple[ImageSpec, ...] = ()
    larger: tuple[ImageSpec, ...] = ()


def ladder(own_px: tuple[float, float], region: Region) -> Sizes:
    """Half the area of the base, the base, and double areas up to the images' own size, at least one.

    The base is the images' own size where it is small, else its longer side brought to 224 px.
    """
    longer = max(own_px)
    base_px = min(float(DEFAULT_SIDE_PX), longer)
    base, half = scaled(own_px, base_px, region), scaled(own_px, base_px / math.sqrt(2), region)
    larger: list[ImageSpec] = []
    side_px = base_px * math.sqrt(2)
    while not larger or side_px < longer * _NEARLY:
        larger.append(scaled(own_px, side_px, region))
        side_px *= math.sqrt(2)
    distinct = [image for image in dict.fromkeys(larger) if image != base]
    return Sizes(base, (half,) if half != base else (), tuple(distinct))


def too_much(compared: int, image: ImageSpec, featurizer: FeaturizerSpec) -> str | None:
    """Why a size is not even tried, or None. By counts, so that no clock decides.

    Args:
        compared: images that candidates are compared on.
        image: the input size.
        featurizer: what would be computed.
    """
    rows, columns = grid(image)
    each = rows * columns // SUBLOCATIONS * featurizer.cell_size
    products = compared * multiply_accumulates(featurizer, image)
    if compared * each > MOST_VALUES:
        return (
            f"{compared} images have {compared * each / 1e6:.0f} million features: tried up to {MOST_VALUES / 1e6:.0f}"
        )
    if products > MOST_PRODUCTS:
        return f"{compared} images take {products / 1e12:.1f}e12 products: tried up to {MOST_PRODUCTS / 1e12:.1f}e12"
    return None


def other_sizes(
    judge: Judge,
    sizes: Sizes,
    at_base: Sequence[Candidate],
    extract: Callable[[ImageSpec, FeaturizerSpec], FeatureSet],
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """The further sizes, with the cuts that were as good as the best at the base; one size's features at a time.

    One smaller size and one larger are always tried; the next larger only while the last one gained more than noise,
    or while no size tells the classes apart: a small defect in a large scene shows in none of the first.

    Returns:
        The candidates, and the sizes that were too much to try, with the reason.
    """
    best = max(at_base, key=lambda candidate: candidate.auroc)
    alive = list(dict.fromkeys(each.featurizer for each in at_base if judge.is_noise(best.scores, each.scores)))
    if not all(featurizer.embedding for featurizer in alive):
        alive = [
            featurizer for featurizer in alive if not featurizer.embedding
        ]  # the rest of the network gains nothing
    whole = max(alive, key=lambda featurizer: (featurizer.embedding, len(featurizer.taps)))
    rows = np.arange(len(judge.defect))
    found: list[Candidate] = []
    refused: list[dict[str, Any]] = []

    def attempt(image: ImageSpec) -> Candidate | None:
        why = too_much(len(rows), image, whole)
        if why:
            refused.append({"input_px": [image.width_px, image.height_px], "why": why})
            return None
        features = extract(image, whole)
        new = candidates(judge, image, [(each, table(features, judge.defect, each)) for each in alive], rows)
        found.extend(new)
        return max(new, key=lambda candidate: candidate.auroc)

    for image in sizes.smaller:
        attempt(image)
    for image in sizes.larger:
        now = attempt(image)
        if now is None or (best.auroc >= CLEAR_AUROC and judge.is_noise(now.scores, best.scores)):
            break
        best = max(best, now, key=lambda candidate: candidate.auroc)
    return found, refused


def cheapest_of_the_best(judge: Judge, tried: Sequence[Candidate]) -> Candidate:
    """The least `rank` among those that noise cannot tell from the best."""
    best = max(tried, key=lambda candidate: (candidate.auroc, -candidate.cost))
    return min((each for each in tried if judge.is_noise(best.scores, each.scores)), key=lambda each: each.rank)


def tune(judge: Judge, data: Table, rows: np.ndarray) -> tuple[Recipe, Scores, list[dict[str, Any]]]:
    """l2, then sharpness, then the pooled strength, by out-of-fold AUROC; the standard recipe stays within noise.

    Returns:
        The recipe (its parts still to choose), its out-of-fold scores, and what was tried.
    """
    folds, tried = at_rows(judge.folds, rows), list[dict[str, Any]]()

    def scored(part: str, recipes: Sequence[Recipe]) -> list[np.ndarray]:
        if part == "evidence":
            all_scores = evidence_out_of_fold(data, folds, recipes)
        else:
            all_scores = [pooled_out_of_fold(data, folds, recipe) for recipe in recipes]
        scores = [score[rows] for score in all_scores]
        for recipe, score in zip(recipes, scores, strict=True):
            told = {key: value for key, value in recipe.to_json().items() if key not in {"parts", "views"}}
            tried.append({"part": part, **told, "auroc": judge.auroc(score)})
        return scores

    def better(part: str, recipe: Recipe, score: np.ndarray, others: Sequence[Recipe]) -> tuple[Recipe, np.ndarray]:
        others = [other for other in others if other != recipe]
        for other, new in zip(others, scored(part, others), strict=True):
            if not judge.is_noise(new, score):
                recipe, score = other, new
        return recipe, score

    recipe = Recipe()
    (evidence,) = scored("evidence", [recipe])
    recipe, evidence = better("evidence", recipe, evidence, [replace(recipe, l2=value) for value in L2])
    recipe, evidence = better("evidence", recipe, evidence, [replace(recipe, sharpness=value) for value in SHARPNESS])
    (pooled,) = scored("pooled", [recipe])
    recipe, pooled = better("pooled", recipe, pooled, [replace(recipe, strength=value) for value in STRENGTHS])
    return recipe, Scores(evidence, pooled), tried


def choose_parts(judge: Judge, scores: Scores, most_loss: float = MOST_LOSS) -> tuple[Parts, list[dict[str, Any]]]:
    """Evidence, pooled or both: the simplest that noise cannot tell from the best."""
    joined = {parts: scores.of(parts, judge.defect) for parts in PARTS}
    best = max(joined.values(), key=judge.auroc)
    told = []
    for parts, score in joined.items():
        lost, error = judge.difference(best, score)
        told.append({"parts": parts, "auroc": judge.auroc(score), "below_best": lost, "standard_error": error})
    return next(parts for parts in PARTS if judge.is_noise(best, joined[parts], most_loss)), told


def report(judge: Judge, tried: Sequence[Candidate], chosen: Candidate) -> list[dict[str, Any]]:
    """What each candidate costs and gives, the cheapest first."""
    best = max(tried, key=lambda candidate: (candidate.auroc, -candidate.cost))
    rows = []
    for each in sorted(tried, key=lambda candidate: candidate.rank):
        lost, error = judge.difference(best.scores, each.scores)
        rows.append(
            {
                "input_px": [each.image.width_px, each.image.height_px],
                "taps": list(each.featurizer.taps),
                "embedding": each.featurizer.embedding,
                "parts": each.parts,
                "million_macs": round(each.cost / 1e6, 1),
                "auroc": each.auroc,
                "below_best": lost,
                "standard_error": error,
                "chosen": each is chosen,
            }
        )
    return rows
