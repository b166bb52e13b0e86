"""The operating point with what held-out images prove of it, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.bounds import at_most
from trainer.errors import ChanceError
from trainer.escapes import decided_at, pass_limit, passing_scores, refuse_too_few
from trainer.operating_point import below_limit, from_costs
from trainer.shares import percent, percent_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.prediction import OperatingPoint, Prediction
    from trainer.escapes import Bound
    from trainer.operating_point import Costs

ENOUGH_TO_TELL = 50
"""Images of each class, held out and used together, from which on a ranking that may be chance is refused."""

_CLAIMS = (
    ("defects", "defects", "escapes", "passed", "pass", "escape_rate_at_most"),
    ("good", "good parts", "false_rejects", "failed", "fail", "false_reject_rate_at_most"),
)


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Images that no part of the model saw.

    Attributes:
        predictions: the written model's own, through the serving path, at any operating point.
        defect: (n,) bool.
        groups: (n,) what stays together.
        grouped: whether groups were given.
        everything: images and defects of the whole training set, these among them.
        stations: (n,) whose image it is; empty where nobody said so.
    """

    predictions: Sequence[Prediction]
    defect: np.ndarray
    groups: np.ndarray
    grouped: bool
    everything: tuple[int, int]
    stations: Sequence[str] = ()

    def at(self, station: str) -> HeldOut:
        """The images of one station."""
        rows = np.array([each == station for each in self.stations])
        predictions = [each for each, is_there in zip(self.predictions, rows, strict=True) if is_there]
        return replace(self, predictions=predictions, defect=self.defect[rows], groups=self.groups[rows], stations=())


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """What was decided.

    Attributes:
        point: the operating point.
        stations: those of stations that have one of their own.
        predictions: the held-out images at it, or at their station's.
        told: plain values, for the bundle and the summary.
        notes: what the user must hear.
    """

    point: OperatingPoint
    stations: dict[str, OperatingPoint]
    predictions: list[Prediction]
    told: dict[str, Any]
    notes: tuple[str, ...]


def accept(held: HeldOut, costs: Costs, bound: Bound) -> Accepted:
    """Set the operating point by the bound where one was asked for, else by costs, and say what is proved of it.

    A station whose own held-out defects suffice for the bound has a point of its own, which they alone prove; all
    others share one, proved on all. What is told of the shared one is as if it served every station.

    Raises:
        UnprovedError: the bound asked for needs more defects, and that was not accepted.
    """
    point, told = _decide(held, costs, bound)
    notes: tuple[str, ...] = ()
    if told["proved"] is False:
        images, defects = held.everything
        notes = (refuse_too_few(defects, images, told["defects"], bound),)
    own = {name: _decide(held.at(name), costs, bound) for name in sorted(set(held.stations) - {""})}
    own = {name: decided for name, decided in own.items() if decided[1]["by"] == "bound"}
    stations = {name: its_point for name, (its_point, _) in own.items()}
    told["words"] = [
        *_words(told),
        *(f"station {name}: {words}" for name, (_, its) in own.items() for words in _words(its)),
    ]
    told["stations"] = {name: {**asdict(its_point), **its} for name, (its_point, its) in own.items()}
    predictions = [
        decided
        for each, name in zip(held.predictions, held.stations or [""] * len(held.predictions), strict=True)
        for decided in decided_at([each], stations.get(name, point))
    ]
    return Accepted(point, stations, predictions, told, notes)


def _decide(held: HeldOut, costs: Costs, bound: Bound) -> tuple[OperatingPoint, dict[str, Any]]:
    """The operating point, and in numbers what these images prove of it."""
    point, limit = from_costs(costs), None
    defects, good = int(held.defect.sum()), int((~held.defect).sum())
    if bound.max_escape_rate is not None:
        scores = passing_scores(held.predictions)[held.defect]
        limit = pass_limit(scores, bound.max_escape_rate, bound.confidence)
        if limit is not None and np.isfinite(limit.below):
            point = below_limit(limit.below, costs)
    decisions = np.array([each.decision for each in decided_at(held.predictions, point)])
    escapes, rejects = (decisions[held.defect] == "pass").sum(), (decisions[~held.defect] == "fail").sum()
    return point, {
        "by": "costs" if limit is None else "bound",
        "confidence": bound.confidence,
        "max_escape_rate": bound.max_escape_rate,
        "proved": None if bound.max_escape_rate is None else limit is not None,
        "defects": defects,
        "groups": len(np.unique(held.groups)) if held.grouped else None,
        "escapes": int(escapes),
        "allowed_escapes": None if limit is None else limit.allowed,
        # The limit was set by looking at these very defects: what it proves is what was fixed beforehand.
        "escape_rate_at_most": at_most(int(escapes) if limit is None else limit.allowed, defects, bound.confidence),
        "good": good,
        "false_rejects": int(rejects),
        "false_reject_rate_at_most": at_most(int(rejects), good, bound.confidence),
    }


def refuse_chance(metrics: Mapping[str, Any], everything: tuple[int, int]) -> tuple[str, ...]:
    """Refuse a ranking that chance explains; with few images say so loudly instead.

    The interval is that of images which stand alone, whatever their groups: under the hypothesis, labels that have
    nothing to do with the images, they do, and a handful of groups would make any good model look like chance.

    Args:
        metrics: of the held-out images, see `evaluate`.
        everything: images and defects of the whole training set.

    Returns:
        What the user must hear.

    Raises:
        ChanceError: the interval reaches down to .5, and both classes have at least 50 images.
    """
    low, high = metrics["auroc_interval_of_images"]
    images, defects = everything
    got = (
        f"held-out AUROC {metrics['auroc']:.3f}, 95 % interval {low:.3f} to {high:.3f} over {metrics['images']} images"
    )
    if low <= 0.5:  # noqa: PLR2004 - what chance gives
        msg = (
            f"the model may rank parts no better than chance: {got}; expected an interval above 0.5; check that the "
            "labels belong to their images, that the defect can be seen at the network's input (a larger --size, a "
            "tighter --roi), and add images"
        )
        if min(defects, images - defects) >= ENOUGH_TO_TELL:
            raise ChanceError(msg)
        return (f"ATTENTION: {msg}",)
    if metrics["auroc_interval"][0] <= 0.5:  # noqa: PLR2004 - the same
        low, high = metrics["auroc_interval"]
        note = (
            f"{metrics['groups']} held-out groups are too few, or differ too much, to say how parts of other groups "
            f"are ranked: AUROC {low:.3f} to {high:.3f} at 95 % over groups"
        )
        return (note,)
    return ()


def rate_words(rate: float, *, is_given: bool) -> str:
    """Which share of defects the probabilities are right for."""
    if is_given:
        return f"for a line on which {percent(rate)} of parts are defects (--defect-rate)"
    return (
        f"for a line with the training set's own {percent(rate)} of defects: no --defect-rate was given; where the "
        "line has fewer, probabilities are too high and too many good parts are rejected"
    )


def _words(told: Mapping[str, Any]) -> list[str]:
    """The claim, and what it rests on."""
    at = f"at {percent(told['confidence'])} confidence"
    words = [
        f"of {told[among]} held-out {who} {told[event] or 'none'} {did}: "
        f"at most {percent_up(told[bound])} of {who} {do}, {at}"
        for among, who, event, did, do, bound in _CLAIMS
    ]
    if told["groups"] is not None:
        words.append(
            f"they come from {told['groups']} group{'s' * (told['groups'] != 1)}; groups differ, and images of one "
            "resemble each other: the bounds hold for parts like these, and may be too low for other groups"
        )
    return words
