"""From fetching to committing, in memory: first the state machine by hand, then the threads around it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from consumer.budget import Budget, Limits
from consumer.clock import SystemClock
from consumer.errors import BrokerError
from consumer.events import Frame, Position
from consumer.flow import TOGETHER, TOGETHER_S, Flow, Publication
from consumer.judging import NOBODY, NOTHING, Slot, decode_slot, score_slots
from consumer.lateness import Lateness
from consumer.memory_io import (
    BrightnessJudge,
    ManualClock,
    MemoryDeadLetters,
    MemoryLog,
    MemorySink,
    MemorySource,
    MemoryTransactions,
    MemoryWatcher,
)
from consumer.pipeline import Pace, Pipeline, Ports, StoppedAtOnceError
from consumer.ports import Fetched
from consumer.tenure import Partition
from consumer.wire import parse_verdict, verdict_record
from engine.batcher import BatchPolicy
from engine.errors import FrameError, WorkError
from engine.prediction import Prediction, ScoredBatch
from engine.specs import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from consumer.delivery import Delivery
    from consumer.ports import Decoded, Route

SPEC = ImageSpec(64, 64)
PIXEL_BYTES = 64 * 64 * 3
P0, P1 = Partition("frames", 0), Partition("frames", 1)


def decode(payload: bytes) -> NDArray[np.uint8]:
    """A grey image of the payload's number; words stand for what goes wrong."""
    if payload in {b"", b"broken"}:
        cause = "undecodable"
        raise FrameError(cause, "not an image")
    if payload == b"huge":
        cause = "oversize"
        raise FrameError(cause, "too many pixels")
    if payload == b"crash":
        msg = "a fault of the decoder's own"
        raise RuntimeError(msg)
    return np.full((64, 64, 3), int(payload), np.uint8)


class MoodyJudge(BrightnessJudge):
    """Raises on a batch with a frame of brightness 13, answers nonsense to 14, and too little to 15."""

    def __init__(self) -> None:
        """Of the tests' size."""
        super().__init__(SPEC, decode)
        self.sizes: list[int] = []

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """As the base class, with moods."""
        self.sizes.append(len(frames))
        tones = [int(frame.image[0, 0, 0]) for frame in frames]
        assert {frame.image.shape for frame in frames} == {(64, 64, 3)}
        assert [frame.payload for frame in frames] == [str(tone).encode() for tone in tones]
        if 13 in tones:
            msg = "the engine does not like 13"
            raise RuntimeError(msg)
        if 14 in tones:
            return ScoredBatch((Prediction("pass", float("nan")),) * len(tones), 1.0, 1.0)
        if 15 in tones:
            return ScoredBatch((Prediction("pass", 0.0),) * (len(tones) - 1), 1.0, 1.0)
        return super().score(frames)


def verdict_id(partition: int, offset: int) -> str:
    """An id that can be read."""
    return f"{partition}/{offset}"


def put(
    log: MemoryLog,
    clock: ManualClock | SystemClock,
    payload: str,
    station: str = "a",
    partition: int = 0,
    age_s: float = 0.5,
) -> None:
    """Append a frame to the log, `age_s` old by its camera's clock."""

    def make(offset: int) -> Frame:
        now_s = clock.epoch_s()
        position = Position("frames", partition, offset)
        return Frame(position, station, f"{station}-{offset}", payload.encode(), now_s - age_s, now_s)

    log.append(partition, make)


