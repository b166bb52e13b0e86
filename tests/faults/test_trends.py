"""Slopes and gaps, of numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.faults.trends import STRETCH_S, Gaps, Sample, quantile_ms, seasonal_slope


def test_a_slope_is_found_through_noise_peaks_and_seasons() -> None:
    rng = np.random.default_rng(4)
    samples = [
        Sample(
            at_s=float(at_s),
            held=300 + 40 * (at_s // 60 % 2) + 0.01 * at_s + rng.normal(0, 2) + (200 if at_s % 7 == 0 else 0),
            season=at_s // 60 % 2,
        )
        for at_s in range(0, 1500, 2)
    ]
    assert seasonal_slope(samples) == pytest.approx(0.01, abs=0.001)


def test_steps_between_seasons_are_no_slope() -> None:
    samples = [Sample(float(at_s), 100.0 * (at_s // 10), at_s // 10) for at_s in range(40)]
    assert seasonal_slope(samples) == 0


def test_without_two_samples_of_a_season_there_is_no_slope() -> None:
    with pytest.raises(ValueError, match="no slope through 2 samples"):
        seasonal_slope([Sample(0, 1, "a"), Sample(1, 2, "b")])


def test_the_longest_gap_is_found_inside_and_outside() -> None:
    gaps = Gaps()
    now_s = 0.0
    for step_s in [0.1] * 85 + [0.4] + [0.1] * 90:
        now_s += step_s
        assert gaps.decided(now_s)
        assert not gaps.decided(now_s), "the same batch"
    gaps.begin()
    gaps.begin()
    for step_s in (0.1, 0.7, 0.1):
        now_s += step_s
        gaps.decided(now_s)
    gaps.end()
    gaps.end()
    assert gaps.around_s == [pytest.approx(0.7)]
    assert gaps.usual_s == [pytest.approx(0.1), pytest.approx(0.4)]
    gaps.decided(now_s + STRETCH_S)
    gaps.decided(now_s + 2 * STRETCH_S)
    assert len(gaps.usual_s) == 3, "a stretch begins anew after what happened"


def test_a_late_decision_is_no_gap() -> None:
    gaps = Gaps()
    assert [gaps.decided(at_s) for at_s in (1.0, 2.0, 1.5, 3.0)] == [True, True, False, True]


def test_quantiles_are_told_in_milliseconds() -> None:
    assert quantile_ms([0.1, 0.2, 0.3], 0.5) == 200.0
    assert quantile_ms([], 0.5) is None
