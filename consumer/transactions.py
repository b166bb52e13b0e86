"""Verdicts and the positions they answer in one Kafka transaction: the only place that begins, commits or gives one up.

kafka-python 3.0.12 has holes here, and each is designed around:

- `commit_transaction` reports success although a send has expired: every send's future is looked at before.
- After an abort, positions of the aborted transaction may be committed by the next one: nothing is ever aborted and
  used again. Whatever fails, the producer is closed and another one opened under the same transactional id; opening it
  makes the broker decide the old transaction, and the committed positions then tell how.
- An epoch that is bumped during a commit makes it report success: the epoch is compared before and after.
- Its waits have no bound: the same steps are taken here with one.

The broker refuses positions of an older generation of the group. What it does not check is whether a partition is ours
in the generation that we name. So the membership is asked for first and the claims are looked at second: a partition
whose claim still runs then was ours in that membership. And it takes positions of nobody (no member, no generation) at
any time, which is what the client calls itself from the moment that it hears of its exclusion: those are never sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import (
    AuthorizationError,
    IllegalStateError,
    InvalidRecordError,
    InvalidTimestampError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    RecordListTooLargeError,
    RetriableError,
    UnsupportedVersionError,
)

from consumer.delivery import Delivery
from consumer.errors import BrokerError, GivenUpError
from consumer.kafka_client import close_producer, refused, send
from consumer.topics import producer_limits
from consumer.wire import verdict_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from consumer.claims import Claim, Progress
    from consumer.events import Verdict
    from consumer.kafka_client import Connection
    from consumer.ports import Clock
    from consumer.tenure import Partition
    from consumer.wire import WireRecord

log = logging.getLogger(__name__)

TRANSACTION_TIMEOUT_S = 10.0
"""When the broker gives up a transaction whose producer is silent. Until then a dead consumer's partitions and every
reader of committed verdicts wait for it."""

COMMIT_S = 8.0
"""How long one transaction may take, from its first send: less than the broker's own patience."""

OPEN_S = 10.0
"""How long one attempt to open a producer may take."""

START_S = 60.0
"""How long a start may wait for a cluster that answers and cannot open a producer yet."""

REST_S = 0.5
"""Between two attempts."""

MOST_VERDICTS = 512
"""Verdicts in one transaction at most: what is behind them waits no longer than these take."""

FENCES_ALLOWED = 3
FENCE_WINDOW_S = 60.0
"""Fenced once, the broker may have given up a transaction that took too long; fenced again and again, another process
runs under the same transactional id."""


@dataclass(slots=True, eq=False)
class _Publication:
    """What `publish` was given."""

    delivery: Delivery
    records: Sequence[WireRecord]
    progress: Mapping[Partition, Progress]

    @property
    def runs(self) -> bool:
        """Whether all of it may still be recorded."""
        return all(step.claim.running for step in self.progress.values())

    @property
    def claims(self) -> list[Claim]:
        """Under which it was computed."""
        return [step.claim for step in self.progress.values()]

    def give_up(self, why: str) -> None:
        """Break its claims first: nothing later may be recorded over the gap. Only once its fate is decided."""
        for step in self.progress.values():
            step.claim.broken = True
        self.delivery.failed(GivenUpError(why))

    def settle(self) -> None:
        """It is stored."""
        for _ in self.records:
            self.delivery.arrived()