@dataclass
class Bench:
    """The state machine with its outside in hand: nothing happens unless it is told to."""

    partitions: int = 1
    transactional: bool = False
    deadline_s: float | None = None
    policy: BatchPolicy = field(default_factory=lambda: BatchPolicy(4, 0.010, 4))
    clock: ManualClock = field(default_factory=ManualClock)
    judge: MoodyJudge = field(default_factory=MoodyJudge)
    watcher: MemoryWatcher = field(default_factory=MemoryWatcher)
    dead_letters: MemoryDeadLetters = field(default_factory=MemoryDeadLetters)

    def __post_init__(self) -> None:
        self.log = MemoryLog(partitions=self.partitions)
        self.source = MemorySource(self.log, self.clock)
        self.sink: MemorySink | MemoryTransactions = MemorySink(acknowledge=False)
        if self.transactional:
            self.sink = MemoryTransactions(self.log, decide=False)
        self.budget = Budget(Limits(1000, 10**9), PIXEL_BYTES)
        self.decoding: deque[Slot] = deque()
        self.scoring: deque[list[Slot]] = deque()
        self.sent: deque[tuple[Delivery, Publication]] = deque()
        self.rewinds = 0
        self.flow = Flow(
            judge=self.judge,
            sink=self.sink,
            clock=self.clock,
            watcher=self.watcher,
            dead_letters=self.dead_letters,
            budget=self.budget,
            policy=self.policy,
            verdict_id=verdict_id,
            start_decode=self.decoding.append,
            start_score=self.scoring.append,
            when_delivered=lambda delivery, publication: self.sent.append((delivery, publication)),
            rewind=self.rewind,
            lateness=Lateness(self.deadline_s),
        )

    def rewind(self) -> None:
        """What the fetch thread does when it is asked to."""
        self.rewinds += 1
        assert self.source.rewind(0)

    def put(self, *payloads: object, station: str = "a", partition: int = 0) -> None:
        """Append frames."""
        for payload in payloads:
            put(self.log, self.clock, str(payload), station, partition)

    def fetch(self, limit: int = 100) -> None:
        """One poll."""
        fetched = self.source.poll(0, limit)
        self.budget.take(len(fetched.frames), sum(map(self.budget.size_of, fetched.frames)))
        self.flow.take_in(fetched)

    def decode(self, *order: int) -> None:
        """Decode what is queued, in this order; all, in theirs, by default."""
        queued = list(self.decoding)
        self.decoding.clear()
        for index in order or range(len(queued)):
            decode_slot(self.judge, queued[index], self.clock)
            self.flow.decoded(queued[index])
        if order:
            self.decoding.extend(slot for index, slot in enumerate(queued) if index not in order)

    def score(self, *, flush: bool = True) -> None:
        """Run the engine until nothing is due."""
        if flush:
            self.flow.flush()
        self.flow.advance()
        while self.scoring:
            slots = self.scoring.popleft()
            whole = score_slots(self.judge, slots, self.clock)
            self.flow.scored(slots, whole=whole)
            self.flow.advance()

    def settle(self, *, error: Exception | None = None) -> None:
        """The broker answers everything."""
        if isinstance(self.sink, MemorySink):
            self.sink.settle(error=error)
        else:
            self.sink.commit()
        while self.sent:
            self.flow.delivered(*self.sent.popleft())

    def run(self) -> None:
        """All of it once."""
        self.fetch()
        self.decode()
        self.score()
        self.settle()

    def offsets(self, partition: int = 0) -> list[int]:
        """Published offsets of a partition, as they went out."""
        places = [verdict.frame.position for verdict in self.sink.verdicts]
        return [place.offset for place in places if place.partition == partition]

    def decisions(self) -> list[str]:
        """Published decisions, with the cause where there is one."""
        return [verdict.cause or verdict.decision for verdict in self.sink.verdicts]

    def assert_nothing_in_hand(self) -> None:
        """Nothing is held or counted any more."""
        assert self.flow.empty
        assert (self.budget.frames, self.budget.held_bytes) == (0, 0)
        assert self.flow.tenure.open_frames() == 0
        assert self.judge.out == 0, "routes taken and not given back"


def test_each_frame_gets_its_verdict_and_is_committed() -> None:
    bench = Bench()
    bench.put(10, 200, 128)
    bench.run()
    assert bench.decisions() == ["pass", "fail", "review"]
    assert [v.verdict_id for v in bench.sink.verdicts] == ["0/0", "0/1", "0/2"]
    assert [v.defect_probability for v in bench.sink.verdicts] == [0.039216, 0.784314, 0.501961]
    assert bench.flow.tenure.commits() == {P0: 3}
    bench.assert_nothing_in_hand()


def test_one_batch_takes_frames_of_several_stations_and_partitions() -> None:
    bench = Bench(partitions=2)
    bench.put(10, station="a")
    bench.put(20, station="b")
    bench.put(30, station="c", partition=1)
    bench.run()
    assert bench.judge.sizes == [3]
    assert {v.frame.station for v in bench.sink.verdicts} == {"a", "b", "c"}
    assert [v.batch_size for v in bench.sink.verdicts] == [3, 3, 3]


def test_verdicts_keep_the_order_of_the_frames_whatever_the_decoders_do() -> None:
    bench = Bench()
    bench.put(*range(20, 27))
    bench.fetch()
    for last in range(6, -1, -1):
        bench.decode(last)
    bench.score()
    assert bench.offsets() == list(range(7))


def test_a_slow_frame_holds_up_its_own_partition_only() -> None:
    bench = Bench(partitions=2)
    bench.put(20, 21, partition=0)
    bench.put(22, 23, partition=1)
    bench.fetch()
    slow = next(i for i, slot in enumerate(bench.decoding) if slot.frame.position == Position("frames", 0, 0))
    bench.decode(*(index for index in range(4) if index != slow))
    bench.score()
    assert (bench.offsets(0), bench.offsets(1)) == ([], [0, 1])
    bench.decode()
    bench.score()
    assert bench.offsets(0) == [0, 1]


