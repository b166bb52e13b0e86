"""The loop that people write, to be measured against, and a bench's other dealings with Kafka."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from consumer.topics import MAX_MESSAGE_BYTES, consumer_limits, producer_limits
from consumer.wire import frame_record

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
            key = station_of(number, partitions).encode()
            sent.append(producer.send(topic, payloads[number % len(payloads)], key=key, partition=partition))
            if len(sent) >= 200:  # noqa: PLR2004 - the client itself bounds nothing
                sent.pop(0).get(READ_S)
        for future in sent:
            future.get(READ_S)
    finally:
        producer.close(timeout=5)


def station_of(number: int, partitions: int) -> str:
    """Whose a bench's frame is: four stations to a partition, which stands in the name."""
    return f"station-{number % partitions}-{number // partitions % 4}"


def send_on_time(
    bootstrap_servers: str,
    topic: str,
    payloads: Sequence[bytes],
    due_s: Sequence[float],
    *,
    partitions: int,
    client: Mapping[str, Any],
) -> list[tuple[int, int, float, float]]:
    """Send each frame when it is due, whatever became of those before; a late sender does not move what is due.

    Args:
        bootstrap_servers: of the cluster.
        topic: where to.
        payloads: in turn.
        due_s: of each frame, rising, on this machine's monotonic clock. That is its capture time too.
        partitions: of the topic, in turn.
        client: further settings of the Kafka client.

    Returns:
        Of each frame (partition, offset, when it was due, when it was handed over).
    """
    producer = KafkaProducer(
        bootstrap_servers=bootstrap_servers, metrics_enabled=False, acks=1, **producer_limits(), **client
    )
    try:
        producer.partitions_for(topic)
        epoch_s = time.time() - time.monotonic()
        sent = []
        for number, at_s in enumerate(due_s):
            record = frame_record(
                station=station_of(number, partitions),
                payload=payloads[number % len(payloads)],
                frame_id=str(number),
                captured_at_s=epoch_s + at_s,
            )
            time.sleep(max(0.0, at_s - time.monotonic()))
            future = producer.send(
                topic,
                record.value,
                key=record.key,
                headers=record.headers,
                partition=number % partitions,
                timestamp_ms=round((epoch_s + at_s) * 1000),
            )
            sent.append((at_s, time.monotonic(), future))
        stored = [(at_s, handed_s, future.get(READ_S)) for at_s, handed_s, future in sent]
        return [(place.partition, place.offset, at_s, handed_s) for at_s, handed_s, place in stored]
    finally:
        producer.close(timeout=5)


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict as a reader of committed records got it.

    Attributes:
        partition, offset: of its frame.
        at_s: when it was in the reader's hands, on this machine's monotonic clock.
        stages_ms: where our own say that the time went.
    """

    partition: int
    offset: int
    at_s: float
    stages_ms: Mapping[str, float | None]


READER_WAIT_MS = 10
"""The embedded broker takes a part of that to notice a verdict; Apache Kafka notices at once."""


class AnswerReader:
    """Reads verdicts as they come: ours and the plain loop's. A context manager."""

    def __init__(self, bootstrap_servers: str, topic: str, client: Mapping[str, Any]) -> None:
        """Begin at the oldest."""
        self._reader = KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=READER_WAIT_MS,
            metrics_enabled=False,
            **consumer_limits(MAX_MESSAGE_BYTES),
            **client,
        )
        self._reader.assign(
            [TopicPartition(topic, number) for number in self._reader.partitions_for_topic(topic) or ()]
        )

    def poll(self, timeout_s: float) -> list[Answer]:
        """What has come, waiting up to `timeout_s` for the first."""
        batches = self._reader.poll(timeout_ms=int(timeout_s * 1e3))
        at_s = time.monotonic()
        answers = []
        for records in batches.values():
            for record in records:
                said = json.loads(record.value)
                offset = said["source"]["offset"] if "source" in said else said["offset"]
                partition = int(said["station"].split("-")[1])
                answers.append(Answer(partition, offset, at_s, said.get("latency_ms", {})))
        return answers

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self._reader.close()


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
