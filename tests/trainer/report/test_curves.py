"""The numbers behind the charts, against scikit-learn, brute force and simulations with a known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binomtest, norm
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from tests.acceptance import judged
from trainer.operating_point import Costs
from trainer.report.curves import (
    at_rate,
    calibration_curve,
    cost_curve,
    curves,
    exact_interval,
    has_both,
    histogram,
    log_odds,
)
from trainer.report.data import Judged
from trainer.report.resampling import exact_intervals


def tied(count: int = 200) -> Judged:
    whole = judged(count, apart=2.0)
    return replace(whole, probability=whole.probability.round(1))


@pytest.mark.parametrize("images", [judged(apart=1.0), judged(), tied()])
def test_areas_and_curves_are_scikit_learns(images: Judged) -> None:
    found = curves(images)
    assert found.auroc.value == pytest.approx(roc_auc_score(images.defect, images.probability))
    assert found.average_precision.value == pytest.approx(average_precision_score(images.defect, images.probability))
    assert found.auroc.low <= found.auroc.value <= found.auroc.high
    false_alarms, caught, _ = roc_curve(images.defect, images.probability, drop_intermediate=False)
    np.testing.assert_allclose(np.interp(false_alarms, found.roc.x, found.roc.y).max(), caught.max())
    assert {(x, y) for x, y in zip(found.roc.x, found.roc.y, strict=True)} <= set(
        zip(false_alarms, caught, strict=True)
    )
    precision, recall, _ = precision_recall_curve(images.defect, images.probability)
    drawn = set(zip(found.precision_recall.x.round(9), found.precision_recall.y.round(9), strict=True))
    assert drawn <= set(zip(recall.round(9), precision.round(9), strict=True))


def test_curves_lie_in_their_bands_and_are_the_same_again() -> None:
    images = judged(apart=2.0)
    one, other = curves(images), curves(images)
    for name in ("roc", "precision_recall"):
        band, again = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(band.low, again.low)
        np.testing.assert_array_equal(band.high, again.high)
        assert np.all(band.low <= band.high)
        assert np.all((band.low >= 0) & (band.high <= 1))
    at = np.searchsorted(one.roc.x, one.roc.grid, "right") - 1
    assert np.all(one.roc.low <= one.roc.y[at] + 1e-12)
    assert np.all(one.roc.high >= one.roc.y[at] - 1e-12)


def test_without_a_mistake_the_band_is_the_exact_bound_and_never_a_line() -> None:
    images = judged(60, apart=40.0)
    defects = int(images.defect.sum())
    found = curves(images)
    assert found.auroc.value == 1.0
    assert found.auroc.low < 0.95
    assert found.roc.low[50] == pytest.approx(binomtest(defects, defects).proportion_ci(0.95, "exact").low)


def test_groups_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(8), 40)
    defect = np.arange(320) % 2 == 0
    odds = rng.normal(3.0 * (defect - 0.5)) + rng.normal(0, 3.0, 8)[groups]
    images = Judged(tuple(map(str, range(320))), defect, groups, expit(odds), np.full(320, "pass"))
    alone = replace(images, groups=np.arange(320))
    whole, single = curves(images), curves(alone)
    assert whole.by_groups
    assert whole.groups == 8
    assert whole.auroc.high - whole.auroc.low > 1.3 * (single.auroc.high - single.auroc.low)


def test_few_groups_are_not_resampled_and_that_is_told() -> None:
    assert not curves(judged(groups=3)).by_groups
    assert curves(judged(groups=5)).by_groups


@pytest.mark.slow
def test_the_band_holds_the_true_curve() -> None:
    """Normal scores with a known distance: the true share caught at 10 % false alarms; at 95 %, of 100 draws."""
    truth = norm.sf(norm.isf(0.1) - 1.5)
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        defect = np.arange(120) < 50
        score = expit(rng.normal(1.5 * defect))
        found = curves(Judged(("",) * 120, defect, np.arange(120), score, np.full(120, "pass")))
        held += found.roc.low[10] <= truth <= found.roc.high[10]
    assert binomtest(held, 100, 0.95, "less").pvalue > 0.01


def test_a_ranking_of_one_class_is_refused() -> None:
    images = judged()
    good = replace(images, defect=np.zeros(len(images), bool))
    assert not has_both(good.defect)
    with pytest.raises(ValueError, match="both classes"):
        curves(good)


def test_calibration_bins_hold_equally_many_and_all_images() -> None:
    images = judged(200)
    found = calibration_curve(images)
    assert len(found.bins) == 15
    assert {each.images for each in found.bins} <= {13, 14}
    assert sum(each.defects for each in found.bins) == images.defect.sum()
    assert len(calibration_curve(judged(22)).bins) == 4
    for each in found.bins:
        assert (each.low, each.high) == pytest.approx(
            tuple(binomtest(each.defects, each.images).proportion_ci(0.95, "exact"))
        )


def test_the_calibration_error_is_the_distance_from_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(20000)
    defect = rng.random(20000) < truth
    images = Judged(("",) * 20000, defect, np.arange(20000), truth, np.full(20000, "pass"))
    assert calibration_curve(images).error < 0.015
    squared = replace(images, probability=truth**2)
    assert calibration_curve(squared).error == pytest.approx(np.mean(truth - truth**2), abs=0.01)


def test_costs_are_those_of_counting_at_the_lines_rate() -> None:
    images, costs = judged(apart=2.0), Costs(7.0, 2.0, 0.5)
    found = cost_curve(images, costs, 0.05)
    for place in (0, 20, 50, 71, 100):
        fails = log_odds(images.probability) >= found.x[place]
        expected = 1000 * (0.05 * 7 * (~fails)[images.defect].mean() + 0.95 * 2 * fails[~images.defect].mean())
        assert found.y[place] == pytest.approx(expected)
        assert found.low[place] <= expected <= found.high[place]
    again = cost_curve(images, costs, 0.05)
    np.testing.assert_array_equal(found.high, again.high)


def test_histogram_counts_everything() -> None:
    edges, counts = histogram(np.array([0.0, 1e-9, 0.5, 0.5, 1.0]))
    assert (len(edges), counts.sum()) == (37, 5)
    assert (counts[0], counts[-1]) == (2, 1)


def test_a_rate_is_changed_by_its_odds_and_back() -> None:
    probability = np.array([0.1, 0.5, 0.9])
    rare = at_rate(probability, 0.4, 0.01)
    assert np.all(rare < probability)
    np.testing.assert_allclose(logit(rare) - logit(probability), logit(0.01) - logit(0.4))
    np.testing.assert_allclose(at_rate(rare, 0.01, 0.4), probability)


def test_intervals_are_exact() -> None:
    assert exact_interval(0, 0) == (0.0, 1.0)
    for events, among in ((0, 5), (3, 20), (20, 20), (7, 300)):
        known = binomtest(events, among).proportion_ci(0.95, "exact")
        assert exact_interval(events, among) == pytest.approx((known.low, known.high))
        low, high = exact_intervals(np.array([events]), np.array([among]))
        assert (low[0], high[0]) == pytest.approx((known.low, known.high))