def test_a_bad_frame_waits_for_its_turn_and_poisons_nothing() -> None:
    bench = Bench()
    bench.put(20, "broken", 21, "", "huge", 22)
    bench.fetch()
    bench.decode(1, 3, 4)
    assert bench.offsets() == [], "its predecessor has no verdict yet"
    bench.decode()
    bench.score()
    assert bench.offsets() == list(range(6))
    assert bench.decisions() == ["pass", "undecodable", "pass", "undecodable", "oversize", "pass"]
    bad = bench.sink.verdicts[1]
    assert (bad.decision, bad.defect_probability, bad.reasons, bad.batch_size) == ("none", None, (), 0)


def test_every_unjudgeable_frame_leaves_a_dead_letter_that_knows_its_size() -> None:
    bench = Bench()
    bench.put(20, "broken", "huge", 13)
    bench.run()
    assert [(letter.cause, letter.verdict_id) for letter in bench.dead_letters.letters] == [
        ("undecodable", "0/1"),
        ("oversize", "0/2"),
        ("engine_error", "0/3"),
    ]
    assert bench.dead_letters.letters[0].error == "not an image"
    assert [len(letter.frame.payload) for letter in bench.dead_letters.letters] == [6, 4, 2]


def test_what_is_published_holds_no_image() -> None:
    bench = Bench()
    bench.put(20, "broken")
    bench.run()
    assert [verdict.frame.payload for verdict in bench.sink.verdicts] == [b"", b""]


@pytest.mark.parametrize("poison", [13, 14, 15])
def test_one_frame_that_the_engine_cannot_take_costs_only_itself(poison: int) -> None:
    bench = Bench()
    bench.put(20, poison, 200, 21)
    bench.run()
    assert bench.decisions() == ["pass", "engine_error", "fail", "pass"]
    assert bench.judge.sizes == [4, 1, 1, 1, 1], "each alone, once"
    assert bench.watcher.failed_batches == 1
    assert bench.flow.tenure.commits() == {P0: 4}


def test_a_decoder_that_crashes_costs_one_frame() -> None:
    bench = Bench()
    bench.put(20, "crash", 21)
    bench.run()
    assert bench.decisions() == ["pass", "engine_error", "pass"]
    assert bench.dead_letters.letters[0].error == "RuntimeError: a fault of the decoder's own"


def test_an_image_of_the_wrong_shape_never_reaches_a_batch() -> None:
    bench = Bench(judge=MoodyJudge())
    bench.judge._decode = lambda _: np.zeros((32, 64, 3), np.uint8)
    bench.put(20)
    bench.run()
    assert bench.decisions() == ["engine_error"]
    assert bench.judge.sizes == []


def test_only_what_the_broker_acknowledged_is_committed_and_without_gaps() -> None:
    bench = Bench(policy=BatchPolicy(1, 0.0, 1))
    bench.put(20, 21, 22)
    bench.fetch()
    bench.decode()
    bench.score()
    first, second, third = bench.sent
    bench.flow.tenure  # noqa: B018 - nothing acknowledged yet
    assert bench.flow.tenure.commits() == {}
    bench.flow.delivered(*second)
    assert bench.flow.tenure.commits() == {}
    bench.flow.delivered(*first)
    assert bench.flow.tenure.commits() == {P0: 2}
    bench.flow.delivered(*third)
    assert bench.flow.tenure.commits() == {P0: 3}


@pytest.mark.parametrize("stage", ["decoding", "waiting", "scoring", "in line", "sent"])
@pytest.mark.parametrize("kind", ["revoked", "lost"])
def test_frames_of_a_partition_that_goes_are_left_to_its_next_owner(stage: str, kind: str) -> None:
    bench = Bench(partitions=2)
    bench.put(20, 21, partition=0)
    bench.put(22, partition=1)
    bench.fetch()
    if stage == "in line":
        bench.decode(*(i for i, slot in enumerate(bench.decoding) if slot.frame.position != Position("frames", 0, 0)))
        bench.score()
    elif stage != "decoding":
        bench.decode()
    if stage == "scoring":
        bench.flow.flush()
        bench.flow.advance()
    if stage == "sent":
        bench.score()
    bench.source.revoke([P0], kind)  # type: ignore[arg-type] # one of the two words
    bench.fetch()
    sent_before = len(bench.offsets(0))
    bench.decode()
    bench.score()
    bench.settle()
    assert len(bench.offsets(0)) == sent_before == (2 if stage == "sent" else 0), "published after it was taken"
    assert bench.offsets(1) == [0]
    assert bench.flow.tenure.commits() == {P1: 1}
    bench.assert_nothing_in_hand()


