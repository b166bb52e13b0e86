"""From labelled images to an input size, a featurizer and a recipe: what is fixed, what is chosen, on which images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.candidates import (
    IMAGES,
    Sizes,
    candidates,
    cheapest_of_the_best,
    choose_parts,
    cuts,
    ladder,
    other_sizes,
    report,
    tune,
)
from trainer.classifier import Recipe, Scores, at_rows, evidence_out_of_fold, pooled_out_of_fold, table
from trainer.dataset import Dataset, median_size, open_dataset
from trainer.judge import Judge
from trainer.progress import Step
from trainer.split import grouped_folds, holdout, holdout_again
from trainer.stored_rows import joined
from trainer.tiling import tiled
from trainer.turns import AS_TAKEN, MIRRORED, all_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec, Region
    from trainer.classifier import Table
    from trainer.feature_store import FeatureCache
    from trainer.features import FeatureSet
    from trainer.labels import Labelling
    from trainer.sources import Source

HELD_OUT_SHARE = 0.25
FOLDS = 3
FEW_FOLDS = 5

ENOUGH_PER_CLASS = 40
"""With fewer images of a class to train on only the parts are chosen: with 10 of each, the standard error of a single
AUROC is about .1, more than any of the choices is worth."""

_TOO_FEW = (
    f"fewer than {ENOUGH_PER_CLASS} images of a class to train on: differences are noise; where defects are small in a "
    "large scene give a larger --size"
)

FEW = Recipe(sharpness=0.5)
"""Nearer to the mean over all locations, which moves less with a single one. With 10 images of each class it gave .843
AUROC against .831 on the first draws of `pcb`, .773 against .750 on `catdog`, and no difference on later draws."""

FEW_IN_TILES = Recipe()
"""In tiles the mean also moves with what happens to lie on a seam: on drawn scenes of rivets with 10 images of each
class the sharpness of `FEW` gave .65 AUROC out of fold, the standard one 1.00; not cut, both gave 1.00."""

MOST_VIEWED = 1 << 27
"""Values of all views together: what is swept over in a moment."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user has fixed.

    Attributes:
        image: None where the input size is to be chosen.
        tile_px: (width, height) of the tiles that the images' own size is to be cut into, where no image is given.
        jpeg: how its JPEGs are decoded, where no image is given.
        featurizer: the deepest cut to consider; where `is_pinned`, the only one.
        whole: what to featurize with, where another one holds the pinned one's features, and has them already.
    """

    seed: int
    region: Region
    image: ImageSpec | None
    featurizer: FeaturizerSpec
    is_pinned: bool
    tile_px: tuple[int, int] | None = None
    jpeg: str = "scaled"
    whole: FeaturizerSpec | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What was chosen, with the features to fit on.

    Attributes:
        used, held: rows of `data` to fit on, and to measure on.
        features: of all of `data`, with at least the featurizer's taps.
        extracted: the featurizer that they are of.
        table: what the recipe is fitted on: the featurizer's part of the features, with as many views as it asks for.
        told: what was tried, what it costs and gives; plain values.
    """

    data: Dataset
    used: np.ndarray
    held: np.ndarray
    features: FeatureSet
    extracted: FeaturizerSpec
    table: Table
    image: ImageSpec
    featurizer: FeaturizerSpec
    recipe: Recipe
    told: dict[str, Any]


def choose(
    source: Source, labelling: Labelling, request: Request, progress: Callable[[Step], None], cache: FeatureCache
) -> Chosen:
    """Featurize, hold a quarter out, and choose on the rest; the images held out decide nothing.

    Raises:
        LabelError: too few images of a class can be decoded.
        SplitError: a class lies in one group.
        WorkError: the features do not fit on the disk.
    """
    sizes = _sizes(source, labelling, request)
    whole = request.whole or request.featurizer
    whole = whole if request.is_pinned else replace(whole, embedding=True)
    data, features = open_dataset(source, labelling, sizes.base, whole, _steps(progress, "featurize"), cache)
    used, held = _sides(data, request.seed)
    if min(np.bincount(data.defect[used], minlength=2)) < ENOUGH_PER_CLASS:
        return _choose_from_few(data, (used, held), (whole, features), sizes.base, request, progress)
    rows = _compared(data.defect, used, request.seed)
    judge = _judge(data.defect[rows], data.groups[rows], FOLDS, request.seed)
    choices = [request.featurizer] if request.is_pinned else cuts(whole)
    progress(Step("choose"))
    tried = candidates(judge, sizes.base, [(each, table(features, data.defect, each)) for each in choices], rows)
    refused: list[dict[str, Any]] = []
    if sizes.smaller or sizes.larger:

        def extract(image: ImageSpec, featurizer: FeaturizerSpec) -> FeatureSet:
            return data.extract(image, featurizer, rows, _steps(progress, f"{image.width_px}x{image.height_px}"))

        more, refused = other_sizes(judge, sizes, tried, extract)
        tried += more
    best = cheapest_of_the_best(judge, tried)
    if best.image != sizes.base:
        everything = np.arange(len(data.samples))
        whole = best.featurizer
        features = data.extract(best.image, best.featurizer, everything, _steps(progress, "featurize again"))
    view = table(features, data.defect, best.featurizer)
    recipe, told = _tuned(judge, view, rows)
    told |= _what(best.image, best.featurizer, recipe)
    told |= {"images": len(rows), "candidates": report(judge, tried, best), "not_tried": refused}
    return Chosen(data, used, held, features, whole, view, best.image, best.featurizer, recipe, told)


