"""Training from good parts alone, for a line that has seen no defect yet: the same bundle, the same consumer.

The head weighs one channel, the distance of each location from what good parts look like; its worst spot decides.
Every choice that labels would make is fixed: taps, input size and sharpness as they proved best where there were
labels. Where defects are there too they are judged, never trained on.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.arenas import for_training
from engine.backbone import build_serving_graph
from engine.bundle import Bundle, Classes
from engine.choice import open_for
from engine.errors import GraphError
from engine.featurizer import DEFAULT_BACKBONE, FeaturizerSpec, architecture
from engine.heads import Head
from engine.scorer import Scorer
from trainer.answers import answers_of, odd_rows
from trainer.dataset import median_size, open_dataset, scaled
from trainer.evaluate import evaluate
from trainer.false_rejects import FalseRejects, set_point
from trainer.feature_store import FeatureCache
from trainer.good_patches import RIDGE, SHARPNESS, Moments, evidence, moments
from trainer.good_scores import across_folds
from trainer.limits import held_back_distances, limits_of, pixel_limits
from trainer.opening import labels_of, refuse_existing, refuse_two_class_settings, source_of
from trainer.progress import Step
from trainer.report.gather import Run, look
from trainer.samples import write_samples
from trainer.split import good_folds, good_holdout
from trainer.stream_limits import drift_limit, stream_limits
from trainer.telling import breakdowns, of_cache, of_images, of_network
from trainer.tiling import cut, tiled
from trainer.writing import write_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.patch_distance import PatchDistance
    from engine.specs import ImageSpec
    from trainer.dataset import Dataset
    from trainer.features import FeatureSet
    from trainer.labels import Labelling
    from trainer.settings import TrainSettings
    from trainer.sources import Source

MODE = "good-only"

SIDE_PX = 320
"""Longer side of the input. With the backbone's own taps AUROC on the rendered line was .90 at 224, .945 at 320, .95 at
448 for twice the work, and .91 at the images' own 640."""

MOST_ENLARGED = math.sqrt(2)
"""Small images are enlarged no further. Enlarged so far, crops of `pcb` gained .02 AUROC."""

COARSE_STRIDE = 16

FOLDS = 5
HELD_OUT_SHARE = 0.25
_MOST_DIFFERENCE = 0.02
"""Of an image's distance as it is served from the one it was judged by, which came from rounded features."""


