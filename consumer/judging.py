"""The work on one frame: decoding, scoring in a batch, and the verdict. What goes wrong stays with its frame.

`decode_slot` runs on the decoding threads, `begin_slots`, `wait_batch` and `finish_batch` on the engine's, the rest on
the loop's. A slot is handed from one to the next and belongs to one of them at a time, so it needs no lock.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from consumer.events import Cause, DeadLetter, EngineRef, Frame, ModelRef, StageTimes, Verdict
from consumer.ports import Decoded
from consumer.tenure import Partition
from engine.errors import EngineGoneError, FrameError
from engine.prediction import OperatingPoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from consumer.ports import Begun, Clock, Judge, Route
    from engine.prediction import Prediction, ScoredBatch

log = logging.getLogger(__name__)

NOBODY = ModelRef("none", "", "", "")
NOTHING = EngineRef("none", "none", "none")
NO_POINT = OperatingPoint(0.0, (0.0, 0.0))
"""What stands in the verdict of a frame that no model is there for: whatever was compared with it would fail."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a frame cannot be judged."""

    cause: Cause
    error: str


@dataclass(slots=True, eq=False)
class Slot:
    """One frame on its way through the consumer, with the marks that its stages leave. Times in monotonic seconds.

    Attributes:
        epoch: the tenure that it was fetched in.
        held_bytes: what it counts for in the budget until it is published: its payload and its pixels.
        route: who judges it, to be given back to the judge once; None: nobody.
        image: uint8 (h, w, 3) between decoding and scoring.
        fault: set where it gets the verdict `none`.
    """

    frame: Frame
    epoch: int
    fetched_s: float
    held_bytes: int
    route: Route | None
    decode_began_s: float | None = None
    decode_ended_s: float | None = None
    score_began_s: float | None = None
    decided_s: float | None = None
    image: NDArray[np.uint8] | None = None
    fault: Fault | None = None
    prediction: Prediction | None = None
    inference_ms: float | None = None
    classify_ms: float | None = None
    batch_size: int = 0

    @property
    def station(self) -> str:
        """Whose frame it is: what the batcher asks."""
        return self.frame.station

    @property
    def partition(self) -> Partition:
        """Where it came from."""
        return Partition(self.frame.position.topic, self.frame.position.partition)


class Stamp(Protocol):
    """Gives a frame's position its verdict id."""

    def __call__(self, partition: int, offset: int) -> str:
        """The id, the same whenever and by whatever model the frame is judged."""
        ...


def decode_slot(judge: Judge, slot: Slot, clock: Clock) -> None:
    """Fill `slot.image`, or `slot.fault`. Raises nothing."""
    slot.decode_began_s = clock.monotonic_s()
    try:
        slot.image = _decoded(judge, slot.frame, _route(slot))
    except FrameError as error:
        slot.fault = Fault(cast("Cause", error.cause), str(error))
    except Exception as error:  # a decoder's own fault must cost this frame only, and every frame gets its verdict
        log.exception(
            "decoding failed unexpectedly: station %r, frame %r, %s",
            slot.station,
            slot.frame.frame_id,
            slot.frame.position,
        )
        slot.fault = Fault("engine_error", f"{type(error).__name__}: {error}")
    slot.decode_ended_s = clock.monotonic_s()


def _decoded(judge: Judge, frame: Frame, route: Route) -> NDArray[np.uint8]:
    """The image, of the shape that a batch can be made of."""
    image = judge.decode(frame.payload, route)
    if image.shape != route.image_shape or image.dtype != np.uint8:
        msg = f"decoding gave {image.dtype} {image.shape}: expected uint8 {route.image_shape}"
        raise ValueError(msg)
    return image


def _route(slot: Slot) -> Route:
    """Who judges a slot that got this far."""
    if slot.route is None:
        msg = f"{slot.frame.position} has no route and was to be judged"
        raise ValueError(msg)
    return slot.route


@dataclass(slots=True, eq=False)
class Batch:
    """Slots on their way through the engine.

    Attributes:
        begun_s: when they were given to it, in monotonic seconds.
        begun: what the judge gave for them, or what it raised.
    """

    slots: list[Slot]
    begun_s: float
    begun: Begun | Exception


def begin_slots(judge: Judge, slots: list[Slot], clock: Clock) -> Batch:
    """Give them to the engine. Raises nothing; `finish_batch` is to be called for it, whatever came of it."""
    begun_s = clock.monotonic_s()
    try:
        return Batch(slots, begun_s, judge.begin(_frames(slots)))
    except Exception as error:  # noqa: BLE001 - whatever an engine raises, `finish_batch` deals with it
        return Batch(slots, begun_s, error)


def wait_batch(judge: Judge, batch: Batch) -> None:
    """Wait until the engine is done with it. Raises nothing."""
    if not isinstance(batch.begun, Exception):
        judge.wait(batch.begun)


def finish_batch(judge: Judge, batch: Batch, clock: Clock) -> bool:
    """Fill each slot's prediction, or its fault. Raises nothing but EngineGoneError, which is no frame's fault.

    A batch that fails is tried again frame by frame, so that one frame the engine cannot take costs only itself.

    Returns:
        Whether the batch went through whole.
    """
    slots = batch.slots
    try:
        _mark(slots, _scored(judge, batch), batch.begun_s)
    except EngineGoneError:
        raise
    except Exception:  # whatever an engine raises, each of the frames still gets a verdict
        if len(slots) > 1:
            log.warning("the engine failed on a batch of %d; trying its frames one by one", len(slots), exc_info=True)
        for slot in slots:
            _score_alone(judge, slot, clock)
        return False
    return True


