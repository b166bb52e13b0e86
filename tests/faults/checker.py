"""Were all frames answered, once, in order, and rightly? Told from the two topics alone.

Independent of the product on purpose: kafka-python's consumer, json, and nothing of `consumer` or `engine`. What each
frame's answer has to be is given from outside, by the digest of its bytes.

- lost: a frame without a verdict.
- doubled: a verdict of a frame that had one already.
- out of order: a verdict of a station that stands behind the verdict of a later frame of that station.
- wrong: a verdict that says something else than expected, names another frame or station than the one that lies at the
  place it names, answers no frame at all, or bears the id of another frame's verdict.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROBABILITY_TOLERANCE = 1e-3
"""Between a frame scored alone and the same frame scored in a batch: far below any step that decides."""

MOST_BYTES = 64 * 1024 * 1024
NO_STATION = "unknown"
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Expected:
    """What a frame's verdict has to say. `probability` is None where there is none to give."""

    decision: str
    cause: str | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One frame as it lies in its topic."""

    partition: int
    offset: int
    station: str
    frame_id: str
    digest: str


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """One verdict as it lies in its topic: its own place, and what it says."""

    partition: int
    offset: int
    key: str
    document: Mapping[str, Any]

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset of the frame that it answers."""
        source = self.document["source"]
        return source["partition"], source["offset"]


@dataclass(slots=True)
class Report:
    """Counts, and the first few cases of each kind, for whoever has to find out why."""

    frames: int = 0
    verdicts: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.lost or self.doubled or self.out_of_order or self.wrong)

    def note(self, kind: str, what: str) -> None:
        """Count one case."""
        count = getattr(self, kind) + 1
        setattr(self, kind, count)
        if count <= EXAMPLES:
            self.examples.append(f"{kind}: {what}")


def digest_of(value: bytes | None) -> str:
    """What tells a frame's bytes from others; null is not the same as empty."""
    return "null" if value is None else hashlib.sha256(value).hexdigest()


def check(
    frames: Iterable[FrameRecord], verdicts: Iterable[VerdictRecord], expected: Mapping[str, Expected], topic: str
) -> Report:
    """Hold the verdicts against the frames.

    Args:
        frames: all of the topic.
        verdicts: all that a reader of committed records sees, each partition in the order of its log.
        expected: what has to be said of a frame, by `digest_of` its bytes.
        topic: the frames' topic, which every verdict has to name.
    """
    asked = {(frame.partition, frame.offset): frame for frame in frames}
    report = Report(frames=len(asked))
    seen: dict[tuple[int, int], VerdictRecord] = {}
    ids: dict[str, tuple[int, int]] = {}
    latest: dict[tuple[str, int], int] = defaultdict(lambda: -1)
    homes: dict[str, int] = {}
    for verdict in verdicts:
        report.verdicts += 1
        place = verdict.place
        frame = asked.get(place)
        fault = "it answers no frame" if frame is None else fault_of(frame, verdict, expected, topic)
        if ids.setdefault(verdict.document["verdict_id"], place) != place:
            fault = fault or "its id is another frame's"
        if fault is not None:
            report.note("wrong", f"{name_of(verdict)}: {fault}")
        if place in seen:
            first = seen[place]
            report.note("doubled", f"{name_of(verdict)}: first at {first.partition}/{first.offset}")
            continue
        seen[place] = verdict
        line = verdict.key, place[0]
        if place[1] < latest[line]:
            report.note("out_of_order", f"{name_of(verdict)}: behind the verdict of offset {latest[line]}")
        elif homes.setdefault(verdict.key, verdict.partition) != verdict.partition:
            report.note(
                "out_of_order", f"{name_of(verdict)}: its station's verdicts lie in partition {homes[verdict.key]}"
            )
        latest[line] = max(latest[line], place[1])
    for place in sorted(asked.keys() - seen.keys()):
        report.note("lost", f"frame {place[0]}/{place[1]} of station {asked[place].station!r}")
    return report


