"""What the pipeline needs from the world, as protocols: where frames come from, where verdicts go, time, the engine.

Each docstring is a contract that `tests/contract/` holds every implementation to, with what is *not* promised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from engine.watching import UNKNOWN, StreamLimits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from consumer.camera_health import Change, FaultKind
    from consumer.claims import Claim, Progress
    from consumer.delivery import Delivery
    from consumer.events import DeadLetter, EngineRef, Frame, ModelRef, Verdict
    from consumer.tenure import Partition
    from engine.prediction import OperatingPoint, ScoredBatch, Trouble
    from engine.specs import ImageSpec


@dataclass(frozen=True, slots=True)
class TenureChange:
    """Partitions came or went.

    Attributes:
        kind: `assigned`: ours from here on. `revoked`: given back in order. `lost`: taken from us; another member may
            have had them for a while. After `revoked` and `lost` nothing may be committed for them.
        claims: of `assigned`, one for each partition, in their order; those of before are over.
    """

    kind: Literal["assigned", "revoked", "lost"]
    partitions: tuple[Partition, ...]
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one poll brought.

    Attributes:
        changes: in the order they happened, all of them before the first of `frames`.
        frames: per partition in offset order.
        fresh: partitions whose last frame here was sent a moment ago: a moment before there was none to fetch, and none
            is behind it.
        at_s: monotonic seconds at which the frames were in hand.
    """

    changes: tuple[TenureChange, ...]
    frames: tuple[Frame, ...]
    at_s: float
    fresh: frozenset[Partition] = frozenset()


class Source(Protocol):
    """Where frames come from: a member of a group of readers that share partitions.

    Belongs to one thread: every method is called from the thread that polls.

    Promised: the frames of one partition come in offset order, each once within a tenure. A tenure begins at the
    committed position, or at the oldest frame kept where nothing was committed: a frame is never skipped. A partition's
    `assigned` comes before its first frame, and after its `revoked` or `lost` comes no more of it until it is assigned
    again. `poll` is what keeps the member in its group; it returns, with nothing, when the broker is away.

    Not promised: order across partitions; offsets without gaps (compaction, retention and transactions leave them);
    that a frame comes only once over several tenures; that `pause` holds back a partition assigned after it.
    """

    def poll(self, timeout_s: float, max_frames: int) -> Fetched:
        """Wait up to `timeout_s` for frames, at most `max_frames`.

        Raises:
            BrokerError: the broker refused us, for good.
        """
        ...

    def pause(self) -> None:
        """Bring no more frames until `resume`, while `poll` goes on. Nothing is lost by it."""
        ...

    def linger(self) -> Fetched:
        """In place of `poll` while we stop: brings no frame, returns at once, and keeps us in the group.

        To be called when paused, and again and again until `close`. A change of the group that others ask for is put
        off meanwhile, so that what is in hand can still be committed; but not for longer than a dead member would hold
        it up. What was taken from us is told all the same.

        Raises:
            BrokerError: the broker refused us, for good.
        """
        ...

    def resume(self) -> None:
        """Bring frames again, from where they stopped."""
        ...

    def commit(self, positions: Mapping[Partition, int], timeout_s: float) -> bool:
        """Record for each partition the offset after the last answered frame.

        Partitions that are not ours any more are left out, without an error: their new owner answers.

        Returns:
            True: all that are ours are recorded. False: not now (a rebalance, a broker that is away); ask again.

        Raises:
            BrokerError: the broker refuses, for good.
        """
        ...

    def rewind(self, timeout_s: float) -> bool:
        """Read each partition whose claim is broken again from its committed position, under a new claim.

        The next poll begins with its `assigned`. The others go on: a commit of theirs may be under way, and read again
        from before it their frames would be judged twice.

        Returns:
            False: not now (a broker that is away, a transaction that is not decided yet); nothing moved, ask again.

        Raises:
            BrokerError: the broker refuses, for good.
        """
        ...

    def lag(self) -> Mapping[Partition, int]:
        """Frames on the broker that were not fetched yet, per partition, as far as known without asking the broker."""
        ...

    def ready(self) -> bool:
        """Whether we are a member of the group and the broker answers. A member without partitions is ready."""
        ...

    def close(self, timeout_s: float) -> None:
        """Leave the group, so that others take over at once. Commits nothing. Safe to call twice."""
        ...


