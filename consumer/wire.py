"""The wire form of frames, verdicts and dead letters: CloudEvents 1.0 in the Kafka binding's binary mode.

Pure: bytes and numbers in, values out, and back. No Kafka client, no clock: `now_s` is an argument. Reading never
raises, because whatever a camera sends is a frame that must get its verdict; writing refuses what breaks a contract.
Binding: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, get_args
from urllib.parse import quote, quote_from_bytes

from consumer.events import UNKNOWN_STATION, Cause, DeadLetter, Decision, Frame, Position, StageTimes, Verdict
from consumer.trace_context import trace_of
from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from consumer.trace_context import Trace

SPEC_VERSION = b"1.0"
FRAME_TYPE = "framegate.frame.v1"
VERDICT_TYPE = "framegate.verdict.v1"
DEAD_LETTER_TYPE = "framegate.deadletter.v1"

VERDICT_SCHEMA = 1
DEAD_LETTER_SCHEMA = 1

SKEW_LIMIT_S = 60.0
"""A capture time farther than this from the record's timestamp is not believed."""

FUTURE_LIMIT_S = 1.0
"""A capture time this far ahead of our own clock is not believed; below it, it is two clocks' ordinary disagreement."""

MAX_NAME_CHARS = 256
"""Stations, frame ids and part ids are at most this long; a longer one is cut and told apart by a digest."""

MAX_ERROR_CHARS = 2_000
"""How much of an error's text a dead letter carries."""

_MICROSECONDS = 1_000_000
_MAX_TIME_BYTES = 64
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_READABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_DIGEST_CHARS = 16

_JUDGED = frozenset({"pass", "fail", "review"})
_DECISIONS = frozenset(get_args(Decision))
_CAUSES = frozenset(get_args(Cause))
_VERDICT_KEYS = (
    "verdict_id",
    "frame_id",
    "station",
    "part_id",
    "source",
    "decision",
    "cause",
    "reasons",
    "defect_probability",
    "threshold",
    "review_band",
    "model",
    "engine",
    "captured_at",
    "decided_at",
    "latency_ms",
    "batch",
)


@dataclass(frozen=True, slots=True)
class WireRecord:
    """One record as a producer sends it, whatever the client.

    Attributes:
        key, value: None is Kafka's null.
        headers: (name, value) pairs in order.
        timestamp_ms: epoch milliseconds; None leaves it to the client, which takes the time of sending.
    """

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int | None


def frame_from_record(
    position: Position,
    *,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]] | None,
    timestamp_ms: int | None,
    now_s: float,
    skew_limit_s: float = SKEW_LIMIT_S,
    future_limit_s: float = FUTURE_LIMIT_S,
) -> Frame:
    """Read one record of the topic `frames`. Never raises on what a camera sent.

    A camera that sends bare key and bytes is served: the frame id is then `<topic>-<partition>-<offset>` and the
    capture time the record's timestamp. Of several headers with one name the last serves, as in other readers.

    Args:
        position: where the record lies.
        key: the station, UTF-8. Null or empty is `unknown`. What is not UTF-8, or over 256 characters, becomes a
            readable name with a digest of the bytes behind it: the same for the same key, another for another.
        value: the encoded image; null becomes empty, so that a verdict comes of it.
        headers: CloudEvents attributes and trace context; unreadable ones are passed over, None values too.
        timestamp_ms: the record's timestamp, epoch milliseconds; None or negative (Kafka's -1) where it has none.
        now_s: this process's clock, epoch seconds; becomes `fetched_at_s`.
        skew_limit_s: how far a capture time may lie from the record's timestamp.
        future_limit_s: how far a capture time may lie ahead of `now_s`.

    Returns:
        The frame. `captured_at_s` is never after `fetched_at_s`, so no latency is negative. Where the capture time was
        not believed, `skewed` is set and the record's timestamp serves, or `now_s` where that is missing or ahead.
    """
    attributes = {name.lower(): content for name, content in headers or () if content}
    frame_id = attributes.get("ce_id")
    part_id = attributes.get("ce_partid")
    captured_at_s, skewed = _capture_time(
        camera_s=_epoch_s(attributes.get("ce_time")),
        record_s=timestamp_ms / 1000 if timestamp_ms is not None and timestamp_ms >= 0 else None,
        now_s=now_s,
        skew_limit_s=skew_limit_s,
        future_limit_s=future_limit_s,
    )
    return Frame(
        position=position,
        station=_name(key) if key else UNKNOWN_STATION,
        frame_id=_name(frame_id) if frame_id else f"{position.topic}-{position.partition}-{position.offset}",
        payload=bytes(value) if value else b"",
        captured_at_s=captured_at_s,
        fetched_at_s=now_s,
        part_id=_name(part_id) if part_id else None,
        skewed=skewed,
        trace=trace_of(attributes),
    )