def test_a_partition_that_comes_back_is_read_from_its_committed_position_with_the_same_ids() -> None:
    bench = Bench()
    bench.put(20, 21, 22)
    bench.fetch()
    bench.decode()
    bench.score()
    bench.source.revoke([P0])
    bench.source.assign([P0])
    bench.fetch()
    bench.settle()
    assert bench.flow.tenure.commits() == {}, "acknowledged in an earlier tenure"
    bench.decode()
    bench.score()
    bench.settle()
    ids = [verdict.verdict_id for verdict in bench.sink.verdicts]
    assert ids == ["0/0", "0/1", "0/2"] * 2
    assert bench.flow.tenure.commits() == {P0: 3}
    bench.assert_nothing_in_hand()


def test_a_verdict_that_fails_stops_everything_behind_it() -> None:
    bench = Bench(policy=BatchPolicy(1, 0.0, 1))
    bench.put(20, 21)
    bench.fetch()
    bench.decode()
    bench.score()
    assert isinstance(bench.sink, MemorySink)
    bench.sink.settle(1)
    bench.sink.settle(1, error=TimeoutError("24 hours"))
    bench.flow.delivered(*bench.sent.popleft())
    with pytest.raises(BrokerError, match="frames-0 offset 1 on: TimeoutError: 24 hours"):
        bench.flow.delivered(*bench.sent.popleft())
    assert bench.flow.tenure.commits() == {P0: 1}


def test_verdicts_and_positions_stored_in_one_step_leave_nothing_to_commit() -> None:
    bench = Bench(transactional=True, partitions=2)
    bench.put(20, 21)
    bench.put(22, partition=1)
    bench.run()
    assert bench.log.committed == {P0: 2, Partition("frames", 1): 1}
    assert bench.flow.tenure.commits() == {}
    bench.assert_nothing_in_hand()


def test_a_publication_given_up_is_judged_again_and_nothing_behind_it_is_recorded_over_the_gap() -> None:
    bench = Bench(transactional=True, policy=BatchPolicy(1, 0.0, 1))
    bench.put(20, 21, 22)
    bench.fetch()
    bench.decode()
    bench.score()
    sink = bench.sink
    assert isinstance(sink, MemoryTransactions)
    sink.commit(1)
    sink.give_up()
    sink.commit()  # the third, under the claim that the second broke
    assert bench.log.committed == {P0: 1}
    while bench.sent:
        bench.flow.delivered(*bench.sent.popleft())
    assert bench.rewinds == 1, "one rewind serves both: the first ends the claim"
    assert bench.flow.empty
    bench.run()
    assert bench.offsets() == [0, 1, 2]
    assert bench.log.committed == {P0: 3}
    assert [verdict.verdict_id for verdict in sink.verdicts] == ["0/0", "0/1", "0/2"], "each once"


def test_a_frame_that_comes_again_without_an_assignment_is_never_answered_twice() -> None:
    bench = Bench(transactional=True)
    bench.put(20, 21)
    bench.fetch()
    bench.decode()
    bench.score()
    bench.source._next[P0] = 0  # as a client does whose broker has lost the end of its log
    again = bench.source.poll(0, 10)
    assert [frame.position.offset for frame in again.frames] == [0, 1]
    with pytest.raises(BrokerError, match="offset 0 came again"):
        bench.flow.take_in(again)
    bench.settle()
    assert bench.offsets() == [0, 1], "what was under way is stored or not, as ever"


def test_what_was_given_up_because_its_partition_went_needs_no_rewind() -> None:
    bench = Bench(transactional=True)
    bench.put(20)
    bench.fetch()
    bench.decode()
    bench.score()
    bench.source.revoke([P0])
    bench.settle()
    assert bench.sink.verdicts == []
    assert bench.log.committed == {}
    assert bench.rewinds == 0


def test_a_frame_past_its_deadline_is_answered_without_the_engine_and_in_its_turn() -> None:
    bench = Bench(deadline_s=2.0, policy=BatchPolicy(8, 0.0, 8))
    put(bench.log, bench.clock, "20", age_s=1.0)
    put(bench.log, bench.clock, "21", age_s=2.5)  # late already when it is fetched
    put(bench.log, bench.clock, "22", age_s=1.9)  # late by the time a batch takes it
    put(bench.log, bench.clock, "23", age_s=0.1)
    bench.fetch()
    bench.decode()
    bench.clock.advance(0.2)
    bench.score()
    bench.settle()
    assert bench.offsets() == [0, 1, 2, 3]
    assert bench.decisions() == ["pass", "late", "late", "pass"]
    assert bench.judge.sizes == [2]
    assert [letter.cause for letter in bench.dead_letters.letters] == ["late"] * 2
    assert bench.sink.verdicts[1].times.inference_ms is None
    bench.assert_nothing_in_hand()


