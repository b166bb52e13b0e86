"""Where a good-only model draws its line: the bound holds in a simulation, and the words say what it is not."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import InputError, WorkError
from engine.heads import decide, sigmoid
from trainer.false_rejects import AIM, REVIEWED, TYPICAL, FalseRejects, set_point


def decisions(scores: np.ndarray, asked: FalseRejects, judged: np.ndarray) -> list[str]:
    point = set_point(scores, asked)
    slope, intercept = point.calibration.evidence_slope, point.calibration.intercept
    return [
        decide(round(sigmoid(slope * score + intercept), 6), point.operating_point, None).decision for score in judged
    ]


@pytest.mark.parametrize(("n", "rate"), [(299, 0.01), (600, 0.01), (100, 0.05), (150, 0.05)])
def test_the_true_rate_is_within_the_bound_as_often_as_was_asked_for(n: int, rate: float) -> None:
    """Exponential scores, whose true rate above any line is known: exp(-line)."""
    rng, draws = np.random.default_rng(n), 400
    kept = 0
    for _ in range(draws):
        point = set_point(rng.exponential(size=n), FalseRejects(rate))
        line = -point.calibration.intercept / point.calibration.evidence_slope
        kept += np.exp(-line) <= rate
    assert kept / draws >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)
    assert kept < draws, "a line that is never too low is drawn too high"


def test_what_is_told_is_what_is_decided() -> None:
    scores = np.random.default_rng(1).gamma(9, size=500)
    point = set_point(scores, FalseRejects(0.02))
    found = decisions(scores, FalseRejects(0.02), scores)
    assert found.count("fail") == point.told["false_rejects"] > 0
    assert point.told["false_reject_at_most"] <= 0.02
    assert found.count("review") / 500 == point.told["good_parts_reviewed"]
    assert (found.count("review") + found.count("fail")) / 500 == pytest.approx(REVIEWED, abs=0.003)
    assert "no probability" in point.told["meaning"]
    assert "escape rate is unknown" in point.told["meaning"]
    slope, intercept = point.calibration.evidence_slope, point.calibration.intercept
    assert sigmoid(slope * float(np.median(scores)) + intercept) == pytest.approx(TYPICAL)
    assert point.calibration.pooled_slope == 0
    assert point.notes == ()


def test_too_few_good_parts_are_said_and_refused_where_the_rate_was_asked_for() -> None:
    scores = np.arange(60.0)
    point = set_point(scores, FalseRejects())
    assert decisions(scores, FalseRejects(), scores).count("fail") == 0
    assert decisions(scores, FalseRejects(), np.array([60.0])) == ["fail"]
    assert point.told["false_reject_at_most"] == pytest.approx(1 - 0.05 ** (1 / 60))
    (note,) = point.notes
    assert "60 held-out good parts without one false reject show at most 4.9% at 95% confidence, not 1.0%" in note
    assert "that takes 299" in note
    with pytest.raises(WorkError, match=r"that takes 299, 239 more; .* leave it out to go on"):
        set_point(scores, FalseRejects(AIM))
    assert set_point(scores, FalseRejects(0.05)).notes == ()


def test_equal_scores_still_have_a_line_above_them() -> None:
    found = decisions(np.full(20, 16.0), FalseRejects(0.5), np.array([16.0, 16.01]))
    assert found == ["pass", "fail"]


def test_nonsense_is_refused() -> None:
    for rate in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"false-reject rate .* is not a share"):
            FalseRejects(rate)
    with pytest.raises(InputError, match="confidence"):
        FalseRejects(0.01, 1.0)
    with pytest.raises(InputError, match="not finite"):
        set_point(np.array([1.0, np.nan]), FalseRejects())
