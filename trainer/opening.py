"""Opens what a training was asked to train on, and refuses settings that contradict each other before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.bundle_cache import copy_of, open_located
from engine.errors import BundleError, InputError
from engine.specs import Region
from trainer.escapes import Bound
from trainer.label_csv import DEFAULT_COLUMNS
from trainer.labels import label_source
from trainer.operating_point import Costs
from trainer.refine import open_refined
from trainer.settings import TrainSettings
from trainer.sources import open_source
from trainer.spark_reading import LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.bundle import Bundle
    from trainer.labels import Labelling
    from trainer.progress import Step
    from trainer.refine import Refined
    from trainer.sources import Source


def refuse_existing(path: Path | None) -> None:
    """Before minutes of work, not after."""
    if path is not None and path.exists():
        msg = f"{path} exists already: expected a new path, nothing is written over; give another"
        raise BundleError(msg)


def source_of(settings: TrainSettings, progress: Callable[[Step], None]) -> Source:
    """The images that were asked for. Raises InputError where none were."""
    if settings.source is None:
        msg = "no source was given: expected a zip or a folder of images, or --refine BUNDLE --reviews FILE"
        raise InputError(msg)
    return open_source(settings.source, None if settings.spark is None else LIMITS, progress)


def labels_of(settings: TrainSettings, source: Source, *, good_only: bool = False) -> Labelling:
    """Their labels. Raises as `trainer.labels.label_source`."""
    return label_source(
        source,
        fail_class=settings.fail_class,
        groups_file=settings.groups,
        columns=settings.columns,
        group_pattern=settings.group_pattern,
        good_only=good_only,
    )


def refined_of(settings: TrainSettings, progress: Callable[[Step], None]) -> Refined | None:
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
    at = copy_of(settings.refine, settings.bundle_cache)
    return open_refined(settings.refine, settings.reviews, settings.source, at=at, tell=progress)


def inherited(settings: TrainSettings, refined: Refined | None) -> TrainSettings:
    """The settings, with the earlier bundle's costs, bound and defect rate (the line's own) where none were given."""
    if refined is None:
        return settings
    about, own = refined.bundle.about, TrainSettings(settings.source, settings.out)
    costs, bound, rate = settings.costs, settings.bound, settings.defect_rate
    if costs == own.costs and "costs" in about:
        costs = Costs(**about["costs"])
    if bound == own.bound and "operating_point" in about:
        asked = about["operating_point"]
        bound = Bound(asked["max_escape_rate"], asked["confidence"], accept_unproved=asked["proved"] is False)
    if rate is None and about.get("defect_rate_given"):
        rate = refined.bundle.defect_rate
    return replace(settings, costs=costs, bound=bound, defect_rate=rate)


def given_featurizer(settings: TrainSettings) -> Bundle | None:
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
    return open_located(settings.featurizer_of, settings.bundle_cache)


def refuse_two_class_settings(settings: TrainSettings) -> None:
    """What needs two classes, or a featurizer that was not made for these good parts. Raises InputError."""
    asked = {
        "--featurizer-of": settings.featurizer_of,
        "--refine": settings.refine,
        "--reviews": settings.reviews,
        "--defect-rate": settings.defect_rate,
        "--max-escape-rate": settings.bound.max_escape_rate,
        "--accept-unproved": settings.bound.accept_unproved or None,
        "--on spark": settings.spark,
        "--cost-escape, --cost-false-reject or --cost-review": None if settings.costs == Costs() else settings.costs,
    }
    contrary = [name for name, value in asked.items() if value is not None]
    if contrary:
        msg = (
            f"--mode good-only was given with {', '.join(contrary)}: without defects nothing is known of their rate "
            "or of probabilities, and the featurizer is made for these good parts; leave these out, and bound false "
            "rejects with --max-false-reject"
        )
        raise InputError(msg)
    if settings.source is None:
        msg = "no source was given: expected a zip or a folder of images of good parts"
        raise InputError(msg)


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
