"""A faulty camera's frames on their way: answered in their turn, as faults, and nobody else's verdict is another."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from consumer.budget import Budget, Limits
from consumer.camera_health import SAME_FRAMES, SHIFTED_WINDOWS
from consumer.clock import SystemClock
from consumer.events import Frame, ModelRef, Position
from consumer.flow import Flow
from consumer.judging import decode_slot, score_slots
from consumer.lateness import Lateness
from consumer.memory_io import BrightnessJudge, MemoryDeadLetters, MemoryLog, MemorySink, MemorySource, MemoryWatcher
from consumer.pipeline import Pace, Pipeline, Ports
from consumer.ports import Route
from consumer.tenure import Partition
from engine.batcher import BatchPolicy
from engine.errors import FrameError
from engine.prediction import OperatingPoint, Prediction, ScoredBatch
from engine.specs import ImageSpec
from engine.watching import WINDOW
from tests.scenes import frame, limits_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer.judging import Slot
    from consumer.ports import Decoded

SPEC = ImageSpec(64, 64)
STREAM = limits_of(1, 2)
ROUTE = Route(
    SPEC, OperatingPoint(0.5, (0.4, 0.6)), ModelRef("m", "1", "d", "h"), BrightnessJudge.engine, stream=STREAM
)
DISTANCE = 3.0


def decode(payload: bytes) -> np.ndarray:
    """Raw pixels."""
    if not payload:
        cause = "undecodable"
        raise FrameError(cause, "empty")
    return np.frombuffer(payload, np.uint8).reshape(64, 64, 3)


class WatchedJudge(BrightnessJudge):
    """Knows what its streams are to look like; each image is as far from its training set."""

    def __init__(self) -> None:
        super().__init__(SPEC, decode)

    def route(self, station: str) -> Route | None:
        super().route(station)
        return ROUTE

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        scored = super().score(frames)
        told = [Prediction(p.decision, p.defect_probability, p.reasons, None, DISTANCE) for p in scored.predictions]
        return ScoredBatch(tuple(told), 0.0, 0.0)


@dataclass
class Line:
    """A log of frames that stations send, and the consumer's state machine with its outside in hand."""

    camera_checks: bool = True
    partitions: int = 1
    log: MemoryLog = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(11)
        self.clock = SystemClock()
        self.log = MemoryLog(partitions=self.partitions)
        self.judge = WatchedJudge()
        self.watcher = MemoryWatcher()
        self.dead_letters = MemoryDeadLetters()
        self.sink = MemorySink()

    def put(self, station: str, image: np.ndarray | None, partition: int = 0) -> None:
        """One frame."""
        payload = b"" if image is None else image.tobytes()

        def make(offset: int) -> Frame:
            now_s = self.clock.epoch_s()
            return Frame(Position("frames", partition, offset), station, f"{partition}/{offset}", payload, now_s, now_s)

        self.log.append(partition, make)

    def flow(self, decoding: list[Slot], scoring: list[list[Slot]]) -> Flow:
        """What is begun is appended to the lists."""
        return Flow(
            judge=self.judge,
            sink=self.sink,
            clock=self.clock,
            watcher=self.watcher,
            dead_letters=self.dead_letters,
            budget=Budget(Limits(10_000, 10**9), 64 * 64 * 3),
            policy=BatchPolicy(8, 0.0, 8),
            verdict_id=lambda partition, offset: f"{partition}/{offset}",
            start_decode=decoding.append,
            start_score=scoring.append,
            when_delivered=lambda _delivery, _publication: None,
            rewind=lambda: None,
            lateness=Lateness(None),
            camera_checks=self.camera_checks,
        )

    def run_by_hand(self) -> None:
        """Everything once; frames are decoded in any order, and batches come back in any order."""
        decoding: list[Slot] = []
        scoring: list[list[Slot]] = []
        flow = self.flow(decoding, scoring)
        flow.take_in(MemorySource(self.log, self.clock).poll(0, 10_000))
        for index in self.rng.permutation(len(decoding)):
            decode_slot(self.judge, decoding[index], self.clock, watched=self.camera_checks)
            flow.decoded(decoding[index])
        flow.flush()
        flow.advance()
        while scoring:
            slots = scoring.pop(int(self.rng.integers(len(scoring))))
            flow.scored(slots, whole=score_slots(self.judge, slots, self.clock))
            flow.advance()

    def run_threads(self) -> None:
        """Everything once, by the pipeline itself."""
        source = MemorySource(self.log, self.clock)
        ports = Ports(
            source,
            self.sink,
            self.judge,
            self.clock,
            self.watcher,
            self.dead_letters,
            lambda partition, offset: f"{partition}/{offset}",
        )
        pace = Pace(
            BatchPolicy(8, 0.002, 4),
            Limits(64, 10**8),
            decode_threads=3,
            commit_every_s=0.01,
            idle_exit_s=0.2,
            camera_checks=self.camera_checks,
        )
        Pipeline(ports, pace).run()

    def decisions(self) -> dict[str, list[str]]:
        """By station, in the order published: the cause, or the decision with its probability."""
        found = defaultdict(list)
        for verdict in self.sink.verdicts:
            judged = verdict.cause or f"{verdict.decision} {verdict.defect_probability}"
            found[verdict.frame.station].append(judged)
        return found


