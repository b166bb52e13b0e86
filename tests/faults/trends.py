"""What a long run tells of memory and of pauses. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held at one time.

    Attributes:
        at_s: seconds.
        held: in whatever unit.
        season: samples of different seasons are not compared.
    """

    at_s: float
    held: float
    season: Hashable = None


def seasonal_slope(samples: Iterable[Sample]) -> float:
    """What is held more per second: the median of the slopes between any two samples of one season.

    The seasonal form of the Theil-Sen estimator (Hirsch, Slack and Smith, 1982): neither peaks in up to 29 % of the
    samples nor steps between seasons move it.

    Raises:
        ValueError: no season has two samples at different times.
    """
    seasons: dict[Hashable, list[Sample]] = defaultdict(list)
    for sample in samples:
        seasons[sample.season].append(sample)
    slopes = [slope for season in seasons.values() for slope in _slopes(season)]
    if not slopes:
        msg = f"no slope through {sum(map(len, seasons.values()))} samples: expected two of one season"
        raise ValueError(msg)
    return float(np.median(slopes))


def _slopes(samples: Sequence[Sample]) -> list[float]:
    at_s, held = (np.array([getattr(sample, name) for sample in samples]) for name in ("at_s", "held"))
    one, other = np.triu_indices(len(samples), k=1)
    apart = at_s[other] != at_s[one]
    one, other = one[apart], other[apart]
    slopes: list[float] = ((held[other] - held[one]) / (at_s[other] - at_s[one])).tolist()
    return slopes


STRETCH_S = 8.0
"""Stretches in which nothing happened are as long as one in which something did, or so: the longest gap of either."""


@dataclass
class Gaps:
    """Times between one consumer's decisions: the longest of each stretch in which something happened, and otherwise.

    Attributes:
        usual_s: the longest gap of each quiet stretch.
        around_s: the longest gap of each time between `begin` and `end`.
    """

    usual_s: list[float] = field(default_factory=list)
    around_s: list[float] = field(default_factory=list)
    _latest_s: float | None = None
    _began_s: float | None = None
    _inside: bool = False
    _longest_s: float = 0.0

    def begin(self) -> None:
        """From here on it may happen."""
        if not self._inside:
            self._inside, self._longest_s = True, 0.0

    def end(self) -> None:
        """It is over. Without a `begin` this does nothing."""
        if self._inside:
            self.around_s.append(self._longest_s)
            self._inside, self._longest_s, self._began_s = False, 0.0, None

    def decided(self, at_s: float) -> bool:
        """A decision; those of one batch have one time.

        Returns:
            Whether it is the first of its batch. One that stands before the latest is passed over.
        """
        if self._latest_s is not None and at_s <= self._latest_s:
            return False
        if self._latest_s is not None:
            self._longest_s = max(self._longest_s, at_s - self._latest_s)
        self._latest_s = at_s
        if self._inside:
            return True
        if self._began_s is None:
            self._began_s = at_s
        if at_s - self._began_s >= STRETCH_S:
            self.usual_s.append(self._longest_s)
            self._longest_s, self._began_s = 0.0, at_s
        return True


def quantile_ms(values_s: Sequence[float], share: float) -> float | None:
    """A quantile in milliseconds to the tenth; None of nothing."""
    if not values_s:
        return None
    return round(1e3 * float(np.quantile(values_s, share)), 1)