def frame_record(
    *,
    station: str,
    payload: bytes,
    frame_id: str,
    captured_at_s: float,
    part_id: str | None = None,
    content_type: str = "application/octet-stream",
) -> WireRecord:
    """Write one frame as a camera sends it.

    The record's own timestamp is left to the client: the time of sending, which is what a capture time is held against.

    Args:
        station: the station's id; also the record's key, so that a station stays in one partition and in order.
        payload: the encoded image.
        frame_id: unique per station.
        captured_at_s: epoch seconds.
        part_id: the part in the picture, where the line knows it.
        content_type: media type of the payload.
    """
    headers = _attributes(
        event_id=frame_id,
        event_type=FRAME_TYPE,
        source=f"/stations/{quote(station, safe='')}",
        at_s=captured_at_s,
        content_type=content_type,
    )
    if part_id is not None:
        headers.append(("ce_partid", part_id.encode()))
    return WireRecord(key=station.encode(), value=payload, headers=headers, timestamp_ms=None)


def verdict_id(cluster_id: str, topic_id: str, partition: int, offset: int) -> str:
    """The verdict's id, 32 hexadecimal digits: a function of the frame's place in the cluster and of nothing else.

    The same frame judged again, by whatever model, has the same id: that is how readers drop repeated verdicts.
    """
    place = _topic_hash(cluster_id, topic_id).copy()
    place.update(b"%d,%d]" % (partition, offset))
    digest: str = place.hexdigest()
    return digest[:32]


