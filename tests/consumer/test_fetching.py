"""The thread that owns the source, when it ends: what it may still commit, and that it asks for nothing new."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from consumer.budget import Budget, Limits
from consumer.clock import SystemClock
from consumer.fetching import Fetcher
from consumer.memory_io import MemoryLog, MemorySource, MemoryWatcher
from consumer.tenure import Partition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consumer.ports import Fetched

P0, P1, P2 = (Partition("frames", number) for number in range(3))


class MovingSource(MemorySource):
    """Refuses its first commit, as during a rebalance, and owns other partitions at the poll after it."""

    def __init__(self, log: MemoryLog, move: Callable[[MovingSource], None] = lambda _: None) -> None:
        super().__init__(log, SystemClock(), wait=time.sleep)
        self._move = move
        self.refuse_commits = 1
        self.polls = 0
        self.lingered = threading.Event()

    def commit(self, positions: Mapping[Partition, int], timeout_s: float) -> bool:
        done = super().commit(positions, timeout_s)
        if not done:
            self._move(self)
        return done

    def poll(self, timeout_s: float, max_frames: int) -> Fetched:
        self.polls += 1
        return super().poll(timeout_s, max_frames)

    def linger(self) -> Fetched:
        self.lingered.set()
        return super().linger()


class Reader:
    """A fetcher at work on a source, and how many changes of ownership it has told of."""

    def __init__(self, source: MemorySource) -> None:
        self.broken: list[Exception] = []
        self.changes = 0
        self.first = threading.Event()
        nothing: Any = lambda *_: None  # noqa: E731 - one line for two callbacks
        limits = Limits(10, 1_000)
        self.fetcher = Fetcher(
            source,
            Budget(limits, 1),
            SystemClock(),
            MemoryWatcher(),
            fetched=self._fetched,
            committed=nothing,
            halted=nothing,
            broken=self.broken.append,
        )
        self.fetcher.start()
        assert self.first.wait(20)

    def _fetched(self, fetched: Fetched) -> None:
        self.changes += len(fetched.changes)
        self.first.set()


def comes(source: MovingSource) -> None:
    source.assign([P2])


def goes(source: MovingSource) -> None:
    source.revoke([P1])


def comes_again(source: MovingSource) -> None:
    source.revoke([P1])
    source.assign([P1])


@pytest.mark.parametrize(
    ("move", "done", "committed"),
    [(comes, True, {P0: 3, P1: 5}), (goes, False, {P0: 3}), (comes_again, False, {P0: 3})],
)
def test_the_last_commit_leaves_out_what_came_or_went_and_nothing_else(
    move: Callable[[MovingSource], None], done: bool, committed: dict[Partition, int]
) -> None:
    """As when another member stops a moment before: the group gives us its partitions while we commit."""
    log = MemoryLog(partitions=3)
    source = MovingSource(log, move)
    source.revoke([P2])
    reader = Reader(source)
    assert reader.changes == 2
    assert reader.fetcher.finish({P0: 3, P1: 5}, reader.changes, 20.0) is done
    assert log.committed == committed
    assert reader.broken == []
    assert source.closed


def test_what_came_after_the_positions_were_counted_is_left_out_too() -> None:
    log = MemoryLog(partitions=3)
    source = MovingSource(log)
    source.refuse_commits = 0
    reader = Reader(source)
    source.assign([P1])
    end_s = time.monotonic() + 20
    while reader.changes < 2:
        assert time.monotonic() < end_s, "the change was not told"
        time.sleep(0.005)
    assert not reader.fetcher.finish({P0: 3, P1: 5}, 1, 20.0)
    assert log.committed == {P0: 3}


def test_a_halted_source_lingers_and_is_polled_no_more() -> None:
    """A poll may have the member join anew, and until its group has formed it commits nothing."""
    source = MovingSource(MemoryLog(partitions=3))
    source.refuse_commits = 0
    reader = Reader(source)
    reader.fetcher.halt()
    assert source.lingered.wait(20)
    polls = source.polls
    source.lingered.clear()
    assert source.lingered.wait(20)
    assert reader.fetcher.finish({P0: 3}, reader.changes, 20.0)
    assert source.polls == polls
