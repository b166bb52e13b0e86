"""The trainer's main job: labelled images in, a bundle out, with metrics on images it never saw."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backbone import build_serving_graph
from engine.bundle import Bundle, Classes, Reference, open_bundle, write_bundle
from engine.choice import open_for
from engine.errors import BundleError, GraphError, InputError
from engine.featurizer import DEFAULT_BACKBONE, OWN_TAPS, FeaturizerSpec
from engine.heads import Head
from engine.scorer import Scorer
from engine.specs import Region
from trainer import training_set
from trainer.classifier import at_rows, calibrate, fit_parts, out_of_fold
from trainer.cross_validation import cross_validate
from trainer.evaluate import evaluate
from trainer.labels import label_source
from trainer.limits import held_back_distances, limits_of, pixel_limits
from trainer.operating_point import Costs, from_costs, shift_to_rate
from trainer.progress import Step
from trainer.refine import open_refined
from trainer.samples import write_samples
from trainer.selection import FOLDS, Request, choose
from trainer.sources import open_source
from trainer.split import grouped_folds
from trainer.stream_limits import drift_limit, stream_limits
from trainer.tiling import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from engine.prediction import Prediction
    from trainer.labels import Labelling, Sample
    from trainer.refine import Refined
    from trainer.selection import Chosen
    from trainer.sources import Source

BATCH = 32
"""Held-out images that are judged together."""

REFERENCE_IMAGES = 64
MOST_VALUES = 64
_MOST_DIFFERENCE = 1e-3


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What `framegate train` was asked for.

    Attributes:
        size_px: (width, height) of the network's input; None chooses among a few by cross-validation.
        tile_px: (width, height) of the tiles to cut the input into; without a size the images' own is taken, as near as
            whole tiles come to it. None does not cut.
        backbone: a name in `engine.featurizer.ARCHITECTURES`; None is the default one.
        taps: blocks to look at; None chooses where to cut the network.
        featurizer_of: bundle whose featurizer to use unchanged, input size and region with it; only the head is new.
        jpeg: `scaled` or `whole`, see `ImageSpec`; None: as `featurizer_of` has it, or else `scaled`.
        defect_rate: the line's share of defects; None keeps the training set's own.
        held_out: new folder for the images that were held out, with what they are; for replays and acceptance runs.
        source: where the images are; None: where those of the bundle to refine were.
        refine: bundle whose training set is taken again, with its featurizer; `reviews` are the labels that join it.
    """

    source: str | None
    out: Path
    name: str | None = None
    version: str = "1"
    fail_class: str | None = None
    groups: Path | None = None
    size_px: tuple[int, int] | None = None
    tile_px: tuple[int, int] | None = None
    backbone: str | None = None
    taps: tuple[int, ...] | None = None
    featurizer_of: str | None = None
    region: Region = field(default_factory=Region)
    jpeg: str | None = None
    seed: int = 0
    defect_rate: float | None = None
    costs: Costs = field(default_factory=Costs)
    held_out: Path | None = None
    refine: str | None = None
    reviews: Path | None = None

    def request(self, given: Bundle | None) -> Request:
        """What is left to choose; `given` is the bundle whose featurizer is used."""
        if given is not None:
            featurizer = FeaturizerSpec.from_json(given.featurizer)
            whole = FeaturizerSpec.from_json(given.about["featurized_with"]) if self.refine else featurizer
            return Request(self.seed, given.image.region, given.image, featurizer, is_pinned=True, whole=whole)
        taps = OWN_TAPS if self.taps is None else self.taps
        featurizer = FeaturizerSpec(self.backbone or DEFAULT_BACKBONE, taps)
        jpeg = self.jpeg or "scaled"
        image = replace(cut(self.size_px, self.tile_px, self.region), jpeg=jpeg) if self.size_px else None
        return Request(self.seed, self.region, image, featurizer, self.taps is not None, self.tile_px, jpeg)


