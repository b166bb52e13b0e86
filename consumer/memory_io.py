"""Source, sink and the rest of the ports in memory: for tests, replays and dry runs.

Product code, held to the same contract suite as Kafka.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Literal

from consumer.claims import Claim
from consumer.delivery import Delivery
from consumer.errors import BrokerError, GivenUpError
from consumer.events import EngineRef, ModelRef
from consumer.ports import Begun, Fetched, Route, TenureChange
from consumer.tenure import Partition
from engine.prediction import OperatingPoint, Prediction, ScoredBatch
from engine.specs import BatchProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from consumer.camera_health import Change, FaultKind
    from consumer.claims import Progress
    from consumer.events import DeadLetter, Frame, Verdict
    from consumer.ports import Clock, Decoded
    from engine.prediction import Trouble
    from engine.specs import ImageSpec


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self, monotonic_s: float = 0.0, epoch_s: float = 1_760_000_000.0) -> None:
        """Begin at these times."""
        self._monotonic_s = monotonic_s
        self._epoch_s = epoch_s

    def monotonic_s(self) -> float:
        """As set."""
        return self._monotonic_s

    def epoch_s(self) -> float:
        """As set."""
        return self._epoch_s

    def advance(self, seconds: float) -> None:
        """Let time pass on both."""
        self._monotonic_s += seconds
        self._epoch_s += seconds


class MemoryLog:
    """A topic and one group's positions: what is left when a source is closed and another one opened.

    Thread-safe, and shared by every source and producer of the same topic.
    """

    def __init__(self, topic: str = "frames", partitions: int = 1) -> None:
        """An empty topic."""
        self.topic = topic
        self.partitions = tuple(Partition(topic, number) for number in range(partitions))
        self.committed: dict[Partition, int] = {}
        self._frames: dict[Partition, list[Frame]] = {partition: [] for partition in self.partitions}
        self._lock = threading.Lock()

    def append(self, partition: int, make: Callable[[int], Frame]) -> None:
        """Append one frame; `make` is given its offset. The frame's position has to say partition and offset."""
        with self._lock:
            frames = self._frames[self.partitions[partition]]
            frames.append(make(len(frames)))

    def read(self, partition: Partition, offset: int, limit: int) -> list[Frame]:
        """At most `limit` frames from `offset` on."""
        with self._lock:
            return self._frames[partition][offset : offset + limit]

    def end(self, partition: Partition) -> int:
        """The offset that the next frame will have."""
        with self._lock:
            return len(self._frames[partition])


