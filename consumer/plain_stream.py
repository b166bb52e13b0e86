"""The loop that people write, to be measured against, and a bench's other dealings with Kafka."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from consumer.topics import MAX_MESSAGE_BYTES, consumer_limits, producer_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

POLL_MS = 200
READ_S = 60.0


def plain_loop(
    bootstrap_servers: str,
    *,
    client: Mapping[str, Any],
    group: str,
    frames: str,
    verdicts: str,
    side_px: tuple[int, int],
    score: Callable[[np.ndarray], float],
    idle_exit_s: float,
) -> int:
    """One thread: poll, decode, resize, score one frame at a time, send without waiting, commit once per poll.

    Args:
        bootstrap_servers: of the cluster.
        client: further settings of the Kafka client.
        group: the consumer group.
        frames: topic to read.
        verdicts: topic to write.
        side_px: (width, height) of the engine's input.
        score: the engine: uint8 (1, h, w, 3) RGB to a defect probability.
        idle_exit_s: end when nothing came for so long after something had.

    Returns:
        Frames that were answered.
    """
    cv2.setNumThreads(-1)  # what OpenCV does by itself, and our own decoding turns off
    consumer = KafkaConsumer(
        frames,
        bootstrap_servers=bootstrap_servers,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=1_000,
        metrics_enabled=False,
        **consumer_limits(),
        **client,
    )
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, metrics_enabled=False, **client)
    done, last_s = 0, float("inf")
    while time.monotonic() - last_s < idle_exit_s:
        for records in consumer.poll(timeout_ms=POLL_MS).values():
            for record in records:
                image: Any = cv2.imdecode(np.frombuffer(record.value, np.uint8), cv2.IMREAD_COLOR_RGB)
                probability = score(cv2.resize(image, side_px)[np.newaxis])
                answer = {
                    "station": record.key.decode(),
                    "offset": record.offset,
                    "defect_probability": probability,
                    "decision": "fail" if probability >= 0.5 else "pass",  # noqa: PLR2004 - as people write it
                }
                producer.send(verdicts, key=record.key, value=json.dumps(answer).encode())
                done += 1
            last_s = time.monotonic()
            consumer.commit()
    producer.flush(READ_S)
    producer.close(timeout=5)
    consumer.close()
    return done


def preload(
    bootstrap_servers: str,
    topic: str,
    payloads: Sequence[bytes],
    frames: int,
    partitions: int,
    client: Mapping[str, Any],
) -> None:
    """Put frames on a topic, evenly over its partitions, four stations to each."""
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5, **producer_limits(), **client)
    try:
        sent = []
        for number in range(frames):
            partition = number % partitions
            key = f"station-{partition}-{number // partitions % 4}".encode()
            sent.append(producer.send(topic, payloads[number % len(payloads)], key=key, partition=partition))
            if len(sent) >= 200:  # noqa: PLR2004 - the client itself bounds nothing
                sent.pop(0).get(READ_S)
        for future in sent:
            future.get(READ_S)
    finally:
        producer.close(timeout=5)


def answer_times(bootstrap_servers: str, topic: str, answers: int, client: Mapping[str, Any]) -> list[float]:
    """When the verdicts of a topic were given, by their records' timestamps: epoch seconds, in order.

    Read as committed, until there are so many.
    """
    reader = KafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        metrics_enabled=False,
        **consumer_limits(MAX_MESSAGE_BYTES),
        **client,
    )
    try:
        reader.assign([TopicPartition(topic, number) for number in reader.partitions_for_topic(topic) or ()])
        times: list[float] = []
        end_s = time.monotonic() + READ_S
        while len(times) < answers and time.monotonic() < end_s:
            for records in reader.poll(timeout_ms=POLL_MS).values():
                times += [record.timestamp / 1e3 for record in records]
        return sorted(times)
    finally:
        reader.close()
