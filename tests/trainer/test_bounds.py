"""Exact bounds: published figures, definitions, and coverage in simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from engine.errors import InputError
from trainer.bounds import allowed_events, at_most, auroc_interval, check_share, images_needed, interval


def test_sixty_defects_without_a_miss_prove_no_more_than_4_9_percent() -> None:
    assert at_most(0, 60) == pytest.approx(0.0487, abs=5e-5)
    assert at_most(0, 60) == pytest.approx(1 - 0.05 ** (1 / 60))


@pytest.mark.parametrize(("events", "n"), [(0, 1), (0, 60), (3, 60), (30, 60), (59, 60), (60, 60), (1, 100_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_intervals_are_scipys_exact_ones(events: int, n: int, confidence: float) -> None:
    theirs = binomtest(events, n).proportion_ci(confidence, method="exact")
    assert interval(events, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    one_sided = binomtest(events, n, alternative="less").proportion_ci(confidence, method="exact")
    assert at_most(events, n, confidence) == pytest.approx(one_sided.high, abs=1e-9)


def test_nothing_counted_proves_nothing() -> None:
    assert at_most(0, 0) == 1
    assert interval(0, 0) is None
    assert allowed_events(0, 0.5) is None


@pytest.mark.parametrize(("rate", "confidence", "needed"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.01, 0.99, 459)])
def test_how_many_are_needed_without_a_miss(rate: float, confidence: float, needed: int) -> None:
    assert images_needed(rate, confidence) == needed
    assert at_most(0, needed, confidence) <= rate < at_most(0, needed - 1, confidence)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 12, 59, 298, 299, 300, 1234])
def test_what_is_allowed_is_the_largest_count_whose_bound_is_within_the_rate(n: int, rate: float) -> None:
    within = [count for count in range(n) if at_most(count, n) <= rate]
    assert allowed_events(n, rate) == (max(within) if within else None)


def test_the_bound_is_the_binomial_tail() -> None:
    k, n = 7, 400
    assert binom.cdf(k, n, at_most(k, n)) == pytest.approx(0.05)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_what_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"escape rate .* is not a share: expected a number between 0 and 1"):
        check_share(value, "escape rate")


def coverage(
    sizes: tuple[int, int], gap: float, *, groups: int | None = None, between: float = 0.0, draws: int = 400
) -> float:
    """Share of draws whose interval holds the true AUROC of two normal scores, `gap` apart; groups shift both."""
    random = np.random.default_rng(0)
    truth = norm.cdf(gap / np.sqrt(2 + 2 * between**2))
    defect = np.repeat([True, False], sizes)
    hits = 0
    for _ in range(draws):
        members = None if groups is None else random.integers(0, groups, len(defect))
        score = random.normal(0, 1, len(defect)) + gap * defect
        if groups is not None:
            score += between * random.normal(0, 1, groups)[members]
        ends = auroc_interval(defect, score, members)
        assert ends is not None
        hits += ends[0] <= truth <= ends[1]
    return hits / draws


@pytest.mark.parametrize(("sizes", "gap"), [((12, 12), 0.0), ((12, 12), 3.0), ((50, 50), 1.0), ((10, 300), 3.0)])
def test_the_interval_of_an_auroc_holds_the_truth_as_often_as_it_says(sizes: tuple[int, int], gap: float) -> None:
    assert coverage(sizes, gap) >= 0.93


def test_groups_that_differ_widen_the_interval_of_an_auroc() -> None:
    assert coverage((60, 60), 1.5, groups=8, between=1.5) >= 0.93


def test_without_its_groups_such_an_interval_would_be_too_narrow() -> None:
    """Or the test above could not fail."""
    random = np.random.default_rng(0)
    truth, hits = norm.cdf(1.5 / np.sqrt(2 + 2 * 1.5**2)), 0
    defect = np.repeat([True, False], 60)
    for _ in range(400):
        score = random.normal(0, 1, 120) + 1.5 * defect + 1.5 * random.normal(0, 1, 8)[random.integers(0, 8, 120)]
        ends = auroc_interval(defect, score)
        assert ends is not None
        hits += ends[0] <= truth <= ends[1]
    assert hits / 400 < 0.9


def test_a_perfect_ranking_is_not_called_certain() -> None:
    defect = np.repeat([True, False], 10)
    ends = auroc_interval(defect, defect.astype(float))
    assert ends is not None
    assert 0.7 < ends[0] < 0.9
    assert ends[1] == 1
    by_two_groups = auroc_interval(defect, defect.astype(float), np.arange(20) % 2)
    assert by_two_groups is not None
    assert by_two_groups[0] < 0.2
    backwards = auroc_interval(~defect, defect.astype(float))
    assert backwards == pytest.approx((1 - ends[1], 1 - ends[0]), abs=1e-6)


def test_one_class_alone_has_no_auroc() -> None:
    assert auroc_interval(np.ones(5, bool), np.arange(5.0)) is None
