"""The loop: fetch > decode > batch > score > publish > commit; pause, drain, stop.

Threads: one owns the source (`fetching`), some decode, one runs the engine, the sink has its own; and one, the
caller's, runs the loop, which alone touches the state (`flow`). The others reach it through one inbox of calls.

    fetch --fetched--> loop --slot--> decode crew --decoded--> loop --batch--> engine --scored--> loop --> sink
      ^                 |  ^                                                                                |
      +-----commit------+  +-----------------------------------delivered------------------------------------+
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from consumer.budget import Budget, Limits
from consumer.crew import Crew
from consumer.engine_thread import EngineThread
from consumer.errors import BrokerError
from consumer.fetching import Fetcher
from consumer.flow import Flow
from consumer.judging import Slot, decode_slot
from consumer.lateness import Lateness
from engine.errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consumer.delivery import Delivery
    from consumer.flow import Publication
    from consumer.judging import Stamp
    from consumer.ports import Clock, DeadLetters, Fetched, Judge, Sink, Source, Watcher
    from consumer.tenure import Partition
    from engine.batcher import BatchPolicy

log = logging.getLogger(__name__)

TURN_S = 0.5
"""The longest the loop sleeps: how late it may notice that nothing happens."""

EVENTS_PER_TURN = 256
"""Calls taken from the inbox before the engine is looked after again."""

LAST_WORDS_S = 2.0
"""What is left for the last commit and for leaving the group when the time to drain is used up."""


class StoppedAtOnceError(WorkError):
    """A second signal: given up at once. What was not committed is judged again after the next start."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The world, as the pipeline sees it."""

    source: Source
    sink: Sink
    judge: Judge
    clock: Clock
    watcher: Watcher
    dead_letters: DeadLetters
    verdict_id: Stamp


@dataclass(frozen=True, slots=True)
class Pace:
    """How the loop works.

    Attributes:
        policy: when a batch is taken.
        limits: what may be in flight.
        decode_threads: threads that decode.
        drain_s: how long a stop may take to answer what is in hand.
        commit_every_s: the most that is judged again after a crash, in time.
        idle_exit_s: end when no frame came for that long; None: never.
        deadline_s: how old a frame may be when it is judged; None: any age.
        camera_checks: whether frames of a frozen or shifted camera are answered as `camera_fault`.
    """

    policy: BatchPolicy
    limits: Limits
    decode_threads: int = 2
    drain_s: float = 20.0
    commit_every_s: float = 0.25
    idle_exit_s: float | None = None
    deadline_s: float | None = None
    camera_checks: bool = True

    def __post_init__(self) -> None:
        """Refuse a pace at which nothing would move."""
        if self.decode_threads < 1 or self.drain_s < 0 or self.commit_every_s < 0:
            msg = (
                f"pace of {self.decode_threads} decoding threads, {self.drain_s} s to drain, a commit every "
                f"{self.commit_every_s} s: expected at least one thread and no negative times"
            )
            raise InputError(msg)


