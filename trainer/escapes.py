"""What may pass, proved on held-out defects: an order statistic, not an estimate.

Let n held-out defects and the defects to come be exchangeable, and k be fixed beforehand, by n, the rate and the
confidence alone, as the largest count whose exact upper bound is within the rate. Passing only what scores below the
(k + 1)-th smallest of the n scores, whatever that turns out to be, then lets more than the rate of all defects pass
with a probability of at most 1 - confidence: the distribution function there is at most the (k + 1)-th smallest of n
uniform numbers, and Beta(k + 1, n - k) is what Clopper-Pearson's bound inverts. Ties only make it safer. (Wilks 1941,
"Determination of sample sizes for setting tolerance limits"; as a conformal bound Park et al. 2020, "PAC confidence
sets for deep neural networks via calibrated prediction".)

An image that is reviewed whatever its score (a stranger, a dark frame) never passes: its score is infinite here, so it
counts once, as a defect that did not escape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.familiarity import Examined
from engine.heads import decide
from trainer.bounds import CONFIDENCE, allowed_events, at_most, check_share, images_needed
from trainer.errors import UnprovedError
from trainer.shares import percent, percent_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.prediction import OperatingPoint, Prediction, Reason


@dataclass(frozen=True, slots=True)
class Bound:
    """What was asked for.

    Attributes:
        max_escape_rate: share of defects that may pass; None: costs decide, and what they let pass is told.
        confidence: of that bound, and of the one that is told.
        accept_unproved: write a bundle also where the held-out defects cannot prove the rate, at the point from costs.
    """

    max_escape_rate: float | None = None
    confidence: float = CONFIDENCE
    accept_unproved: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        check_share(self.confidence, "confidence")
        if self.max_escape_rate is not None:
            check_share(self.max_escape_rate, "escape rate")


@dataclass(frozen=True, slots=True)
class Limit:
    """Where passing ends.

    Attributes:
        below: a defect probability below it may pass; infinite where every defect but the allowed ones is reviewed
            whatever its score, so that any limit is proved.
        allowed: k, how many of the held-out defects were allowed to lie below it.
    """

    below: float
    allowed: int


def passing_scores(predictions: Sequence[Prediction]) -> np.ndarray:
    """(n,) defect probability of each image, infinite where it is reviewed for a reason that no limit changes."""
    return np.array([math.inf if _doubt(each) else each.defect_probability for each in predictions])


def pass_limit(scores: np.ndarray, max_escape_rate: float, confidence: float) -> Limit | None:
    """The largest limit on what passes that n held-out defects' `scores` (n,) prove; None: too few of them."""
    allowed = allowed_events(len(scores), max_escape_rate, confidence)
    return None if allowed is None else Limit(float(np.sort(scores)[allowed]), allowed)


def refuse_too_few(defects: int, images: int, held_out_defects: int, bound: Bound) -> str:
    """Say how many more defects the bound needs; returns the words where that was accepted.

    Args:
        defects: in all.
        images: in all.
        held_out_defects: of the defects.
        bound: with a rate.

    Raises:
        UnprovedError: it was not accepted.
    """
    rate = bound.max_escape_rate or 0.0
    needed = images_needed(rate, bound.confidence)
    in_all = math.ceil(needed * defects / held_out_defects)
    words = (
        f"an escape rate of at most {percent(rate)} at {percent(bound.confidence)} confidence cannot be proved with "
        f"{held_out_defects} held-out defects: without a miss among them they prove at most "
        f"{percent_up(at_most(0, held_out_defects, bound.confidence))}; expected at least {needed} held-out defects, "
        f"{needed - held_out_defects} more, so about {in_all} defects in all at the share that is held out, "
        f"{in_all - defects} more than these {defects} among {images} images"
    )
    if not bound.accept_unproved:
        msg = f"{words}; add them, ask for less, or take the point from costs with --accept-unproved"
        raise UnprovedError(msg)
    return f"ATTENTION: {words}; the operating point is the one from costs, as --accept-unproved allows"


def decided_at(predictions: Sequence[Prediction], point: OperatingPoint) -> list[Prediction]:
    """The same images at another operating point."""
    return [
        decide(each.defect_probability, point, doubt, Examined(doubt, each.trouble, each.distance))
        for each in predictions
        for doubt in (_doubt(each),)
    ]


def _doubt(prediction: Prediction) -> Reason | None:
    """What is wrong with the image itself."""
    return next((reason for reason in prediction.reasons if reason != "band"), None)
