"""Splits: no group and no copy on both sides, both classes on both sides, the same on every run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.errors import SplitError
from trainer.split import _two_folds, first_of_each, good_folds, good_holdout, group_ids, grouped_folds, holdout

CASES = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40)


def is_possible(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Each class lies in at least two groups: then, and only then, both sides can know both classes."""
    return all(len(set(groups[labels == label])) > 1 for label in (False, True))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES, st.integers(0, 2**40), st.sampled_from([0.1, 0.25, 0.5]))
def test_holdout_keeps_groups_whole_whenever_that_is_possible(
    cases: list[tuple[bool, int]], seed: int, share: float
) -> None:
    labels, groups = (np.array(column) for column in zip(*cases, strict=True))
    if not is_possible(labels, groups):
        with pytest.raises(SplitError):
            holdout(labels, groups, share=share, seed=seed)
        return
    train, test = holdout(labels, groups, share=share, seed=seed)
    assert sorted([*train, *test]) == list(range(len(cases)))
    assert not set(groups[train]) & set(groups[test])
    assert set(labels[train]) == set(labels[test]) == {False, True}
    again = holdout(labels, groups, share=share, seed=seed)
    np.testing.assert_array_equal(train, again[0])
    np.testing.assert_array_equal(test, again[1])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES, st.integers(0, 2**40), st.integers(2, 6))
def test_folds_test_every_image_once(cases: list[tuple[bool, int]], seed: int, folds: int) -> None:
    labels, groups = (np.array(column) for column in zip(*cases, strict=True))
    if not is_possible(labels, groups):
        with pytest.raises(SplitError):
            grouped_folds(labels, groups, folds=folds, seed=seed)
        return
    pairs = grouped_folds(labels, groups, folds=folds, seed=seed)
    assert 2 <= len(pairs) <= folds
    assert sorted(index for _, test in pairs for index in test) == list(range(len(cases)))
    for train, test in pairs:
        assert sorted([*train, *test]) == list(range(len(cases)))
        assert not set(groups[train]) & set(groups[test])
        assert set(labels[train]) == {False, True}
        assert len(test)


def test_the_last_resort_always_finds_two_sides() -> None:
    """Reached from outside only where the greedy splitter fails, which is rare."""
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(2000):
        size = rng.integers(4, 12)
        labels, groups = rng.random(size) < 0.5, rng.integers(0, 5, size)
        if not is_possible(labels, groups):
            continue
        seen += 1
        (train, test), turned = _two_folds(labels.astype(np.intp), groups)
        assert set(labels[train]) == set(labels[test]) == {False, True}
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(size))
        assert [side.tolist() for side in turned] == [test.tolist(), train.tolist()]
    assert seen > 1000


@pytest.mark.parametrize("per_group", [1, 4])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_shares_are_met_where_groups_are_fine(per_group: int, share: float) -> None:
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(400 // per_group), per_group)
    labels = rng.random(400) < 0.2
    _, test = holdout(labels, groups, share=share, seed=3)
    assert len(test) / 400 == pytest.approx(share, abs=0.03)
    assert labels[test].mean() == pytest.approx(labels.mean(), abs=0.03)


def test_the_seed_decides() -> None:
    labels, groups = np.arange(100) % 3 == 0, np.arange(100)
    assert set(holdout(labels, groups, seed=1)[1]) != set(holdout(labels, groups, seed=2)[1])
    assert len(grouped_folds(labels, groups, folds=5, seed=1)) == 5


def test_labels_and_groups_may_be_words() -> None:
    labels = ["good", "fail"] * 20
    groups = [f"board {index // 4}" for index in range(40)]
    train, test = holdout(labels, groups, seed=0)
    assert len(train) + len(test) == 40


def test_all_defects_in_one_group_are_refused() -> None:
    labels = np.arange(40) < 10
    groups = np.arange(40) // 10
    with pytest.raises(
        SplitError, match=r"one group \(the classes lie in 3 and 1 groups\).*add images of another group"
    ):
        holdout(labels, groups, seed=0)
    with pytest.raises(SplitError, match="one group"):
        grouped_folds(labels, groups, seed=0)


def test_arguments_are_checked() -> None:
    labels, groups = [False, True] * 5, list(range(10))
    for share in (0.0, 0.6, float("nan")):
        with pytest.raises(SplitError, match="share"):
            holdout(labels, groups, share=share, seed=0)
    with pytest.raises(SplitError, match="1 folds"):
        grouped_folds(labels, groups, folds=1, seed=0)
    with pytest.raises(SplitError, match="two classes"):
        holdout([0, 1, 2], [0, 1, 2], seed=0)
    with pytest.raises(SplitError, match="groups"):
        holdout(labels, groups[:-1], seed=0)


def test_copies_share_a_group_also_through_others() -> None:
    groups = ["a", "a", "b", "c", None, None, None]
    hashes = ["1", "2", "2", "3", "3", "4", "5"]
    assert group_ids(groups, hashes).tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert group_ids([None] * 4, list("xyxz")).tolist() == [0, 1, 0, 2]
    # A group that is called like a hash is another thing.
    assert group_ids(["1", None], ["2", "1"]).tolist() == [0, 1]


def test_copies_can_be_dropped() -> None:
    hashes = ["1", "2", "1", "3", "2"]
    assert first_of_each(hashes).tolist() == [0, 1, 3]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES, st.integers(0, 2**40), st.sampled_from([0.1, 0.25, 0.5]))
def test_good_parts_are_held_out_in_whole_groups_with_every_defect_of_other_groups(
    cases: list[tuple[bool, int]], seed: int, share: float
) -> None:
    defect, groups = (np.array(column) for column in zip(*cases, strict=True))
    if len(set(groups[~defect])) < 2:
        with pytest.raises(SplitError, match="good parts lie in one group"):
            good_holdout(defect, groups, share=share, seed=seed)
        return
    train, test = good_holdout(defect, groups, share=share, seed=seed)
    assert len(train)
    assert not defect[train].any()
    assert (~defect[test]).any()
    assert not set(groups[train]) & set(groups[test])
    left = set(range(len(cases))) - {*train.tolist(), *test.tolist()}
    assert all(defect[row] and groups[row] in groups[train] for row in left), "only defects of groups trained on"
    np.testing.assert_array_equal(test, good_holdout(defect, groups, share=share, seed=seed)[1])
    folds = good_folds(defect, groups, folds=3, seed=seed)
    held = np.concatenate([out[~defect[out]] for _, out in folds])
    assert sorted(held) == np.flatnonzero(~defect).tolist(), "each good part once"
    for fit, out in folds:
        assert len(fit)
        assert not defect[fit].any()
        assert not set(groups[fit]) & set(groups[out])


def test_about_the_share_of_good_parts_is_held_out() -> None:
    defect = np.repeat([False, True], [100, 20])
    train, test = good_holdout(defect, np.arange(120), seed=1)
    assert (len(train), len(test)) == (75, 45)
    assert defect[test].sum() == 20, "a defect that stands alone is judged"
    others = good_holdout(defect, np.arange(120), seed=2)
    assert set(train) != set(others[0])
    with pytest.raises(SplitError, match=r"share 0\.7 is out of range"):
        good_holdout(defect, np.arange(120), share=0.7, seed=1)