def train_good_only(
    settings: TrainSettings,
    asked: FalseRejects | None = None,
    progress: Callable[[Step], None] = lambda _: None,
) -> tuple[Bundle, dict[str, Any]]:
    """Train on good parts and write a bundle; returns it and the summary that the command prints.

    A quarter of the good parts, whole groups of them, is held out with all defects but those of groups that are trained
    on. The line above which a part fails is set on the other good parts, each judged by a model of other groups.

    Args:
        settings: as for `trainer.train.train`; what only two classes can be asked for is refused.
        asked: how often good parts may fail.
        progress: told how far it is.

    Raises:
        InputError: the source, its labels or a setting is unusable; nothing was written.
        WorkError: so few good parts cannot show the false-reject rate asked for.
        BundleError: `out` exists already or cannot be written.
    """
    start_s = time.perf_counter()
    for path in (settings.out, settings.held_out):
        refuse_existing(path)
    refuse_two_class_settings(settings)
    for_training()
    cache = FeatureCache(settings.features, settings.features_limit_gib)
    with source_of(settings, progress) as source, cache:
        labelling = labels_of(settings, source, good_only=True)
        source.fetch([sample.name for sample in labelling.samples], progress)
        image, featurizer = _look(source, labelling, settings)

        def featurized(done: int, total: int) -> None:
            progress(Step("featurize", done, total))

        data, features = open_dataset(source, labelling, image, featurizer, featurized, cache)
        fitted = _fit(data, features, (image, featurizer), settings, asked or FalseRejects(), progress)
        used, held = fitted.used, fitted.held
        samples = [data.samples[row] for row in held]
        bundle = replace(fitted.bundle, classes=Classes(labelling.pass_class, labelling.fail_class))
        progress(Step("evaluate"))
        with Scorer(bundle, open_for(bundle, "onnxruntime")) as scorer:
            names = [sample.name for sample in samples]
            answers = answers_of(scorer, source, names, odd_rows(data.defect[held], fitted.scores[held]))
            columns = breakdowns(data.samples, labelling)
            run = Run(data, used, held, bundle.head.operating_point, answers.predictions, None, columns)
            seen = look(scorer, source.read, run) if settings.report else None
        if settings.held_out is not None:
            write_samples(settings.held_out, samples, source.read)
        origin = source.origin
    _refuse_other_answers(answers.evidence, fitted.scores[held])
    about = {
        **bundle.about,
        "source": origin,
        "held_out": evaluate(answers.predictions, data.defect[held], breakdowns(samples, labelling), data.groups[held]),
        **of_images(data, labelling, used, held),
        **of_cache(cache),
        "notes": [*data.notes, *_on_defects(data, labelling), *fitted.notes],
        "seconds": round(time.perf_counter() - start_s, 3),
    }
    return write_trained(
        settings.out,
        replace(bundle, about=about, reference=answers.reference),
        run,
        seen,
        sha256=features.sha256,
        options={"--mode": MODE, **settings.told()},
        progress=progress,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """What was fitted on the rows `used`.

    Attributes:
        held: rows to measure on.
        scores: (n,) evidence of each image from good parts of other groups; NaN for a defect of a group that is judged
            by none.
    """

    bundle: Bundle
    used: np.ndarray
    held: np.ndarray
    scores: np.ndarray
    notes: tuple[str, ...]


def good_taps(backbone: str) -> tuple[int, ...]:
    """The backbone's own taps and the blocks with which its two stages of stride 16 begin.

    Without defects nothing can be chosen, so this is what told best apart where there are some, by AUROC on groups not
    trained on: on the rendered line .968 against .943 with the backbone's own taps and .961 with all blocks between
    them, on crops of `pcb` .886 against .883 and .899. Fewer taps than its own lost .02 to .2.
    """
    network = architecture(backbone)
    begins = [
        index
        for index, block in enumerate(network.blocks[: network.default_taps[-1]])
        if block.total_stride == COARSE_STRIDE and block.channels_in != block.channels_out
    ]
    return tuple(sorted({*network.default_taps, *begins}))


def _look(source: Source, labelling: Labelling, settings: TrainSettings) -> tuple[ImageSpec, FeaturizerSpec]:
    """The input and the featurizer that were asked for, or the standard ones."""
    backbone = settings.backbone or DEFAULT_BACKBONE
    taps = good_taps(backbone) if settings.taps is None else settings.taps
    featurizer = FeaturizerSpec(backbone, taps, distance=True)
    if settings.size_px is not None:
        image = cut(settings.size_px, settings.tile_px, settings.region)
    else:
        own_px = median_size(source, labelling.samples, settings.region)
        if settings.tile_px is not None:
            image = tiled(own_px, settings.tile_px, settings.region)
        else:
            image = scaled(own_px, min(SIDE_PX, MOST_ENLARGED * max(own_px)), settings.region)
    return replace(image, jpeg=settings.jpeg or "scaled"), featurizer


def _fit(
    data: Dataset,
    features: FeatureSet,
    look: tuple[ImageSpec, FeaturizerSpec],
    settings: TrainSettings,
    asked: FalseRejects,
    progress: Callable[[Step], None],
) -> _Fitted:
    """Fit on the good parts that are used only; the bundle without its metrics."""
    progress(Step("fit"))
    image, featurizer = look
    used, held = good_holdout(data.defect, data.groups, share=HELD_OUT_SHARE, seed=settings.seed)
    # All that does not touch the groups held out: the defects in it are judged, and never fitted on.
    rest = np.flatnonzero(~np.isin(data.groups, data.groups[held]))
    folds = [
        (rest[fit], rest[out])
        for fit, out in good_folds(data.defect[rest], data.groups[rest], folds=FOLDS, seed=settings.seed)
    ]
    distance, scores = _judge(features, featurizer, data.defect, folds, held)
    judged = used[np.isfinite(scores[used])]
    point = set_point(scores[judged], asked)
    graph = build_serving_graph(featurizer, image.graph_input, distance)
    weights = np.zeros(featurizer.channels, np.float32)
    weights[-1] = SHARPNESS
    own_folds = [(np.searchsorted(used, fit), np.searchsorted(used, out[~data.defect[out]])) for fit, out in folds]
    pooled, looks = np.asarray(features.pooled[used]), features.looks.take(used)
    distances = held_back_distances(pooled, own_folds)
    stream, told = stream_limits(looks.glances, looks.noises, data.groups[used], settings.seed)
    head = Head(
        name="default",
        featurizer=hashlib.sha256(graph).hexdigest(),
        evidence_weights=weights,
        evidence_bias=0.0,
        pooled_weights=np.zeros(featurizer.pooled_size, np.float32),
        pooled_bias=0.0,
        calibration=point.calibration,
        operating_point=point.operating_point,
        pixels=pixel_limits(features.pixels[used], looks.levels),
        features=limits_of(pooled, np.concatenate(distances)),
    )
    bundle = Bundle(
        name=settings.name or settings.out.stem,
        version=settings.version,
        digest="",
        classes=Classes("", ""),
        image=image,
        featurizer=featurizer.to_json(),
        graph=graph,
        head=head,
        defect_rate=0.0,  # of what it was trained on; no probability was shifted to any rate
        about={
            "mode": MODE,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": settings.seed,
            "false_rejects": point.told,
            "cross_validated": across_folds(data, [out for _, out in folds] + [held], scores),
            "camera_checks": told,
            "chosen": _chosen(image, featurizer),
            "featurized_with": featurizer.to_json(),
            **of_network(featurizer),
        },
        stream=replace(stream, drift=drift_limit(distances, data.groups[used], own_folds)),
    )
    return _Fitted(bundle, used, held, scores, point.notes)


def _judge(
    features: FeatureSet,
    featurizer: FeaturizerSpec,
    defect: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    held: np.ndarray,
) -> tuple[PatchDistance, np.ndarray]:
    """The distance from all good parts of the folds, and each image's evidence (n,) from those of other folds than its.

    The features are walked over twice, however many folds there are.
    """
    channels, fine = features.channels, featurizer.fine_channels
    parts: list[Moments] = [moments(channels, fine, out[~defect[out]]) for _, out in folds]
    everything, *others = parts
    for part in others:
        everything = everything + part
    scores = np.full(len(defect), np.nan)
    for part, (_, out) in zip(parts, folds, strict=True):
        scores[out] = evidence(channels, out, (everything - part).distance(fine))
    distance = everything.distance(fine)
    scores[held] = evidence(channels, held, distance)
    return distance, scores


def _chosen(image: ImageSpec, featurizer: FeaturizerSpec) -> dict[str, Any]:
    """What was fixed, as the two-class trainer tells what it chose."""
    return {
        "input_px": [image.width_px, image.height_px],
        "tile_px": None if image.tile_px is None else list(image.tile_px),
        **featurizer.to_json(),
        "parts": "distance",
        "sharpness": SHARPNESS,
        "ridge": RIDGE,
    }


def _on_defects(data: Dataset, labelling: Labelling) -> tuple[str, ...]:
    count = int(data.defect.sum())
    if not count:
        return ()
    note = (
        f"ATTENTION: --mode {MODE}: the {count} images of {labelling.fail_class!r} were not trained on, they were only "
        "judged; without --mode both classes are learned from, which is nearly always better"
    )
    return (note,)


def _refuse_other_answers(served: np.ndarray, judged: np.ndarray) -> None:
    """The line was set on numpy's distances; the graph must give the same. Raises GraphError."""
    difference = float(np.abs(served - judged).max()) / SHARPNESS
    if not difference <= _MOST_DIFFERENCE * max(1.0, float(np.abs(judged).max()) / SHARPNESS):
        msg = (
            f"the graph gives distances up to {difference:.3g} away from those that the operating point was set on: "
            f"expected at most {_MOST_DIFFERENCE} of the largest; the images may be unlike any that were trained on"
        )
        raise GraphError(msg)