def train(settings: TrainSettings, progress: Callable[[Step], None] = lambda _: None) -> tuple[Bundle, dict[str, Any]]:
    """Train and write a bundle; returns it and the summary that the command prints.

    A quarter of the images, whole groups of them, is held out: the metrics are those of the very model that was
    written, on images that no part of it saw.

    Raises:
        InputError: the source, its labels or a setting is unusable; nothing was written.
        BundleError: `out` exists already or cannot be written.
    """
    start_s = time.perf_counter()
    for path in (settings.out, settings.held_out):
        refuse_existing(path)
    refined = _refined(settings)
    given = refined.bundle if refined else _given_featurizer(settings)
    with refined.source if refined else _source(settings) as source:
        labelling = refined.labelling if refined else _labelling(settings, source)
        chosen = choose(source, labelling, settings.request(given), progress)
        data, used, held = chosen.data, chosen.used, chosen.held
        classes = Classes(labelling.pass_class, labelling.fail_class)
        bundle = _fit(chosen, classes, settings, given, progress)
        progress(Step("evaluate"))
        with Scorer(bundle, open_for(bundle, "onnxruntime")) as scorer:
            answers = _answers(scorer, source, [data.samples[i].name for i in held])
        before = _before(refined, chosen, labelling, source) if refined else {}
        if settings.held_out is not None:
            write_samples(settings.held_out, [data.samples[i] for i in held], source.read)
    _refuse_other_answers(answers.pooled, chosen, given)
    metrics = evaluate(answers.predictions, data.defect[held], breakdowns([data.samples[i] for i in held], labelling))
    about = {
        **bundle.about,
        **before,
        "source": source.origin,
        "held_out": metrics,
        "images": {"used": len(used), "held_out": len(held), "defects": int(data.defect.sum())},
        "classes": {"pass": labelling.pass_class, "fail": labelling.fail_class, "how": labelling.how},
        "skipped": [list(entry) for entry in data.skipped],
        "notes": list(data.notes),
        "seconds": round(time.perf_counter() - start_s, 3),
    }
    progress(Step("write"))
    reference = _reference(answers, data.defect[held])
    report = {training_set.NAME: training_set.to_csv(data.samples, chosen.features.sha256, held)}
    written = write_bundle(settings.out, replace(bundle, about=about, reference=reference), report)
    return written, summary(settings.out, written)


