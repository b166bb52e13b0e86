"""The numbers behind the charts, each with what chance alone could make of it.

Bands are pointwise, two-sided at 95 %, the wider of two answers at every point: see `trainer.report.resampling`.
Everything is decided by the data and a fixed seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logit

from trainer.bounds import auroc_interval, interval
from trainer.report.resampling import Ranking, draws, exact_intervals, units_of, widened

if TYPE_CHECKING:
    from trainer.operating_point import Costs
    from trainer.report.data import Judged

BINS = 15
FEWEST_IN_BIN = 5
GRID = 101
MOST_POINTS = 400
PARTS = 1000
"""Parts of the line that costs are told for."""

_EDGE = 1e-4
LOWEST, HIGHEST = float(logit(_EDGE)), float(logit(1 - _EDGE))
"""Log odds between which probabilities are drawn; what lies outside is drawn at the edge."""


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """A curve (k,) and, at (g,) places, from where to where it may lie."""

    x: np.ndarray
    y: np.ndarray
    grid: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and from where to where it may lie at 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """How well defects are told from good parts, over all thresholds.

    Attributes:
        roc: x share of good parts called defects, y share of defects called defects.
        precision_recall: x share of defects called defects, y share of defects among what is called defect.
        auroc: area below the first, with the interval of `trainer.bounds`, over groups.
        average_precision: area below the second.
        by_groups: whether whole groups were resampled; single images where there are too few groups.
        groups: how many there are.
    """

    roc: Band
    precision_recall: Band
    auroc: Interval
    average_precision: Interval
    by_groups: bool
    groups: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose predicted probabilities are next to each other.

    Attributes:
        predicted: their mean predicted probability.
        low, high: between which the true share of defects lies, exact at 95 %.
    """

    predicted: float
    images: int
    defects: int
    low: float
    high: float

    @property
    def observed(self) -> float:
        """Share of defects."""
        return self.defects / self.images


@dataclass(frozen=True, slots=True)
class CalibrationCurve:
    """Predicted probability against the share of defects.

    Attributes:
        bins: of equal mass, by rising prediction.
        error: expected calibration error: the mean distance between the two, weighted by the bins' images.
    """

    bins: tuple[Bin, ...]
    error: float


def has_both(defect: np.ndarray) -> bool:
    """Whether there are defects and good parts: without both nothing can be ranked."""
    return bool(defect.any() and not defect.all())


def curves(judged: Judged, *, seed: int = 0) -> Curves:
    """ROC and precision-recall of judged images. Raises ValueError unless both classes are there."""
    ranking = Ranking.of(judged.defect, judged.probability)
    own = ranking.weighted(np.ones(len(judged), int))
    if own is None:
        msg = "a ranking needs images of both classes: ask has_both first"
        raise ValueError(msg)
    drawn = [each for weights in draws(judged.groups, seed) if (each := ranking.weighted(weights)) is not None]
    grid = np.linspace(0, 1, GRID)
    defects = int(judged.defect.sum())
    exact = exact_intervals(own.caught_at(grid), np.array(defects))
    caught = widened([each.caught_at(grid) / each.caught[-1] for each in drawn], exact)
    precise = widened([np.divide(*each.called_at(grid)) for each in drawn], exact_intervals(*own.called_at(grid)))
    roc = _thinned(np.append(0.0, own.false_alarm_rate), np.append(0.0, own.recall))
    precision = _thinned(own.recall, own.caught / (own.caught + own.alarms))
    pairs = min(defects, len(judged) - defects)
    return Curves(
        roc=Band(*roc, grid, *caught),
        precision_recall=Band(*precision, grid, *precise),
        auroc=Interval(own.auroc, *(auroc_interval(judged.defect, judged.probability, judged.groups) or (0.0, 1.0))),
        average_precision=_interval(own.average_precision, [each.average_precision for each in drawn], pairs),
        by_groups=units_of(judged.groups)[1],
        groups=len(np.unique(judged.groups)),
    )


