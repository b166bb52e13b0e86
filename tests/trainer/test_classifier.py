"""Stacking and calibration: probabilities mean what they say, and no part argues backwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from engine.errors import InputError
from engine.heads import Calibration, decide
from trainer.classifier import Scores, calibrate
from trainer.limits import feature_limits, pixel_limits
from trainer.operating_point import Costs, from_costs, shift_to_rate
from trainer.split import grouped_folds

if TYPE_CHECKING:
    from trainer.classifier import Parts


def scores(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two noisy scores of the same truth, a third of it defects."""
    rng = np.random.default_rng(seed)
    defect = rng.random(count) < 1 / 3
    return defect * 2.0 + rng.normal(0, 1, count), defect * 300.0 + rng.normal(0, 200, count), defect


def test_calibrated_probabilities_come_true() -> None:
    evidence, score, defect = scores(6000, 0)
    c = calibrate(evidence, score, defect)
    new_evidence, new_score, truth = scores(6000, 1)
    p = expit(c.evidence_slope * new_evidence + c.pooled_slope * new_score + c.intercept)
    for low in np.arange(0, 1, 0.2):
        inside = (p >= low) & (p < low + 0.2)
        if inside.sum() > 100:
            assert truth[inside].mean() == pytest.approx(p[inside].mean(), abs=0.06)


def test_a_score_that_argues_backwards_is_left_out() -> None:
    evidence, score, defect = scores(500, 2)
    c = calibrate(evidence, -score, defect)
    assert c.pooled_slope == 0
    assert c.evidence_slope > 0


def test_a_perfect_score_does_not_claim_certainty() -> None:
    defect = np.arange(60) % 2 == 1
    score = np.where(defect, 5.0, -5.0)
    c = calibrate(score, score, defect)
    p = expit((c.evidence_slope + c.pooled_slope) * score + c.intercept)
    assert 0.9 < p[defect].min() < 0.9999
    assert 0.0001 < p[~defect].max() < 0.1


@pytest.mark.parametrize("parts", ["evidence", "pooled"])
def test_a_part_that_is_not_asked_has_no_say(parts: Parts) -> None:
    evidence, score, defect = scores(500, 5)
    c = calibrate(evidence, score, defect, parts)
    slopes = {"evidence": c.evidence_slope, "pooled": c.pooled_slope}
    assert slopes.pop(parts) > 0
    assert set(slopes.values()) == {0}
    ranked = Scores(evidence, score).of(parts, defect)
    np.testing.assert_array_equal(np.argsort(ranked), np.argsort(evidence if parts == "evidence" else score))


@pytest.mark.parametrize(
    ("costs", "threshold", "band"),
    [
        (Costs(10, 1, 0.3), 1 / 11, (0.03, 0.7)),
        (Costs(1, 1, 0), 0.5, (0.5, 0.5)),
        (Costs(1, 1, 5), 0.5, (0.5, 0.5)),  # a review dearer than any mistake never pays
        (Costs(1, 1, 0.2), 0.5, (0.2, 0.8)),
    ],
)
def test_operating_point_from_costs(costs: Costs, threshold: float, band: tuple[float, float]) -> None:
    point = from_costs(costs)
    assert point.threshold == pytest.approx(threshold)
    assert point.review_band == pytest.approx(band)


@given(st.floats(0, 1), st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 10))
@settings(deadline=None)
def test_decision_is_the_cheapest_of_the_three(p: float, escape: float, false_reject: float, review: float) -> None:
    expected = {"pass": p * escape, "fail": (1 - p) * false_reject}
    if review:
        expected["review"] = review
    decision = decide(p, from_costs(Costs(escape, false_reject, review)), None).decision
    assert expected[decision] <= min(expected.values()) + 1e-9


@pytest.mark.parametrize("costs", [(0, 1, 0), (1, -1, 0), (1, 1, -0.1), (float("nan"), 1, 0), (float("inf"), 1, 0)])
def test_costs_that_cannot_be_are_refused(costs: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="expected positive numbers"):
        Costs(*costs)


def test_rate_shift_gives_the_bayes_posterior() -> None:
    shifted = shift_to_rate(Calibration(1.0, 0.0, 0.0), 0.5, 0.01)
    p = expit(2.0 + shifted.intercept)
    likelihood_ratio = np.exp(2.0)
    assert p == pytest.approx(likelihood_ratio * 0.01 / (likelihood_ratio * 0.01 + 0.99))


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        shift_to_rate(Calibration(1, 1, 0), 0.5, rate)


def test_feature_limits_let_the_line_through_and_not_a_stranger() -> None:
    rng = np.random.default_rng(4)
    mixing = rng.normal(size=(5, 40))
    line = (rng.normal(size=(200, 5)) @ mixing + rng.normal(0, 0.1, (200, 40))).astype(np.float32)
    folds = grouped_folds(np.arange(200) % 2 == 1, np.arange(200), folds=3, seed=0)
    limits = feature_limits(line, folds)
    new = (rng.normal(size=(500, 5)) @ mixing + rng.normal(0, 0.1, (500, 40))).astype(np.float32)
    assert np.mean([limits.distance(row) <= limits.limit for row in new]) > 0.99
    stranger = rng.normal(0, line.std(), (100, 40)).astype(np.float32)  # as large, without the line's directions
    assert np.mean([limits.distance(row) > limits.limit for row in stranger]) > 0.99


def test_one_black_training_image_does_not_let_black_frames_pass() -> None:
    statistics = np.vstack([np.tile([40.0, 8.0], (199, 1)), [[0.0, 0.0]]])
    limits = pixel_limits(statistics)
    assert limits.contrast == pytest.approx(10.0, rel=0.01)
    assert limits.detail == pytest.approx(2.0, rel=0.01)
