"""The micro-batcher: size, age, fairness, order. All times are made up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batcher import BatchPolicy, MicroBatcher
from engine.errors import InputError


@dataclass(frozen=True)
class Item:
    """A frame as the batcher sees it."""

    station: str
    number: int


def batcher(size: int = 4, age_s: float = 0.010, cap: int = 4, early: int | None = None) -> MicroBatcher[Item]:
    """A batcher of items."""
    return MicroBatcher(BatchPolicy(size, age_s, cap, early))


def numbers(items: list[Item]) -> list[int]:
    """What tells items apart."""
    return [item.number for item in items]


def test_nothing_is_due_while_nothing_waits() -> None:
    empty = batcher()
    assert empty.due_s() is None
    assert empty.take(1e9) == []
    assert empty.take(1e9, flush=True) == []


def test_a_full_batch_is_due_at_once() -> None:
    queue = batcher(size=2)
    queue.add(Item("a", 0), 5.0)
    assert queue.take(5.0) == []
    queue.add(Item("a", 1), 5.001)
    assert queue.due_s() == 5.0
    assert numbers(queue.take(5.001)) == [0, 1]
    assert len(queue) == 0


def test_the_age_of_the_oldest_frame_decides() -> None:
    queue = batcher(age_s=0.010)
    queue.add(Item("a", 0), 1.000)
    queue.add(Item("b", 1), 1.009)
    assert queue.due_s() == pytest.approx(1.010)
    assert queue.take(1.0099) == []
    assert numbers(queue.take(1.0101)) == [0, 1]


def test_what_is_left_behind_keeps_its_age() -> None:
    queue = batcher(size=2, age_s=0.010)
    for number in range(3):
        queue.add(Item("a", number), 1.0)
    assert numbers(queue.take(1.0)) == [0, 1]
    assert queue.due_s() == pytest.approx(1.010)


def test_age_zero_takes_what_is_there() -> None:
    queue = batcher(age_s=0.0)
    queue.add(Item("a", 0), 3.0)
    assert numbers(queue.take(3.0)) == [0]


def test_an_idle_engine_takes_early_only_where_the_policy_says_so() -> None:
    patient, eager = batcher(early=None), batcher(early=2)
    for queue in (patient, eager):
        queue.add(Item("a", 0), 1.0)
        assert queue.take(1.0, idle=True) == []
        queue.add(Item("a", 1), 1.0)
    assert patient.take(1.0, idle=True) == []
    assert eager.take(1.0, idle=False) == []
    assert numbers(eager.take(1.0, idle=True)) == [0, 1]


def test_flush_waits_for_nothing() -> None:
    queue = batcher()
    queue.add(Item("a", 0), 1.0)
    assert numbers(queue.take(1.0, flush=True)) == [0]


def test_a_flooding_station_leaves_room_for_the_others() -> None:
    queue = batcher(size=4, cap=2)
    for number in range(6):
        queue.add(Item("flood", number), 1.0)
    queue.add(Item("quiet", 6), 1.0)
    assert numbers(queue.take(1.0)) == [0, 1, 6, 2]
    assert numbers(queue.take(1.0, flush=True)) == [3, 4, 5]


def test_the_cap_leaves_no_place_empty_that_nobody_else_wants() -> None:
    queue = batcher(size=4, cap=1)
    for number in range(5):
        queue.add(Item("only", number), 1.0)
    assert numbers(queue.take(1.0)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("size", "age_s", "cap", "early"),
    [(0, 0.0, 1, None), (1, -0.1, 1, None), (1, float("nan"), 1, None), (1, 0.0, 0, None), (1, 0.0, 1, 0)],
)
def test_a_policy_that_makes_no_batch_is_refused(size: int, age_s: float, cap: int, early: int | None) -> None:
    with pytest.raises(InputError, match="expected"):
        BatchPolicy(size, age_s, cap, early)


@given(
    stations=st.lists(st.sampled_from("abcd"), max_size=40),
    size=st.integers(1, 8),
    cap=st.integers(1, 8),
)
def test_every_frame_comes_out_once_and_each_station_in_order(stations: list[str], size: int, cap: int) -> None:
    queue = batcher(size=size, cap=cap)
    items = [Item(station, number) for number, station in enumerate(stations)]
    for item in items:
        queue.add(item, 1.0)
    out: list[Item] = []
    while batch := queue.take(1.0, flush=True):
        assert len(batch) <= size
        assert len(batch) == min(size, len(items) - len(out)), "a place was left empty"
        out.extend(batch)
    assert sorted(numbers(out)) == numbers(items)
    for station in "abcd":
        assert [i for i in out if i.station == station] == [i for i in items if i.station == station]


@given(flood=st.integers(1, 60), size=st.integers(2, 8))
def test_a_lone_frame_behind_a_flood_is_in_the_first_batch(flood: int, size: int) -> None:
    queue = batcher(size=size, cap=size - 1)
    for number in range(flood):
        queue.add(Item("flood", number), 1.0)
    queue.add(Item("quiet", -1), 1.0)
    assert -1 in numbers(queue.take(1.0, flush=True))
