"""Counts and bounds of the report's tables."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.acceptance import judged
from trainer.report.data import Judged
from trainer.report.tables import MOST_ROWS, Share, breakdowns, confusion


def of(defect: list[int], decision: list[str], **columns: list[str]) -> Judged:
    count = len(defect)
    chances = {"pass": 0.1, "review": 0.4, "fail": 0.9}
    return Judged(
        tuple(map(str, range(count))),
        np.array(defect, bool),
        np.arange(count),
        np.array([chances[word] for word in decision]),
        np.array(decision),
        {name: tuple(values) for name, values in columns.items()},
    )


def test_decisions_are_counted_by_class() -> None:
    found = confusion(of([1, 1, 1, 0, 0, 0, 0], ["pass", "fail", "review", "pass", "pass", "fail", "review"]))
    assert (found.escapes.events, found.escapes.among) == (1, 3)
    assert (found.false_rejects.events, found.false_rejects.among) == (1, 4)
    assert found.good["pass"].events == 2
    assert (found.reviews, found.images) == (2, 7)


def test_a_share_has_its_bounds() -> None:
    none = Share.of(0, 60)
    assert none.share == 0
    assert round(none.at_most, 4) == 0.0487
    assert (none.low, round(none.high, 4)) == (0.0, 0.0596)
    empty = Share.of(0, 0)
    assert (empty.share, empty.low, empty.at_most) == (None, 0.0, 1.0)


def test_rows_with_the_most_mistakes_come_first_and_empty_values_are_left_out() -> None:
    images = of(
        [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0],
        ["fail", "pass", "fail", "pass", "pass", "fail", "fail", "pass", "fail", "pass", "fail", "pass"],
        kind=["a", "a", "a", "a", "b", "b", "b", "b", "", "", "", ""],
    )
    (found,) = breakdowns(images)
    assert [(row.value, row.confusion.images) for row in found.rows] == [("b", 4), ("a", 4)]
    assert found.rows[0].confusion.escapes.events == 1
    assert [row.auroc for row in found.rows] == [0.5, 1.0]
    assert found.left_out == 0


def test_areas_by_group_are_scikit_learns_and_one_class_has_none() -> None:
    images = judged(300, groups=3)
    for row in breakdowns(images)[0].rows:
        rows = np.array([value == row.value for value in images.columns["group"]])
        assert row.auroc == pytest.approx(roc_auc_score(images.defect[rows], images.probability[rows]))
    (one_class,) = breakdowns(of([0] * 8, ["pass"] * 8, lot=["x"] * 8))
    assert one_class.rows[0].auroc is None


def test_a_page_has_room_for_so_many_rows_and_for_no_table_of_single_images() -> None:
    count = 4 * (MOST_ROWS + 3)
    values = [str(index // 4) for index in range(count)]
    many, _ = breakdowns(of([0, 1] * (count // 2), ["pass"] * count, lot=values, other=["x"] * count))
    assert (len(many.rows), many.left_out) == (MOST_ROWS, 3)
    assert breakdowns(of([0, 1] * 4, ["pass"] * 8, part=[str(index) for index in range(8)])) == ()
