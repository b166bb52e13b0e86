"""Which frames are ours, and how far a partition may be committed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.errors import BrokerError
from consumer.events import Position
from consumer.tenure import Partition, Tenure

P0, P1 = Partition("frames", 0), Partition("frames", 1)


def at(offset: int, partition: int = 0) -> Position:
    """A position of the topic."""
    return Position("frames", partition, offset)


def holding(*partitions: Partition) -> Tenure:
    """A tenure of these."""
    tenure = Tenure()
    tenure.begin(partitions)
    return tenure


def test_only_an_unbroken_run_is_committed() -> None:
    tenure = holding(P0)
    epochs = [tenure.admit(at(offset)) for offset in (5, 6, 7)]
    assert tenure.answered(at(6), epochs[1])
    assert tenure.commits() == {}
    assert tenure.answered(at(5), epochs[0])
    assert tenure.commits() == {P0: 7}
    assert tenure.answered(at(7), epochs[2])
    assert tenure.commits() == {P0: 8}
    assert tenure.open_frames() == 0


def test_gaps_between_offsets_are_no_hindrance() -> None:
    tenure = holding(P0)
    for offset in (3, 9, 40):
        epoch = tenure.admit(at(offset))
        tenure.answered(at(offset), epoch)
    assert tenure.commits() == {P0: 41}


def test_what_is_committed_is_not_asked_for_again() -> None:
    tenure = holding(P0)
    tenure.answered(at(0), tenure.admit(at(0)))
    wanted = tenure.commits()
    tenure.answered(at(1), tenure.admit(at(1)))
    tenure.committed(wanted)
    assert tenure.commits() == {P0: 2}
    tenure.committed(tenure.commits())
    assert tenure.commits() == {}


def test_a_commit_that_failed_is_asked_for_again() -> None:
    tenure = holding(P0)
    tenure.answered(at(0), tenure.admit(at(0)))
    assert tenure.commits() == tenure.commits() == {P0: 1}


def test_partitions_are_apart() -> None:
    tenure = holding(P0, P1)
    epoch0, epoch1 = tenure.admit(at(0)), tenure.admit(at(0, partition=1))
    assert epoch0 != epoch1
    tenure.answered(at(0, partition=1), epoch1)
    assert tenure.commits() == {P1: 1}
    tenure.end([P1])
    assert tenure.commits() == {}
    assert tenure.holds(at(0), epoch0)
    assert tenure.partitions == (P0,)


def test_results_of_an_earlier_tenure_count_for_nothing() -> None:
    tenure = holding(P0)
    old = tenure.admit(at(0))
    tenure.end([P0])
    assert not tenure.holds(at(0), old)
    assert not tenure.answered(at(0), old)
    tenure.begin([P0])
    new = tenure.admit(at(0))
    assert new != old
    assert not tenure.answered(at(0), old)
    assert tenure.commits() == {}
    assert tenure.answered(at(0), new)
    assert tenure.commits() == {P0: 1}


def test_being_assigned_again_begins_anew_even_without_a_revocation() -> None:
    tenure = holding(P0)
    old = tenure.admit(at(0))
    tenure.begin([P0])
    assert not tenure.answered(at(0), old)


def test_a_step_back_is_a_new_tenure() -> None:
    tenure = holding(P0)
    old = tenure.admit(at(10))
    tenure.answered(at(10), old)
    new = tenure.admit(at(5))
    assert new != old
    assert tenure.commits() == {}, "10 was answered, but 5 to 9 come first now"
    assert not tenure.holds(at(10), old)


def test_a_frame_without_an_assignment_stops_the_consumer() -> None:
    with pytest.raises(BrokerError, match="frames-0 at offset 3 came without an assignment"):
        Tenure().admit(at(3))


def test_a_late_commit_of_an_earlier_tenure_moves_nothing() -> None:
    tenure = holding(P0)
    tenure.answered(at(4), tenure.admit(at(4)))
    wanted = tenure.commits()
    tenure.begin([P0])
    tenure.committed(wanted)
    tenure.answered(at(4), tenure.admit(at(4)))
    assert tenure.commits() == {P0: 5}


@given(order=st.permutations(range(8)), upto=st.integers(0, 8))
def test_never_past_an_unanswered_frame(order: list[int], upto: int) -> None:
    tenure = holding(P0)
    epochs = [tenure.admit(at(offset)) for offset in range(8)]
    done = set(order[:upto])
    for offset in order[:upto]:
        tenure.answered(at(offset), epochs[offset])
    first_open = next((offset for offset in range(8) if offset not in done), 8)
    assert tenure.commits() == ({P0: first_open} if first_open else {})