def _scored(judge: Judge, batch: Batch) -> ScoredBatch:
    """What the judge says; raises what it raised when the batch was begun."""
    if isinstance(batch.begun, Exception):
        raise batch.begun
    return judge.finish(batch.begun)


def score_slots(judge: Judge, slots: list[Slot], clock: Clock) -> bool:
    """All three in one, for one batch at a time. Raises nothing; returns as `finish_batch`."""
    batch = begin_slots(judge, slots, clock)
    wait_batch(judge, batch)
    return finish_batch(judge, batch, clock)


def _score_alone(judge: Judge, slot: Slot, clock: Clock) -> None:
    """One frame's second and last chance."""
    began_s = clock.monotonic_s()
    try:
        _mark([slot], judge.score(_frames([slot])), began_s)
    except EngineGoneError:
        raise
    except Exception as error:  # the same reason as for the batch
        log.exception("the engine failed on a frame: station %r, frame %r", slot.station, slot.frame.frame_id)
        slot.fault = Fault("engine_error", f"{type(error).__name__}: {error}")
        slot.batch_size = 1
    slot.image = None


def _frames(slots: Sequence[Slot]) -> list[Decoded]:
    """As the judge takes them."""
    return [
        Decoded(slot.station, _route(slot), slot.image, slot.frame.payload) for slot in slots if slot.image is not None
    ]


def _mark(slots: Sequence[Slot], scored: ScoredBatch, began_s: float) -> None:
    """Give each its prediction, and let its image go."""
    _check(scored, len(slots))
    for slot, prediction in zip(slots, scored.predictions, strict=True):
        slot.score_began_s = began_s
        slot.prediction = prediction
        slot.inference_ms = scored.inference_ms
        slot.classify_ms = scored.classify_ms
        slot.batch_size = len(slots)
    for slot in slots:
        slot.image = None


def _check(scored: ScoredBatch, expected: int) -> None:
    """Believe no answer that a verdict cannot carry, and none that would move to another frame."""
    if len(scored.predictions) != expected:
        msg = f"the engine gave {len(scored.predictions)} predictions for {expected} images"
        raise ValueError(msg)
    for prediction in scored.predictions:
        if not 0.0 <= prediction.defect_probability <= 1.0:  # NaN is refused here too
            msg = f"the engine gave a defect probability of {prediction.defect_probability}: expected 0 to 1"
            raise ValueError(msg)
        if (prediction.decision == "review") is not bool(prediction.reasons):
            msg = f"the engine decided {prediction.decision!r} for reasons {prediction.reasons}: only review has some"
            raise ValueError(msg)


def verdict_of(slot: Slot, verdict_id: str) -> Verdict:
    """The answer to a decided frame, without its image: nothing behind needs that, and a broker may keep it waiting."""
    route, prediction = slot.route, slot.prediction
    point = NO_POINT if route is None else route.operating_point
    return Verdict(
        verdict_id=verdict_id,
        frame=replace(slot.frame, payload=b""),
        decision="none" if prediction is None else prediction.decision,
        model=NOBODY if route is None else route.model,
        engine=NOTHING if route is None else route.engine,
        decided_at_s=_epoch_s(slot, slot.decided_s),
        threshold=point.threshold,
        review_band=point.review_band,
        times=stage_times(slot),
        batch_size=slot.batch_size,
        cause=None if slot.fault is None else slot.fault.cause,
        reasons=() if prediction is None else prediction.reasons,
        defect_probability=None if prediction is None else prediction.defect_probability,
    )


def dead_letter_of(slot: Slot, fault: Fault, verdict_id: str) -> DeadLetter:
    """The record of a frame that could not be judged."""
    return DeadLetter(verdict_id, slot.frame, fault.cause, fault.error, _epoch_s(slot, slot.decided_s))


def stage_times(slot: Slot) -> StageTimes:
    """Where the frame's time went: transport between two machines' clocks, everything else on the monotonic one."""
    transport_ms = max(0.0, slot.frame.fetched_at_s - slot.frame.captured_at_s) * 1e3
    in_hand_ms = _ms(slot.fetched_s, slot.decided_s)
    return StageTimes(
        transport_ms=transport_ms,
        fetch_wait_ms=_ms(slot.fetched_s, slot.decode_began_s),
        decode_ms=_ms(slot.decode_began_s, slot.decode_ended_s),
        batch_wait_ms=_ms(slot.decode_ended_s, slot.score_began_s),
        inference_ms=slot.inference_ms,
        classify_ms=slot.classify_ms,
        total_ms=None if in_hand_ms is None else transport_ms + in_hand_ms,
    )


def _ms(began_s: float | None, ended_s: float | None) -> float | None:
    """A duration in milliseconds, where both its ends were reached."""
    return None if began_s is None or ended_s is None else (ended_s - began_s) * 1e3


def _epoch_s(slot: Slot, at_s: float | None) -> float:
    """A monotonic mark as epoch seconds, by the one pair of both that the frame has: a stepping clock moves nothing."""
    return slot.frame.fetched_at_s + (0.0 if at_s is None else at_s - slot.fetched_s)
