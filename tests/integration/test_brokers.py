"""What Framegate relies on of kafka-python and of a broker, on the embedded broker and on Apache Kafka."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import crc32c
import pytest
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import MessageSizeTooLargeError
from kafka.record import util as record_util

from consumer.broker import HEARTBEAT_INTERVAL_MS, SESSION_TIMEOUT_MS, is_embedded
from consumer.errors import TopicError
from consumer.topics import (
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    check_topics,
    cluster_identity,
    consumer_limits,
    ensure_topics,
    producer_limits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka.consumer.fetcher import ConsumerRecord

    from tests.kafka_cluster import ApacheKafka, RunningBroker

PARTITIONS = 4
WAIT_S = 30.0
JOINING_MS = 1000
"""How long to poll while a group forms; see `test_a_join_that_ends_between_two_polls_is_lost`."""


@pytest.fixture
def frames(broker: RunningBroker, unique: str) -> str:
    """A topic of frames of one's own."""
    return make_topics(broker.bootstrap_servers, unique, replication=1)


@pytest.fixture
def producer(broker: RunningBroker) -> Iterator[KafkaProducer]:
    with KafkaProducer(bootstrap_servers=broker.bootstrap_servers, **producer_limits()) as client:
        yield client


@pytest.fixture
def join(broker: RunningBroker) -> Iterator[Callable[[str, str], KafkaConsumer]]:
    """Subscribes a new member of a group to a topic; members still there leave with the test."""
    members: list[KafkaConsumer] = []

    def subscribe(topic: str, group: str) -> KafkaConsumer:
        members.append(member_of(broker.bootstrap_servers, topic, group))
        return members[-1]

    yield subscribe
    for member in members:
        member.close(autocommit=False, timeout_ms=3000)


def make_topics(servers: str, unique: str, *, replication: int, max_message_bytes: int = MAX_MESSAGE_BYTES) -> str:
    frames = f"frames-{unique}"
    ensure_topics(
        servers,
        partitions=PARTITIONS,
        replication=replication,
        frames=frames,
        verdicts=f"verdicts-{unique}",
        dead=f"frames.dead-{unique}",
        max_message_bytes=max_message_bytes,
    )
    return frames


def member_of(servers: str, topic: str, group: str) -> KafkaConsumer:
    member = KafkaConsumer(
        bootstrap_servers=servers,
        group_id=group,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        reconnect_backoff_max_ms=1000,
        **consumer_limits(),
    )
    member.subscribe([topic])
    return member


def take(member: KafkaConsumer, count: int) -> list[ConsumerRecord]:
    """The next records of a member: so many, or a failed test."""
    taken: list[ConsumerRecord] = []
    deadline_s = time.monotonic() + WAIT_S
    while len(taken) < count:
        assert time.monotonic() < deadline_s, f"{len(taken)} of {count} records in {WAIT_S} s"
        for records in member.poll(timeout_ms=JOINING_MS).values():
            taken += records
    return taken


def image(size: int) -> bytes:
    """Bytes that no compression helps with."""
    return random.Random(0).randbytes(size)


def test_checksums_are_not_computed_in_python() -> None:
    assert record_util.calc_crc32c.__defaults__ == (crc32c.crc32c,)
    began_s = time.perf_counter()
    assert record_util.calc_crc32c(memoryview(bytes(1_000_000))) == crc32c.crc32c(bytes(1_000_000))
    assert time.perf_counter() - began_s < 0.05  # pure Python takes a fifth of a second and more


def test_the_kind_of_broker_is_seen_from_its_cluster_id(broker: RunningBroker) -> None:
    cluster_id = check_topics(broker.bootstrap_servers, []).cluster_id
    assert is_embedded(cluster_id) == (broker.kind == "embedded")


def test_topics_are_made_once_and_missing_ones_are_named(broker: RunningBroker, frames: str, unique: str) -> None:
    state = check_topics(broker.bootstrap_servers, [frames, f"verdicts-{unique}"])
    assert [topic.partitions for topic in state.topics.values()] == [PARTITIONS, PARTITIONS]
    assert make_topics(broker.bootstrap_servers, unique, replication=1) == frames
    with pytest.raises(TopicError, match=f"no topic `absent-{unique}`"):
        check_topics(broker.bootstrap_servers, [f"absent-{unique}"])


