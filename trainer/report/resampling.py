"""What a ranking would be on other groups: the cluster bootstrap, and exact binomial intervals beside it.

Resampling whole groups (Field and Welsh 2007) shows what other boards, lots or days would do to a figure. It shows
nothing where no mistake was seen: there the exact interval (Clopper and Pearson 1934) speaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import beta

if TYPE_CHECKING:
    from collections.abc import Iterator

DRAWS = 400
_MOST_DRAWN = 50_000_000
"""Images in all draws together; very many images need fewer draws, their spread is small."""

CONFIDENCE = 0.95
FEWEST_GROUPS = 5
"""With fewer, resampling them says next to nothing: then single images are resampled."""

_ROUNDING = 1e-12


def units_of(groups: np.ndarray) -> tuple[np.ndarray, bool]:
    """(n,) what is drawn together, numbered from 0, and whether that is the groups."""
    names, units = np.unique(groups, return_inverse=True)
    return (units, True) if len(names) >= FEWEST_GROUPS else (np.arange(len(groups)), False)


def draws(groups: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """(n,) how often each image is drawn, again and again."""
    units, _ = units_of(groups)
    number = int(units.max()) + 1
    random = np.random.default_rng(seed)
    for _ in range(min(DRAWS, max(DRAWS // 4, _MOST_DRAWN // len(groups)))):
        yield random.multinomial(number, np.full(number, 1 / number))[units]


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """A ranking whose images count several times, or not at all; both classes are among them.

    Attributes:
        caught, alarms: (t,) defects and good parts at or above each of the t distinct scores, the highest first.
    """

    caught: np.ndarray
    alarms: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """(t,) share of the defects."""
        return np.asarray(self.caught / self.caught[-1])

    @property
    def false_alarm_rate(self) -> np.ndarray:
        """(t,) share of the good parts."""
        return np.asarray(self.alarms / self.alarms[-1])

    @property
    def auroc(self) -> float:
        """Area below recall over the false alarm rate; a tie counts half."""
        return float(np.trapezoid(np.append(0.0, self.recall), np.append(0.0, self.false_alarm_rate)))

    @property
    def average_precision(self) -> float:
        """Precision, weighted by what each score adds to recall."""
        called = np.maximum(self.caught + self.alarms, 1)
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.caught / called))

    def caught_at(self, false_alarm_rate: np.ndarray) -> np.ndarray:
        """(g,) defects caught at no more than these rates."""
        place = np.searchsorted(np.append(0.0, self.false_alarm_rate), false_alarm_rate, "right") - 1
        return np.append(0, self.caught)[place]

    def called_at(self, recall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(g,) defects among what is called defect, and how many are, where at least so much is caught."""
        place = np.searchsorted(self.recall, np.maximum(recall - _ROUNDING, _ROUNDING))  # never where nothing is called
        return self.caught[place], self.caught[place] + self.alarms[place]


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """n images from the highest score to the lowest.

    Attributes:
        order: (n,) their rows.
        defect: (n,) bool, in that order.
        ends: (t,) places at which a run of equal scores ends.
    """

    order: np.ndarray
    defect: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, defect: np.ndarray, score: np.ndarray) -> Ranking:
        """Sort once, for all draws."""
        order = np.argsort(-score, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
        return cls(order, defect[order], ends)

    def weighted(self, weights: np.ndarray) -> Weighted | None:
        """With (n,) whole weights; None where a class is not among them."""
        own = weights[self.order]
        caught, alarms = (np.cumsum(own * chosen)[self.ends] for chosen in (self.defect, ~self.defect))
        return Weighted(caught, alarms) if caught[-1] and alarms[-1] else None


def exact_intervals(
    events: np.ndarray, among: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided exact intervals of shares, (0, 1) where there is nothing; element by element."""
    events, among = np.broadcast_arrays(np.asarray(events, float), np.asarray(among, float))
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low, high = beta.ppf(tail, events, among - events + 1), beta.ppf(1 - tail, events + 1, among - events)
    return np.where(events > 0, low, 0.0), np.where(events < among, high, 1.0)


def widened(shares: list[np.ndarray], exact: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The wider of two bands at every point: of drawn curves, and the exact one; (g,) low and high."""
    low, high = exact
    if not shares:
        return low, high
    drawn_low, drawn_high = np.percentile(shares, [50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE], axis=0)
    return np.minimum(low, drawn_low), np.maximum(high, drawn_high)