def test_a_camera_whose_clock_is_behind_is_not_late_once_a_fresh_frame_has_told_so() -> None:
    bench = Bench(deadline_s=2.0)
    bench.run()  # nothing there: from now on what comes is fresh
    for tone in (20, 21, 22):
        put(bench.log, bench.clock, str(tone), age_s=30.0)
        bench.run()
        bench.clock.advance(0.3)
    put(bench.log, bench.clock, "23", age_s=32.5)  # and what has waited has waited, by whatever clock
    bench.run()
    assert bench.decisions() == ["pass", "pass", "pass", "late"]


def test_an_old_frame_found_at_the_start_is_late_although_it_is_the_newest() -> None:
    bench = Bench(deadline_s=2.0)
    put(bench.log, bench.clock, "20", age_s=3600.0)
    bench.run()
    assert bench.decisions() == ["late"]


class PickyJudge(MoodyJudge):
    """Knows no station but `a`."""

    def route(self, station: str) -> Route | None:
        """As the base class, for one station."""
        return super().route(station) if station == "a" else None


def test_a_station_that_nobody_judges_is_answered_in_its_turn_without_the_engine() -> None:
    bench = Bench(judge=PickyJudge())
    bench.put(20, station="a")
    bench.put(21, station="b")
    bench.put(22, station="a")
    bench.run()
    assert bench.offsets() == [0, 1, 2]
    assert bench.decisions() == ["pass", "unrouted", "pass"]
    verdict = bench.sink.verdicts[1]
    assert (verdict.model, verdict.engine, verdict.threshold) == (NOBODY, NOTHING, 0.0)
    assert parse_verdict(verdict_record(verdict, group="g").value)["model"]["name"] == "none"
    assert verdict.times.decode_ms is None
    (letter,) = bench.dead_letters.letters
    assert letter.error == "no model for station 'b': expected a route that matches it"
    assert bench.judge.sizes == [2]
    bench.assert_nothing_in_hand()


class ShiftingJudge(MoodyJudge):
    """Loads a larger model after the first two frames."""

    def __init__(self) -> None:
        """Both sizes."""
        super().__init__()
        self.larger = replace(self._route, image_spec=ImageSpec(128, 96))
        self.asked = 0

    def route(self, station: str) -> Route | None:
        """The small one twice, then the large one."""
        first = super().route(station)
        self.asked += 1
        return first if self.asked <= 2 else self.larger

    def decode(self, payload: bytes, route: Route) -> NDArray[np.uint8]:
        """Of the route's size."""
        return np.full(route.image_shape, int(payload), np.uint8)

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """Never one model's image by another's route."""
        assert all(frame.image.shape == frame.route.image_shape for frame in frames)
        return BrightnessJudge.score(self, frames)


def test_a_frame_keeps_its_route_and_counts_with_its_own_size_whatever_is_loaded_meanwhile() -> None:
    bench = Bench(judge=ShiftingJudge())
    bench.put(20, 21, 22)
    bench.fetch()
    assert bench.budget.held_bytes == 3 * 2 + 2 * PIXEL_BYTES + 128 * 96 * 3
    bench.decode()
    bench.score()
    bench.settle()
    assert bench.decisions() == ["pass"] * 3
    bench.assert_nothing_in_hand()


def test_every_stage_leaves_its_time() -> None:
    bench = Bench()
    bench.put(20)
    bench.fetch()
    bench.clock.advance(0.010)
    slot = bench.decoding[0]
    slow = bench.judge._decode

    def take_time(payload: bytes) -> NDArray[np.uint8]:
        bench.clock.advance(0.020)
        return slow(payload)

    bench.judge._decode = take_time
    bench.decode()
    bench.clock.advance(0.040)
    bench.score()
    times = bench.sink.verdicts[0].times
    assert times.transport_ms == pytest.approx(500)
    assert times.fetch_wait_ms == pytest.approx(10)
    assert times.decode_ms == pytest.approx(20)
    assert times.batch_wait_ms == pytest.approx(40)
    assert times.total_ms == pytest.approx(570)
    assert bench.sink.verdicts[0].decided_at_s == pytest.approx(slot.frame.fetched_at_s + 0.070)


def test_an_idle_engine_waits_for_the_age_and_not_longer() -> None:
    bench = Bench(policy=BatchPolicy(4, 0.010, 4))
    bench.put(20)
    bench.fetch()
    bench.decode()
    bench.score(flush=False)
    assert bench.judge.sizes == []
    assert bench.flow.due_s() == pytest.approx(bench.clock.monotonic_s() + 0.010)
    bench.clock.advance(0.010)
    bench.score(flush=False)
    assert bench.judge.sizes == [1]