class Pipeline:
    """One consumer at work. `run` once; `stop` from a signal handler or any thread."""

    def __init__(self, ports: Ports, pace: Pace) -> None:
        """Start no thread yet."""
        self._ports = ports
        self._pace = pace
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._signals = 0
        self._halted = False
        self._commit_at_s = 0.0
        self.budget = Budget(pace.limits, max((route.image_bytes for route in ports.judge.routes()), default=0))
        self.flow = Flow(
            judge=ports.judge,
            sink=ports.sink,
            clock=ports.clock,
            watcher=ports.watcher,
            dead_letters=ports.dead_letters,
            budget=self.budget,
            policy=pace.policy,
            verdict_id=ports.verdict_id,
            start_decode=self._start_decode,
            start_score=self._start_score,
            when_delivered=self._when_delivered,
            rewind=self._rewind,
            lateness=Lateness(pace.deadline_s),
            camera_checks=pace.camera_checks,
        )
        self._fetcher = Fetcher(
            ports.source,
            self.budget,
            ports.clock,
            ports.watcher,
            fetched=self._on_fetched,
            committed=self._on_committed,
            halted=self._on_halted,
            broken=self._on_broken,
        )
        self._decoders: Crew[Slot] | None = None
        self._engine: EngineThread | None = None
        self._last_frame_s = 0.0
        self._idle = False

    def stop(self) -> None:
        """Once: fetch no more, answer what is in hand, commit, leave the group. Twice: give up at once."""
        self._signals += 1
        self._fetcher.halt()  # here and now: not after a rejoin that a busy loop would let begin
        self._inbox.put(_nothing)

    def use(self, policy: BatchPolicy) -> None:
        """From the next batch on, take them by this policy. From any thread: an engine may have been replaced."""
        self._inbox.put(partial(self.flow.use, policy))

    def run(self) -> None:
        """Judge frames until `stop`, an idle exit, or a failure.

        Raises:
            BrokerError: the broker refused, a verdict could not be published, or the last commit was not taken.
            WorkError: frames were left unanswered when the time to drain was over; they are judged again.
            StoppedAtOnceError: `stop` was called twice.
        """
        self._last_frame_s = self._ports.clock.monotonic_s()
        self._decoders = Crew("decode", self._pace.decode_threads, self._decode, self._on_broken)
        self._engine = EngineThread(self._ports.judge, self._ports.clock, self._on_scored, self._on_broken)
        self._fetcher.start()
        close_s = LAST_WORDS_S
        try:
            while not self._signals and not self._idle_for_good():
                self._turn()
            deadline_s = self._drain()
            close_s = max(LAST_WORDS_S, deadline_s - self._ports.clock.monotonic_s())
        except BaseException:
            self._close(close_s)
            raise
        if not self._close(close_s):
            msg = "the last positions could not be committed: their frames are judged again after the next start"
            raise BrokerError(msg)

    def _turn(self) -> None:
        """Wait for something to happen, deal with it, and see to the engine and the commits."""
        try:
            event = self._inbox.get(timeout=self._patience_s())
            event()
            for _ in range(EVENTS_PER_TURN):
                self._inbox.get_nowait()()
        except Empty:
            pass
        self.flow.advance()
        now_s = self._ports.clock.monotonic_s()
        if now_s - self._commit_at_s >= self._pace.commit_every_s:
            self._commit_at_s = now_s
            self._ports.watcher.oldest(self.flow.oldest_s(now_s))
            if not self._ports.sink.records_progress:
                self._fetcher.ask_commit(self.flow.tenure.commits(), self.flow.changes)
        self._ports.watcher.beat("loop")
        budget, flow = self.budget, self.flow
        self._ports.watcher.held(budget.frames, budget.held_bytes, flow.waiting, flow.batches)

    def _patience_s(self) -> float:
        """How long to wait for the next event: not past the moment at which a batch is due."""
        due_s = self.flow.due_s()
        if due_s is None:
            return min(TURN_S, self._pace.commit_every_s or TURN_S)
        return min(TURN_S, max(0.0, due_s - self._ports.clock.monotonic_s()))

    def _idle_for_good(self) -> bool:
        """Whether frames have stopped coming, as far as this run is told to care."""
        idle_s = self._pace.idle_exit_s
        if idle_s is None:
            return False
        now_s = self._ports.clock.monotonic_s()
        # Nothing can come before the group has formed, or while the broker is away: that is not idleness. Nor is a turn
        # that took long and answered the last frame in hand: room for the next ones is there only since then.
        was_idle, self._idle = self._idle, self.flow.empty and self._fetcher.ready
        if not (was_idle and self._idle):
            self._last_frame_s = now_s
        return now_s - self._last_frame_s >= idle_s

    def _drain(self) -> float:
        """Answer what is in hand. Returns the time, in monotonic seconds, by which all has to be over."""
        clock = self._ports.clock
        deadline_s = clock.monotonic_s() + self._pace.drain_s
        log.info("stopping: %d frames in hand, %.0f s to answer them", self.flow.in_hand, self._pace.drain_s)
        self._fetcher.halt()
        self.flow.flush()
        while not (self._halted and self.flow.empty):
            if self._signals > 1:
                msg = f"given up at once: {self.flow.in_hand} frames unanswered; the next start judges them again"
                raise StoppedAtOnceError(msg)
            if clock.monotonic_s() >= deadline_s:
                msg = (
                    f"{self.flow.in_hand} frames could not be answered within {self._pace.drain_s:g} s of stopping: "
                    "they are judged again after the next start; give --drain-s more time if this is usual"
                )
                raise WorkError(msg)
            self._turn()
        return deadline_s

    def _close(self, timeout_s: float) -> bool:
        """Commit what is answered, leave the group, end the threads."""
        for crew in (self._decoders, self._engine):
            if crew is not None:
                crew.close(0.5)
        self._ports.sink.close(timeout_s)
        done = self._fetcher.finish(self.flow.tenure.commits(), self.flow.changes, timeout_s)
        self._ports.watcher.ready(ready=False)
        return done

    def _start_decode(self, slot: Slot) -> None:
        """Queue one frame for decoding."""
        if self._decoders is not None:
            self._decoders.submit(slot)

    def _start_score(self, slots: list[Slot]) -> None:
        """Queue one batch for the engine."""
        if self._engine is not None:
            self._engine.submit(slots)

    def _decode(self, slot: Slot) -> None:
        """On a decoding thread."""
        decode_slot(self._ports.judge, slot, self._ports.clock, watched=self._pace.camera_checks)
        self._inbox.put(partial(self.flow.decoded, slot))

    def _on_scored(self, slots: list[Slot], whole: bool) -> None:
        """On the engine's thread."""
        self._inbox.put(partial(self.flow.scored, slots, whole=whole))

    def _when_delivered(self, delivery: Delivery, publication: Publication) -> None:
        """Have the loop told when the broker has answered."""
        delivery.when_done(partial(self._inbox.put, partial(self.flow.delivered, delivery, publication)))

    def _rewind(self) -> None:
        """Have the fetch thread read again from the committed positions."""
        self._fetcher.ask_rewind()

    def _on_fetched(self, fetched: Fetched) -> None:
        """On the fetch thread."""
        self._inbox.put(partial(self._take_in, fetched))

    def _on_committed(self, positions: Mapping[Partition, int]) -> None:
        """On the fetch thread."""
        self._inbox.put(partial(self.flow.tenure.committed, positions))

    def _on_halted(self) -> None:
        """On the fetch thread."""
        self._inbox.put(self._note_halted)

    def _on_broken(self, error: Exception) -> None:
        """On any thread: the loop ends with this error."""
        self._inbox.put(partial(_throw, error))

    def _take_in(self, fetched: Fetched) -> None:
        """On the loop's thread."""
        if fetched.frames:
            self._last_frame_s = self._ports.clock.monotonic_s()
        self.flow.take_in(fetched)

    def _note_halted(self) -> None:
        """On the loop's thread: no frame comes any more."""
        self._halted = True


def _nothing() -> None:
    """Wake the loop."""


def _throw(error: Exception) -> None:
    """Raise on the loop's thread what went wrong on another."""
    raise error
