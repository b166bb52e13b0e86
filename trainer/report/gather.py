"""A finished training run -> what its acceptance report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.heads import decide
from trainer.report.curves import at_rate
from trainer.report.data import Acceptance, Judged
from trainer.report.pictures import doubtful_pictures, doubtful_rows, held_out_pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.bundle import Bundle
    from engine.prediction import OperatingPoint, Prediction
    from engine.scorer import Scorer
    from trainer.dataset import Dataset
    from trainer.report.data import Picture


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A training run on n images.

    Attributes:
        data: all images.
        used, held: rows that were trained on and that were held out.
        point: the operating point that is written, of all stations that have none of their own.
        predictions: of the images held out, at their station's point, by the written model through the serving path.
        out_of_fold: (n,) calibrated probability at the training images' own rate, from models that had not seen the
            image's group; None where there was no cross-validation.
        columns: name of a breakdown -> (n,) values.
    """

    data: Dataset
    used: np.ndarray
    held: np.ndarray
    point: OperatingPoint
    predictions: Sequence[Prediction]
    out_of_fold: np.ndarray | None
    columns: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Seen:
    """Pictures, taken while the source and the model are open."""

    held: tuple[Picture, ...]
    doubtful: tuple[Picture, ...]


def look(scorer: Scorer, read: Callable[[str], bytes], run: Run) -> Seen:
    """Take the pictures that the report shows; reads some three dozen images again."""
    samples = run.data.samples
    held = held_out_pictures(scorer, read, [samples[row] for row in run.held], run.predictions, run.point)
    if run.out_of_fold is None:
        return Seen(held, ())
    rows = doubtful_rows(run.out_of_fold, run.data.defect)
    answers = [decide(float(run.out_of_fold[row]), run.point, None) for row in rows]
    return Seen(held, doubtful_pictures(read, scorer.image_spec, [samples[row] for row in rows], answers))


def gather(bundle: Bundle, run: Run, seen: Seen, settings: Mapping[str, str]) -> Acceptance:
    """All that is told, of a bundle as it will be read."""
    return Acceptance(
        bundle=bundle,
        held=_held(run),
        everything=None if run.out_of_fold is None else _everything(bundle, run, run.out_of_fold),
        pictures=seen.held,
        doubtful=seen.doubtful,
        used_groups=_groups(run, run.used),
        held_groups=_groups(run, run.held),
        used_images=len(run.used),
        used_defects=int(run.data.defect[run.used].sum()),
        settings=settings,
    )


def _held(run: Run) -> Judged:
    return Judged(
        names=tuple(run.data.samples[row].name for row in run.held),
        defect=run.data.defect[run.held],
        groups=run.data.groups[run.held],
        probability=np.array([prediction.defect_probability for prediction in run.predictions]),
        decision=np.array([prediction.decision for prediction in run.predictions]),
        columns={name: tuple(values[row] for row in run.held) for name, values in run.columns.items()},
    )


def _everything(bundle: Bundle, run: Run, out_of_fold: np.ndarray) -> Judged:
    """At the line's rate, decided as the bundle decides; whether an image is familiar was not asked out of fold."""
    probability = at_rate(out_of_fold, float(bundle.about["trained_defect_rate"]), bundle.defect_rate)
    stations = run.columns.get("station", [""] * len(probability))
    points = [bundle.head.at(station).operating_point for station in stations]
    decided = [decide(float(value), point, None) for value, point in zip(probability, points, strict=True)]
    return Judged(
        names=tuple(sample.name for sample in run.data.samples),
        defect=run.data.defect,
        groups=run.data.groups,
        probability=probability,
        decision=np.array([each.decision for each in decided]),
        columns={name: tuple(values) for name, values in run.columns.items()},
    )


def _groups(run: Run, rows: np.ndarray) -> tuple[str, ...]:
    """Names of the groups of some rows, where they have names, in their order."""
    return tuple(sorted({group for row in rows if (group := run.data.samples[row].group)}))
