"""The operating point by costs and by a bound, and what held-out images prove of it, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.prediction import Prediction
from trainer.acceptance import HeldOut, accept, rate_words, refuse_chance
from trainer.bounds import at_most
from trainer.errors import ChanceError, UnprovedError
from trainer.escapes import Bound
from trainer.evaluate import evaluate
from trainer.operating_point import Costs, below_limit, from_costs

COSTS = Costs()


def held_out(bad: np.ndarray, good: np.ndarray, *, groups: int | None = None) -> HeldOut:
    """Images with these probabilities."""
    predictions = [Prediction("pass", round(float(p), 6)) for p in (*bad, *good)]
    defect = np.repeat([True, False], (len(bad), len(good)))
    members = np.arange(len(defect)) % (groups or len(defect))
    return HeldOut(predictions, defect, members, groups is not None, (4 * len(defect), 4 * len(bad)))


def test_sixty_defects_and_none_missed_is_at_most_4_9_percent_never_0() -> None:
    accepted = accept(held_out(np.full(60, 0.9), np.full(60, 0.01)), COSTS, Bound())
    assert accepted.point == from_costs(COSTS)
    assert accepted.told["by"] == "costs"
    assert accepted.told["escapes"] == 0
    assert accepted.told["words"] == [
        "of 60 held-out defects none passed: at most 4.9 % of defects pass, at 95 % confidence",
        "of 60 held-out good parts none failed: at most 4.9 % of good parts fail, at 95 % confidence",
    ]
    assert accepted.notes == ()


def test_groups_are_told_with_what_they_do_to_the_bound() -> None:
    told = accept(held_out(np.full(60, 0.9), np.full(60, 0.01), groups=3), COSTS, Bound()).told
    assert told["groups"] == 3
    assert told["words"][-1].startswith("they come from 3 groups; groups differ")


def test_the_bound_passes_as_much_as_it_can_and_no_more() -> None:
    bad = np.linspace(0.02, 0.99, 200)
    accepted = accept(held_out(bad, np.full(100, 0.01)), COSTS, Bound(0.05))
    allowed = accepted.told["allowed_escapes"]
    assert accepted.told["by"] == "bound"
    assert accepted.told["proved"] is True
    assert accepted.told["escapes"] == allowed == 4
    assert accepted.told["escape_rate_at_most"] == at_most(4, 200) <= 0.05 < at_most(5, 200)
    assert accepted.point.review_band == (round(bad[4], 6), 0.5)
    assert accepted.point.review_band[0] <= accepted.point.threshold <= 0.5


def test_ties_at_the_limit_do_not_buy_a_smaller_bound_afterwards() -> None:
    told = accept(held_out(np.full(200, 0.3), np.full(100, 0.01)), COSTS, Bound(0.05)).told
    assert told["escapes"] == 0
    assert told["allowed_escapes"] == 4
    assert told["escape_rate_at_most"] == at_most(4, 200)


def test_without_a_review_band_the_limit_is_the_threshold() -> None:
    assert below_limit(0.3, Costs(review=0)).review_band == (0.3, 0.3)
    assert below_limit(0.3, Costs(review=0)).threshold == 0.3
    assert below_limit(0.7, COSTS).review_band == (0.7, 0.7)
    assert below_limit(0.7, COSTS).threshold == 0.7


def test_too_few_defects_end_the_work_or_go_on_with_the_bound_that_holds() -> None:
    held = held_out(np.full(40, 0.9), np.full(40, 0.01))
    with pytest.raises(UnprovedError, match=r"19 more, so about 236 defects in all .* 76 more than these 160"):
        accept(held, COSTS, Bound(0.05))
    accepted = accept(held, COSTS, Bound(0.05, accept_unproved=True))
    assert accepted.point == from_costs(COSTS)
    assert (accepted.told["by"], accepted.told["proved"]) == ("costs", False)
    assert accepted.told["words"][0] == (
        "of 40 held-out defects none passed: at most 7.3 % of defects pass, at 95 % confidence"
    )
    assert "19 more" in accepted.notes[0]


def with_stations(bad: list[np.ndarray], good: np.ndarray) -> HeldOut:
    """Station `a` has the first defects, `b` the second, nobody the third; good parts lie at `a`."""
    held = held_out(np.concatenate(bad), good)
    names = [name for name, part in zip(("a", "b", ""), bad, strict=True) for _ in part]
    return replace(held, stations=[*names, *["a"] * len(good)])


def test_a_station_with_enough_defects_has_a_point_of_its_own() -> None:
    random = np.random.default_rng(0)
    bad = [random.uniform(0.3, 0.9, 80), random.uniform(0.1, 0.9, 58), random.uniform(0.05, 0.9, 100)]
    accepted = accept(with_stations(bad, np.full(100, 0.2)), COSTS, Bound(0.05))
    everybody = held_out(np.concatenate(bad), np.full(100, 0.2))
    shared = accept(everybody, COSTS, Bound(0.05))
    assert accepted.point == shared.point
    assert accepted.stations == {"a": accept(held_out(bad[0], np.full(100, 0.2)), COSTS, Bound(0.05)).point}
    assert accepted.stations["a"].review_band[0] > accepted.point.review_band[0]
    assert {name: accepted.told[name] for name in ("escapes", "allowed_escapes")} == {
        name: shared.told[name] for name in ("escapes", "allowed_escapes")
    }
    told = accepted.told["stations"]["a"]
    assert (told["defects"], told["good"], told["allowed_escapes"]) == (80, 100, 0)
    assert told["threshold"] == accepted.stations["a"].threshold
    assert any(words.startswith("station a: of 80 held-out defects none passed") for words in accepted.told["words"])
    assert [each.decision for each in accepted.predictions[-100:]] == ["pass"] * 100, "good parts of a, at a's point"
    assert {each.decision for each in shared.predictions[-100:]} == {"review"}


def test_without_a_bound_all_stations_share_the_point_from_costs() -> None:
    held = with_stations([np.full(80, 0.9), np.full(80, 0.8), np.full(5, 0.7)], np.full(100, 0.01))
    accepted = accept(held, COSTS, Bound())
    assert (accepted.point, accepted.stations) == (from_costs(COSTS), {})


def metrics_of(bad: np.ndarray, good: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Any]:
    held = held_out(bad, good)
    return evaluate(held.predictions, held.defect, {}, groups)


def test_a_ranking_that_may_be_chance_is_refused_where_there_is_enough_to_tell() -> None:
    random = np.random.default_rng(0)
    metrics = metrics_of(random.random(25), random.random(25))
    with pytest.raises(ChanceError) as raised:
        refuse_chance(metrics, (100, 50))
    assert "may rank parts no better than chance: held-out AUROC" in str(raised.value)
    assert "expected an interval above 0.5" in str(raised.value)
    assert raised.value.exit_code == 1
    (note,) = refuse_chance(metrics, (99, 49))
    assert note.startswith("ATTENTION: the model may rank parts no better than chance")


def test_a_ranking_the_wrong_way_round_is_refused_too() -> None:
    metrics = metrics_of(np.linspace(0.1, 0.4, 25), np.linspace(0.3, 0.9, 25))
    assert metrics["auroc_interval_of_images"][1] < 0.5
    with pytest.raises(ChanceError):
        refuse_chance(metrics, (100, 50))


def test_a_good_ranking_is_not_refused_for_few_groups_but_they_are_told() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat([0, 1, 0, 1], 20)
    shift = np.where(groups == 0, 0.5, -0.5)
    score = 1 / (1 + np.exp(-(random.normal(0, 1, 80) + shift + np.repeat([3.0, 0.0], 40))))
    metrics = metrics_of(score[:40], score[40:], groups)
    assert metrics["auroc_interval_of_images"][0] > 0.8
    assert metrics["auroc_interval"][0] <= 0.5
    (note,) = refuse_chance(metrics, (400, 200))
    assert note.startswith("2 held-out groups are too few, or differ too much")
    assert refuse_chance(metrics_of(score[:40], score[40:]), (400, 200)) == ()


def test_shuffled_labels_are_nearly_always_caught() -> None:
    """The interval reaches down to .5 in all but about one in forty of such rankings."""
    random = np.random.default_rng(1)
    caught = 0
    for _ in range(200):
        try:
            refuse_chance(metrics_of(random.random(13), random.random(13)), (104, 52))
        except ChanceError:
            caught += 1
    assert caught >= 185


def test_the_rate_that_probabilities_are_right_for_is_said() -> None:
    assert rate_words(0.01, is_given=True) == "for a line on which 1 % of parts are defects (--defect-rate)"
    assert "the training set's own 50 % of defects: no --defect-rate was given" in rate_words(0.5, is_given=False)
