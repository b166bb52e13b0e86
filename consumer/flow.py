"""What happens to frames between fetching and committing, as a state machine: no threads, no blocking, no Kafka.

One thread calls everything here. Work that takes time is handed out (`start_decode`, `start_score`, the sink) and comes
back as a call (`decoded`, `scored`, `delivered`); who carries it there and back is the caller's business, so a test may
do it by hand, in any order it likes.

A frame's way: `take_in` > decoding > batcher > scoring > its turn in its partition's line > the sink > `delivered`. At
each step a frame whose tenure has ended is dropped: it is the partition's new owner's.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer.claims import Progress
from consumer.errors import BrokerError, GivenUpError
from consumer.judging import Fault, Slot, dead_letter_of, verdict_of
from consumer.tenure import Tenure
from engine.batcher import BatchPolicy, MicroBatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from consumer.budget import Budget
    from consumer.claims import Claim
    from consumer.delivery import Delivery
    from consumer.events import Frame, Position, Verdict
    from consumer.judging import Stamp
    from consumer.lateness import Lateness
    from consumer.ports import Clock, DeadLetters, Fetched, Judge, Sink, TenureChange, Watcher
    from consumer.tenure import Partition

log = logging.getLogger(__name__)

BATCHES_BEHIND = 1
"""Full batches behind those that the engine has, so that it does not wait for this thread between two."""

TOGETHER = 32
"""Verdicts that go out together at best: on their way through the client, 32 at once cost a third of four times 8."""

TOGETHER_S = 0.02
"""How long the first of them waits for the others. Only where frames pile up, and wait longer than that anyway."""

PILE = 2 * TOGETHER
"""Frames in hand and not decided from which on they pile up."""

GIVEN_UP_EVERY_S = 1.0
"""How often the log may say that verdicts were given up."""


@dataclass(frozen=True, slots=True, eq=False)
class Publication:
    """Verdicts that went out together, with their frames, and how far they answer each partition."""

    answers: Sequence[tuple[Slot, Verdict]]
    progress: Mapping[Partition, Progress]


class Flow:
    """The frames in hand and where each of them stands."""

    def __init__(
        self,
        *,
        judge: Judge,
        sink: Sink,
        clock: Clock,
        watcher: Watcher,
        dead_letters: DeadLetters,
        budget: Budget,
        policy: BatchPolicy,
        verdict_id: Stamp,
        start_decode: Callable[[Slot], None],
        start_score: Callable[[list[Slot]], None],
        when_delivered: Callable[[Delivery, Publication], None],
        rewind: Callable[[], None],
        lateness: Lateness,
    ) -> None:
        """Begin with nothing in hand.

        Args:
            judge: says who judges each frame; the work is done by whoever `start_decode` and `start_score` lead to.
            sink: where verdicts go.
            clock: for how long frames wait.
            watcher: told how it goes.
            dead_letters: told of each frame that cannot be judged.
            budget: frames are taken from it by whoever fetches; given back here.
            policy: when a batch is taken.
            verdict_id: gives each frame's place its id.
            start_decode: begin to decode this slot; `decoded` is to be called when it is.
            start_score: begin to score these; `scored` is to be called with the same list.
            when_delivered: a delivery is under way; `delivered` is to be called when it is done.
            rewind: a publication was given up: have the source read again from the committed positions.
            lateness: which frames are too old to be judged.
        """
        self._judge = judge
        self._sink = sink
        self._clock = clock
        self._watcher = watcher
        self._dead_letters = dead_letters
        self._budget = budget
        self._verdict_id = verdict_id
        self._start_decode = start_decode
        self._start_score = start_score
        self._when_delivered = when_delivered
        self._rewind = rewind
        self._lateness = lateness
        self._claims: dict[Partition, Claim] = {}
        self.tenure = Tenure()
        self._batcher: MicroBatcher[Slot] = MicroBatcher(policy)
        self._lines: dict[Partition, deque[Slot]] = {}
        self._in_hand = 0
        self._touched: dict[Partition, None] = {}
        self._decided = 0
        self._published = 0
        self._decided_since_s = 0.0
        self._batches = 0
        self._flushing = False
        self._given_up = 0
        self._given_up_at_s = -GIVEN_UP_EVERY_S
        self.changes = 0
        """Changes of ownership applied so far."""

    @property
    def empty(self) -> bool:
        """Whether no frame is in hand, those of ended tenures included."""
        return self._in_hand == 0

    @property
    def in_hand(self) -> int:
        """Frames taken in and neither answered nor dropped."""
        return self._in_hand

    @property
    def waiting(self) -> int:
        """Decoded frames that wait for a batch."""
        return len(self._batcher)

    @property
    def batches(self) -> int:
        """Batches with the engine."""
        return self._batches

    def take_in(self, fetched: Fetched) -> None:
        """Changes of ownership, then frames; every frame that has a route and is not late starts to be decoded.

        Raises:
            BrokerError: a frame of a partition that is not ours; or one that came before, where it is answered once.
        """
        for change in fetched.changes:
            self._apply(change)
        slots: list[Slot] = []
        for frame in fetched.frames:
            if self._sink.records_progress and self.tenure.steps_back(frame.position):
                raise BrokerError(_came_again(frame.position))
            epoch = self.tenure.admit(frame.position)
            slot = self._slot(frame, epoch, fetched.at_s)
            line = self._lines.setdefault(slot.partition, deque())
            if line and line[-1].epoch != epoch:
                self._drop(line)
            line.append(slot)
            self._in_hand += 1
            slots.append(slot)
        newest = {slot.partition: slot for slot in slots}
        for slot in slots:
            is_newest = slot is newest[slot.partition] and slot.partition in fetched.fresh
            self._lateness.observe(slot.frame, fresh=is_newest)
        for slot in self._on_time(self._routed(slots)):
            self._start_decode(slot)

    def decoded(self, slot: Slot) -> None:
        """A slot's image or fault is there."""
        if not self._holds(slot):
            self._forget(slot)
        elif slot.fault is not None:
            self._decide([slot])
        else:
            self._batcher.add(slot, self._clock.monotonic_s())

    def scored(self, slots: list[Slot], *, whole: bool) -> None:
        """The engine is done with this batch; `whole`: it went through without being tried frame by frame."""
        self._batches -= 1
        largest = self._batcher.policy.max_size
        self._watcher.scored(len(slots), largest, slots[0].inference_ms or 0.0, failed=not whole)
        self._decide(self._still_ours(slots))

    def delivered(self, delivery: Delivery, publication: Publication) -> None:
        """The broker has answered for these verdicts.

        Raises:
            BrokerError: one of them failed for good. Nothing from it on is answered, so nothing past it is committed.
        """
        answers = publication.answers
        if isinstance(delivery.error, GivenUpError):
            self._note_given_up(len(answers), delivery.error)
            if any(not step.claim.over for step in publication.progress.values()):
                self._rewind()
        elif delivery.error is not None:
            first = answers[0][0].frame.position
            msg = (
                f"verdicts could not be published, from {first.topic}-{first.partition} offset {first.offset} on: "
                f"{type(delivery.error).__name__}: {delivery.error}; nothing past it was committed: mend the broker or "
                "the topic and start again, these frames are then judged again"
            )
            raise BrokerError(msg) from delivery.error
        else:
            for slot, verdict in answers:
                self.tenure.answered(slot.frame.position, slot.epoch)
                self._watcher.answered(verdict)
            if self._sink.records_progress:
                self.tenure.committed({partition: step.offset for partition, step in publication.progress.items()})
                self._watcher.committed(done=True)
        self._in_hand -= len(answers)
        self._published -= len(answers)
        self._budget.give(len(answers), 0)

    def _note_given_up(self, verdicts: int, why: GivenUpError) -> None:
        """One line for all that one trouble has brought."""
        self._given_up += verdicts
        now_s = self._clock.monotonic_s()
        if now_s >= self._given_up_at_s + GIVEN_UP_EVERY_S:
            log.warning("%d verdicts were given up and their frames are judged again: %s", self._given_up, why)
            self._given_up, self._given_up_at_s = 0, now_s

    def use(self, policy: BatchPolicy) -> None:
        """From the next batch on, take them by this policy."""
        self._batcher.policy = policy

    def flush(self) -> None:
        """Nothing more will come: from now on batches are taken without waiting for company."""
        self._flushing = True

    def advance(self) -> None:
        """Hand the engine, and the sink, what is due now."""
        self._send_decided(self._clock.monotonic_s())
        while self._batches < self._judge.ahead + BATCHES_BEHIND:
            idle = self._batches == 0
            if not idle and not self._batcher.full:
                return
            slots = self._batcher.take(self._clock.monotonic_s(), idle=idle, flush=self._flushing)
            if not slots:
                return
            self._engage(slots)

    def due_s(self) -> float | None:
        """When `advance` has something to do if nothing comes back before, in monotonic seconds; None: never."""
        batch_s = None if self._batches else self._batcher.due_s(idle=True)
        if not self._touched:
            return batch_s
        send_s = self._decided_since_s + TOGETHER_S
        return send_s if batch_s is None else min(batch_s, send_s)

    def _engage(self, slots: list[Slot]) -> None:
        """Give the engine those of a batch that are still ours and of use."""
        held = self._on_time(self._still_ours(slots))
        if held:
            self._batches += 1
            self._start_score(held)

    def _still_ours(self, slots: Iterable[Slot]) -> list[Slot]:
        """Those whose tenure is running; the others are forgotten."""
        held = []
        for slot in slots:
            if self._holds(slot):
                held.append(slot)
            else:
                self._forget(slot)
        return held

    def _slot(self, frame: Frame, epoch: int, fetched_s: float) -> Slot:
        """A frame in hand, with who judges it from here to its verdict, whatever is loaded meanwhile."""
        route = self._judge.route(frame.station)
        held_bytes = len(frame.payload) + (0 if route is None else route.image_bytes)
        self._budget.take(0, held_bytes - self._budget.size_of(frame))  # what it was taken for when it was fetched
        return Slot(frame, epoch, fetched_s, held_bytes, route)

    def _routed(self, slots: list[Slot]) -> list[Slot]:
        """Those that somebody judges; the others are answered as they are."""
        unrouted = [slot for slot in slots if slot.route is None]
        for slot in unrouted:
            slot.fault = Fault("unrouted", f"no model for station {slot.station!r}: expected a route that matches it")
        if unrouted:
            self._decide(unrouted)
        return [slot for slot in slots if slot.fault is None]

    def _on_time(self, slots: list[Slot]) -> list[Slot]:
        """Those whose verdict can still be of use; the others are answered as they are."""
        now_s = self._clock.monotonic_s()
        late = [slot for slot in slots if self._lateness.is_late(slot.frame, now_s - slot.fetched_s)]
        for slot in late:
            slot.image = None
            age_s = self._lateness.age_s(slot.frame, now_s - slot.fetched_s)
            slot.fault = Fault("late", f"{age_s:.3f} s old: expected at most {self._lateness.deadline_s:g} s")
        if late:
            self._decide(late)
        return [slot for slot in slots if slot.fault is None]

    def _apply(self, change: TenureChange) -> None:
        """Partitions came or went: what is in hand of them is not ours to answer any more, either way."""
        names = ", ".join(f"{topic}-{number}" for topic, number in change.partitions)
        log.info("partitions %s: %s", change.kind, names or "none")
        if change.kind == "assigned":
            self.tenure.begin(change.partitions)
            self._claims.update(zip(change.partitions, change.claims, strict=True))
        else:
            self.tenure.end(change.partitions)
        for partition in change.partitions:
            self._drop(self._lines.get(partition, ()))
            self._lines.pop(partition, None)
        self.changes += 1
        self._watcher.rebalanced(change)

    def _drop(self, line: deque[Slot] | tuple[Slot, ...]) -> None:
        """End a line. Those that are decided go now; the others when they come back from where they are."""
        for slot in line:
            if slot.decided_s is not None:
                self._forget(slot)
        if isinstance(line, deque):
            line.clear()

    def _forget(self, slot: Slot) -> None:
        """A frame of an ended tenure, back in this thread's hands."""
        slot.image = None
        if slot.route is not None:
            self._judge.release(slot.route)
        self._in_hand -= 1
        self._budget.give(1, slot.held_bytes)

    def _holds(self, slot: Slot) -> bool:
        """Whether its tenure is still running."""
        return self.tenure.holds(slot.frame.position, slot.epoch)

    def _decide(self, slots: Iterable[Slot]) -> None:
        """These have their answer; what is at the head of its line goes out, now or with others."""
        now_s = self._clock.monotonic_s()
        for slot in slots:
            slot.decided_s = now_s
            if not self._touched:
                self._decided_since_s = now_s
            self._touched[slot.partition] = None
            self._decided += 1
        self._send_decided(now_s)

    def _send_decided(self, now_s: float) -> None:
        """Publish what is decided and first in its line, unless it is better off in company."""
        if not self._touched:
            return
        piled_up = self._in_hand - self._published - self._decided >= PILE and not self._flushing
        if piled_up and self._decided < TOGETHER and now_s < self._decided_since_s + TOGETHER_S:
            return
        touched, self._touched, self._decided = self._touched, {}, 0
        ready = [slot for partition in touched for slot in self._leading(self._lines.get(partition, deque()))]
        if ready:
            self._publish(ready)

    @staticmethod
    def _leading(line: deque[Slot]) -> Iterable[Slot]:
        """Take the decided frames off the head of a line: a partition's verdicts go out in the order of its frames."""
        while line and line[0].decided_s is not None:
            yield line.popleft()

    def _publish(self, slots: list[Slot]) -> None:
        """Send their verdicts, and a dead letter beside each `none`."""
        answers = []
        progress: dict[Partition, Progress] = {}
        freed_bytes = 0
        for slot in slots:
            position = slot.frame.position
            verdict_id = self._verdict_id(position.partition, position.offset)
            answers.append((slot, verdict_of(slot, verdict_id)))
            progress[slot.partition] = Progress(position.offset + 1, self._claims[slot.partition])
            if slot.fault is not None:
                self._dead_letters.put(dead_letter_of(slot, slot.fault, verdict_id))
            if slot.route is not None:
                self._judge.release(slot.route)
            freed_bytes += slot.held_bytes
        self._budget.give(0, freed_bytes)
        self._published += len(answers)
        delivery = self._sink.publish([verdict for _, verdict in answers], progress)
        self._when_delivered(delivery, Publication(answers, progress))


def _came_again(position: Position) -> str:
    """Why the consumer has to end: what is under way of the partition may be stored, and would be answered twice."""
    return (
        f"the frame of {position.topic}-{position.partition} at offset {position.offset} came again without a new "
        "assignment: expected later ones only; see whether the broker has lost the end of the partition. After a start "
        "the partition goes on from its committed position"
    )