def fault_of(frame: FrameRecord, verdict: VerdictRecord, expected: Mapping[str, Expected], topic: str) -> str | None:
    """What is wrong with this answer to this frame; None: nothing."""
    document = verdict.document
    named = (document["source"]["topic"], document["station"], document["frame_id"], verdict.key)
    if named != (topic, frame.station, frame.frame_id, frame.station):
        return f"it names {named}, at its place lies {(topic, frame.station, frame.frame_id)}"
    wanted = expected.get(frame.digest)
    if wanted is None:
        return f"nobody knows what to expect of bytes {frame.digest[:12]}"
    said = document["decision"], document["cause"]
    if said != (wanted.decision, wanted.cause):
        return f"it says {said}, expected {(wanted.decision, wanted.cause)}"
    probability = document["defect_probability"]
    if (probability is None) is not (wanted.probability is None):
        return f"it gives the probability {probability}, expected {wanted.probability}"
    if wanted.probability is not None and not abs(probability - wanted.probability) <= PROBABILITY_TOLERANCE:
        return f"it gives the probability {probability}, expected {wanted.probability}"
    return None


def name_of(verdict: VerdictRecord) -> str:
    """Which verdict, of which frame."""
    place = verdict.place
    return f"verdict {verdict.partition}/{verdict.offset} of frame {place[0]}/{place[1]}"


def read_frames(bootstrap_servers: str, topic: str, timeout_s: float = 120.0) -> list[FrameRecord]:
    """Every frame of the topic."""
    frames = []
    for record in _read_all(bootstrap_servers, topic, timeout_s):
        headers = dict(record.headers)
        position = f"{topic}-{record.partition}-{record.offset}"
        frame_id = headers["ce_id"].decode() if headers.get("ce_id") else position
        station = record.key.decode() if record.key else NO_STATION
        frames.append(FrameRecord(record.partition, record.offset, station, frame_id, digest_of(record.value)))
    return frames


def read_verdicts(bootstrap_servers: str, topic: str, timeout_s: float = 120.0) -> list[VerdictRecord]:
    """Every committed verdict of the topic, each partition in the order of its log."""
    return [
        VerdictRecord(record.partition, record.offset, record.key.decode(), json.loads(record.value))
        for record in _read_all(bootstrap_servers, topic, timeout_s)
    ]


def _read_all(bootstrap_servers: str, topic: str, timeout_s: float) -> list[Any]:
    """Every committed record up to the topic's end, once no transaction is open there."""
    end_s = time.monotonic() + timeout_s
    ends = stable_ends(bootstrap_servers, topic, timeout_s)
    reader = _reader(bootstrap_servers, "read_committed")
    try:
        reader.assign(list(ends))
        reader.seek_to_beginning(*ends)
        records: list[Any] = []
        while any(reader.position(partition) < end for partition, end in ends.items()):
            if time.monotonic() > end_s:
                msg = f"{topic} could not be read to its end within {timeout_s:g} s: {len(records)} records until then"
                raise TimeoutError(msg)
            for batch in reader.poll(timeout_ms=500, max_records=5000).values():
                records += batch
        return records
    finally:
        reader.close()


def stable_ends(bootstrap_servers: str, topic: str, timeout_s: float) -> dict[TopicPartition, int]:
    """Each partition's end, once it is the same with and without open transactions.

    Raises:
        TimeoutError: a transaction is open for that long.
    """
    end_s = time.monotonic() + timeout_s
    committed, anything = (_reader(bootstrap_servers, level) for level in ("read_committed", "read_uncommitted"))
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(committed.partitions_for_topic(topic) or ())]
        if not partitions:
            msg = f"no topic {topic} on {bootstrap_servers}"
            raise ValueError(msg)
        while True:
            written: dict[TopicPartition, int] = anything.end_offsets(partitions, timeout_ms=30_000)
            decided: dict[TopicPartition, int] = committed.end_offsets(partitions, timeout_ms=30_000)
            if all(decided[partition] >= written[partition] for partition in partitions):
                return decided
            if time.monotonic() > end_s:
                msg = f"{topic} has an open transaction since {timeout_s:g} s: decided {decided}, written {written}"
                raise TimeoutError(msg)
            time.sleep(0.2)
    finally:
        committed.close()
        anything.close()


def _reader(bootstrap_servers: str, isolation_level: str) -> KafkaConsumer:
    """A reader without a group."""
    return KafkaConsumer(
        bootstrap_servers=bootstrap_servers.split(","),
        enable_auto_commit=False,
        isolation_level=isolation_level,
        metrics_enabled=False,
        max_partition_fetch_bytes=MOST_BYTES // 4,
        fetch_max_bytes=MOST_BYTES,
        receive_message_max_bytes=2 * MOST_BYTES,
    )