def test_the_identity_of_a_topic_stays(broker: RunningBroker, frames: str, unique: str) -> None:
    first = cluster_identity(broker.bootstrap_servers, frames)
    assert first.topic_id != frames
    assert cluster_identity(broker.bootstrap_servers, frames) == first
    other = cluster_identity(broker.bootstrap_servers, f"verdicts-{unique}")
    assert other.cluster_id == first.cluster_id
    assert other.topic_id != first.topic_id


def test_a_topic_for_smaller_frames_is_refused(apache_kafka: RunningBroker, unique: str) -> None:
    servers = apache_kafka.bootstrap_servers
    make_topics(servers, unique, replication=1)
    with pytest.raises(TopicError, match=rf"takes records up to {MAX_MESSAGE_BYTES} bytes.*kafka-configs\.sh"):
        make_topics(servers, unique, replication=1, max_message_bytes=MAX_MESSAGE_BYTES + 1)


def test_more_copies_than_brokers_are_refused(apache_kafka: RunningBroker, unique: str) -> None:
    with pytest.raises(TopicError, match=rf"`frames-{unique}` could not be made with 4 partitions and 7 copies"):
        make_topics(apache_kafka.bootstrap_servers, unique, replication=7)


@pytest.mark.parametrize("size", [1_900_000, 12_000_000, MAX_FRAME_BYTES])
def test_large_frames_pass_unchanged(
    producer: KafkaProducer, join: Callable[[str, str], KafkaConsumer], frames: str, unique: str, size: int
) -> None:
    sent = image(size)
    headers = [("ce_id", b"frame-1"), ("ce_type", b"framegate.frame.v1")]
    producer.send(frames, sent, key=b"station-1", headers=headers, timestamp_ms=1_700_000_000_123).get(WAIT_S)
    (record,) = take(join(frames, f"group-{unique}"), 1)
    assert record.value == sent
    assert (record.key, record.headers, record.timestamp) == (b"station-1", headers, 1_700_000_000_123)


def test_what_the_producer_lets_out_the_topic_takes(apache_kafka: RunningBroker, unique: str) -> None:
    servers, limit = apache_kafka.bootstrap_servers, 200_000
    frames = make_topics(servers, unique, replication=1, max_message_bytes=limit)
    headers = [("ce_id", b"frame-1")]
    with KafkaProducer(bootstrap_servers=servers, **producer_limits(limit)) as producer:
        overhead = producer._estimate_size_in_bytes(b"station-1", image(limit), headers) - limit
        with pytest.raises(MessageSizeTooLargeError):
            producer.send(frames, image(limit - overhead + 1), key=b"station-1", headers=headers)
        producer.send(frames, image(limit - overhead), key=b"station-1", headers=headers).get(WAIT_S)


def test_an_idempotent_producer_is_dead_once_a_topic_has_refused_a_record(
    apache_kafka: RunningBroker, unique: str
) -> None:
    """Why `producer_limits` and the topic's limit are one number; a kafka-python that does better ends this test."""
    servers = apache_kafka.bootstrap_servers
    frames = make_topics(servers, unique, replication=1, max_message_bytes=100_000)
    with KafkaProducer(bootstrap_servers=servers, **producer_limits()) as producer:
        producer.send(frames, b"image", partition=0).get(WAIT_S)
        for value in (image(200_000), b"image"):
            with pytest.raises(MessageSizeTooLargeError):
                producer.send(frames, value, partition=0).get(WAIT_S)


def test_a_null_image_and_a_null_key_arrive_as_none(
    producer: KafkaProducer, join: Callable[[str, str], KafkaConsumer], frames: str, unique: str
) -> None:
    producer.send(frames, None, key=b"station-1", partition=0).get(WAIT_S)
    producer.send(frames, b"image", partition=0).get(WAIT_S)
    records = take(join(frames, f"group-{unique}"), 2)
    assert [(record.key, record.value) for record in records] == [(b"station-1", None), (None, b"image")]