def mixed(line: Line, frames: int) -> None:
    """A frozen, a moved and two healthy stations, and one with broken frames, in turn."""
    rng = np.random.default_rng(2)
    stuck = frame(1, rng)
    for number in range(frames):
        partition = number % line.partitions
        line.put("frozen", stuck if number >= 10 else frame(1, rng), partition=0)
        line.put("moved", frame(2, rng, right=5 if number >= WINDOW else 0), partition=line.partitions - 1)
        line.put("healthy", frame(1, rng), partition=0)
        line.put(f"broken-{partition}", None if number % 5 == 4 else frame(2, rng), partition)


@pytest.mark.parametrize("how", ["run_by_hand", "run_threads"])
def test_faulty_cameras_are_answered_as_such_in_their_turn_and_nobody_else_is_judged_otherwise(how: str) -> None:
    frames = 5 * WINDOW
    plain, watched = Line(camera_checks=False, partitions=2), Line(partitions=2)
    for line in (plain, watched):
        mixed(line, frames)
        getattr(line, how)()
    expected, got = plain.decisions(), watched.decisions()
    assert expected.keys() == got.keys()
    for station, decisions in expected.items():
        if station.startswith(("healthy", "broken")):
            assert got[station] == decisions, station
    first = {"frozen": 10 + SAME_FRAMES - 1, "moved": WINDOW + SHIFTED_WINDOWS * WINDOW - 1}
    for station, proof in first.items():
        assert got[station] == expected[station][:proof] + ["camera_fault"] * (frames - proof)
    places = [verdict.frame.position for verdict in watched.sink.verdicts]
    for partition in range(2):
        assert [p.offset for p in places if p.partition == partition] == list(
            range(watched.log.end(Partition("frames", partition)))
        )
    assert [(c.station, c.kind, c.faulty) for c in watched.watcher.camera_changes] == [
        ("frozen", "frozen", True),
        ("moved", "shifted", True),
    ]
    faults = Counter(station for station, trouble in watched.watcher.troubles)
    assert faults == {station: frames - proof for station, proof in first.items()}
    told = Counter(letter.error.partition(":")[0] for letter in watched.dead_letters.letters)
    assert (told["frozen"], told["shifted"]) == (frames - first["frozen"], frames - first["moved"])
    assert watched.judge.out == 0, "routes taken and not given back"
    assert not [v for v in plain.sink.verdicts if v.cause == "camera_fault"]
    ratio = DISTANCE / (STREAM.drift or 1)
    assert watched.watcher.drifts["healthy"] == pytest.approx(ratio)


def test_a_fault_says_no_probability_and_keeps_its_times() -> None:
    line = Line()
    stuck = frame(1, line.rng)
    for _ in range(SAME_FRAMES):
        line.put("a", stuck)
    line.run_by_hand()
    verdict = line.sink.verdicts[-1]
    assert (verdict.decision, verdict.cause, verdict.defect_probability, verdict.reasons) == (
        "none",
        "camera_fault",
        None,
        (),
    )
    assert verdict.model.name == "m"
    assert verdict.times.inference_ms is not None


def test_the_log_has_a_line_for_each_beginning_and_end_and_none_per_frame(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    stuck = frame(1, line.rng)
    for _ in range(5 * SAME_FRAMES):
        line.put("a", stuck)
    line.put("a", frame(1, line.rng))
    with caplog.at_level(logging.INFO, logger="consumer.flow"):
        line.run_by_hand()
    said = [record for record in caplog.records if "camera" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING", "INFO"]
    assert "camera of station 'a' is frozen" in said[0].getMessage()
    assert "no longer frozen" in said[1].getMessage()


def test_a_partition_that_comes_again_begins_anew() -> None:
    line = Line()
    stuck = frame(1, line.rng)
    for _ in range(SAME_FRAMES - 1):
        line.put("a", stuck)
    decoding: list[Slot] = []
    scoring: list[list[Slot]] = []
    flow = line.flow(decoding, scoring)
    source = MemorySource(line.log, line.clock)
    for _ in range(2):
        flow.take_in(source.poll(0, 100))
        for slot in decoding:
            decode_slot(line.judge, slot, line.clock, watched=True)
            flow.decoded(slot)
        decoding.clear()
        flow.flush()
        flow.advance()
        while scoring:
            slots = scoring.pop()
            flow.scored(slots, whole=score_slots(line.judge, slots, line.clock))
            flow.advance()
        # Nothing was committed: the same offsets come again, under a new assignment.
        source.revoke([Partition("frames", 0)])
        source.assign([Partition("frames", 0)])
    assert "camera_fault" not in line.decisions()["a"]
    assert len(line.decisions()["a"]) == 2 * (SAME_FRAMES - 1)


def test_the_age_of_the_oldest_frame_without_a_verdict_is_known() -> None:
    line = Line()
    decoding: list[Slot] = []
    flow = line.flow(decoding, [])
    assert flow.oldest_s(line.clock.monotonic_s()) == 0
    line.put("a", frame(1, line.rng))
    line.put("a", frame(1, line.rng))
    fetched = MemorySource(line.log, line.clock).poll(0, 10)
    flow.take_in(fetched)
    first = fetched.frames[0]
    age_s = first.fetched_at_s - first.captured_at_s
    assert flow.oldest_s(fetched.at_s + 2.5) == pytest.approx(age_s + 2.5)