class MemorySource:
    """One reader of a `MemoryLog`. Ownership changes when the test says so, at the next poll."""

    def __init__(self, log: MemoryLog, clock: Clock, *, wait: Callable[[float], None] | None = None) -> None:
        """Own all partitions, from the first poll on.

        Args:
            log: what is read.
            clock: stamps what is fetched.
            wait: how to pass the time of a poll that finds nothing, for use behind a real thread; None returns at once.
        """
        self._log = log
        self._clock = clock
        self._wait = wait
        self._next: dict[Partition, int] = {}
        self._turns: deque[Partition] = deque()
        self._changes: deque[TenureChange] = deque()
        self._claims: dict[Partition, Claim] = {}
        self._at_end: set[Partition] = set()
        self._paused = False
        self.closed = False
        self.refuse_rewinds = 0
        """How many further rewinds answer "not now"."""
        self.refuse_commits = 0
        """How many further commits answer "not now"."""
        self.assign(log.partitions)

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Own these from the next poll on."""
        ours = tuple(partitions)
        self._end_claims(ours)
        claims = tuple(Claim() for _ in ours)
        self._claims.update(zip(ours, claims, strict=True))
        self._changes.append(TenureChange("assigned", ours, claims))

    def revoke(self, partitions: Iterable[Partition], kind: Literal["revoked", "lost"] = "revoked") -> None:
        """Own these no more from the next poll on."""
        gone = tuple(partitions)
        self._end_claims(gone)
        self._changes.append(TenureChange(kind, gone))

    def _end_claims(self, partitions: Iterable[Partition]) -> None:
        """What was computed for these is worth nothing any more."""
        for partition in partitions:
            if partition in self._claims:
                self._claims.pop(partition).over = True

    def rewind(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing to wait for
        """See `Source`."""
        self._open()
        if self.refuse_rewinds:
            self.refuse_rewinds -= 1
            return False
        broken = [partition for partition, claim in self._claims.items() if claim.broken]
        if broken:
            self.assign(broken)
        return True

    def poll(self, timeout_s: float, max_frames: int) -> Fetched:
        """See `Source`. Partitions take turns frame by frame."""
        self._open()
        changes = self._take_changes()
        frames = [] if self._paused else self._read(max_frames)
        if not frames and not changes and self._wait is not None and timeout_s > 0:
            self._wait(timeout_s)
        read = {Partition(frame.position.topic, frame.position.partition) for frame in frames}
        at_end = {partition for partition, offset in self._next.items() if offset == self._log.end(partition)}
        fresh = frozenset(read & at_end & self._at_end)
        self._at_end = at_end
        return Fetched(changes, tuple(frames), self._clock.monotonic_s(), fresh)

    def pause(self) -> None:
        """See `Source`."""
        self._paused = True

    def linger(self) -> Fetched:
        """See `Source`."""
        self._open()
        return Fetched(self._take_changes(), (), self._clock.monotonic_s())

    def resume(self) -> None:
        """See `Source`."""
        self._paused = False

    def commit(self, positions: Mapping[Partition, int], timeout_s: float) -> bool:  # noqa: ARG002 - nothing to wait for
        """See `Source`."""
        self._open()
        if self.refuse_commits:
            self.refuse_commits -= 1
            return False
        gone = {partition for change in tuple(self._changes) for partition in change.partitions}
        for partition, offset in positions.items():
            if partition in self._next and partition not in gone:
                self._log.committed[partition] = offset
        return True

    def lag(self) -> Mapping[Partition, int]:
        """See `Source`."""
        return {partition: self._log.end(partition) - offset for partition, offset in self._next.items()}

    def ready(self) -> bool:
        """See `Source`."""
        return not self.closed

    def close(self, timeout_s: float) -> None:  # noqa: ARG002 - nothing to wait for
        """See `Source`."""
        self.closed = True

    def _open(self) -> None:
        """Refuse use after closing."""
        if self.closed:
            msg = "the source is closed: open another one"
            raise BrokerError(msg)

    def _take_changes(self) -> tuple[TenureChange, ...]:
        """Apply what was asked for since the last poll."""
        taken = []
        while self._changes:  # one by one: others may be added meanwhile, from another thread
            taken.append(self._changes.popleft())
        for change in taken:
            for partition in change.partitions:
                if change.kind == "assigned":
                    self._next[partition] = self._log.committed.get(partition, 0)
                else:
                    self._next.pop(partition, None)
        if taken:
            self._turns = deque(sorted(self._next))
        return tuple(taken)

    def _read(self, max_frames: int) -> list[Frame]:
        """One frame of each partition in turn."""
        frames: list[Frame] = []
        idle = 0
        while self._turns and len(frames) < max_frames and idle < len(self._turns):
            partition = self._turns[0]
            self._turns.rotate(-1)
            found = self._log.read(partition, self._next[partition], 1)
            idle = 0 if found else idle + 1
            frames.extend(found)
            self._next[partition] += len(found)
        return frames


class MemorySink:
    """Keeps verdicts in a list. Acknowledges at once, or when told to."""

    records_progress = False

    def __init__(self, *, acknowledge: bool = True) -> None:
        """Begin empty; with `acknowledge` false every delivery waits for `settle`."""
        self.verdicts: list[Verdict] = []
        self._acknowledge = acknowledge
        self._open: deque[tuple[Delivery, int]] = deque()
        self._closed = False
        self._failure: Exception | None = None

    @property
    def waiting(self) -> int:
        """Deliveries that are not settled."""
        return len(self._open)

    def publish(
        self,
        verdicts: Sequence[Verdict],
        progress: Mapping[Partition, Progress],  # noqa: ARG002 - somebody else commits
    ) -> Delivery:
        """See `Sink`."""
        delivery = Delivery(len(verdicts))
        if self._closed:
            delivery.failed(BrokerError("the sink is closed: open another one"))
            return delivery
        if self._failure is not None:
            delivery.failed(self._failure)
            return delivery
        self.verdicts.extend(verdicts)
        self._open.append((delivery, len(verdicts)))
        if self._acknowledge:
            self.settle()
        return delivery

    def settle(self, deliveries: int | None = None, error: Exception | None = None) -> None:
        """Acknowledge the oldest deliveries, all by default; with an error, fail them."""
        for _ in range(len(self._open) if deliveries is None else deliveries):
            delivery, size = self._open.popleft()
            if error is not None:
                delivery.failed(error)
                continue
            for _ in itertools.repeat(None, size):
                delivery.arrived()

    def break_down(self, error: Exception) -> None:
        """Fail what is under way and everything after it."""
        self._failure = error
        self.settle(error=error)

    def close(self, timeout_s: float) -> None:  # noqa: ARG002 - nothing to wait for
        """See `Sink`."""
        self._closed = True
        self.settle(error=BrokerError("the sink was closed before the verdict was acknowledged"))


class MemoryTransactions:
    """A sink that stores verdicts and progress in one step, or neither. Decides at once, or when told to."""

    records_progress = True

    def __init__(self, log: MemoryLog, *, decide: bool = True) -> None:
        """Begin empty; with `decide` false every publication waits for `commit` or `give_up`."""
        self.verdicts: list[Verdict] = []
        self._log = log
        self._decide = decide
        self._open: deque[tuple[Delivery, Sequence[Verdict], Mapping[Partition, Progress]]] = deque()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Publications that are not decided."""
        return len(self._open)

    def publish(self, verdicts: Sequence[Verdict], progress: Mapping[Partition, Progress]) -> Delivery:
        """See `Sink`."""
        delivery = Delivery(len(verdicts))
        if self._closed:
            delivery.failed(BrokerError("the sink is closed: open another one"))
            return delivery
        self._open.append((delivery, verdicts, progress))
        if self._decide:
            self.commit()
        return delivery

    def commit(self, publications: int | None = None) -> None:
        """Store the oldest publications, all by default; those whose claims do not run any more are given up."""
        for _ in range(len(self._open) if publications is None else publications):
            delivery, verdicts, progress = self._open.popleft()
            if not all(step.claim.running for step in progress.values()):
                self._break(delivery, progress, "its partitions were lost")
                continue
            self.verdicts.extend(verdicts)
            self._log.committed.update({partition: step.offset for partition, step in progress.items()})
            for _ in verdicts:
                delivery.arrived()

    def give_up(self, publications: int = 1) -> None:
        """Let the oldest fail without storing anything."""
        for _ in range(publications):
            delivery, _, progress = self._open.popleft()
            self._break(delivery, progress, "told to")

    def close(self, timeout_s: float) -> None:  # noqa: ARG002 - nothing to wait for
        """See `Sink`."""
        self._closed = True
        while self._open:
            delivery, _, progress = self._open.popleft()
            self._break(delivery, progress, "the sink was closed")

    @staticmethod
    def _break(delivery: Delivery, progress: Mapping[Partition, Progress], why: str) -> None:
        for step in progress.values():
            step.claim.broken = True
        delivery.failed(GivenUpError(f"a transaction was given up: {why}"))