def test_a_station_stays_in_one_partition_and_in_order(
    producer: KafkaProducer, join: Callable[[str, str], KafkaConsumer], frames: str, unique: str
) -> None:
    stations = [f"station-{number}".encode() for number in range(6)]
    for index in range(20):
        for station in stations:
            producer.send(frames, index.to_bytes(2, "big"), key=station)
    producer.flush(WAIT_S)
    records = take(join(frames, f"group-{unique}"), 20 * len(stations))
    for station in stations:
        own = [record for record in records if record.key == station]
        assert len({record.partition for record in own}) == 1
        assert [int.from_bytes(record.value, "big") for record in own] == list(range(20))


def test_a_group_forms_in_about_three_seconds(
    join: Callable[[str, str], KafkaConsumer], frames: str, unique: str
) -> None:
    member = join(frames, f"group-{unique}")
    began_s = time.monotonic()
    while not member.assignment():
        member.poll(timeout_ms=JOINING_MS)
        assert time.monotonic() - began_s < 10
    assert len(member.assignment()) == PARTITIONS


def test_a_join_that_ends_between_two_polls_is_lost(apache_kafka: RunningBroker, unique: str) -> None:
    """Why the consumer polls long until its group stands; a kafka-python that does better ends this test.

    The member throws the finished join away and starts another, for ever, and takes the whole group along each time.
    """
    frames = make_topics(apache_kafka.bootstrap_servers, unique, replication=1)
    member = member_of(apache_kafka.bootstrap_servers, frames, f"group-{unique}")
    try:
        began_s = time.monotonic()
        while time.monotonic() - began_s < 2:
            member.poll(timeout_ms=0)
            time.sleep(0.05)
            assert not member.assignment()
        member.poll(timeout_ms=5 * JOINING_MS)
        assert len(member.assignment()) == PARTITIONS
    finally:
        member.close(autocommit=False, timeout_ms=3000)


def test_the_next_member_goes_on_where_the_last_one_committed(
    producer: KafkaProducer, join: Callable[[str, str], KafkaConsumer], frames: str, unique: str
) -> None:
    for index in range(10):
        producer.send(frames, bytes([index]), key=b"station-1", partition=0)
    producer.flush(WAIT_S)
    partition = TopicPartition(frames, 0)
    first = join(frames, f"group-{unique}")
    assert [record.value[0] for record in take(first, 10)] == list(range(10))
    first.commit({partition: OffsetAndMetadata(4, "", -1)}, timeout_ms=5000)
    first.close(autocommit=False, timeout_ms=3000)
    second = join(frames, f"group-{unique}")
    assert [record.value[0] for record in take(second, 6)] == list(range(4, 10))
    assert second.committed(partition, timeout_ms=5000) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("dropped_sockets")
def test_three_brokers_go_on_when_one_is_killed(apache_kafka_3: ApacheKafka, unique: str) -> None:
    servers = apache_kafka_3.bootstrap_servers
    frames = make_topics(servers, unique, replication=3)
    assert check_topics(servers, [frames]).topics[frames].replication == 3
    with KafkaProducer(bootstrap_servers=servers, reconnect_backoff_max_ms=1000, **producer_limits()) as producer:
        member = member_of(servers, frames, f"group-{unique}")
        try:
            for index in range(20):
                producer.send(frames, bytes([index]), key=b"station", partition=index % PARTITIONS)
            producer.flush(WAIT_S)
            seen = {(record.partition, record.offset): record.value[0] for record in take(member, 20)}
            apache_kafka_3.kill_broker(2)
            for index in range(20, 40):
                producer.send(frames, bytes([index]), key=b"station", partition=index % PARTITIONS)
            producer.flush(60)
            seen |= {(record.partition, record.offset): record.value[0] for record in take(member, 20)}
            # Idempotent producer: each frame once, in order, through the change of leaders.
            assert [seen[key] for key in sorted(seen)] == sorted(
                range(40), key=lambda index: (index % PARTITIONS, index)
            )
            member.commit({TopicPartition(frames, 0): OffsetAndMetadata(10, "", -1)}, timeout_ms=20_000)
            assert check_topics(servers, [frames]).identity(frames).cluster_id
        finally:
            member.close(autocommit=False, timeout_ms=3000)
            if apache_kafka_3.pid(2) is None:
                apache_kafka_3.start_broker(2)