class Sink(Protocol):
    """Where verdicts go.

    Called from one thread. Promised: verdicts of one station arrive in the order given, over all calls; a delivery
    without an error means that every one of its verdicts is stored as safely as the broker stores anything.

    Not promised: that a verdict arrives only once (a restart publishes again, under the same verdict id); order across
    stations; that a failed delivery stored nothing. Where `records_progress` is true all three are promised but for the
    order across stations: a delivery without an error has stored the verdicts and the progress together, and one that
    failed has stored, or will have stored, neither or both: the committed positions tell.

    Attributes:
        records_progress: whether a delivery records the source's progress too, in one step with the verdicts. Then
            nobody else may commit. A delivery that fails with `GivenUpError` breaks its claims: rewind the source.
    """

    records_progress: bool

    def publish(self, verdicts: Sequence[Verdict], progress: Mapping[Partition, Progress]) -> Delivery:
        """Begin to send; returns before it is done. A failure is in the delivery, never raised.

        Args:
            verdicts: per partition of frames in the order of the frames, and each partition's without a gap.
            progress: for each partition that they answer, how far.
        """
        ...

    def close(self, timeout_s: float) -> None:
        """Give up what is not sent within `timeout_s`; its deliveries fail. Safe to call twice."""
        ...


class Clock(Protocol):
    """Time. Durations come from the monotonic clock; epoch time only goes on the wire."""

    def monotonic_s(self) -> float:
        """Seconds that never step back, from an arbitrary zero."""
        ...

    def epoch_s(self) -> float:
        """Seconds since 1970-01-01 UTC; may step."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Who judges a frame, and how. A route never changes: what changes is which one a station's next frame takes.

    Attributes:
        image_spec: how bytes become the network's input.
        operating_point: the numbers that decide; they go into the verdict.
        model: which model and head judge.
        engine: what computes.
        stream: what the stream of a station is compared with.
    """

    image_spec: ImageSpec
    operating_point: OperatingPoint
    model: ModelRef
    engine: EngineRef
    stream: StreamLimits = field(default=UNKNOWN, kw_only=True)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, 3) of a decoded image."""
        return self.image_spec.height_px, self.image_spec.width_px, 3

    @property
    def image_bytes(self) -> int:
        """What a decoded image takes."""
        return math.prod(self.image_shape)


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A frame that is ready for the engine.

    Attributes:
        station: whose it is.
        route: the one that it was decoded for.
        image: uint8 (h, w, 3), of `route.image_shape`.
        payload: the bytes that it was decoded from.
    """

    station: str
    route: Route
    image: NDArray[np.uint8]
    payload: bytes


@dataclass(slots=True, eq=False)
class Begun:
    """A batch that the engine was given. Whoever begins it may make it of a kind of its own.

    Attributes:
        frames: its images, which stay as they are until it is over.
    """

    frames: Sequence[Decoded]


