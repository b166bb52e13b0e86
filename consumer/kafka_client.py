"""How Framegate uses kafka-python: reaching a cluster, and what its producers have in common."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from consumer.bootstrap import NoAnswerError, bootstrapped
from consumer.errors import BrokerError
from consumer.topics import producer_limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consumer.wire import WireRecord

BOOTSTRAP_S = 60.0
"""How long a consumer tries to reach its cluster, which `check_topics` did a moment ago: a broker may die between."""

FORCED_S = 1.0
"""How long a sender is waited for that was told to give up."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the cluster.

    Attributes:
        bootstrap_servers: host:port, comma-separated.
        client_id: how we show in the broker's logs and quotas.
        security: the client's own settings for TLS and SASL, hidden from logs.
    """

    bootstrap_servers: str
    client_id: str = "framegate"
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def common(self) -> dict[str, Any]:
        """What consumer and producer have in common."""
        return {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "client_id": self.client_id,
            "request_timeout_ms": 15_000,
            "reconnect_backoff_max_ms": 2_000,
            "metadata_max_age_ms": 60_000,
            "metrics_enabled": False,
            **self.security,
        }


def idempotent_producer(connection: Connection, *, delivery_timeout_s: float, max_block_s: float) -> KafkaProducer:
    """One that neither doubles nor swaps records by trying again; a topic that refuses a record ends it for good."""
    return _producer(connection, delivery_timeout_s, max_block_s, idempotent=True)


def plain_producer(connection: Connection, *, delivery_timeout_s: float, max_block_s: float) -> KafkaProducer:
    """One that outlives a refusal; trying again may double a record."""
    return _producer(connection, delivery_timeout_s, max_block_s, idempotent=False)


def _producer(
    connection: Connection, delivery_timeout_s: float, max_block_s: float, *, idempotent: bool
) -> KafkaProducer:
    """A producer that waits for all replicas in sync."""
    common = connection.common()
    common["request_timeout_ms"] = min(common["request_timeout_ms"], int(delivery_timeout_s * 1000))
    build = partial(
        KafkaProducer,
        **common,
        acks="all",
        enable_idempotence=idempotent,
        allow_auto_create_topics=False,
        **producer_limits(),
        delivery_timeout_ms=int(delivery_timeout_s * 1000),
        max_block_ms=int(max_block_s * 1000),
    )
    try:
        return bootstrapped(build, within_s=BOOTSTRAP_S)
    except (KafkaError, NoAnswerError) as error:
        raise refused(connection, error) from error


def send(producer: KafkaProducer, topic: str, record: WireRecord) -> Any:
    """Hand one record to the producer."""
    return producer.send(
        topic, value=record.value, key=record.key, headers=record.headers, timestamp_ms=record.timestamp_ms
    )


def close_producer(producer: KafkaProducer, timeout_s: float) -> None:
    """Close it, by force where records are left: `close` alone then raises and leaves its threads running.

    A sender that waits for a silent broker ends when that wait does, a few seconds later, without sending any more.
    """
    try:
        producer.close(timeout=timeout_s)
    except KafkaTimeoutError:
        sender = producer._sender  # noqa: SLF001 - the client has no public way to give up
        sender.force_close()
        sender.join(FORCED_S)
        with suppress(KafkaTimeoutError):
            producer.close(timeout=0)


def refused(connection: Connection, error: Exception) -> BrokerError:
    """The cluster could not be used."""
    return BrokerError(
        f"Kafka at {connection.bootstrap_servers} cannot be used: {type(error).__name__}: {error}; "
        "check the address, that the broker runs, the security settings, and this client's rights"
    )
