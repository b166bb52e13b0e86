"""Frames into Kafka: kafka-python's producer with a bound on what is under way, and clear words at the start."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError

from consumer.errors import BrokerError, SettingsError
from consumer.topics import CONNECT_TIMEOUT_S, check_topics, producer_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from consumer.wire import WireRecord

LIMIT_OUTSTANDING_BYTES = 64 * 1024 * 1024
"""Encoded images under way at once; kafka-python itself has no such bound."""

DELIVERY_TIMEOUT_S = 20.0
"""After this a frame is stored or lost, retries included."""

_CLOSE_S = 5.0


class KafkaFrameProducer:
    """A `FrameProducer` on Apache Kafka: acknowledged by all in-sync replicas, without duplicates by retries.

    A context manager. Every frame is stored or lost within about the delivery timeout, so that `send`, `flush` and a
    stop end also where the broker has gone.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        *,
        client: Mapping[str, Any] | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        limit_outstanding_bytes: int = LIMIT_OUTSTANDING_BYTES,
    ) -> None:
        """Keep the settings; nothing is connected before the context is entered.

        Args:
            bootstrap_servers: `host:port`, several with commas between them.
            topic: must exist: a topic made in passing would have the wrong partitions and size limits.
            client: further settings of the Kafka client: TLS, SASL.
            connect_timeout_s: how long to wait for the broker.
            delivery_timeout_s: after this a frame is lost, retries included.
            limit_outstanding_bytes: `send` waits above it; one frame alone may be larger.
        """
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._client = dict(client or {})
        self._connect_timeout_s = connect_timeout_s
        self._delivery_timeout_s = delivery_timeout_s
        self._limit_bytes = limit_outstanding_bytes
        self._outstanding_bytes = 0
        self._room = threading.Condition()
        self._producer: Any = None

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            SettingsError: the address is no address.
            BrokerError: no broker answers there within the time, or it refuses.
            TopicError: the topic is not there, or not for us.
        """
        try:
            check_topics(self._bootstrap_servers, [self._topic], client=self._client, timeout_s=self._connect_timeout_s)
            self._producer = KafkaProducer(
                **producer_limits(),
                **self._client,
                bootstrap_servers=self._bootstrap_servers,
                bootstrap_timeout_ms=round(self._connect_timeout_s * 1000),
                client_id="framegate-camera",
                acks="all",
                enable_idempotence=True,
                linger_ms=2,
                max_block_ms=round(self._connect_timeout_s * 1000),
                request_timeout_ms=round(self._delivery_timeout_s * 500),
                delivery_timeout_ms=round(self._delivery_timeout_s * 1000),
            )
        except ValueError as error:
            msg = (
                f"broker address {self._bootstrap_servers!r} is not understood ({error}): expected host:port, several "
                "with commas between them; correct --bootstrap-servers"
            )
            raise SettingsError(msg) from error
        except KafkaError as error:
            msg = (
                f"the broker at {self._bootstrap_servers} takes no frames ({error}): "
                "see its log and this client's rights, then start again"
            )
            raise BrokerError(msg) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go; what is still under way has a few seconds."""
        # A frame that did not arrive is in the report by now: closing has nothing to add.
        with suppress(KafkaError):
            self._producer.close(timeout=_CLOSE_S)

    def send(self, record: WireRecord, on_done: Callable[[BaseException | None], None]) -> None:
        """Begin to send one frame; waits while too much is under way. See `FrameProducer`."""
        size = len(record.value or b"")
        self._take_room(size)

        def settle(error: BaseException | None) -> None:
            self._give_room(size)
            on_done(error)

        try:
            future = self._producer.send(
                self._topic,
                value=record.value,
                key=record.key,
                headers=record.headers,
                timestamp_ms=record.timestamp_ms,
            )
        except KafkaError as error:
            settle(error)
            return
        future.add_callback(lambda _metadata: settle(None))
        future.add_errback(settle)

    def flush(self) -> None:
        """Wait until every frame is stored or lost."""
        # Past the delivery timeout nothing is open; if something is, the report counts it as not acknowledged.
        with suppress(KafkaError):
            self._producer.flush(timeout=self._delivery_timeout_s + _CLOSE_S)

    def _take_room(self, size: int) -> None:
        """Wait for room; a frame larger than all the room goes alone."""
        with self._room:
            self._room.wait_for(lambda: self._fits(size))
            self._outstanding_bytes += size

    def _fits(self, size: int) -> bool:
        """Whether there is room; called with the lock held."""
        return self._outstanding_bytes == 0 or self._outstanding_bytes + size <= self._limit_bytes

    def _give_room(self, size: int) -> None:
        """A frame is stored or lost."""
        with self._room:
            self._outstanding_bytes -= size
            self._room.notify_all()
