"""Threshold and review band from what each kind of mistake costs, or from a limit on what passes.

With a calibrated probability p, passing a part costs p times an escape, rejecting it 1 - p times a false reject, and
handing it to an inspector always costs one review. Taking the cheapest of the three gives the band in closed form
(Chow 1970, "On optimum recognition error and reject tradeoff").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from engine.errors import InputError
from engine.heads import Calibration
from engine.prediction import OperatingPoint
from trainer.bounds import check_share


@dataclass(frozen=True, slots=True)
class Costs:
    """What a mistake costs, in any one unit: only their ratios matter.

    Attributes:
        escape: a defect that passed.
        false_reject: a good part that failed.
        review: an inspector's look at one part; with 0 there is no review band.
    """

    escape: float = 5.0
    false_reject: float = 1.0
    review: float = 0.5

    def __post_init__(self) -> None:
        """Refuse costs that cannot be."""
        values = (self.escape, self.false_reject, self.review)
        if (
            not all(math.isfinite(value) for value in values)
            or min(self.escape, self.false_reject) <= 0
            or self.review < 0
        ):
            msg = (
                f"costs escape {self.escape}, false reject {self.false_reject}, review {self.review} cannot be: "
                "expected positive numbers, review 0 for no review band"
            )
            raise InputError(msg)


def from_costs(costs: Costs) -> OperatingPoint:
    """The operating point with the least expected cost; an empty band where a review never pays."""
    threshold = costs.false_reject / (costs.escape + costs.false_reject)
    low, high = costs.review / costs.escape, 1 - costs.review / costs.false_reject
    if costs.review == 0 or not low < threshold < high:
        return OperatingPoint(threshold, (threshold, threshold))
    return OperatingPoint(threshold, (low, high))


def below_limit(limit: float, costs: Costs) -> OperatingPoint:
    """The operating point that passes just what lies below `limit`; of the rest, costs say what is failed.

    Above the limit only a review and a reject are left, and the cheaper is taken: the band's upper edge is Chow's. The
    band is empty where no review is wanted or the limit lies above that edge.
    """
    from_there = 1 - costs.review / costs.false_reject
    if costs.review == 0 or from_there <= limit:
        return OperatingPoint(limit, (limit, limit))
    threshold = costs.false_reject / (costs.escape + costs.false_reject)
    return OperatingPoint(min(max(threshold, limit), from_there), (limit, from_there))


def at_rate(probability: np.ndarray, rate: float, other: float) -> np.ndarray:
    """Probabilities (n,) that are calibrated at one rate of defects as they are at another."""
    with np.errstate(divide="ignore"):
        odds: np.ndarray = logit(probability) + _log_odds(other) - _log_odds(rate)
    moved: np.ndarray = expit(odds)
    return moved


def _log_odds(rate: float) -> float:
    return math.log(rate / (1 - rate))


def shift_to_rate(calibration: Calibration, trained_rate: float, line_rate: float) -> Calibration:
    """The same calibration for a line on which defects are rarer or more frequent than in the training set.

    Only the prior changes, so only the intercept does, by the difference of the log odds (Saerens et al. 2002).
    """
    check_share(line_rate, "defect rate")
    shift = _log_odds(line_rate) - _log_odds(trained_rate)
    return Calibration(calibration.evidence_slope, calibration.pooled_slope, calibration.intercept + shift)
