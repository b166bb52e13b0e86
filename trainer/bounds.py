"""What a count or a ranking on n images says of all images to come: exact bounds, never a point alone.

Counts are binomial where images stand alone: Clopper and Pearson 1934, "The use of confidence or fiducial limits
illustrated in the case of the binomial". The area under the ROC curve has the interval of Newcombe 2006, "Confidence
intervals for an effect size measure based on the Mann-Whitney statistic, part 2", method 5, which does not collapse
where every defect ranks above every good part. Pure, and nothing is drawn: the same counts, the same bounds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm, t

from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95
"""Of every interval that nobody asked another one for."""

_EDGE = 1e-12


def check_share(value: float, what: str) -> None:
    """Raises InputError where a rate or a confidence is not strictly between 0 and 1."""
    if not 0 < value < 1:
        msg = f"{what} {value} is not a share: expected a number between 0 and 1, for example 0.01"
        raise InputError(msg)


def at_most(events: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided upper bound on a rate after `events` in n: 60 without one give .0487. 1 where n is 0."""
    return 1.0 if events >= n else float(beta.ppf(confidence, events + 1, n - events))


def interval(events: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The two-sided interval of a rate after `events` in n; None where n is 0: nothing is known."""
    if n == 0:
        return None
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else float(beta.ppf(tail, events, n - events + 1))
    return low, at_most(events, n, 1 - tail)


@lru_cache
def allowed_events(n: int, rate: float, confidence: float = CONFIDENCE) -> int | None:
    """The largest count in n whose upper bound is within `rate`; None where even 0 is not.

    The upper bound of k is within the rate where a rate as high as that gave k or fewer at most 1 - confidence of the
    time, so it is the quantile of the binomial distribution, less one where that is reached only by chance.
    """
    k = int(binom.ppf(1 - confidence, n, rate))
    while k >= 0 and at_most(k, n, confidence) > rate:
        k -= 1
    return None if k < 0 else k


def images_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """The fewest images without one event whose upper bound is within `rate`: 299 for .01 at .95."""
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-rate)))
    while at_most(0, n, confidence) > rate:  # the logarithms' last digit
        n += 1
    return n


def auroc_interval(
    defect: np.ndarray, score: np.ndarray, groups: Sequence[int] | np.ndarray | None = None
) -> tuple[float, float] | None:
    """The two-sided 95 % interval of the area under the ROC curve; None where only one class is there.

    Newcombe's interval at effective numbers of images: fewer than there are by the factor by which the variance
    estimated from the images (DeLong 1988), or from whole groups of them (Obuchowski 1997), exceeds the model's. Where
    images come in groups the quantile is Student's for so many groups. Where nothing is out of order no variance can be
    estimated; then only as many images count as there are groups.

    Args:
        defect: (n,) bool.
        score: (n,) higher for a defect.
        groups: (n,) images of one resemble each other; None: every image stands alone. With one group alone nothing
            is known about others, and the interval is that of images which stand alone.
    """
    defect = np.asarray(defect, bool)
    if not defect.any() or defect.all():
        return None
    above, below = _placements(score[defect], score[~defect])
    theta = float(above.mean())
    members = np.arange(len(defect)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(members.max()) + 1
    sizes = np.array([len(above), len(below)], float)
    estimated = _by_image(above), _by_image(below)
    variance = estimated[0] + estimated[1]
    quantile = float(norm.ppf((1 + CONFIDENCE) / 2))
    if 1 < count < len(defect):
        influence = np.empty(len(defect))
        influence[defect] = (above - theta) / len(above)
        influence[~defect] = (below - theta) / len(below)
        of_groups = np.bincount(members, influence, count)
        variance = max(variance, count / (count - 1) * float(of_groups @ of_groups))
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
        if variance == 0:
            sizes = np.array([len(np.unique(members[defect == label])) for label in (True, False)], float)
    modelled = _modelled_variance(theta, sizes)
    if modelled > 0:
        sizes = np.maximum(1.0, sizes / max(1.0, variance / modelled))
    return _newcombe(theta, sizes, quantile)


def _placements(bad: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each defect's share of good parts below it, each good part's share of defects above it; ties count half."""
    bad_sorted, good_sorted = np.sort(bad), np.sort(good)
    above = np.searchsorted(good_sorted, bad, "left") + np.searchsorted(good_sorted, bad, "right")
    below = np.searchsorted(bad_sorted, good, "left") + np.searchsorted(bad_sorted, good, "right")
    return above / (2 * len(good)), 1 - below / (2 * len(bad))


def _by_image(placements: np.ndarray) -> float:
    """One class's part of DeLong's variance."""
    return float(placements.var(ddof=1) / len(placements)) if len(placements) > 1 else 0.0


def _modelled_variance(theta: float, sizes: np.ndarray) -> float:
    """Hanley and McNeil's 1982, with both classes' sizes in the middle replaced by their mean (Newcombe's method 5)."""
    middle = sizes.mean() - 1
    spread = 1 + middle * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return float(theta * (1 - theta) * spread / sizes.prod())


def _newcombe(theta: float, sizes: np.ndarray, quantile: float) -> tuple[float, float]:
    """The values from which `theta` is just `quantile` standard errors away, each at its own standard error."""

    def beyond(other: float) -> float:
        return abs(theta - other) - quantile * math.sqrt(_modelled_variance(other, sizes))

    # At 0 and 1 themselves both the distance and the standard error may vanish: that is not the end looked for.
    low = 0.0 if theta == 0 else float(brentq(beyond, 0.0, min(theta, 1 - _EDGE)))
    high = 1.0 if theta == 1 else float(brentq(beyond, max(theta, _EDGE), 1.0))
    return low, high
