"""Metrics of held-out images: each rate with its interval, and how well probabilities come true."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.prediction import Prediction
from trainer.bounds import interval
from trainer.evaluate import calibration_metrics, evaluate
from trainer.operating_point import at_rate

if TYPE_CHECKING:
    from engine.prediction import Decision

DECISIONS: list[Decision] = ["pass", "fail", "fail", "review", "pass", "pass", "pass", "fail"]
DEFECT = np.array([True, True, True, True, False, False, False, False])


def predictions() -> list[Prediction]:
    return [
        Prediction(decision, probability, ("band",) if decision == "review" else ())
        for decision, probability in zip(DECISIONS, (0.1, 0.9, 0.8, 0.3, 0.05, 0.1, 0.0, 0.7), strict=True)
    ]


def test_every_rate_has_its_exact_interval() -> None:
    metrics = evaluate(predictions(), DEFECT, {})
    assert (metrics["recall"], metrics["escape_rate"], metrics["false_reject_rate"]) == (0.75, 0.25, 0.25)
    assert metrics["recall_interval"] == list(interval(3, 4) or ())
    assert metrics["escape_rate_interval"] == metrics["false_reject_rate_interval"] == list(interval(1, 4) or ())
    assert metrics["escape_rate_interval"][1] > 0.8


def test_confusion_is_by_what_the_part_is() -> None:
    metrics = evaluate(predictions(), DEFECT, {})
    assert metrics["confusion"] == {
        "defect": {"pass": 1, "review": 1, "fail": 2},
        "good": {"pass": 3, "review": 0, "fail": 1},
    }
    assert metrics["decisions"] == {"pass": 4, "fail": 3, "review": 1}


def test_breakdowns_have_intervals_too_and_say_nothing_of_what_is_not_there() -> None:
    stations = ["a", "a", "a", "b", "b", "b", "", ""]
    metrics = evaluate(predictions(), DEFECT, {"station": stations}, np.arange(8) // 2)
    assert metrics["groups"] == 4
    own = metrics["by"]["station"]
    assert set(own) == {"a", "b"}
    assert own["a"]["false_reject_rate"] is None
    assert own["a"]["false_reject_rate_interval"] is None
    assert own["a"]["auroc"] is None
    assert own["b"]["escape_rate_interval"] == list(interval(0, 1) or ())
    json.dumps(metrics, allow_nan=False)


def test_groups_widen_the_interval_of_the_ranking_only() -> None:
    alone, grouped = (evaluate(predictions(), DEFECT, {}, groups) for groups in (None, np.arange(8) // 2))
    assert alone["auroc_interval"] == alone["auroc_interval_of_images"] == grouped["auroc_interval_of_images"]
    assert grouped["auroc_interval"][0] < alone["auroc_interval"][0]


def test_probabilities_that_come_true_have_no_calibration_error() -> None:
    probability = np.repeat(np.linspace(0.1, 0.9, 15), 1000)
    true = np.concatenate([np.arange(1000) < round(1000 * p) for p in np.linspace(0.1, 0.9, 15)])
    metrics = calibration_metrics(probability, true)
    assert metrics["expected_calibration_error"] == pytest.approx(0, abs=1e-3)
    assert metrics["brier_score"] == pytest.approx((probability * (1 - probability)).mean(), abs=1e-3)


def test_probabilities_that_are_off_have_just_that_error() -> None:
    random = np.random.default_rng(0)
    truth = random.random(30_000) * 0.8
    metrics = calibration_metrics(truth + 0.1, random.random(30_000) < truth)
    assert metrics["expected_calibration_error"] == pytest.approx(0.1, abs=0.01)


def test_few_images_are_as_many_bins() -> None:
    assert calibration_metrics(np.array([0.0, 1.0]), np.array([False, True]))["expected_calibration_error"] == 0


def test_probabilities_move_to_another_rate_and_back() -> None:
    own = np.array([0.0, 1e-6, 0.3, 0.999, 1.0])
    line = at_rate(own, 0.5, 0.01)
    assert line[2] == pytest.approx(0.3 / 99 / (0.3 / 99 + 0.7))
    np.testing.assert_allclose(at_rate(line, 0.01, 0.5), own, atol=1e-9)
