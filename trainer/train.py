"""The trainer's main job: labelled images in, a bundle out, with metrics on images it never saw."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.arenas import for_training
from engine.backbone import build_serving_graph
from engine.bundle import Bundle, Classes
from engine.choice import open_for
from engine.errors import GraphError
from engine.heads import Head
from engine.scorer import Scorer
from trainer.acceptance import HeldOut, accept, refuse_chance
from trainer.answers import answers_of, balanced_rows
from trainer.classifier import at_rows, calibrate, fit_parts, out_of_fold
from trainer.cross_validation import cross_validate
from trainer.elsewhere import featurizing
from trainer.evaluate import calibration_metrics, evaluate
from trainer.feature_store import FeatureCache
from trainer.learning_curve import learning_curve
from trainer.limits import held_back_distances, limits_of, pixel_limits
from trainer.opening import given_featurizer, inherited, labels_of, refined_of, refuse_existing, source_of
from trainer.operating_point import at_rate, from_costs, shift_to_rate
from trainer.progress import Step, Stopwatch
from trainer.report.gather import Run, look
from trainer.samples import write_samples
from trainer.selection import FOLDS, choose
from trainer.split import grouped_folds
from trainer.stored_rows import take
from trainer.stream_limits import drift_limit, stream_limits
from trainer.telling import breakdowns, of_cache, of_images, of_network
from trainer.writing import write_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.prediction import Prediction
    from trainer.acceptance import Accepted
    from trainer.answers import Answers
    from trainer.cross_validation import Validated
    from trainer.labels import Labelling
    from trainer.refine import Refined
    from trainer.selection import Chosen
    from trainer.settings import TrainSettings
    from trainer.sources import Source

_MOST_DIFFERENCE = 1e-3


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
    for_training()
    for path in (settings.out, settings.held_out):
        refuse_existing(path)
    refined = refined_of(settings, progress)
    settings = inherited(settings, refined)
    given = refined.bundle if refined else given_featurizer(settings)
    cache = FeatureCache(settings.features, settings.features_limit_gib)
    with refined.source if refined else source_of(settings, progress) as source, cache:
        labelling = refined.labelling if refined else labels_of(settings, source)
        if settings.spark is None:
            source.fetch([sample.name for sample in labelling.samples], progress)
        with featurizing(source, settings.spark, progress) as cache.elsewhere:
            chosen = choose(source, labelling, settings.request(given), progress, cache)
        data, used, held = chosen.data, chosen.used, chosen.held
        classes = Classes(labelling.pass_class, labelling.fail_class)
        bundle, validated = _fit(chosen, classes, settings, given, progress)
        progress(Step("evaluate"))
        with Scorer(bundle, open_for(bundle, "onnxruntime")) as scorer:
            answers = _answered(scorer, source, chosen)
            _refuse_other_answers(answers.difference, given)
            accepted, metrics = _accept(settings, chosen, labelling, answers.predictions, bundle)
            run = Run(
                data=data,
                used=used,
                held=held,
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
        **of_images(data, labelling, used, held),
        "notes": [*data.notes, *accepted.notes],
        **of_cache(cache),
        "near_duplicates": data.near_duplicates,
        "steps_s": {name: round(lasted_s, 3) for name, lasted_s in watch.seconds().items()},
        "seconds": round(time.perf_counter() - start_s, 3),
    }
    written = write_trained(
        settings.out,
        replace(bundle, about=about, reference=answers.reference),
        run,
        seen,
        sha256=chosen.features.sha256,
        options=settings.told(),
        progress=progress,
    )
    if cache.elsewhere is not None:
        cache.elsewhere.forget()
    return written


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


def _before(refined: Refined, chosen: Chosen, labelling: Labelling, source: Source) -> dict[str, Any]:
    """What was refined, and what the earlier bundle says of the same held-out images."""
    samples = [chosen.data.samples[i] for i in chosen.held]
    with Scorer(refined.bundle, open_for(refined.bundle, "onnxruntime")) as scorer:
        answers = _answered(scorer, source, chosen)
    earlier = evaluate(answers.predictions, chosen.data.defect[chosen.held], breakdowns(samples, labelling))
    return {"refined": {**refined.told, "before": earlier}, "review_folders": dict(refined.folders)}


def _refuse_other_answers(difference: float, given: Bundle | None) -> None:
    """The head was fitted on what this version builds; the given graph must compute the same. Raises GraphError."""
    if given is not None and difference > _MOST_DIFFERENCE:
        msg = (
            f"the graph of bundle {given.name!r} answers up to {difference:.3g} away from what this version builds of "
            f"{given.featurizer}: expected at most {_MOST_DIFFERENCE}; train that bundle again with this version first"
        )
        raise GraphError(msg)


def _answered(scorer: Scorer, source: Source, chosen: Chosen) -> Answers:
    """Of the images held out."""
    rows = chosen.held
    names, kept = [chosen.data.samples[row].name for row in rows], balanced_rows(chosen.data.defect[rows])
    return answers_of(scorer, source, names, kept, take(chosen.table.pooled, rows))


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
        **of_network(chosen.featurizer),
    }