def _sides(data: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows held out: as they were in an earlier training, where there was one."""
    earlier = [sample.held_out for sample in data.samples]
    if any(side is not None for side in earlier):
        return holdout_again(data.defect, data.groups, earlier, share=HELD_OUT_SHARE, seed=seed)
    return holdout(data.defect, data.groups, share=HELD_OUT_SHARE, seed=seed)


def _sizes(source: Source, labelling: Labelling, request: Request) -> Sizes:
    """The size that was asked for, or those to try."""
    if request.image is not None:
        return Sizes(request.image)
    own_px = median_size(source, labelling.samples, request.region)
    if request.tile_px is not None:
        sizes = Sizes(tiled(own_px, request.tile_px, request.region))
    else:
        sizes = ladder(own_px, request.region)
    smaller, larger = (
        tuple(replace(image, jpeg=request.jpeg) for image in images) for images in (sizes.smaller, sizes.larger)
    )
    return Sizes(replace(sizes.base, jpeg=request.jpeg), smaller, larger)


def _choose_from_few(
    data: Dataset,
    split: tuple[np.ndarray, np.ndarray],
    extracted: tuple[FeaturizerSpec, FeatureSet],
    image: ImageSpec,
    request: Request,
    progress: Callable[[Step], None],
) -> Chosen:
    """Only the parts and the views; everything else as it proved best on other lines."""
    used, held = split
    whole, features = extracted
    view = table(features, data.defect, request.featurizer)
    views = _affordable(view.channels.size, image)
    everything = np.arange(len(data.samples))
    channels = [view.channels]
    for turn in range(1, views):
        steps = _steps(progress, f"view {turn + 1} of {views}")
        more = data.extract(image, request.featurizer, everything, steps, turn=turn)
        channels.append(more.channels)
    view = replace(view, channels=joined(channels) if views > 1 else view.channels)
    base = FEW if image.tile_px is None else FEW_IN_TILES
    recipe, tried = few_recipe(view, data.groups, used, views=views, seed=request.seed, base=base)
    told = {
        **_what(image, request.featurizer, recipe),
        "images": len(used),
        **tried,
        "tuned": [],
        "candidates": [],
        "not_tried": [{"why": _TOO_FEW}],
    }
    return Chosen(data, used, held, features, whole, view, image, request.featurizer, recipe, told)


def _affordable(values: int, image: ImageSpec) -> int:
    """As many views as are learned from in a moment; of large scenes only the images as they were taken."""
    ways = (all_turns(image.width_px, image.height_px), MIRRORED)
    return next((views for views in ways if views * values <= MOST_VIEWED), AS_TAKEN)


def few_recipe(
    view: Table, groups: np.ndarray, rows: np.ndarray, *, views: int, seed: int, base: Recipe = FEW
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe for a few images, `rows` of a table that holds so many views of each, and what was tried.

    Mirror images are always learned from; turns where they rank better out of fold. For the parts a whole standard
    error is tolerated: evidence is right more often than so few images can say.
    """
    judge = _judge(view.defect[rows], groups[rows], FEW_FOLDS, seed)
    folds = at_rows(judge.folds, rows)
    ways = sorted({min(MIRRORED, views), views})
    evidence = evidence_out_of_fold(view, folds, [replace(base, views=way) for way in ways])
    out = {way: own[rows] for way, own in zip(ways, evidence, strict=True)}
    best = max(ways, key=lambda way: (judge.auroc(out[way]), -way))
    recipe = replace(base, views=best)
    scores = Scores(out[best], pooled_out_of_fold(view, folds, recipe)[rows])
    parts, told = choose_parts(judge, scores, most_loss=math.inf)
    views_tried = [{"views": way, "auroc": judge.auroc(out[way])} for way in ways]
    return replace(recipe, parts=parts), {"parts_tried": told, "views_tried": views_tried}


def _tuned(judge: Judge, view: Table, rows: np.ndarray) -> tuple[Recipe, dict[str, Any]]:
    recipe, scores, tuned = tune(judge, view, rows)
    parts, told_parts = choose_parts(judge, scores)
    return replace(recipe, parts=parts), {"parts_tried": told_parts, "tuned": tuned}


def _what(image: ImageSpec, featurizer: FeaturizerSpec, recipe: Recipe) -> dict[str, Any]:
    tile_px = None if image.tile_px is None else list(image.tile_px)
    return {
        "input_px": [image.width_px, image.height_px],
        "tile_px": tile_px,
        **featurizer.to_json(),
        **recipe.to_json(),
    }


def _judge(defect: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Judge:
    return Judge(defect, groups, grouped_folds(defect, groups, folds=folds, seed=seed))


def _compared(defect: np.ndarray, used: np.ndarray, seed: int) -> np.ndarray:
    """All that are used, or so many of them, with their share of defects."""
    if len(used) <= IMAGES:
        return used
    random = np.random.default_rng(seed)
    parts = [used[defect[used] == label] for label in (False, True)]
    taken = [random.choice(part, IMAGES * len(part) // len(used), replace=False) for part in parts]
    return np.sort(np.concatenate(taken))


def _steps(progress: Callable[[Step], None], name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(Step(name, done, total))
