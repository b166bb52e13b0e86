"""Two batches at a time: which is begun when, that neither costs the other anything, and that none is lost."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from consumer.budget import Limits
from consumer.clock import SystemClock
from consumer.engine_thread import EngineThread
from consumer.events import Frame, Position
from consumer.judging import Slot
from consumer.memory_io import BrightnessJudge, MemoryDeadLetters, MemoryLog, MemorySink, MemorySource, MemoryWatcher
from consumer.pipeline import Pace, Pipeline, Ports
from consumer.ports import Begun
from engine.batcher import BatchPolicy
from engine.specs import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumer.ports import Decoded
    from engine.prediction import ScoredBatch

SPEC = ImageSpec(64, 64)
PATIENCE_S = 20.0


def grey(tone: int) -> np.ndarray:
    return np.full((64, 64, 3), tone, np.uint8)


class HeldJudge(BrightnessJudge):
    """Says what it is asked to do, and computes a batch for as long as the test holds it.

    Raises at 13 when a batch is begun, at 14 when it is finished.
    """

    def __init__(self, ahead: int, *, held: bool = True) -> None:
        super().__init__(SPEC, lambda payload: grey(int(payload)))
        self.ahead = ahead
        self.held = held
        self.log: list[tuple[str, tuple[int, ...]]] = []
        self.most_out = 0
        self._out = 0
        self._gone: set[tuple[int, ...]] = set()
        self._changed = threading.Condition()

    def let_go(self, *tones: int) -> None:
        with self._changed:
            self._gone.add(tones)
            self._changed.notify_all()

    def let_all_go(self) -> None:
        with self._changed:
            self.held = False
            self._changed.notify_all()

    def begin(self, frames: Sequence[Decoded]) -> Begun:
        if 13 in self._note("begin", frames):
            msg = "13 is not begun"
            raise RuntimeError(msg)
        self._out += 1
        self.most_out = max(self.most_out, self._out)
        return Begun(frames)

    def wait(self, begun: Begun) -> None:
        tones = self._note("wait", begun.frames)
        with self._changed:
            assert self._changed.wait_for(lambda: not self.held or tones in self._gone, PATIENCE_S)
        self._out -= 1

    def finish(self, begun: Begun) -> ScoredBatch:
        tones = self._note("finish", begun.frames)
        if 14 in tones:
            msg = "14 is not finished"
            raise RuntimeError(msg)
        return super().score(begun.frames)

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        if 13 in self._note("score", frames):
            msg = "13 is not begun"
            raise RuntimeError(msg)
        return self.finish(Begun(frames))

    def _note(self, what: str, frames: Sequence[Decoded]) -> tuple[int, ...]:
        tones = tuple(int(frame.image[0, 0, 0]) for frame in frames)
        self.log.append((what, tones))
        return tones


class Room:
    """The thread, and what comes out of it."""

    def __init__(self, judge: HeldJudge) -> None:
        self.judge = judge
        self.scored: list[tuple[tuple[int, ...], bool]] = []
        self.broken: list[Exception] = []
        self.thread = EngineThread(judge, SystemClock(), self._take, self.broken.append)
        self.slots: dict[int, Slot] = {}

    def submit(self, *tones: int) -> None:
        batch = []
        for tone in tones:
            position = Position("frames", 0, len(self.slots))
            frame = Frame(position, "a", str(tone), str(tone).encode(), 0.0, 0.0)
            self.slots[tone] = Slot(frame, 0, 0.0, 0, self.judge.route("a"), image=grey(tone))
            batch.append(self.slots[tone])
        self.thread.submit(batch)

    def until(self, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, (self.judge.log, self.scored)
            time.sleep(0.001)

    def _take(self, slots: list[Slot], whole: bool) -> None:
        self.scored.append((tuple(int(slot.frame.payload) for slot in slots), whole))


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room(HeldJudge(2))
    yield made
    made.judge.let_all_go()
    assert made.thread.close(PATIENCE_S)
    assert made.broken == []


def test_the_next_batch_is_begun_while_one_computes_and_the_one_behind_before_predictions_are_made(room: Room) -> None:
    log = room.judge.log
    room.submit(20)
    room.submit(21)
    room.submit(22)
    room.until(lambda: ("wait", (20,)) in log)
    begun_at_first = [tones for what, tones in log if what == "begin"]
    assert begun_at_first[0] == (20,)
    room.judge.let_go(20)
    room.until(lambda: ("wait", (21,)) in log)
    room.judge.let_go(21)
    room.judge.let_go(22)
    room.until(lambda: len(room.scored) == 3)
    assert room.judge.most_out == 2, "never more than it takes"
    assert log.index(("begin", (21,))) < log.index(("finish", (20,)))
    assert log.index(("begin", (22,))) < log.index(("finish", (21,)))
    assert room.scored == [((20,), True), ((21,), True), ((22,), True)]


def test_what_is_there_is_begun_without_waiting_for_the_first(room: Room) -> None:
    """Deterministic: the thread is busy with a first batch while the two are queued."""
    room.submit(20)
    room.until(lambda: ("wait", (20,)) in room.judge.log)
    room.submit(21)
    room.submit(22)
    room.submit(23)
    room.judge.let_go(20)
    room.until(lambda: ("wait", (21,)) in room.judge.log)
    order = [entry for entry in room.judge.log if entry[0] != "wait"]
    assert order == [("begin", (20,)), ("begin", (21,)), ("begin", (22,)), ("finish", (20,))]


def test_an_engine_that_takes_one_at_a_time_gets_the_next_as_soon_as_it_is_done() -> None:
    room = Room(HeldJudge(1))
    room.submit(20)
    room.submit(21)
    room.until(lambda: ("wait", (20,)) in room.judge.log)
    assert ("begin", (21,)) not in room.judge.log
    room.judge.let_go(20)
    room.judge.let_go(21)
    room.until(lambda: len(room.scored) == 2)
    assert [entry for entry in room.judge.log if entry[0] != "wait"] == [
        ("begin", (20,)),
        ("begin", (21,)),
        ("finish", (20,)),
        ("finish", (21,)),
    ]
    assert room.judge.most_out == 1
    assert room.thread.close(PATIENCE_S)


@pytest.mark.parametrize("poison", [13, 14], ids=["when it is begun", "when it is finished"])
def test_a_batch_that_fails_is_tried_frame_by_frame_and_costs_the_other_nothing(room: Room, poison: int) -> None:
    room.submit(20)
    room.until(lambda: ("wait", (20,)) in room.judge.log)
    room.submit(30, poison, 31)
    room.submit(40, 41)
    for tones in ((20,), (30, poison, 31), (40, 41)):
        room.judge.let_go(*tones)
    room.until(lambda: len(room.scored) == 3)
    assert room.scored == [((20,), True), ((30, poison, 31), False), ((40, 41), True)]
    faults = {tone: slot.fault for tone, slot in room.slots.items() if slot.fault is not None}
    assert list(faults) == [poison]
    assert faults[poison].cause == "engine_error"
    assert {tone: slot.batch_size for tone, slot in room.slots.items()} == {
        20: 1,
        30: 1,
        poison: 1,
        31: 1,
        40: 2,
        41: 2,
    }
    predicted = {tone: slot.prediction for tone, slot in room.slots.items() if slot.prediction is not None}
    assert {tone: round(p.defect_probability * 255) for tone, p in predicted.items()} == {
        tone: tone for tone in (20, 30, 31, 40, 41)
    }
    assert all(slot.image is None for slot in room.slots.values())


def test_closing_lets_what_is_under_way_and_queued_end(room: Room) -> None:
    room.submit(20)
    room.until(lambda: ("wait", (20,)) in room.judge.log)
    room.submit(21)
    room.submit(22)
    assert not room.thread.close(0.01), "it is at work"
    for tone in (20, 21, 22):
        room.judge.let_go(tone)
    room.until(lambda: len(room.scored) == 3)
    assert room.thread.close(PATIENCE_S)


def test_an_error_that_is_no_batchs_own_is_told() -> None:
    room = Room(HeldJudge(2, held=False))

    def fail(_: Begun) -> None:
        msg = "against its promise"
        raise RuntimeError(msg)

    room.judge.wait = fail  # type: ignore[assignment, method-assign]
    room.submit(20)
    room.until(lambda: len(room.broken) == 1)
    assert room.thread.close(PATIENCE_S)


@pytest.mark.parametrize("ahead", [1, 2])
def test_through_the_whole_pipeline_every_frame_is_answered_once_and_in_order(ahead: int) -> None:
    clock = SystemClock()
    log = MemoryLog(partitions=2)
    judge = HeldJudge(ahead)
    sink = MemorySink()
    tones = [(number * 7) % 100 + (5 if number % 11 else 0) for number in range(400)]
    for number, tone in enumerate(tones):

        def make(offset: int, tone: int = tone, number: int = number) -> Frame:
            now_s = clock.epoch_s()
            place = Position("frames", number % 2, offset)
            return Frame(place, f"s{number % 6}", str(number), str(tone).encode(), now_s, now_s)

        log.append(number % 2, make)
    watcher = MemoryWatcher()
    pipeline = Pipeline(
        Ports(
            MemorySource(log, clock, wait=time.sleep),
            sink,
            judge,
            clock,
            watcher,
            MemoryDeadLetters(),
            lambda partition, offset: f"{partition}/{offset}",
        ),
        Pace(BatchPolicy(8, 0.001, 8), Limits(128, 10**8), 2, 20.0, 0.01, 0.2),
    )
    running = threading.Thread(target=pipeline.run)
    running.start()
    end_s = time.monotonic() + PATIENCE_S
    while pipeline.flow.batches < ahead + 1:  # the first is held until as many wait as the engine takes
        assert time.monotonic() < end_s
        time.sleep(0.001)
    judge.let_all_go()
    running.join(PATIENCE_S)
    assert not running.is_alive()
    for partition in (0, 1):
        own = [v.frame.position.offset for v in sink.verdicts if v.frame.position.partition == partition]
        assert own == list(range(200))
    bad = {str(number) for number, tone in enumerate(tones) if tone in {13, 14}}
    assert len(bad) >= 4
    assert {v.frame.frame_id for v in sink.verdicts if v.cause == "engine_error"} == bad
    for verdict in sink.verdicts:
        if verdict.defect_probability is not None:
            assert round(verdict.defect_probability * 255) == tones[int(verdict.frame.frame_id)]
    assert judge.most_out == ahead
    assert judge.out == 0
    assert pipeline.flow.empty
    assert watcher.failed_batches > 0
