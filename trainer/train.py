"""The trainer's main job: labelled images in, a bundle out, with metrics on images it never saw."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.arenas import keep_freed
from engine.backbone import build_serving_graph
from engine.bundle import Bundle, Classes, Reference, open_bundle, sealed, write_bundle
from engine.choice import open_for
from engine.errors import BundleError, GraphError, InputError
from engine.featurizer import DEFAULT_BACKBONE, OWN_TAPS, FeaturizerSpec
from engine.heads import Head
from engine.locations import shown
from engine.scorer import Scorer
from engine.specs import Region
from trainer import training_set
from trainer.acceptance import HeldOut, accept, refuse_chance
from trainer.classifier import at_rows, calibrate, fit_parts, out_of_fold
from trainer.cross_validation import cross_validate
from trainer.elsewhere import featurizing
from trainer.escapes import Bound
from trainer.evaluate import calibration_metrics, evaluate
from trainer.feature_store import LIMIT_GIB, FeatureCache
from trainer.label_csv import DEFAULT_COLUMNS
from trainer.labels import label_source
from trainer.learning_curve import learning_curve
from trainer.limits import held_back_distances, limits_of, pixel_limits
from trainer.operating_point import Costs, at_rate, from_costs, shift_to_rate
from trainer.progress import Step, Stopwatch
from trainer.refine import open_refined
from trainer.report.gather import Run, gather, look
from trainer.samples import write_samples
from trainer.selection import FOLDS, Request, choose
from trainer.sources import open_source
from trainer.spark_reading import LIMITS
from trainer.split import grouped_folds
from trainer.stored_rows import take
from trainer.stream_limits import drift_limit, stream_limits
from trainer.tiling import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from engine.prediction import Prediction
    from trainer.acceptance import Accepted
    from trainer.cross_validation import Validated
    from trainer.label_csv import Columns
    from trainer.labels import Labelling, Sample
    from trainer.refine import Refined
    from trainer.selection import Chosen
    from trainer.sources import Source
    from trainer.spark_settings import SparkSettings

BATCH = 32
"""Held-out images that are judged together."""

REFERENCE_IMAGES = 64
MOST_VALUES = 64
_MOST_DIFFERENCE = 1e-3


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What `framegate train` was asked for.

    Attributes:
        columns: what the columns of the CSV file are called.
        group_pattern: regular expression on the images' paths, see `trainer.group_pattern`.
        size_px: (width, height) of the network's input; None chooses among a few by cross-validation.
        tile_px: (width, height) of the tiles to cut the input into; without a size the images' own is taken, as near as
            whole tiles come to it. None does not cut.
        backbone: a name in `engine.featurizer.ARCHITECTURES`; None is the default one.
        taps: blocks to look at; None chooses where to cut the network.
        featurizer_of: bundle whose featurizer to use unchanged, input size and region with it; only the head is new.
        jpeg: `scaled` or `whole`, see `ImageSpec`; None: as `featurizer_of` has it, or else `scaled`.
        defect_rate: the line's share of defects; None keeps the training set's own.
        bound: on what share of defects may pass; it outranks the costs.
        held_out: new folder for the images that were held out, with what they are; for replays and acceptance runs.
        source: path or URL of a zip or a folder of images; None: where those of the bundle to refine were.
        refine: bundle whose training set is taken again, with its featurizer; `reviews` are the labels that join it.
        features: folder that features are kept in, and looked up in; None: one that is deleted in the end.
        features_limit_gib: of that folder; what was used longest ago is deleted first, what is in use never.
        report: whether the bundle gets its acceptance report.
        spark: the cluster that featurizes; None featurizes here.
    """

    source: str | None
    out: Path
    name: str | None = None
    version: str = "1"
    fail_class: str | None = None
    groups: Path | None = None
    columns: Columns = DEFAULT_COLUMNS
    group_pattern: str | None = None
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
    bound: Bound = field(default_factory=Bound)
    held_out: Path | None = None
    refine: str | None = None
    reviews: Path | None = None
    features: Path | None = None
    features_limit_gib: float = LIMIT_GIB
    report: bool = True
    spark: SparkSettings | None = None

    def told(self) -> dict[str, str]:
        """The options that were given, for the report; the source and where the bundle lies are told by themselves."""
        defaults = TrainSettings(self.source, self.out)
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {name: value for name, value in own.items() if value != getattr(defaults, name)}
        return {f"--{name.replace('_', '-')}": shown(str(value)) for name, value in given.items()}

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
        UnprovedError: the held-out defects cannot prove the bound that was asked for.
        ChanceError: the model ranks no better than chance.
    """
    start_s = time.perf_counter()
    progress = watch = Stopwatch(progress, time.perf_counter)
    keep_freed()
    for path in (settings.out, settings.held_out):
        refuse_existing(path)
    refined = _refined(settings, progress)
    given = refined.bundle if refined else _given_featurizer(settings)
    cache = FeatureCache(settings.features, settings.features_limit_gib)
    with refined.source if refined else _source(settings, progress) as source, cache:
        labelling = refined.labelling if refined else _labelling(settings, source)
        if settings.spark is None:
            source.fetch([sample.name for sample in labelling.samples], progress)
        with featurizing(source, settings.spark, progress) as cache.elsewhere:
            chosen = choose(source, labelling, settings.request(given), progress, cache)
        data, used, held = chosen.data, chosen.used, chosen.held
        classes = Classes(labelling.pass_class, labelling.fail_class)
        bundle, validated = _fit(chosen, classes, settings, given, progress)
        progress(Step("evaluate"))
        with Scorer(bundle, open_for(bundle, "onnxruntime")) as scorer:
            answers = _answers(scorer, source, chosen)
            _refuse_other_answers(answers.difference, given)
            accepted, metrics = _accept(settings, chosen, labelling, answers.predictions, bundle)
            run = Run(
                chosen=chosen,
                point=accepted.point,
                predictions=accepted.predictions,
                out_of_fold=validated.probability,
                columns=breakdowns(data.samples, labelling),
            )
            seen = look(scorer, source.read, run) if settings.report else None
        before = _before(refined, chosen, labelling, source) if refined else {}
        if settings.held_out is not None:
            write_samples(settings.held_out, [data.samples[i] for i in held], source.read)
    bundle = replace(bundle, head=replace(bundle.head, operating_point=accepted.point, stations=accepted.stations))
    about = {
        **bundle.about,
        **before,
        "source": source.origin,
        "held_out": metrics,
        "operating_point": accepted.told,
        "images": {"used": len(used), "held_out": len(held), "defects": int(data.defect.sum())},
        "classes": {"pass": labelling.pass_class, "fail": labelling.fail_class, "how": labelling.how},
        "skipped": [list(entry) for entry in data.skipped],
        "notes": [*data.notes, *accepted.notes],
        "features": {"found": cache.found, "computed": cache.computed},
        "duplicates": data.copies.to_json(),
        "near_duplicates": data.near_duplicates,
        "steps_s": {name: round(lasted_s, 3) for name, lasted_s in watch.seconds().items()},
        "seconds": round(time.perf_counter() - start_s, 3),
    }
    whole = replace(bundle, about=about, reference=answers.reference)
    report = {training_set.NAME: training_set.to_csv(data.samples, chosen.features.sha256, held)}
    if seen is not None:
        progress(Step("report"))
        from trainer.report.page import report_files  # noqa: PLC0415 - matplotlib is for who wants a report

        report |= report_files(gather(sealed(whole), run, seen, settings.told()))
    progress(Step("write"))
    written = write_bundle(settings.out, whole, report)
    if cache.elsewhere is not None:
        cache.elsewhere.forget()
    return written, summary(settings.out, written, has_report=seen is not None)


def summary(out: Path, bundle: Bundle, *, has_report: bool) -> dict[str, Any]:
    """What the command prints of a trained bundle."""
    point = bundle.head.operating_point
    told = (
        "mode",
        "classes",
        "images",
        "chosen",
        "cross_validated",
        "held_out",
        "learning_curve",
        "near_duplicates",
        "operating_point",
        "false_rejects",
        "camera_checks",
        "refined",
        "skipped",
        "notes",
        "features",
        "duplicates",
        "steps_s",
        "seconds",
    )
    return {
        "bundle": str(out),
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "report": "report/index.html" if has_report else None,
        "input_px": [bundle.image.width_px, bundle.image.height_px],
        "tile_px": None if bundle.image.tile_px is None else list(bundle.image.tile_px),
        "defect_rate": bundle.defect_rate,
        "defect_rate_given": bundle.about.get("defect_rate_given", False),
        "threshold": point.threshold,
        "review_band": list(point.review_band),
        **{key: bundle.about[key] for key in told if key in bundle.about},
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What the written model says of held-out images, through the serving path.

    Attributes:
        reference: of some of them.
        difference: the most that a pooled value lies away from what was fitted on.
    """

    predictions: list[Prediction]
    reference: Reference
    difference: float


