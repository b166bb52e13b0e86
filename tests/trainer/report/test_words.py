"""The verdict and the limits: what is said must follow from what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.acceptance import acceptance, decisions, judged, only
from trainer.operating_point import Costs
from trainer.report.data import Acceptance, Judged
from trainer.report.findings import find
from trainer.report.tables import Share, confusion
from trainer.report.verdict import escapes_at_most, expense
from trainer.report.words import amount, counted, percent

GIVEN = {"defect_rate_given": True}


def told(whole: Acceptance) -> tuple[str, str, str]:
    found = find(whole)
    return found.verdict.level, found.verdict.headline, " ".join(found.verdict.why)


def test_a_model_that_pays_at_its_upper_bounds_is_usable_where_the_line_is_known() -> None:
    many = judged(1000, groups=30, apart=5.0)
    level, headline, why = told(acceptance(held=many, about=GIVEN))
    assert level == "shown"
    assert headline.startswith("Usable")
    assert "1,000 parts cost" in why
    level, headline, why = told(acceptance(held=many))
    assert level == "open"
    assert "--defect-rate" in why
    assert told(acceptance(held=many, about={**GIVEN, "costs": vars_of(Costs())}))[0] == "open"


def vars_of(costs: Costs) -> dict[str, float]:
    return {"escape": costs.escape, "false_reject": costs.false_reject, "review": costs.review}


def test_too_few_images_leave_it_open() -> None:
    level, headline, _ = told(acceptance(held=judged(40, groups=8, apart=6.0), about=GIVEN))
    assert level == "open"
    assert "too little was held out" in headline


def test_guessing_is_not_shown_to_work() -> None:
    level, headline, why = told(acceptance(held=judged(100, apart=0.0), about=GIVEN))
    assert level == "not_shown"
    assert "guessing" in headline
    assert "reject gate" in why


def test_a_weak_model_is_not_worth_its_costs() -> None:
    level, headline, _ = told(acceptance(held=judged(2000, groups=50, apart=1.0), about=GIVEN))
    assert level == "not_shown"
    assert "Not worth using" in headline


@pytest.mark.parametrize(("proved", "level"), [(True, "shown"), (False, "not_shown")])
def test_a_bound_that_was_asked_for_decides(proved: bool, level: str) -> None:
    asked = {"by": "bound", "max_escape_rate": 0.05, "confidence": 0.95, "proved": proved, "escape_rate_at_most": 0.05}
    whole = acceptance(held=judged(40, groups=8, apart=6.0), about={"operating_point": asked})
    got, headline, _ = told(whole)
    assert got == level
    assert "at most 5\u202f% of defects" in headline
    assert any("looking at the defects held out" in limit for limit in find(whole).limits)


def test_what_was_allowed_counts_and_not_what_was_seen() -> None:
    found = confusion(judged(2000, apart=9.0))
    assert found.escapes.at_most < 0.05
    bound = {"operating_point": {"by": "bound", "escape_rate_at_most": 0.05}}
    costs = {"operating_point": {"by": "costs", "escape_rate_at_most": 0.05}}
    assert escapes_at_most(bound, found) == 0.05
    assert escapes_at_most(costs, found) == escapes_at_most({}, found) == found.escapes.at_most


def test_without_a_class_nothing_is_claimed_about_it() -> None:
    level, headline, why = told(acceptance(held=only(judged(), defects=False), everything=None))
    assert (level, "about defects" in headline, "unknown" in why) == ("open", True, True)
    level, headline, _ = told(acceptance(held=only(judged(), defects=True), everything=None))
    assert (level, "about good parts" in headline) == ("open", True)


def test_costs_are_added_up_by_hand() -> None:
    defect = np.array([True] * 10 + [False] * 20)
    words = np.array(["pass"] * 1 + ["review"] * 2 + ["fail"] * 7 + ["pass"] * 15 + ["review"] * 3 + ["fail"] * 2)
    images = Judged(("",) * 30, defect, np.arange(30), np.full(30, 0.5), words)
    spent = expense({"costs": {"escape": 10.0, "false_reject": 2.0, "review": 1.0}}, confusion(images), 0.1)
    assert spent is not None
    assert spent.measured == pytest.approx(1000 * (0.1 * (10 * 0.1 + 0.2) + 0.9 * (2 * 0.1 + 0.15)))
    assert spent.at_worst > spent.measured
    assert spent.plain == {"pass everything": 1000, "reject everything": 1800, "look at every part": 1000}
    without_review: dict[str, Any] = {"costs": {"escape": 10.0, "false_reject": 2.0, "review": 0.0}}
    assert "look at every part" not in (expense(without_review, confusion(images), 0.1) or pytest.fail("none")).plain


def test_limits_are_the_runs_own() -> None:
    whole = acceptance()
    limits = " ".join(find(whole).limits)
    defects = int(whole.held.defect.sum())
    for words in (f"{defects} defects were held out", "groups were held out", "No defect rate was given", "'shifted'"):
        assert words in limits
    assert "built-in" not in limits  # the costs were given
    other = acceptance(about={**GIVEN, "chosen": {}, "costs": vars_of(Costs())}, held_groups=(), doubtful=())
    limits = " ".join(find(other).limits)
    for words in ("No groups were given", "was given, not measured", "built-in"):
        assert words in limits
    assert "second look" not in limits
    near = replace(other, bundle=replace(other.bundle, about={**other.about, "near_duplicates": {"says": "x"}}))
    assert "look nearly the same" in " ".join(find(near).limits)


def test_a_loud_note_is_among_the_limits() -> None:
    note = "ATTENTION: 2 images lie in both classes"
    assert note in find(acceptance(about={"notes": ["quiet", note]})).limits


def test_figures_as_people_read_them() -> None:
    assert percent(0.0487) == "4.9\u202f%"
    assert counted(Share.of(0, 60)).replace("\u202f", " ") == "none of 60 (at most 4.9 %)"
    assert counted(Share.of(3, 60)).replace("\u202f", " ") == "3 of 60, 5 % (at most 12.5 %)"
    assert counted(Share.of(0, 0)) == "none were there"
    assert (amount(12.34), amount(123456.7).replace("\u202f", " ")) == ("12.3", "123 457")


def test_decisions_are_the_engines() -> None:
    images = judged()
    point = acceptance().bundle.head.operating_point
    assert set(decisions(images.probability, point)) == {"pass", "review", "fail"}
