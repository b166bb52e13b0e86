"""The topic of dead letters may refuse them for a while: those are lost and counted, later ones are not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import MessageSizeTooLargeError

from consumer.clock import SystemClock
from consumer.kafka_client import Connection
from consumer.kafka_io import KafkaDeadLetterTopic
from consumer.topics import ensure_topics
from consumer.wire import WireRecord

if TYPE_CHECKING:
    from tests.kafka_cluster import RunningBroker

WAIT_S = 20.0


def is_taken(topic: KafkaDeadLetterTopic) -> bool:
    """Whether one letter sent now is stored."""
    try:
        topic.send(WireRecord(b"station", b"{}", [], None)).get(WAIT_S)
    except MessageSizeTooLargeError:
        return False
    return True


def limit(servers: str, topic: str, largest_bytes: int) -> None:
    """Of what the topic takes."""
    wanted = {"max.message.bytes": str(largest_bytes)}
    with KafkaAdminClient(bootstrap_servers=servers) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, wanted)])


def until(taken: bool, topic: KafkaDeadLetterTopic) -> None:
    """The broker hears of its own setting a little later."""
    end_s = time.monotonic() + WAIT_S
    while is_taken(topic) is not taken:
        assert time.monotonic() < end_s


def test_a_refusal_costs_the_letters_it_refuses_and_no_later_ones(apache_kafka: RunningBroker, unique: str) -> None:
    servers, dead = apache_kafka.bootstrap_servers, f"dead-{unique}"
    ensure_topics(
        servers, partitions=1, replication=1, frames=f"frames-{unique}", verdicts=f"verdicts-{unique}", dead=dead
    )
    topic = KafkaDeadLetterTopic(Connection(servers), topic=dead, clock=SystemClock())
    try:
        assert is_taken(topic)
        limit(servers, dead, 1)
        until(taken=False, topic=topic)
        limit(servers, dead, 100_000)
        until(taken=True, topic=topic)
    finally:
        topic.close(1.0)
