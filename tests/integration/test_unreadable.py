"""A record that the client cannot read is a frame without an image, and the rest goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kafka import KafkaProducer

from consumer.clock import SystemClock
from consumer.kafka_client import Connection
from consumer.kafka_io import KafkaSource
from consumer.topics import ensure_topics

if TYPE_CHECKING:
    from consumer.events import Frame
    from tests.kafka_cluster import RunningBroker


class NotUtf8(str):
    """A header name that the client writes as bytes which it cannot read."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def test_a_header_name_that_is_no_text_stops_nothing(broker: RunningBroker, unique: str) -> None:
    names = [unique, f"{unique}-v", f"{unique}-d"]
    ensure_topics(
        broker.bootstrap_servers, partitions=1, replication=1, frames=names[0], verdicts=names[1], dead=names[2]
    )
    for batch in ("good", "good odd good", "odd", "good good"):
        _publish(broker, unique, batch.split())

    source = KafkaSource(Connection(broker.bootstrap_servers), group=unique, topic=unique, clock=SystemClock())
    frames: list[Frame] = []
    deadline_s = time.monotonic() + 30
    while len(frames) < 7 and time.monotonic() < deadline_s:
        frames += source.poll(0.1, 100).frames
    frames += source.poll(0.5, 100).frames
    source.close(5)

    assert [frame.position.offset for frame in frames] == list(range(7))
    empty = [frame.position.offset for frame in frames if not frame.payload]
    assert empty == [2, 3, 4]  # 3 is good, but behind 2 in one batch
    assert [frame.station for frame in frames] == ["press-1"] * 2 + ["unknown"] * 3 + ["press-1"] * 2


def _publish(broker: RunningBroker, topic: str, kinds: list[str]) -> None:
    """One batch of records."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all", linger_ms=500)
    for kind in kinds:
        headers = [(NotUtf8("odd") if kind == "odd" else "fine", b"1")]
        producer.send(topic, key=b"press-1", value=b"image", headers=headers)
    producer.flush(20)
    producer.close()
