"""What an acceptance report finds, all of it computed: what the page shows and `report.json` holds."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.report.curves import (
    Band,
    at_rate,
    calibration_curve,
    cost_curve,
    curves,
    has_both,
    histogram,
)
from trainer.report.tables import breakdowns, confusion
from trainer.report.verdict import escapes_at_most, expense, verdict
from trainer.report.words import costs_of, limits

if TYPE_CHECKING:
    from engine.prediction import OperatingPoint
    from trainer.report.curves import CalibrationCurve, Curves
    from trainer.report.data import Acceptance, Judged
    from trainer.report.tables import Breakdown, Confusion
    from trainer.report.verdict import Expense, Verdict

SCHEMA = 1
_DECIMALS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Images of each class by probability: (k + 1,) edges in log odds, (k,) counts."""

    edges: np.ndarray
    good: np.ndarray
    defects: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """One set of images, by models that had not seen them; None where the images have only one class.

    Attributes:
        cost: over the threshold.
        spent: at the operating point.
        calibration: at the training images' own share of defects, whatever the line's is.
    """

    images: int
    defects: int
    groups: int
    confusion: Confusion
    histogram: Histogram
    curves: Curves | None
    cost: Band | None
    spent: Expense | None
    calibration: CalibrationCurve | None


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """All of it.

    Attributes:
        held: the images held out, by the very model in the bundle.
        everything: all images, out of fold; None where there was no cross-validation.
        breakdowns: of `everything` where it is there, else of `held`.
        escapes_at_most: upper bound on the share of defects that pass.
    """

    verdict: Verdict
    limits: tuple[str, ...]
    point: OperatingPoint
    held: Evidence
    everything: Evidence | None
    breakdowns: tuple[Breakdown, ...]
    escapes_at_most: float

    @property
    def widest(self) -> Evidence:
        """The evidence with the most images."""
        return self.everything or self.held


def find(acceptance: Acceptance) -> Findings:
    """Compute everything; a few hundred milliseconds for some thousand images."""
    held = _evidence(acceptance, acceptance.held)
    everything = None if acceptance.everything is None else _evidence(acceptance, acceptance.everything)
    tables = breakdowns(acceptance.everything or acceptance.held)
    auroc = held.curves.auroc if held.curves else None
    return Findings(
        verdict=verdict(acceptance, held.confusion, auroc, held.spent),
        limits=tuple(limits(acceptance, held.confusion, _between(tables))),
        point=acceptance.bundle.head.operating_point,
        held=held,
        everything=everything,
        breakdowns=tables,
        escapes_at_most=escapes_at_most(acceptance.about, held.confusion),
    )


def to_json(acceptance: Acceptance, findings: Findings) -> dict[str, Any]:
    """Plain values: the page's figures, and what the bundle tells of itself."""
    bundle = acceptance.bundle
    told: dict[str, Any] = _plain(
        {
            "schema": SCHEMA,
            "model": {
                "name": bundle.name,
                "version": bundle.version,
                "digest": bundle.digest,
                "classes": {"pass": bundle.classes.passed, "fail": bundle.classes.failed},
                "defect_rate": bundle.defect_rate,
                "threshold": findings.point.threshold,
                "review_band": findings.point.review_band,
            },
            "verdict": findings.verdict,
            "escapes_at_most": findings.escapes_at_most,
            "not_proved": findings.limits,
            "held_out": findings.held,
            "all_images": findings.everything,
            "by": {each.name: each for each in findings.breakdowns},
            "pictures": [
                {
                    "name": picture.name,
                    "label": picture.label,
                    "probability": picture.probability,
                    "decision": picture.decision,
                    "why": picture.why,
                }
                for picture in (*acceptance.pictures, *acceptance.doubtful)
            ],
            "trained_on": {"images": acceptance.used_images, "defects": acceptance.used_defects},
            "settings": dict(acceptance.settings),
            "about": bundle.about,
        }
    )
    return told


def _evidence(acceptance: Acceptance, judged: Judged) -> Evidence:
    about, rate = acceptance.about, acceptance.bundle.defect_rate
    found, costs = confusion(judged), costs_of(about)
    both = has_both(judged.defect)
    weighed = both and not acceptance.is_good_only
    edges, good = histogram(judged.probability[~judged.defect])
    _, defects = histogram(judged.probability[judged.defect])
    own_rate = _at_own_rate(acceptance, judged) if weighed else None
    return Evidence(
        images=len(judged),
        defects=int(judged.defect.sum()),
        groups=len(np.unique(judged.groups)),
        confusion=found,
        histogram=Histogram(edges, good, defects),
        curves=curves(judged) if both else None,
        cost=cost_curve(judged, costs, rate) if weighed else None,
        spent=expense(about, found, rate) if weighed else None,
        calibration=None if own_rate is None else calibration_curve(own_rate),
    )


def _at_own_rate(acceptance: Acceptance, judged: Judged) -> Judged:
    """With the probabilities that fit the training images' own share of defects."""
    rate = acceptance.bundle.defect_rate
    own = at_rate(judged.probability, rate, float(acceptance.about.get("trained_defect_rate", rate)))
    return replace(judged, probability=own)


def _between(tables: tuple[Breakdown, ...]) -> tuple[float, float] | None:
    """The lowest and the highest AUROC of a group, where at least two have one."""
    known = [row.auroc for table in tables if table.name == "group" for row in table.rows if row.auroc is not None]
    return (min(known), max(known)) if len(known) > 1 else None


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples as JSON has them; no more digits than mean anything."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(part) for name, part in _fields(value).items()}
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return round(float(value), _DECIMALS) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