def refuse_existing(path: Path | None) -> None:
    """Before minutes of work, not after."""
    if path is not None and path.exists():
        msg = f"{path} exists already: expected a new path, nothing is written over; give another"
        raise BundleError(msg)


def _refined(settings: TrainSettings, progress: Callable[[Step], None]) -> Refined | None:
    """The training set to refine, where a bundle was named. Raises InputError where a setting contradicts."""
    if settings.refine is None and settings.reviews is None:
        return None
    if settings.refine is None or settings.reviews is None:
        missing, there = ("--refine", "--reviews") if settings.refine is None else ("--reviews", "--refine")
        msg = f"{there} was given without {missing}: expected the bundle and the labels that join its training set"
        raise InputError(msg)
    asked = {
        "--groups": settings.groups,
        "--columns": None if settings.columns == DEFAULT_COLUMNS else settings.columns,
        "--group-pattern": settings.group_pattern,
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
    return open_refined(settings.refine, settings.reviews, settings.source, tell=progress)


def _accept(
    settings: TrainSettings, chosen: Chosen, labelling: Labelling, predictions: Sequence[Prediction], bundle: Bundle
) -> tuple[Accepted, dict[str, Any]]:
    """The operating point, and the metrics of the held-out images at it."""
    data, rows = chosen.data, chosen.held
    defect, groups, samples = data.defect[rows], data.groups[rows], [data.samples[i] for i in rows]
    is_grouped = any(sample.group for sample in labelling.samples)
    everything = len(data.defect), int(data.defect.sum())
    stations = [sample.extra.get("station", "") for sample in samples]
    out = HeldOut(predictions, defect, groups, is_grouped, everything, stations)
    accepted = accept(out, settings.costs, settings.bound)
    metrics = evaluate(accepted.predictions, defect, breakdowns(samples, labelling), groups)
    probability = np.array([each.defect_probability for each in predictions])
    at_own_rate = at_rate(probability, bundle.defect_rate, bundle.about["trained_defect_rate"])
    metrics |= calibration_metrics(at_own_rate, defect)
    notes = (*accepted.notes, *refuse_chance(metrics, everything))
    return replace(accepted, notes=notes), metrics


def _source(settings: TrainSettings, progress: Callable[[Step], None]) -> Source:
    if settings.source is None:
        msg = "no source was given: expected a zip or a folder of images, or --refine BUNDLE --reviews FILE"
        raise InputError(msg)
    return open_source(settings.source, None if settings.spark is None else LIMITS, progress)


def _labelling(settings: TrainSettings, source: Source) -> Labelling:
    return label_source(
        source,
        fail_class=settings.fail_class,
        groups_file=settings.groups,
        columns=settings.columns,
        group_pattern=settings.group_pattern,
    )


def _before(refined: Refined, chosen: Chosen, labelling: Labelling, source: Source) -> dict[str, Any]:
    """What was refined, and what the earlier bundle says of the same held-out images."""
    samples = [chosen.data.samples[i] for i in chosen.held]
    with Scorer(refined.bundle, open_for(refined.bundle, "onnxruntime")) as scorer:
        answers = _answers(scorer, source, chosen)
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


def _refuse_other_answers(difference: float, given: Bundle | None) -> None:
    """The head was fitted on what this version builds; the given graph must compute the same. Raises GraphError."""
    if given is not None and difference > _MOST_DIFFERENCE:
        msg = (
            f"the graph of bundle {given.name!r} answers up to {difference:.3g} away from what this version builds of "
            f"{given.featurizer}: expected at most {_MOST_DIFFERENCE}; train that bundle again with this version first"
        )
        raise GraphError(msg)


def _fit(
    chosen: Chosen, classes: Classes, settings: TrainSettings, given: Bundle | None, progress: Callable[[Step], None]
) -> tuple[Bundle, Validated]:
    """Fit on the samples that are used only; the bundle without its metrics, and how the recipe does on all."""
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
    pooled = take(data.pooled, used)
    distances = held_back_distances(pooled, folds)
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
        features=limits_of(pooled, np.concatenate(distances)),
    )
    stream, told = stream_limits(looks.glances, looks.noises, groups[used], settings.seed)
    progress(Step("validate"))
    validated = cross_validate(data, groups, chosen.recipe, seed=settings.seed)
    bundle = Bundle(
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
            "learning_curve": learning_curve(data, groups, chosen.recipe, seed=settings.seed),
            "camera_checks": told,
        },
        stream=replace(stream, drift=drift_limit(distances, groups[used], folds)),
    )
    return bundle, validated


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