def test_another_policy_serves_from_the_next_batch_on() -> None:
    bench = Bench(policy=BatchPolicy(4, 60.0, 4))
    bench.put(20, 21, 22)
    bench.fetch()
    bench.decode()
    bench.score(flush=False)
    assert bench.judge.sizes == []
    bench.flow.use(BatchPolicy(2, 0.0, 2))
    bench.score(flush=False)
    assert bench.judge.sizes == [2, 1]
    assert bench.watcher.batches == [2, 1]


def test_a_busy_engine_gets_a_second_batch_only_when_it_is_full() -> None:
    bench = Bench(policy=BatchPolicy(2, 0.0, 2))
    bench.put(20, 21, 22)
    bench.fetch()
    bench.decode()
    bench.flow.advance()
    assert [len(batch) for batch in bench.scoring] == [2]
    assert bench.flow.due_s() is None, "the one that waits is company for the next, until the engine is idle"
    bench.put(23, 24, 25)
    bench.fetch()
    bench.decode()
    bench.flow.advance()
    assert [len(batch) for batch in bench.scoring] == [2, 2], "one at work, one behind it, no more"
    bench.score(flush=False)
    assert bench.offsets() == list(range(6))


def test_an_engine_that_takes_two_batches_gets_a_full_one_behind_them() -> None:
    bench = Bench(policy=BatchPolicy(2, 0.0, 2))
    bench.judge.ahead = 2
    bench.put(*range(20, 29))
    bench.fetch()
    bench.decode()
    bench.flow.advance()
    assert [len(batch) for batch in bench.scoring] == [2, 2, 2], "two at work, one behind them, no more"
    bench.score(flush=False)
    assert bench.offsets() == list(range(9))


def test_a_frame_of_a_partition_that_is_not_ours_stops_the_consumer() -> None:
    bench = Bench()
    frame = Frame(Position("frames", 7, 0), "a", "x", b"20", 0.0, 0.0)
    with pytest.raises(BrokerError, match="without an assignment"):
        bench.flow.take_in(Fetched((), (frame,), 0.0))


# The threads around it: real time, but nothing waits for a fixed time that a slow machine could miss.


