"""What lies on a topic of frames, read as the consumer reads it."""

from __future__ import annotations

import time
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from consumer.events import Frame, Position
from consumer.topics import consumer_limits
from consumer.wire import frame_from_record


def read_frames(
    bootstrap_servers: str, stations: set[str], expected: int, *, topic: str = "frames", partitions: int = 4
) -> list[Frame]:
    """At least so many frames of these stations, in order per partition, and whatever else is there by then.

    Read, not counted: the embedded broker's end offset leaves out all but the first record of the last batch.
    """
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", **consumer_limits())
    frames: list[Frame] = []
    deadline_s = time.monotonic() + 30
    try:
        consumer.assign([TopicPartition(topic, number) for number in range(partitions)])
        more = True
        while more or len(frames) < expected:
            assert time.monotonic() < deadline_s, f"{len(frames)} of {expected} frames"
            records = [record for batch in consumer.poll(timeout_ms=500).values() for record in batch]
            more = bool(records)
            frames += [frame for record in records if (frame := as_frame(record)).station in stations]
    finally:
        consumer.close()
    return frames


def as_frame(record: Any) -> Frame:
    """A record as the consumer reads it."""
    return frame_from_record(
        Position(record.topic, record.partition, record.offset),
        key=record.key,
        value=record.value,
        headers=record.headers,
        timestamp_ms=record.timestamp,
        now_s=time.time(),
    )