def calibration_curve(judged: Judged, bins: int = BINS) -> CalibrationCurve:
    """Bins of equal mass by predicted probability; fewer than asked for where images are few.

    The expected calibration error is that of Naeini et al. 2015, "Obtaining well calibrated probabilities".
    """
    count = max(1, min(bins, len(judged) // FEWEST_IN_BIN))
    found = []
    for rows in np.array_split(np.argsort(judged.probability, kind="stable"), count):
        defects = int(judged.defect[rows].sum())
        low, high = exact_interval(defects, len(rows))
        found.append(Bin(float(judged.probability[rows].mean()), len(rows), defects, low, high))
    error = sum(each.images * abs(each.predicted - each.observed) for each in found) / len(judged)
    return CalibrationCurve(tuple(found), error)


def cost_curve(judged: Judged, costs: Costs, defect_rate: float, *, seed: int = 0) -> Band:
    """Expected cost of 1,000 parts at each threshold, without a review band.

    Args:
        judged: images of both classes.
        costs: of an escape and of a false reject; a review is not looked at.
        defect_rate: share of defects on the line, which the images need not have.
        seed: of the draws.

    Returns:
        x thresholds as log odds, y the cost in the costs' own unit.
    """
    places = np.linspace(LOWEST, HIGHEST, GRID)
    fails_below = np.searchsorted(places, log_odds(judged.probability), "right")
    prices = PARTS * defect_rate * costs.escape, PARTS * (1 - defect_rate) * costs.false_reject

    def mistakes(weights: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """(g,) escapes and how many defects there are, then false rejects and how many good parts."""
        found = []
        for chosen in (judged.defect, ~judged.defect):
            passed = np.cumsum(np.bincount(fails_below[chosen], weights[chosen], GRID + 1)[:GRID])
            total = int(weights[chosen].sum())
            found.append((passed if chosen is judged.defect else total - passed, total))
        return found

    def priced(shares: list[np.ndarray]) -> np.ndarray:
        return np.asarray(prices[0] * shares[0] + prices[1] * shares[1])

    own = mistakes(np.ones(len(judged), int))
    drawn = [
        priced([events / among for events, among in found])
        for found in map(mistakes, draws(judged.groups, seed))
        if all(among for _, among in found)
    ]
    exact = [exact_intervals(events, np.array(among)) for events, among in own]
    ends = priced([low for low, _ in exact]), priced([high for _, high in exact])
    return Band(places, priced([events / among for events, among in own]), places, *widened(drawn, ends))


def histogram(probability: np.ndarray, bins: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """(bins + 1,) edges in log odds and (bins,) counts; what lies outside is counted at the edge."""
    edges = np.linspace(LOWEST, HIGHEST, bins + 1)
    counts, _ = np.histogram(log_odds(probability), edges)
    return edges, counts


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Log odds, cut off where charts end."""
    odds: np.ndarray = np.clip(logit(np.clip(probability, _EDGE / 10, 1 - _EDGE / 10)), LOWEST, HIGHEST)
    return odds


def at_rate(probability: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """The same probabilities for another share of defects (Saerens et al. 2002): only the prior changes."""
    if from_rate == to_rate:
        return probability
    odds = logit(np.clip(probability, 1e-9, 1 - 1e-9)) + logit(to_rate) - logit(from_rate)
    shifted: np.ndarray = expit(odds)
    return shifted


def exact_interval(events: int, among: int) -> tuple[float, float]:
    """Two-sided exact interval of a share at 95 %; (0, 1) where nothing was seen."""
    return interval(events, among) or (0.0, 1.0)


def _interval(value: float, drawn: list[float], pairs: int) -> Interval:
    """Percentiles of what was drawn.

    Where nothing was ever ranked wrongly they have no width. Then so many pairs of a defect and a good part, no image
    in two of them, stood in the right order, and the exact bound of that is told.
    """
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (value, value)
    if value == 1.0:
        low = min(low, exact_interval(pairs, pairs)[0])
    return Interval(value, float(min(low, value)), float(max(high, value)))


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a curve, and no more points than a chart can show."""
    if len(x) > 2:  # noqa: PLR2004 - a point between two others
        between = (np.diff(x)[:-1] == 0) & (np.diff(x)[1:] == 0) | (np.diff(y)[:-1] == 0) & (np.diff(y)[1:] == 0)
        keep = np.flatnonzero(np.concatenate([[True], ~between, [True]]))
        x, y = x[keep], y[keep]
    rows = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    return x[rows], y[rows]