class MemoryDeadLetters:
    """Keeps dead letters in a list."""

    def __init__(self) -> None:
        """Begin empty."""
        self.letters: list[DeadLetter] = []

    def put(self, letter: DeadLetter) -> None:
        """See `DeadLetters`."""
        self.letters.append(letter)


class MemoryWatcher:
    """Counts calls and keeps what came: a `Watcher` to look into."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.beats: dict[str, int] = defaultdict(int)
        self.ready_now = False
        self.frames = 0
        self.batches: list[int] = []
        self.failed_batches = 0
        self.verdicts: list[Verdict] = []
        self.most_frames = 0
        self.most_bytes = 0
        self.commits: dict[bool, int] = defaultdict(int)
        self.changes: list[TenureChange] = []
        self.lags: dict[Partition, int] = {}
        self.oldest_s = 0.0
        self.troubles: list[tuple[str, Trouble | FaultKind]] = []
        self.camera_changes: list[Change] = []
        self.drifts: dict[str, float] = {}

    def beat(self, part: Literal["loop", "fetch"]) -> None:
        """See `Watcher`."""
        self.beats[part] += 1

    def ready(self, *, ready: bool) -> None:
        """See `Watcher`."""
        self.ready_now = ready

    def fetched(self, frames: Sequence[Frame]) -> None:
        """See `Watcher`."""
        self.frames += len(frames)

    def scored(self, size: int, largest: int, inference_ms: float, *, failed: bool) -> None:  # noqa: ARG002 - counted only
        """See `Watcher`."""
        self.batches.append(size)
        self.failed_batches += failed

    def answered(self, verdict: Verdict) -> None:
        """See `Watcher`."""
        self.verdicts.append(verdict)

    def held(self, frames: int, held_bytes: int, waiting: int, batches: int) -> None:  # noqa: ARG002 - the largest is kept
        """See `Watcher`."""
        self.most_frames = max(self.most_frames, frames)
        self.most_bytes = max(self.most_bytes, held_bytes)

    def oldest(self, age_s: float) -> None:
        """See `Watcher`."""
        self.oldest_s = age_s

    def camera_trouble(self, station: str, trouble: Trouble | FaultKind) -> None:
        """See `Watcher`."""
        self.troubles.append((station, trouble))

    def camera_changed(self, change: Change) -> None:
        """See `Watcher`."""
        self.camera_changes.append(change)

    def drift(self, station: str, ratio: float) -> None:
        """See `Watcher`."""
        self.drifts[station] = ratio

    def lag(self, partition: Partition, frames: int) -> None:
        """See `Watcher`."""
        self.lags[partition] = frames

    def committed(self, *, done: bool) -> None:
        """See `Watcher`."""
        self.commits[done] += 1

    def rebalanced(self, change: TenureChange) -> None:
        """See `Watcher`."""
        self.changes.append(change)


class BrightnessJudge:
    """A judge without a model: the defect probability is the image's mean over 255.

    It costs next to nothing, so what is measured around it is everything else; and its answers can be told in advance.
    """

    model = ModelRef("brightness", "1", "sha256:" + "0" * 64, "mean")
    engine = EngineRef("null", "none", "uint8")
    ahead = 1

    def __init__(self, image_spec: ImageSpec, decode: Callable[[bytes], NDArray[np.uint8]]) -> None:
        """Decode as given.

        Args:
            image_spec: the size that `decode` gives.
            decode: bytes to uint8 (h, w, 3); raises FrameError where a frame cannot be judged.
        """
        self.operating_point = OperatingPoint(threshold=0.5, review_band=(0.4, 0.6))
        self._route = Route(image_spec, self.operating_point, self.model, self.engine)
        self._decode = decode
        self.out = 0
        """Routes taken and not given back."""

    def route(self, station: str) -> Route | None:  # noqa: ARG002 - all stations alike
        """See `Judge`."""
        self.out += 1
        return self._route

    def release(self, route: Route) -> None:  # noqa: ARG002 - there is one
        """See `Judge`."""
        self.out -= 1

    def routes(self) -> Sequence[Route]:
        """See `Judge`."""
        return (self._route,)

    def warm(self, largest: int | None, most: int) -> int:
        """See `Judge`. Nothing here is slower the first time, or in company."""
        return largest or min(most, BatchProfile().best)

    def decode(self, payload: bytes, route: Route) -> NDArray[np.uint8]:  # noqa: ARG002 - there is one
        """See `Judge`."""
        return self._decode(payload)

    def begin(self, frames: Sequence[Decoded]) -> Begun:
        """See `Judge`. All the work is left to `finish`."""
        return Begun(frames)

    def wait(self, begun: Begun) -> None:
        """See `Judge`."""

    def finish(self, begun: Begun) -> ScoredBatch:
        """See `Judge`."""
        return self.score(begun.frames)

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """See `Judge`."""
        means = [frame.image.mean() / 255 for frame in frames]
        return ScoredBatch(tuple(self._predict(round(float(mean), 6)) for mean in means), 0.0, 0.0)

    def _predict(self, probability: float) -> Prediction:
        """Where the probability lies against the operating point."""
        low, high = self.operating_point.review_band
        if low <= probability < high:
            return Prediction("review", probability, ("band",))
        return Prediction("fail" if probability >= self.operating_point.threshold else "pass", probability)
