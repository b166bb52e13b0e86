"""The report's tables: what was decided of which images, with exact bounds, and by group, kind or station."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainer.bounds import at_most
from trainer.report.curves import exact_interval, has_both
from trainer.report.resampling import Ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.report.data import Judged

DECISIONS = ("pass", "review", "fail")
MOST_ROWS = 16
FEWEST_IN_ROW = 4
"""Images in a row, on average: where every image is a group of its own a table by group says nothing."""


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many, and what the true share may be.

    Attributes:
        low, high: two-sided, exact, at 95 %.
        at_most: one-sided, exact, at 95 %.
    """

    events: int
    among: int
    low: float
    high: float
    at_most: float

    @classmethod
    def of(cls, events: int, among: int) -> Share:
        """With its bounds; (0, 1) where there is nothing to count."""
        return cls(events, among, *exact_interval(events, among), at_most(events, among))

    @property
    def share(self) -> float | None:
        """The share seen; None where there is nothing to count."""
        return self.events / self.among if self.among else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Decisions at the operating point, by class: decision -> share of the class's images."""

    defect: dict[str, Share]
    good: dict[str, Share]

    @property
    def escapes(self) -> Share:
        """Defects that passed."""
        return self.defect["pass"]

    @property
    def false_rejects(self) -> Share:
        """Good parts that failed."""
        return self.good["fail"]

    @property
    def reviews(self) -> int:
        """Images of either class that a person is to look at."""
        return self.defect["review"].events + self.good["review"].events

    @property
    def images(self) -> int:
        """Of both classes."""
        return self.escapes.among + self.false_rejects.among


@dataclass(frozen=True, slots=True)
class Row:
    """Images with one value of a breakdown; `auroc` is None where only one class is there."""

    value: str
    auroc: float | None
    confusion: Confusion


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The rows of one breakdown, those with most mistakes first.

    Attributes:
        left_out: rows beyond what a page can show; they hold fewer mistakes, or none.
    """

    name: str
    rows: tuple[Row, ...]
    left_out: int


def confusion(judged: Judged) -> Confusion:
    """What was decided of all images."""
    return _confusion(judged.defect, judged.decision)


def breakdowns(judged: Judged) -> tuple[Breakdown, ...]:
    """By every column in which enough images share a value."""
    found = []
    for name, values in judged.columns.items():
        places = _places(values)
        if places and sum(map(len, places.values())) >= FEWEST_IN_ROW * len(places):
            rows = sorted((_row(judged, value, own) for value, own in places.items()), key=_badness)
            found.append(Breakdown(name, tuple(rows[:MOST_ROWS]), max(0, len(rows) - MOST_ROWS)))
    return tuple(found)


def _places(values: Sequence[str]) -> dict[str, np.ndarray]:
    places = defaultdict(list)
    for index, value in enumerate(values):
        if value:
            places[value].append(index)
    return {value: np.array(rows) for value, rows in sorted(places.items())}


def _row(judged: Judged, value: str, rows: np.ndarray) -> Row:
    defect = judged.defect[rows]
    ranking = Ranking.of(defect, judged.probability[rows]).weighted(np.ones(len(rows), int))
    auroc = ranking.auroc if has_both(defect) and ranking is not None else None
    return Row(value, auroc, _confusion(defect, judged.decision[rows]))


def _badness(row: Row) -> tuple[int, int, str]:
    """Most mistakes first, then the most images."""
    mistakes = row.confusion.escapes.events + row.confusion.false_rejects.events
    return -mistakes, -row.confusion.images, row.value


def _confusion(defect: np.ndarray, decision: np.ndarray) -> Confusion:
    of_class = [
        {word: Share.of(int((decision[chosen] == word).sum()), int(chosen.sum())) for word in DECISIONS}
        for chosen in (defect, ~defect)
    ]
    return Confusion(*of_class)