@lru_cache(maxsize=8)
def _topic_hash(cluster_id: str, topic_id: str) -> Any:
    """SHA-256 of what the places of one topic have in common: compact JSON, `["cluster","topic",`."""
    topic = json.dumps([cluster_id, topic_id], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(f"{topic[:-1]},".encode())


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain JSON values, as `verdict.schema.json` describes them.

    Raises:
        ValueError: the verdict breaks its contract (`none` without a cause, a `pass` whose probability is not a
            number): a mistake of the program, which must not reach a reject gate.
    """
    _require_sound(verdict)
    frame = verdict.frame
    return {
        "schema": VERDICT_SCHEMA,
        "verdict_id": verdict.verdict_id,
        **_identity(frame),
        "decision": verdict.decision,
        "cause": verdict.cause,
        "reasons": list(verdict.reasons),
        "defect_probability": verdict.defect_probability,
        "threshold": verdict.threshold,
        "review_band": list(verdict.review_band),
        "model": {
            "name": verdict.model.name,
            "version": verdict.model.version,
            "digest": verdict.model.digest,
            "head": verdict.model.head,
        },
        "engine": {
            "backend": verdict.engine.backend,
            "device": verdict.engine.device,
            "precision": verdict.engine.precision,
        },
        "captured_at": rfc3339(frame.captured_at_s),
        "clock_skewed": frame.skewed,
        "decided_at": rfc3339(verdict.decided_at_s),
        "latency_ms": _latencies(verdict.times),
        "batch": {"size": verdict.batch_size},
    }


def verdict_record(verdict: Verdict, *, group: str) -> WireRecord:
    """Write one verdict for the topic `verdicts`.

    Args:
        verdict: what was decided.
        group: the consumer group, which names the source of the event.

    Raises:
        ValueError: as `verdict_document`.
    """
    return WireRecord(
        key=_utf8(verdict.frame.station),
        value=_json_bytes(verdict_document(verdict)),
        headers=_attributes(
            event_id=verdict.verdict_id,
            event_type=VERDICT_TYPE,
            source=_group_source(group),
            at_s=verdict.decided_at_s,
            content_type="application/json",
            trace=verdict.frame.trace,
        ),
        timestamp_ms=round(verdict.decided_at_s * 1000),
    )


def dead_letter_record(letter: DeadLetter, *, group: str) -> WireRecord:
    """Write one dead letter for the topic `frames.dead`: where the frame lies and why it failed, never the image.

    Args:
        letter: what is recorded.
        group: the consumer group, which names the source of the event.
    """
    frame = letter.frame
    document = {
        "schema": DEAD_LETTER_SCHEMA,
        "verdict_id": letter.verdict_id,
        **_identity(frame),
        "cause": letter.cause,
        "error": letter.error[:MAX_ERROR_CHARS],
        "payload_bytes": len(frame.payload),
        "captured_at": rfc3339(frame.captured_at_s),
        "at": rfc3339(letter.at_s),
    }
    return WireRecord(
        key=_utf8(frame.station),
        value=_json_bytes(document),
        headers=_attributes(
            event_id=letter.verdict_id,
            event_type=DEAD_LETTER_TYPE,
            source=_group_source(group),
            at_s=letter.at_s,
            content_type="application/json",
            trace=letter.frame.trace,
        ),
        timestamp_ms=round(letter.at_s * 1000),
    )


def parse_verdict(value: bytes | None) -> dict[str, Any]:
    """Read a verdict as a program behind the topic does: strictly.

    Returns:
        The document, with at least the keys of schema 1; further keys are left in.

    Raises:
        InputError: not JSON, not a verdict, of a schema this version does not know, or `none` without a known cause.
            A line must treat such a record as not passed.
    """
    try:
        document = json.loads((value or b"").decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        msg = f"verdict is not JSON ({error}): expected the value of a record of the topic `verdicts`; check the topic"
        raise InputError(msg) from error
    if not isinstance(document, dict):
        msg = f"verdict is a JSON {type(document).__name__}: expected an object; check the topic"
        raise InputError(msg)
    if document.get("schema") != VERDICT_SCHEMA:
        got = document.get("schema")
        msg = f"verdict has schema {got!r}: this version reads {VERDICT_SCHEMA}; use the Framegate that wrote it"
        raise InputError(msg)
    missing = [key for key in _VERDICT_KEYS if key not in document]
    if missing:
        names = ", ".join(missing)
        msg = f"verdict lacks {names}: expected every key of schema {VERDICT_SCHEMA}; find out who wrote it"
        raise InputError(msg)
    _require_known_words(document)
    return document


def rfc3339(epoch_s: float) -> str:
    """Epoch seconds as RFC 3339 in UTC with microseconds, for example `2026-03-01T06:00:00.250000Z`."""
    fraction, whole = math.modf(epoch_s)
    microseconds = round(fraction * 1e6)
    if not 0 <= microseconds < _MICROSECONDS:  # before 1970, or rounded up to the next second
        carry, microseconds = divmod(microseconds, _MICROSECONDS)
        whole += carry
    return f"{_second(int(whole))}.{microseconds:06d}Z"


@lru_cache(maxsize=64)
def _second(epoch_s: int) -> str:
    """A whole second in UTC: the verdicts of a moment share few of them."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def _capture_time(
    *, camera_s: float | None, record_s: float | None, now_s: float, skew_limit_s: float, future_limit_s: float
) -> tuple[float, bool]:
    """(capture time in epoch seconds, whether the camera's clock was disbelieved)."""
    claimed_s = record_s if camera_s is None else camera_s
    if claimed_s is None:
        return now_s, False
    ahead = claimed_s > now_s + future_limit_s
    apart = record_s is not None and abs(claimed_s - record_s) > skew_limit_s
    if ahead or apart:
        # A camera's client stamps the record from the same wrong clock: its timestamp may be ahead of us as well.
        return min(now_s if record_s is None else record_s, now_s), True
    return min(claimed_s, now_s), False


def _epoch_s(time: bytes | None) -> float | None:
    """Epoch seconds of an RFC 3339 time with an offset; None where it is anything else or before 1970."""
    if time is None or len(time) > _MAX_TIME_BYTES:
        return None
    try:
        text = time.decode("ascii")
        if not _RFC_3339.fullmatch(text):
            return None
        epoch_s = datetime.fromisoformat(text.upper()).timestamp()
    except ValueError:
        return None
    return epoch_s if epoch_s >= 0 else None


