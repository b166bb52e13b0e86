"""Frames, verdicts and dead letters as values. Their wire form lies in `wire.py`; this file knows no Kafka."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Decision = Literal["pass", "fail", "review", "none"]
Cause = Literal["undecodable", "oversize", "late", "unrouted", "camera_fault", "engine_error"]
Reason = Literal["band", "out_of_distribution", "camera"]

UNKNOWN_STATION = "unknown"
"""The station of a record without a key."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a record lies. A commit of offset n+1 says that n and all before it are answered."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One record of the topic `frames`, as it came off the wire.

    Attributes:
        payload: the encoded image; empty where the record's value was null or empty.
        captured_at_s: epoch seconds; the record's own timestamp where the camera gave none or a skewed one.
        skewed: the camera's clock was not believed.
        fetched_at_s: epoch seconds at which this process had the record in hand.
        trace: headers of its trace context, for what is published of it.
    """

    position: Position
    station: str
    frame_id: str
    payload: bytes = field(repr=False)
    captured_at_s: float
    fetched_at_s: float
    part_id: str | None = None
    skewed: bool = False
    trace: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where a frame's time went, in milliseconds; None for a stage it never reached."""

    transport_ms: float | None = None
    fetch_wait_ms: float | None = None
    decode_ms: float | None = None
    batch_wait_ms: float | None = None
    inference_ms: float | None = None
    classify_ms: float | None = None
    total_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model judged: enough to find "since when" and which lots."""

    name: str
    version: str
    digest: str
    head: str


@dataclass(frozen=True, slots=True)
class EngineRef:
    """What computed the numbers."""

    backend: str
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one answer to one frame, whatever happened to the frame."""

    verdict_id: str
    frame: Frame
    decision: Decision
    model: ModelRef
    engine: EngineRef
    decided_at_s: float
    threshold: float
    review_band: tuple[float, float]
    times: StageTimes
    batch_size: int
    cause: Cause | None = None
    reasons: tuple[Reason, ...] = ()
    defect_probability: float | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What is recorded of a frame that could not be judged: never the image."""

    verdict_id: str
    frame: Frame
    cause: Cause
    error: str
    at_s: float