@dataclass
class Plant:
    """A pipeline on memory, with its threads."""

    partitions: int = 2
    limits: Limits = field(default_factory=lambda: Limits(64, 10**8))
    policy: BatchPolicy = field(default_factory=lambda: BatchPolicy(8, 0.002, 4))
    drain_s: float = 20.0
    idle_exit_s: float | None = 0.2
    sink: MemorySink = field(default_factory=MemorySink)
    judge: MoodyJudge = field(default_factory=MoodyJudge)

    def __post_init__(self) -> None:
        self.clock = SystemClock()
        self.log = MemoryLog(partitions=self.partitions)
        self.source = MemorySource(self.log, self.clock, wait=time.sleep)
        self.watcher = MemoryWatcher()
        self.dead_letters = MemoryDeadLetters()
        self.pipeline = Pipeline(
            Ports(self.source, self.sink, self.judge, self.clock, self.watcher, self.dead_letters, verdict_id),
            Pace(self.policy, self.limits, 2, self.drain_s, 0.01, self.idle_exit_s),
        )

    def fill(self, frames: int, bad_every: int = 10) -> None:
        """Frames of three stations over the partitions."""
        for number in range(frames):
            payload = "broken" if number % bad_every == bad_every - 1 else str(20 + number % 200)
            put(self.log, self.clock, payload, "abc"[number % 3], number % 3 % self.partitions)

    def in_background(self) -> tuple[threading.Thread, list[BaseException]]:
        """Run it on a thread; what it raised is in the list."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                self.pipeline.run()
            except BaseException as error:  # noqa: BLE001 - looked at by the test
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, raised

    def assert_all_answered_once_and_in_order(self) -> None:
        """One verdict per frame; per partition in order; all committed."""
        lines: dict[Partition, list[int]] = defaultdict(list)
        for verdict in self.sink.verdicts:
            place = verdict.frame.position
            lines[Partition(place.topic, place.partition)].append(place.offset)
        ends = {partition: self.log.end(partition) for partition in self.log.partitions if self.log.end(partition)}
        assert lines == {partition: list(range(end)) for partition, end in ends.items()}
        assert self.log.committed == ends


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that has to happen."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.002)


def test_a_run_answers_everything_and_commits_it() -> None:
    plant = Plant()
    plant.fill(500)
    plant.pipeline.run()
    plant.assert_all_answered_once_and_in_order()
    assert len(plant.dead_letters.letters) == 50
    assert plant.watcher.frames == len(plant.watcher.verdicts) == 500
    assert plant.source.closed
    assert plant.pipeline.flow.empty
    assert plant.judge.out == 0
    assert (plant.pipeline.budget.frames, plant.pipeline.budget.held_bytes) == (0, 0)


def test_a_turn_that_took_long_is_no_idleness() -> None:
    plant = Plant()
    clock = ManualClock()
    ports = Ports(plant.source, plant.sink, plant.judge, clock, plant.watcher, plant.dead_letters, verdict_id)
    pipeline = Pipeline(ports, Pace(plant.policy, plant.limits, idle_exit_s=0.2))
    pipeline._fetcher._ready = True
    pipeline.flow._in_hand = 64
    assert not pipeline._idle_for_good()
    clock.advance(5.0)
    pipeline.flow._in_hand = 0
    assert not pipeline._idle_for_good(), "more could not come before now"
    clock.advance(0.15)
    assert not pipeline._idle_for_good()
    clock.advance(0.1)
    assert pipeline._idle_for_good()


def test_no_more_is_in_flight_than_allowed_while_the_broker_does_not_answer() -> None:
    plant = Plant(limits=Limits(16, 10**8), sink=MemorySink(acknowledge=False), idle_exit_s=None)
    plant.fill(100)
    thread, raised = plant.in_background()
    until(lambda: plant.watcher.frames == 16 and len(plant.sink.verdicts) == 16)
    polls = plant.watcher.beats["fetch"]
    until(lambda: plant.watcher.beats["fetch"] > polls + 3)
    assert plant.watcher.frames == 16, "polling went on, fetching did not"
    assert plant.log.committed == {}
    while len(plant.watcher.verdicts) < 100:
        plant.sink.settle()
        time.sleep(0.001)
    plant.pipeline.stop()
    thread.join(20)
    assert raised == []
    assert plant.watcher.most_frames <= 16
    plant.assert_all_answered_once_and_in_order()


def test_bytes_bound_what_is_in_flight_too() -> None:
    plant = Plant(limits=Limits(1000, 5 * PIXEL_BYTES), sink=MemorySink(acknowledge=False), idle_exit_s=None)
    plant.policy = BatchPolicy(4, 0.002, 4)
    gate = threading.Event()
    patient = plant.judge._decode

    def held(payload: bytes) -> NDArray[np.uint8]:
        gate.wait(20)
        return patient(payload)

    plant.judge._decode = held
    plant.fill(300)
    thread, raised = plant.in_background()
    until(lambda: plant.watcher.beats["fetch"] > 5)
    assert 5 <= plant.watcher.frames <= 5 + 64, "over the bound by one poll at most"
    gate.set()
    until(lambda: len(plant.sink.verdicts) == 300)
    plant.sink.settle()
    plant.pipeline.stop()
    thread.join(20)
    assert raised == []


def test_stop_answers_what_is_in_hand_and_commits_it() -> None:
    plant = Plant(idle_exit_s=None, policy=BatchPolicy(8, 60.0, 8))
    plant.fill(3, bad_every=100)
    thread, raised = plant.in_background()
    until(lambda: plant.watcher.frames == 3)
    assert plant.sink.verdicts == [], "the age was not reached"
    plant.pipeline.stop()
    thread.join(20)
    assert raised == []
    plant.assert_all_answered_once_and_in_order()


def test_a_stop_is_known_to_the_fetching_thread_before_the_loop_turns() -> None:
    plant = Plant(idle_exit_s=None)
    plant.pipeline.stop()
    assert plant.pipeline._fetcher._halting


def test_what_cannot_be_answered_in_time_is_said_and_not_committed() -> None:
    plant = Plant(idle_exit_s=None, drain_s=0.05, sink=MemorySink(acknowledge=False))
    plant.fill(3)
    thread, raised = plant.in_background()
    until(lambda: len(plant.sink.verdicts) == 3)
    plant.pipeline.stop()
    thread.join(20)
    assert isinstance(raised[0], WorkError)
    assert "3 frames could not be answered within 0.05 s" in str(raised[0])
    assert plant.log.committed == {}
    assert plant.source.closed


def test_a_second_stop_gives_up_at_once() -> None:
    plant = Plant(idle_exit_s=None, drain_s=3600.0, sink=MemorySink(acknowledge=False))
    plant.fill(3)
    thread, raised = plant.in_background()
    until(lambda: len(plant.sink.verdicts) == 3)
    plant.pipeline.stop()
    plant.pipeline.stop()
    thread.join(20)
    assert isinstance(raised[0], StoppedAtOnceError)
    assert plant.log.committed == {}


def test_a_failed_verdict_ends_the_run_and_a_restart_judges_it_again() -> None:
    plant = Plant(partitions=1, idle_exit_s=None)
    plant.fill(20)
    thread, raised = plant.in_background()
    until(lambda: len(plant.watcher.verdicts) == 20)
    plant.sink.break_down(TimeoutError("gone"))
    plant.fill(5)
    thread.join(20)
    assert isinstance(raised[0], BrokerError)
    assert plant.log.committed == {P0: 20}
    again = Plant(partitions=1)
    again.source = MemorySource(plant.log, again.clock, wait=time.sleep)
    ports = Ports(again.source, again.sink, again.judge, again.clock, again.watcher, again.dead_letters, verdict_id)
    Pipeline(ports, Pace(again.policy, again.limits, 2, 20.0, 0.01, 0.2)).run()
    assert [verdict.verdict_id for verdict in again.sink.verdicts] == [f"0/{offset}" for offset in range(20, 25)]
    assert plant.log.committed == {P0: 25}


def test_a_commit_that_is_refused_is_tried_again() -> None:
    plant = Plant()
    plant.source.refuse_commits = 3
    plant.fill(20)
    plant.pipeline.run()
    assert plant.watcher.commits[False] == 3
    plant.assert_all_answered_once_and_in_order()


def test_ownership_may_change_at_any_moment() -> None:
    plant = Plant(idle_exit_s=0.5)
    plant.fill(600)
    thread, raised = plant.in_background()
    for _ in range(5):
        seen = len(plant.sink.verdicts)
        until(lambda seen=seen: len(plant.sink.verdicts) > seen)  # type: ignore[misc] # bound now
        plant.source.revoke([P1], "lost")
        plant.source.assign([P1])
    thread.join(20)
    assert raised == []
    assert plant.log.committed == {P0: 400, P1: 200}
    seen_ids = {verdict.verdict_id for verdict in plant.sink.verdicts}
    assert len(seen_ids) == 600, "a frame was lost"


def test_a_source_that_fails_for_good_ends_the_run() -> None:
    plant = Plant(idle_exit_s=None)
    plant.source.close(0)
    with pytest.raises(BrokerError, match="the source is closed"):
        plant.pipeline.run()


def test_a_hanging_engine_does_not_keep_the_process() -> None:
    plant = Plant(idle_exit_s=None, drain_s=0.05)
    gate = threading.Event()

    def hang(frames: Sequence[Decoded]) -> ScoredBatch:
        gate.wait(20)
        return BrightnessJudge.score(plant.judge, frames)

    plant.judge.score = hang  # type: ignore[method-assign]
    plant.fill(3)
    thread, raised = plant.in_background()
    until(lambda: plant.watcher.frames == 3)
    plant.pipeline.stop()
    thread.join(20)
    assert isinstance(raised[0], WorkError)
    assert not thread.is_alive()
    gate.set()


def piled_up(frames: int = 100) -> Bench:
    """Many frames in hand, and the engine at work: batches of four."""
    bench = Bench(partitions=2)
    bench.put(*[20] * (frames // 2))
    bench.put(*[20] * (frames // 2), partition=1)
    bench.fetch(frames)
    bench.decode()
    return bench


def test_where_frames_pile_up_verdicts_go_out_in_company() -> None:
    bench = piled_up(140)
    bench.score(flush=False)
    sizes = [len(publication.answers) for _, publication in bench.sent]
    assert sizes[:2] == [TOGETHER, TOGETHER], "eight batches each"
    assert sizes[2] < TOGETHER, "the pile is gone before they are so many"
    assert set(sizes[3:]) == {4}, "from then on each batch's go at once"
    assert (bench.offsets(0), bench.offsets(1)) == (list(range(70)), list(range(70)))
    bench.settle()
    bench.assert_nothing_in_hand()


def test_verdicts_do_not_wait_long_for_company() -> None:
    bench = piled_up()
    bench.flow.advance()
    slots = bench.scoring.popleft()
    bench.flow.scored(slots, whole=score_slots(bench.judge, slots, bench.clock))
    assert not bench.sent
    assert bench.flow.due_s() == pytest.approx(bench.clock.monotonic_s() + TOGETHER_S), (
        "the loop knows when to come back"
    )
    bench.clock.advance(TOGETHER_S / 2)
    bench.flow.advance()
    assert not bench.sent
    bench.clock.advance(TOGETHER_S / 2)
    bench.flow.advance()
    assert [len(publication.answers) for _, publication in bench.sent] == [4]


def test_a_stop_waits_for_no_company() -> None:
    bench = piled_up()
    bench.flow.flush()
    bench.score()
    assert {len(publication.answers) for _, publication in bench.sent} == {4}


def test_verdicts_that_wait_for_company_go_with_their_tenure() -> None:
    bench = piled_up()
    bench.flow.advance()
    slots = bench.scoring.popleft()
    bench.flow.scored(slots, whole=score_slots(bench.judge, slots, bench.clock))
    bench.source.revoke([P0])
    bench.fetch()
    bench.clock.advance(1.0)
    bench.score()
    bench.settle()
    assert bench.offsets(0) == []
    assert bench.offsets(1) == list(range(50))
    bench.assert_nothing_in_hand()