def _name(raw: bytes) -> str:
    """The text of a key or header; cut or unreadable ones end in a digest of the bytes, so that they stay distinct."""
    raw = bytes(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = quote_from_bytes(raw[:MAX_NAME_CHARS], safe=_READABLE)
    else:
        if len(text) <= MAX_NAME_CHARS:
            return text
    digest = hashlib.sha256(raw).hexdigest()[:_DIGEST_CHARS]
    return f"{text[: MAX_NAME_CHARS - _DIGEST_CHARS - 1]}~{digest}"


def _attributes(
    *, event_id: str, event_type: str, source: str, at_s: float, content_type: str, trace: Trace = ()
) -> list[tuple[str, bytes]]:
    """The CloudEvents attributes as Kafka headers, and behind them the frame's trace context."""
    return [
        ("ce_specversion", SPEC_VERSION),
        ("ce_id", _utf8(event_id)),
        ("ce_type", event_type.encode()),
        ("ce_source", source.encode()),
        ("ce_time", rfc3339(at_s).encode()),
        ("content-type", content_type.encode()),
        *trace,
    ]


def _group_source(group: str) -> str:
    """The `ce_source` of what a consumer group publishes."""
    return f"/framegate/{quote(group, safe='')}"


def _identity(frame: Frame) -> dict[str, Any]:
    """Which frame, from where."""
    return {
        "frame_id": frame.frame_id,
        "station": frame.station,
        "part_id": frame.part_id,
        "source": {
            "topic": frame.position.topic,
            "partition": frame.position.partition,
            "offset": frame.position.offset,
        },
    }


def _latencies(times: StageTimes) -> dict[str, float | None]:
    """Milliseconds by stage, to the microsecond; null where the stage was not reached or its time is no number."""
    stages = {
        "transport": times.transport_ms,
        "fetch_wait": times.fetch_wait_ms,
        "decode": times.decode_ms,
        "batch_wait": times.batch_wait_ms,
        "inference": times.inference_ms,
        "classify": times.classify_ms,
        "total": times.total_ms,
    }
    return {
        stage: round(took_ms, 3) if took_ms is not None and math.isfinite(took_ms) else None
        for stage, took_ms in stages.items()
    }


def _require_sound(verdict: Verdict) -> None:
    """Refuse a verdict that its schema would refuse."""
    probability = verdict.defect_probability
    numbers = (verdict.threshold, *verdict.review_band)
    faults = (
        (verdict.decision not in _DECISIONS, "an unknown decision"),
        (verdict.decision == "none" and verdict.cause not in _CAUSES, "`none` without a known cause"),
        (verdict.decision != "none" and verdict.cause is not None, "a cause beside a judgement"),
        (verdict.decision in _JUDGED and probability is None, "a judgement without a defect probability"),
        (probability is not None and not 0.0 <= probability <= 1.0, "a defect probability outside 0 to 1"),
        (verdict.decision == "pass" and bool(verdict.reasons), "a pass with reasons against it"),
        (verdict.decision == "review" and not verdict.reasons, "a review without a reason"),
        (not all(math.isfinite(number) for number in numbers), "a threshold or band that is no number"),
    )
    for broken, fault in faults:
        if broken:
            msg = (
                f"verdict {verdict.verdict_id} of {verdict.frame.position} has {fault}: decision {verdict.decision!r}, "
                f"cause {verdict.cause!r}, reasons {verdict.reasons}, defect probability {probability}, "
                f"threshold and band {numbers}"
            )
            raise ValueError(msg)


def _require_known_words(document: dict[str, Any]) -> None:
    """Refuse a decision or cause that a reader could not act on."""
    decision, cause = document["decision"], document["cause"]
    if decision not in _DECISIONS:
        msg = f"verdict has decision {decision!r}: expected one of {sorted(_DECISIONS)}; treat the part as not passed"
        raise InputError(msg)
    if (cause in _CAUSES) != (decision == "none") or (decision != "none" and cause is not None):
        msg = (
            f"verdict has decision {decision!r} with cause {cause!r}: `none` has a cause, the others have not; "
            "treat the part as not passed"
        )
        raise InputError(msg)


def _refuse_constant(name: str) -> NoReturn:
    """NaN and the infinities are not JSON."""
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _utf8(text: str) -> bytes:
    """UTF-8; a lone surrogate becomes `?` instead of an exception at the very end of a frame's way."""
    return text.encode("utf-8", errors="replace")


def _json_bytes(document: dict[str, Any]) -> bytes:
    """Strict, compact JSON in UTF-8."""
    return _utf8(json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