def summary(out: Path, bundle: Bundle) -> dict[str, Any]:
    """What the command prints of a trained bundle."""
    point = bundle.head.operating_point
    told = (
        "mode",
        "classes",
        "images",
        "chosen",
        "cross_validated",
        "held_out",
        "false_rejects",
        "camera_checks",
        "refined",
        "skipped",
        "notes",
        "seconds",
    )
    return {
        "bundle": str(out),
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "input_px": [bundle.image.width_px, bundle.image.height_px],
        "tile_px": None if bundle.image.tile_px is None else list(bundle.image.tile_px),
        "defect_rate": bundle.defect_rate,
        "threshold": point.threshold,
        "review_band": list(point.review_band),
        **{key: bundle.about[key] for key in told if key in bundle.about},
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What the written model says of held-out images, through the serving path."""

    predictions: list[Prediction]
    images: np.ndarray
    evidence: np.ndarray
    pooled: np.ndarray


def refuse_existing(path: Path | None) -> None:
    """Before minutes of work, not after."""
    if path is not None and path.exists():
        msg = f"{path} exists already: expected a new path, nothing is written over; give another"
        raise BundleError(msg)


def _refined(settings: TrainSettings) -> Refined | None:
    """The training set to refine, where a bundle was named. Raises InputError where a setting contradicts."""
    if settings.refine is None and settings.reviews is None:
        return None
    if settings.refine is None or settings.reviews is None:
        missing, there = ("--refine", "--reviews") if settings.refine is None else ("--reviews", "--refine")
        msg = f"{there} was given without {missing}: expected the bundle and the labels that join its training set"
        raise InputError(msg)
    asked = {
        "--groups": settings.groups,
        "--fail-class": settings.fail_class,
        "--featurizer-of": settings.featurizer_of,
    }
    contrary = [name for name, value in {**_own_featurizer(settings), **asked}.items() if value is not None]
    if contrary:
        msg = (
            f"--refine was given with {', '.join(contrary)}: the bundle brings its own featurizer, classes and groups; "
            "leave these out, or train anew without --refine"
        )
        raise InputError(msg)
    return open_refined(settings.refine, settings.reviews, settings.source)


def _source(settings: TrainSettings) -> Source:
    if settings.source is None:
        msg = "no source was given: expected a zip or a folder of images, or --refine BUNDLE --reviews FILE"
        raise InputError(msg)
    return open_source(settings.source)


def _labelling(settings: TrainSettings, source: Source) -> Labelling:
    return label_source(source, fail_class=settings.fail_class, groups_file=settings.groups)


def _before(refined: Refined, chosen: Chosen, labelling: Labelling, source: Source) -> dict[str, Any]:
    """What was refined, and what the earlier bundle says of the same held-out images."""
    samples = [chosen.data.samples[i] for i in chosen.held]
    with Scorer(refined.bundle, open_for(refined.bundle, "onnxruntime")) as scorer:
        answers = _answers(scorer, source, [sample.name for sample in samples])
    earlier = evaluate(answers.predictions, chosen.data.defect[chosen.held], breakdowns(samples, labelling))
    return {"refined": {**refined.told, "before": earlier}, "review_folders": dict(refined.folders)}


def _own_featurizer(settings: TrainSettings) -> dict[str, Any]:
    """The settings that ask for a featurizer of one's own; None where they do not."""
    return {
        "--size": settings.size_px,
        "--tile": settings.tile_px,
        "--taps": settings.taps,
        "--backbone": settings.backbone,
        "--roi": None if settings.region == Region() else settings.region,
        "--jpeg": settings.jpeg,
    }


def _given_featurizer(settings: TrainSettings) -> Bundle | None:
    """The bundle whose featurizer is to be used, where one was named. Raises InputError where a setting contradicts."""
    if settings.featurizer_of is None:
        return None
    contrary = [name for name, value in _own_featurizer(settings).items() if value is not None]
    if contrary:
        msg = (
            f"--featurizer-of was given with {', '.join(contrary)}: a featurizer brings its own input size, region and "
            "taps; leave these out, or train a featurizer of its own without --featurizer-of"
        )
        raise InputError(msg)
    return open_bundle(settings.featurizer_of)


def _refuse_other_answers(pooled: np.ndarray, chosen: Chosen, given: Bundle | None) -> None:
    """The head was fitted on what this version builds; the given graph must compute the same. Raises GraphError."""
    difference = float(np.abs(pooled - chosen.features.pooled[chosen.held][:, : pooled.shape[1]]).max())
    if given is not None and difference > _MOST_DIFFERENCE:
        msg = (
            f"the graph of bundle {given.name!r} answers up to {difference:.3g} away from what this version builds of "
            f"{given.featurizer}: expected at most {_MOST_DIFFERENCE}; train that bundle again with this version first"
        )
        raise GraphError(msg)


def _fit(
    chosen: Chosen, classes: Classes, settings: TrainSettings, given: Bundle | None, progress: Callable[[Step], None]
) -> Bundle:
    """Fit on the samples that are used only; the bundle without its metrics."""
    progress(Step("fit"))
    data, used = chosen.table, chosen.used
    defect, groups = chosen.data.defect, chosen.data.groups
    graph = given.graph if given is not None else build_serving_graph(chosen.featurizer, chosen.image.graph_input)
    folds = grouped_folds(defect[used], groups[used], folds=FOLDS, seed=settings.seed)
    scores = out_of_fold(data, at_rows(folds, used), chosen.recipe).take(used)
    calibration = calibrate(scores.evidence, scores.pooled, defect[used], chosen.recipe.parts)
    fitted = fit_parts(data, chosen.recipe, used)
    trained_rate = float(defect[used].mean())
    rate = trained_rate if settings.defect_rate is None else settings.defect_rate
    looks = chosen.features.looks.take(used)
    distances = held_back_distances(data.pooled[used], folds)
    head = Head(
        name="default",
        featurizer=hashlib.sha256(graph).hexdigest(),
        # A featurizer of good parts has their distance as its last channel, which two classes do without.
        evidence_weights=np.pad(fitted.evidence_weights, (0, chosen.featurizer.distance)),
        evidence_bias=fitted.evidence_bias,
        pooled_weights=fitted.pooled_weights,
        pooled_bias=fitted.pooled_bias,
        calibration=shift_to_rate(calibration, trained_rate, rate),
        operating_point=from_costs(settings.costs),
        pixels=pixel_limits(chosen.features.pixels[used], looks.levels),
        features=limits_of(data.pooled[used], np.concatenate(distances)),
    )
    stream, told = stream_limits(looks.glances, looks.noises, groups[used], settings.seed)
    progress(Step("validate"))
    validated = cross_validate(data, groups, chosen.recipe, seed=settings.seed)
    return Bundle(
        name=settings.name or settings.out.stem,
        version=settings.version,
        digest="",
        classes=classes,
        image=chosen.image,
        featurizer=chosen.featurizer.to_json(),
        graph=graph,
        head=head,
        defect_rate=rate,
        about={
            **_trained_with(settings, chosen, trained_rate),
            "cross_validated": validated.told,
            "camera_checks": told,
        },
        stream=replace(stream, drift=drift_limit(distances, groups[used], folds)),
    )


def package_versions() -> dict[str, str]:
    """Of what a bundle's numbers depend on."""
    packages = ("framegate", "numpy", "scikit-learn", "scipy", "onnx", "onnxruntime", "opencv-python-headless")
    return {name: importlib.metadata.version(name) for name in packages}


def _trained_with(settings: TrainSettings, chosen: Chosen, trained_rate: float) -> dict[str, Any]:
    return {
        "mode": "two-class",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": settings.seed,
        "costs": asdict(settings.costs),
        "trained_defect_rate": trained_rate,
        "defect_rate_given": settings.defect_rate is not None,
        "chosen": chosen.told,
        "featurized_with": chosen.extracted.to_json(),
        "versions": package_versions(),
        "weights": {"package": chosen.featurizer.network.package, "sha256": chosen.featurizer.network.sha256},
    }


def _answers(scorer: Scorer, source: Source, names: Sequence[str]) -> _Answers:
    """Held-out images the whole way that a frame takes, from its bytes on."""
    predictions: list[Prediction] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(names), BATCH):
        images = np.stack([scorer.decode(source.read(name)) for name in names[start : start + BATCH]])
        features = scorer.features(images)
        predictions += scorer.predict(images, features)
        parts.append((images, features.evidence[:, 0], features.pooled))
    return _Answers(predictions, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _reference(answers: _Answers, defect: np.ndarray) -> Reference:
    """Up to 64 held-out images, as many of each class as there are."""
    good, bad = np.flatnonzero(~defect), np.flatnonzero(defect)
    share = REFERENCE_IMAGES // 2
    take = min(len(bad), max(share, REFERENCE_IMAGES - len(good)))
    rows = np.sort(np.concatenate([good[: REFERENCE_IMAGES - take], bad[:take]]))
    probabilities = np.array([answers.predictions[i].defect_probability for i in rows])
    return Reference(answers.images[rows], answers.pooled[rows], answers.evidence[rows], probabilities)


def breakdowns(samples: Sequence[Sample], labelling: Labelling) -> dict[str, list[str]]:
    """By group where groups were given, and by every further column of the groups file that is short enough."""
    columns: dict[str, list[str]] = {}
    if any(sample.group for sample in labelling.samples):
        columns["group"] = [sample.group or "" for sample in samples]
    for name in sorted({key for sample in samples for key in sample.extra}):
        values = [sample.extra.get(name, "") for sample in samples]
        if len(set(values)) <= MOST_VALUES:
            columns[name] = values
    return columns