class Judge(Protocol):
    """Pixels in, predictions out. The engine behind it may be shared with others, or another process.

    Promised: an image's prediction does not depend on what else is in its batch; a route can be used for as long as it
    is not given back, whatever else is loaded or retired meanwhile. Not promised: that the frames of one station all
    take one route; any order between `decode` calls, which come from several threads at once. `route` and `release`
    are called from one thread, `begin`, `wait`, `finish` and `score` from one thread.

    Attributes:
        ahead: batches that the engine is to be given at a time. 1: the next when it is done with the one before. May
            change between two calls.
    """

    @property
    def ahead(self) -> int:
        """See above."""
        ...

    def route(self, station: str) -> Route | None:
        """Who judges this station's next frame; None: nobody. Cheap. To be given back with `release`, once per call."""
        ...

    def release(self, route: Route) -> None:
        """The frame that took this route needs it no more. What only it kept open is closed, elsewhere. Cheap."""
        ...

    def routes(self) -> Sequence[Route]:
        """Every route that a frame could take now. They are only to be looked at."""
        ...

    def warm(self, largest: int | None, most: int) -> int:
        """Compute once in every size of batch that will be scored: the first can take far longer than the next.

        Called before the first `score`.

        Args:
            largest: images in the largest batch; None: whatever is worth taking, as the engine's times tell.
            most: with None, the largest that may be wanted.

        Returns:
            Images in the largest batch: `largest` where it is given.
        """
        ...

    def decode(self, payload: bytes, route: Route) -> NDArray[np.uint8]:
        """Encoded bytes to the route's input, uint8 (h, w, 3).

        Raises:
            FrameError: this frame cannot be judged; its `cause` says why.
        """
        ...

    def begin(self, frames: Sequence[Decoded]) -> Begun:
        """Give the engine a batch: each frame by its own route; they may have images of several sizes.

        Returns without waiting for it where the engine computes beside us. Up to `ahead` batches may be with it at a
        time: given and not waited for.

        Raises:
            EngineGoneError: the engine is away for too long; the run ends, and the frames are judged after the next
                start.
            Exception: anything else; the frames are then tried one by one.
        """
        ...

    def wait(self, begun: Begun) -> None:
        """Return when the engine is done with it, the oldest first. Raises nothing: `finish` tells how it went."""
        ...

    def finish(self, begun: Begun) -> ScoredBatch:
        """One prediction per frame, in order. Once for each that was begun, after `wait`; others may be begun before.

        Raises:
            Exception: anything; the frames are then tried one by one. It costs the other batches nothing.
        """
        ...

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """`begin`, `wait` and `finish` in one, also while batches are with the engine. Raises as they do."""
        ...


class DeadLetters(Protocol):
    """Where a record of every unjudgeable frame goes. Best effort: never blocks, never raises; counts what it drops."""

    def put(self, letter: DeadLetter) -> None:
        """Try to record it."""
        ...


class Watcher(Protocol):
    """Who counts: metrics and health. Cheap calls that never raise; from the loop's thread and the fetch thread."""

    def beat(self, part: Literal["loop", "fetch"]) -> None:
        """Say that this thread is alive."""
        ...

    def ready(self, *, ready: bool) -> None:
        """Whether frames are being judged: member of the group, broker there."""
        ...

    def fetched(self, frames: Sequence[Frame]) -> None:
        """Frames are in hand."""
        ...

    def scored(self, size: int, largest: int, inference_ms: float, *, failed: bool) -> None:
        """A batch left the engine: its size, the policy's largest, its time; `failed`: it was tried one by one."""
        ...

    def answered(self, verdict: Verdict) -> None:
        """A verdict is stored by the broker."""
        ...

    def held(self, frames: int, held_bytes: int, waiting: int, batches: int) -> None:
        """What is between fetching and the broker's answer now.

        Args:
            frames: all of them.
            held_bytes: what they hold.
            waiting: decoded frames that wait for a batch.
            batches: with the engine.
        """
        ...

    def oldest(self, age_s: float) -> None:
        """Age, since its capture, of the oldest frame in hand that is not answered; 0 where there is none."""
        ...

    def camera_trouble(self, station: str, trouble: Trouble | FaultKind) -> None:
        """A frame shows that something is wrong with its camera."""
        ...

    def camera_changed(self, change: Change) -> None:
        """A station's stream has begun, or ceased, to show that."""
        ...

    def drift(self, station: str, ratio: float) -> None:
        """How far the station's recent images are from the training set; above 1 further than its own."""
        ...

    def lag(self, partition: Partition, frames: int) -> None:
        """How far behind a partition is."""
        ...

    def committed(self, *, done: bool) -> None:
        """A commit was recorded, or could not be for now."""
        ...

    def rebalanced(self, change: TenureChange) -> None:
        """Partitions came or went."""
        ...
