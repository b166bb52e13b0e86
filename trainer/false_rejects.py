"""The operating point of a model that has seen no defect: how often good parts may fail, and what the number means.

Nothing is known of defects, so nothing here is a probability. A score is mapped so that .5 is the line above which a
part fails and .05 a typical good part, and rises with the score: an order, and a scale to read it on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError, WorkError
from engine.heads import Calibration, sigmoid
from engine.prediction import OperatingPoint
from trainer.bounds import CONFIDENCE, allowed_events, at_most, check_share, images_needed

AIM = 0.01
"""The rate aimed at where none is asked for: as near as the images can show it."""

REVIEWED = 0.05
"""About this share of good parts, the oddest, is looked at: those that fail are among them."""

THRESHOLD = 0.5
TYPICAL = 0.05
_BEYOND = 0.01
_LEAST_SPREAD = 1e-3

WORDS = (
    "no defect was trained on: the number is no probability. It orders parts by how far their oddest spot lies from "
    f"what good parts look like; {TYPICAL} is a typical good part, {THRESHOLD} the line above which a part fails. The "
    "escape rate is unknown"
)


@dataclass(frozen=True, slots=True)
class FalseRejects:
    """How often good parts may fail.

    Attributes:
        rate: at most this share of good parts, above 0 and below 1; None aims at `AIM` and takes what the images show.
        confidence: of the bound.
    """

    rate: float | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        """Refuse what cannot be a share. Raises InputError."""
        if self.rate is not None:
            check_share(self.rate, "false-reject rate")
        check_share(self.confidence, "confidence")


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Where a good-only model decides.

    Attributes:
        told: how it was set, plain values.
        notes: what the user must hear.
    """

    calibration: Calibration
    operating_point: OperatingPoint
    told: dict[str, Any]
    notes: tuple[str, ...]


def set_point(scores: np.ndarray, asked: FalseRejects) -> Point:
    """The point at which good parts fail no more often than asked.

    So many of the n scores may lie above the line that the upper bound of Clopper and Pearson on the rate stays within
    what was asked for: an upper tolerance limit (Wilks 1941). It holds for parts such as these; whole boards or lots
    that differ are not promised anything.

    Args:
        scores: (n,) of good parts, each from a model that saw neither it nor any of its group; rising with oddness.
        asked: the rate and the confidence.

    Raises:
        InputError: a score is not finite.
        WorkError: the rate was asked for and so few good parts cannot show it.
    """
    if not np.isfinite(scores).all():
        msg = "scores of good parts are not finite: expected finite features; check the images"
        raise InputError(msg)
    rate, n = AIM if asked.rate is None else asked.rate, len(scores)
    allowed, needed = allowed_events(n, rate, asked.confidence), images_needed(rate, asked.confidence)
    least = at_most(0, n, asked.confidence)
    short = (
        f"{n} held-out good parts without one false reject show at most {least:.1%} at {asked.confidence:.0%} "
        f"confidence, not {rate:.1%}: that takes {needed}"
    )
    if allowed is None and asked.rate is not None:
        msg = (
            f"the false-reject rate asked for cannot be shown: {short}, {needed - n} more; add good parts, allow a "
            "higher --max-false-reject, or leave it out to go on with what these show"
        )
        raise WorkError(msg)
    ordered = np.sort(scores)
    typical = float(np.median(ordered))
    line = float(ordered[n - 1 - (allowed or 0)])
    # A little beyond the last that is to pass, so that no rounding decides.
    line += max(_BEYOND * (line - typical), _LEAST_SPREAD)
    slope = math.log((1 - TYPICAL) / TYPICAL) / (line - typical)
    calibration = Calibration(slope, 0.0, -slope * line)
    odd = float(np.quantile(ordered, 1 - REVIEWED))
    point = OperatingPoint(THRESHOLD, (min(sigmoid(slope * (odd - line)), THRESHOLD), THRESHOLD))
    above = int((scores > line).sum())
    told = {
        "held_out_good_parts": n,
        "max_false_reject_asked": asked.rate,
        "false_rejects": above,
        "false_reject_at_most": at_most(above, n, asked.confidence),
        "confidence": asked.confidence,
        "good_parts_reviewed": float(((scores >= odd) & (scores <= line)).mean()),
        "good_parts_needed": needed,
        "meaning": WORDS,
    }
    return Point(calibration, point, told, () if allowed is not None else (f"ATTENTION: {short}",))