def _answers(scorer: Scorer, source: Source, chosen: Chosen) -> _Answers:
    """Held-out images the whole way that a frame takes, from its bytes on; of most only the prediction is kept."""
    names = [chosen.data.samples[row].name for row in chosen.held]
    fitted, kept = take(chosen.table.pooled, chosen.held), _reference_rows(chosen.data.defect[chosen.held])
    predictions: list[Prediction] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    difference = 0.0
    for start in range(0, len(names), BATCH):
        images = np.stack([scorer.decode(source.read(name)) for name in names[start : start + BATCH]])
        features = scorer.features(images)
        predictions += scorer.predict(images, features)
        off = np.abs(features.pooled - fitted[start : start + len(images)])
        difference = float(np.maximum(difference, off.max()))
        own = kept[(kept >= start) & (kept < start + len(images))] - start
        parts.append((images[own], features.pooled[own], features.evidence[own, 0]))
    probabilities = np.array([predictions[row].defect_probability for row in kept])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _Answers(predictions, Reference(columns[0], columns[1], columns[2], probabilities), difference)


def _reference_rows(defect: np.ndarray) -> np.ndarray:
    """Up to 64 held-out images, as many of each class as there are."""
    good, bad = np.flatnonzero(~defect), np.flatnonzero(defect)
    share = REFERENCE_IMAGES // 2
    take_bad = min(len(bad), max(share, REFERENCE_IMAGES - len(good)))
    return np.sort(np.concatenate([good[: REFERENCE_IMAGES - take_bad], bad[:take_bad]]))


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