class TransactionalSink:
    """Publishes verdicts with the positions they answer, both or neither. See `Sink`.

    One thread of its own takes whatever waits, as one transaction: alone a verdict goes at once, under load many share
    the cost. The thread ends with `close`.
    """

    records_progress = True

    def __init__(
        self,
        connection: Connection,
        *,
        group: str,
        topic: str,
        transactional_id: str,
        membership: Callable[[], Any],
        clock: Clock,
        broken: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open a producer: the broker decides what an earlier one under the same id has left open.

        Args:
            connection: the cluster.
            group: names the source of the verdicts, and whose positions are recorded.
            topic: where verdicts go.
            transactional_id: of this consumer and no other; best one that outlives it, so that the next start frees at
                once what a crash has left open.
            membership: the source's: who we are in the group at this moment.
            clock: for bounds and rests.
            broken: told why, each time a transaction is given up; to be counted.

        Raises:
            BrokerError: the cluster cannot be reached, or keeps no transactions for us.
        """
        self._connection = connection
        self._group = group
        self._topic = topic
        self._id = transactional_id
        self._membership = membership
        self._clock = clock
        self._broken = broken
        self._waiting: deque[_Publication] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._deadline_s = 0.0
        self._fenced_at_s: deque[float] = deque(maxlen=FENCES_ALLOWED)
        self._failure: Exception | None = None
        self._producer: KafkaProducer | None = self._open_patiently()
        self._thread = threading.Thread(target=self._run, name="transactions", daemon=True)
        self._thread.start()

    def publish(self, verdicts: Sequence[Verdict], progress: Mapping[Partition, Progress]) -> Delivery:
        """See `Sink`."""
        delivery = Delivery(len(verdicts))
        try:
            records = [verdict_record(verdict, group=self._group) for verdict in verdicts]
        except (ValueError, TypeError) as error:
            delivery.failed(error)
            return delivery
        publication = _Publication(delivery, records, progress)
        with self._changed:
            failure, closing = self._failure, self._closing
            if failure is None and not closing and records:
                self._waiting.append(publication)
                self._changed.notify()
        if failure is not None:
            delivery.failed(failure)
        elif closing:
            publication.give_up("the sink is closed")
        return delivery

    def close(self, timeout_s: float) -> None:
        """See `Sink`."""
        with self._changed:
            self._closing = True
            self._deadline_s = self._clock.monotonic_s() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s + 1.0)
        if self._thread.is_alive():
            log.warning(
                "a transaction is still under way %.1f s after closing; the broker gives it up within %.0f s",
                timeout_s,
                TRANSACTION_TIMEOUT_S,
            )

    def _run(self) -> None:
        """The thread's life."""
        try:
            while (publications := self._take()) is not None:
                self._publish_together(publications)
        except Exception as error:  # whatever it is, those who wait have to hear of it
            log.exception("the thread that commits verdicts failed")
            self._fail(error if isinstance(error, BrokerError) else BrokerError(f"{type(error).__name__}: {error}"))
        finally:
            with self._changed:
                left, self._waiting = list(self._waiting), deque()
            for publication in left:
                publication.give_up("the sink was closed before its transaction began")
            if self._producer is not None:
                close_producer(self._producer, 0.0)

    def _take(self) -> list[_Publication] | None:
        """Wait for something to publish: whatever is there, up to a transaction's worth. None: it is over."""
        with self._changed:
            while not self._waiting:
                if self._closing or self._failure is not None:
                    return None
                self._changed.wait()
            if self._failure is not None or (self._closing and self._clock.monotonic_s() >= self._deadline_s):
                return None
            taken: list[_Publication] = []
            size = 0
            while self._waiting and (not taken or size + len(self._waiting[0].records) <= MOST_VERDICTS):
                taken.append(self._waiting.popleft())
                size += len(taken[-1].records)
            return taken

    def _publish_together(self, publications: list[_Publication]) -> None:
        """One transaction of those that may still be recorded."""
        membership = self._membership()  # before the claims are looked at
        running: list[_Publication] = []
        passed: list[_Publication] = []
        gaps: set[Claim] = set()
        belongs = _belongs(membership)
        for publication in publications:  # in order: what one gives up, a later one must not pass over
            if belongs and publication.runs and gaps.isdisjoint(publication.claims):
                running.append(publication)
            else:
                passed.append(publication)
                gaps.update(publication.claims)
        if running:
            self._publish_running(running, membership)
        # Not before those are decided: given up, a claim is read again from the committed position at once, and theirs
        # may be the same.
        for publication in passed:
            publication.give_up(
                "its partitions were lost, or an earlier publication of theirs was given up"
                if belongs
                else "the group has excluded this consumer"
            )

    def _publish_running(self, publications: list[_Publication], membership: Any) -> None:
        """The transaction, and what becomes of its publications."""
        try:
            self._transact(publications, membership)
        except (KafkaError, IllegalStateError) as error:
            self._recover(publications, error)
        else:
            for publication in publications:
                publication.settle()

    def _transact(self, publications: list[_Publication], membership: Any) -> None:
        """Begin, send, commit; returns only where all of it is known to be stored.

        Raises:
            KafkaError, IllegalStateError: not stored, or not known.
        """
        producer = self._producer
        if producer is None:
            msg = "no producer is open"
            raise IllegalStateError(msg)
        manager = producer._transaction_manager  # noqa: SLF001 - the public calls wait without a bound
        end_s = self._clock.monotonic_s() + COMMIT_S
        epoch = str(manager.producer_id_and_epoch)
        producer.begin_transaction()
        futures = [
            send(producer, self._topic, record) for publication in publications for record in publication.records
        ]
        offsets = {
            TopicPartition(*partition): OffsetAndMetadata(step.offset, "", -1)
            for publication in publications
            for partition, step in publication.progress.items()
        }
        if offsets:
            self._wait(manager.send_offsets_to_transaction(offsets, membership), end_s, "recording positions")
        producer.flush(max(0.0, end_s - self._clock.monotonic_s()))
        for future in futures:
            if not future.succeeded():
                raise future.exception or KafkaTimeoutError("a verdict was not acknowledged")
        self._wait(manager.begin_commit(), end_s, "committing")
        if str(manager.producer_id_and_epoch) != epoch:
            msg = "the producer's epoch changed during a commit: whether it was committed is not known"
            raise IllegalStateError(msg)

    def _wait(self, result: Any, end_s: float, doing: str) -> None:
        """Wait for a step of a transaction, with a bound."""
        producer = self._producer
        if producer is not None:
            producer._sender.wakeup()  # noqa: SLF001 - as the public calls do
        if not result.wait(timeout_ms=max(1.0, (end_s - self._clock.monotonic_s()) * 1000)):
            msg = f"no answer within {COMMIT_S:g} s while {doing}"
            raise KafkaTimeoutError(msg)

    def _recover(self, publications: list[_Publication], error: Exception) -> None:
        """Have the broker decide what was under way, and give it up: the committed positions tell what became of it."""
        why = f"{type(error).__name__}: {error}"
        log.warning("a transaction of %d publications failed: %s", len(publications), why)
        self._broken(why)
        failure = self._fatal(error)
        if self._producer is not None:
            close_producer(self._producer, 0.0)
            self._producer = None
        while failure is None and self._producer is None:
            try:
                self._producer = self._open()
            except BrokerError as refusal:
                failure = self._fatal(refusal.__cause__ or refusal)
                with self._changed:
                    over = self._closing and self._clock.monotonic_s() >= self._deadline_s
                    if not over:
                        self._changed.wait(REST_S)
                if over:
                    break
        if failure is not None:
            for publication in publications:
                publication.delivery.failed(failure)
            self._fail(failure)
            return
        for publication in publications:
            publication.give_up(why)

    def _fatal(self, error: BaseException) -> BrokerError | None:
        """The error to end with, where trying again cannot help."""
        if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
            return BrokerError(f"a verdict is too large for topic {self._topic}: {error}; raise max.message.bytes")
        if isinstance(error, InvalidTimestampError | InvalidRecordError):
            return BrokerError(
                f"topic {self._topic} refuses a verdict for its time: {error}; set this machine's clock, or let the "
                "broker stamp the topic: message.timestamp.type=LogAppendTime"
            )
        if isinstance(error, AuthorizationError | UnsupportedVersionError):
            return BrokerError(
                f"transactions are refused: {type(error).__name__}: {error}; grant the right to transactional id "
                f"{self._id!r}, group {self._group!r} and topic {self._topic!r}, or run with --delivery at-least-once"
            )
        if isinstance(error, ProducerFencedError):
            now_s = self._clock.monotonic_s()
            self._fenced_at_s.append(now_s)
            if len(self._fenced_at_s) == FENCES_ALLOWED and now_s - self._fenced_at_s[0] <= FENCE_WINDOW_S:
                return BrokerError(
                    f"another consumer runs as transactional id {self._id!r}: expected one of its own for each; give "
                    "every consumer another --instance"
                )
        return None

    def _fail(self, error: Exception) -> None:
        """From now on everything fails with this."""
        with self._changed:
            self._failure = error
            left, self._waiting = list(self._waiting), deque()
        for publication in left:
            publication.delivery.failed(error)

    def _open_patiently(self) -> KafkaProducer:
        """The first one: the coordinator may be moving, or a transaction of our last life not be decided yet.

        Raises:
            BrokerError: not within `START_S`, or never.
        """
        end_s = self._clock.monotonic_s() + START_S
        while True:
            try:
                return self._open()
            except BrokerError as refusal:
                if not isinstance(refusal.__cause__, RetriableError) or self._clock.monotonic_s() >= end_s:
                    raise
                log.warning("transactions cannot begin yet: %s; trying on", refusal)
                time.sleep(REST_S)

    def _open(self) -> KafkaProducer:
        """A producer whose id is ours and whose predecessor's transaction is decided.

        Raises:
            BrokerError: not now; its cause says whether ever.
        """
        common = self._connection.common()
        common["request_timeout_ms"] = min(common["request_timeout_ms"], int(COMMIT_S * 1000) - 1000)
        producer = None
        try:
            producer = KafkaProducer(
                **common,
                bootstrap_timeout_ms=int(OPEN_S * 1000),
                acks="all",
                enable_idempotence=True,
                transactional_id=self._id,
                transaction_timeout_ms=int(TRANSACTION_TIMEOUT_S * 1000),
                allow_auto_create_topics=False,
                **producer_limits(),
                delivery_timeout_ms=int(COMMIT_S * 1000),
                max_block_ms=int(OPEN_S * 1000),
                # Slept in full whenever the broker is still busy with the last transaction's end.
                retry_backoff_ms=5,
            )
            producer.init_transactions()
            producer.partitions_for(self._topic)
        except (KafkaError, IllegalStateError) as error:
            if producer is not None:
                close_producer(producer, 0.0)
            raise refused(self._connection, error) from error
        return producer


def _belongs(membership: Any) -> bool:
    """Whether this names a member of a group in one of its generations."""
    return membership.generation_id >= 0 and bool(membership.member_id)
