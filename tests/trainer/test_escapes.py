"""The limit on what passes: exact, in simulations whose truth is known, ties and all; and a plug-in rule is not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from engine.errors import InputError
from engine.prediction import OperatingPoint, Prediction
from trainer.bounds import allowed_events, at_most
from trainer.errors import UnprovedError
from trainer.escapes import Bound, decided_at, pass_limit, passing_scores, refuse_too_few

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWS = 2000
CONFIDENCE = 0.95


def drawn(random: np.random.Generator, n: int, digits: int | None) -> np.ndarray:
    """Defect probabilities of a known law: sigmoid(N(1.5, 1.5)), rounded where `digits` says so."""
    score = 1 / (1 + np.exp(-random.normal(1.5, 1.5, n)))
    return score if digits is None else np.round(score, digits)


def escape_rate(limit: float, digits: int | None) -> float:
    """P(S < limit) of that law: of a rounded score, what lies below the cell that the limit is the middle of."""
    if digits is not None:
        limit = round(limit, digits) - 0.5 * 10.0**-digits
    if not 0 < limit < 1:
        return float(limit >= 1)
    return float(norm.cdf((math.log(limit / (1 - limit)) - 1.5) / 1.5))


def proved(scores: np.ndarray, rate: float) -> float:
    limit = pass_limit(scores, rate, CONFIDENCE)
    assert limit is not None
    return limit.below


def plugged_in(scores: np.ndarray, rate: float) -> float:
    """What one would do without a bound: the limit below which that share of the held-out defects lies."""
    return float(np.sort(scores)[int(rate * len(scores))])


def kept(rule: Callable[[np.ndarray, float], float], n: int, rate: float, digits: int | None) -> int:
    """In how many of the draws the true escape rate is within what was asked for."""
    random = np.random.default_rng(n)
    return sum(escape_rate(rule(drawn(random, n, digits), rate), digits) <= rate for _ in range(DRAWS))


CASES = [(59, 0.05), (60, 0.05), (200, 0.05), (300, 0.01), (1000, 0.02)]


@pytest.mark.parametrize("digits", [None, 6, 1], ids=["continuous", "as served", "heavy ties"])
@pytest.mark.parametrize(("n", "rate"), CASES)
def test_the_bound_holds_as_often_as_it_says(n: int, rate: float, digits: int | None) -> None:
    hits = kept(proved, n, rate, digits)
    assert binomtest(hits, DRAWS, CONFIDENCE, alternative="less").pvalue > 0.001, hits / DRAWS


@pytest.mark.parametrize(("n", "rate"), CASES)
def test_it_holds_no_more_often_than_it_must(n: int, rate: float) -> None:
    """Of continuous scores the confidence is exact: that of the binomial law with k allowed."""
    allowed = allowed_events(n, rate, CONFIDENCE)
    assert allowed is not None
    exact = float(1 - binomtest(allowed, n, rate, alternative="less").pvalue)
    assert exact >= CONFIDENCE
    assert binomtest(kept(proved, n, rate, None), DRAWS, exact).pvalue > 0.001


@pytest.mark.parametrize(("n", "rate"), CASES)
def test_a_rule_without_a_bound_fails_this_simulation(n: int, rate: float) -> None:
    hits = kept(plugged_in, n, rate, None)
    assert binomtest(hits, DRAWS, CONFIDENCE, alternative="less").pvalue < 1e-12, hits / DRAWS


def answered(probability: float, *reasons: str) -> Prediction:
    return Prediction("review" if reasons else "pass", probability, reasons)  # type: ignore[arg-type]


def test_what_is_reviewed_anyway_never_escapes_and_counts_once() -> None:
    answers = [answered(0.2), answered(0.1, "out_of_distribution"), answered(0.3, "band"), answered(0.0, "camera")]
    assert passing_scores(answers).tolist() == [0.2, math.inf, 0.3, math.inf]
    limit = pass_limit(passing_scores(answers * 30), 0.05, CONFIDENCE)
    assert limit is not None
    assert (limit.allowed, limit.below) == (1, 0.2)


def test_where_all_others_are_reviewed_anyway_any_limit_is_proved() -> None:
    limit = pass_limit(np.array([0.1] + [math.inf] * 200), 0.05, CONFIDENCE)
    assert limit is not None
    assert limit.allowed == 4
    assert limit.below == math.inf


def test_no_more_pass_at_the_limit_than_were_allowed() -> None:
    scores = np.round(np.random.default_rng(0).random(500), 2)
    limit = pass_limit(scores, 0.05, CONFIDENCE)
    assert limit is not None
    assert (scores < limit.below).sum() <= limit.allowed < (scores <= limit.below).sum()
    assert at_most(limit.allowed, 500) <= 0.05 < at_most(limit.allowed + 1, 500)


def test_too_few_defects_say_how_many_more() -> None:
    assert pass_limit(np.ones(58), 0.05, CONFIDENCE) is None
    with pytest.raises(UnprovedError) as raised:
        refuse_too_few(120, 400, 30, Bound(0.05))
    assert str(raised.value) == (
        "an escape rate of at most 5 % at 95 % confidence cannot be proved with 30 held-out defects: without a miss "
        "among them they prove at most 9.6 %; expected at least 59 held-out defects, 29 more, so about 236 defects in "
        "all at the share that is held out, 116 more than these 120 among 400 images; add them, ask for less, or take "
        "the point from costs with --accept-unproved"
    )
    assert raised.value.exit_code == 1
    words = refuse_too_few(120, 400, 30, Bound(0.05, accept_unproved=True))
    assert words.startswith("ATTENTION: an escape rate of at most 5 %")
    assert "29 more" in words


@pytest.mark.parametrize(("rate", "confidence"), [(0.0, 0.95), (1.5, 0.95), (0.01, 1.0), (0.01, math.nan)])
def test_what_is_no_share_is_refused_before_any_work(rate: float, confidence: float) -> None:
    with pytest.raises(InputError, match="is not a share"):
        Bound(rate, confidence)


def test_another_point_changes_what_is_decided_and_no_doubt() -> None:
    answers = [answered(0.2), answered(0.4, "band"), answered(0.1, "out_of_distribution"), answered(0.9)]
    again = decided_at(answers, OperatingPoint(0.5, (0.15, 0.3)))
    assert [each.decision for each in again] == ["review", "pass", "review", "fail"]
    assert [each.reasons for each in again] == [("band",), (), ("out_of_distribution",), ()]
