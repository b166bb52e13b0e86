"""Read verdicts from their topic, as a dashboard would: from the beginning, without a group."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from consumer.bootstrap import NoAnswerError, bootstrapped
from consumer.errors import BrokerError
from consumer.topics import consumer_limits
from consumer.wire import parse_verdict

if TYPE_CHECKING:
    from collections.abc import Mapping


CONNECT_S = 10.0


class VerdictReader:
    """Every verdict of a topic, oldest first within a partition. Belongs to one thread; a context manager."""

    def __init__(
        self, bootstrap_servers: str, topic: str = "verdicts", client: Mapping[str, object] | None = None
    ) -> None:
        """Connect.

        Args:
            bootstrap_servers: host:port, comma-separated.
            topic: where the verdicts are.
            client: further settings of kafka-python's consumer, such as TLS.

        Raises:
            BrokerError: the cluster does not answer.
        """
        build = partial(
            KafkaConsumer,
            bootstrap_servers=bootstrap_servers,
            group_id=None,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            isolation_level="read_committed",  # a verdict of a transaction that was given up was never given
            metrics_enabled=False,
            **consumer_limits(),
            **(client or {}),
        )
        try:
            self._consumer = bootstrapped(build, within_s=CONNECT_S)
            partitions = [TopicPartition(topic, number) for number in self._consumer.partitions_for_topic(topic) or ()]
        except (KafkaError, NoAnswerError) as error:
            msg = f"verdicts cannot be read from {bootstrap_servers}: {error}; see that the broker runs"
            raise BrokerError(msg) from error
        self._consumer.assign(partitions)
        self._consumer.seek_to_beginning(*partitions)

    def poll(self, timeout_s: float) -> list[dict[str, Any]]:
        """Verdict documents that have come, waiting up to `timeout_s` for the first. Raises InputError on others."""
        records = self._consumer.poll(timeout_ms=int(timeout_s * 1e3))
        return [parse_verdict(record.value) for batch in records.values() for record in batch]

    def close(self) -> None:
        """Leave."""
        self._consumer.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
