"""Kafka behind the ports, through kafka-python. No name of that client leaves this file.

What was found out about the client, and is designed around here: rebalance listeners run on its I/O thread, so they
only record; a broker that is gone raises nothing from `poll`, so readiness is taken from the group and the commits; a
commit is not checked for ownership by the broker, so it is here; closing a producer with records under way fails unless
it is forced.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    CommitFailedError,
    CorruptRecordError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    RetriableError,
)
from kafka.structs import MemberState

from consumer.bootstrap import NoAnswerError, bootstrapped
from consumer.claims import Claim
from consumer.delivery import Delivery
from consumer.embedded_groups import EmbeddedMember
from consumer.errors import BrokerError
from consumer.events import Position
from consumer.kafka_client import (
    BOOTSTRAP_S,
    close_producer,
    idempotent_producer,
    plain_producer,
    refused,
    send,
)
from consumer.ports import Fetched, TenureChange
from consumer.tenure import Partition
from consumer.topics import MAX_MESSAGE_BYTES
from consumer.wire import frame_from_record, verdict_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kafka.structs import ConsumerGroupMetadata

    from consumer.claims import Progress
    from consumer.events import Frame, Verdict
    from consumer.kafka_client import Connection
    from consumer.ports import Clock
    from consumer.wire import WireRecord

log = logging.getLogger(__name__)

FETCH_BYTES = 2 * MAX_MESSAGE_BYTES
"""What one broker may send in one answer: the client holds it beside what the pipeline counts."""

PARTITION_FETCH_BYTES = 2 * 1024 * 1024
"""A partition's share of an answer. Small, so that a backlog in one does not keep the others waiting; a larger frame
passes all the same, since a broker sends at least one batch (KIP-74)."""

FETCH_WAIT_S = 0.1
"""Apache Kafka answers as soon as a frame is there, so this only spares it and us idle questions."""

DELIVERY_S = 24 * 3600.0
"""How long a verdict is tried: a broker that is away is waited for, with fetching held back by the budget, and nothing
is lost or given up meanwhile."""

SEND_BLOCK_S = 20.0
"""How long one send may wait for a topic that has vanished, before the consumer ends: below what liveness allows."""

JOIN_S = 1.0
"""How long a poll waits, at least, while the group forms. kafka-python 3.0.12 throws a join away that ends between two
polls and begins another: with short polls, as under backpressure, a member may never get in."""

LINGER_S = 30.0
"""How long a member that stops holds a change of its group up, at most: half of what the group waits for it."""

FRESH_S = 0.5
"""How long ago a partition was last seen read to its end, at most, for what comes of it then to have just been sent."""

DEAD_LETTER_START_S = 5.0
DEAD_LETTER_BLOCK_S = 0.1
DEAD_LETTER_DELIVERY_S = 20.0
DEAD_LETTER_REST_S = 30.0


class _Changes(ConsumerRebalanceListener):  # type: ignore[misc] # the client is not typed
    """Records changes of ownership; runs on the client's I/O thread, where anything slower stops the heartbeats."""

    def __init__(self) -> None:
        """Begin with none."""
        self.recorded: deque[TenureChange] = deque()
        self._claims: dict[Partition, Claim] = {}

    @property
    def broken(self) -> tuple[Partition, ...]:
        """Held partitions whose claim a sink has broken."""
        return tuple(sorted(partition for partition, claim in self._claims.items() if claim.broken))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Given back in order."""
        self._record("revoked", revoked)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Ours."""
        self._record("assigned", assigned)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """Taken from us: the session ended."""
        self._record("lost", lost)

    def _record(self, kind: Any, partitions: Iterable[TopicPartition]) -> None:
        """Keep it for the thread that polls. Claims end here and now: a commit may be under way on another thread."""
        ours = tuple(sorted(Partition(*partition) for partition in partitions))
        for partition in ours:
            if partition in self._claims:
                self._claims.pop(partition).over = True
        if not ours:
            return
        claims = tuple(Claim() for _ in ours) if kind == "assigned" else ()
        self._claims.update(zip(ours, claims, strict=bool(claims)))
        self.recorded.append(TenureChange(kind, ours, claims))


class _Assignor(CooperativeStickyAssignor):  # type: ignore[misc] # the client is not typed
    """Cooperative-sticky, telling the group's leader of what we really hold.

    In kafka-python 3.0.12 the assignor tells of what it was last given, also after the group has thrown us out and
    others have it. The leader then takes that for ours and hands it to us in the same generation in which its true
    owner still has it: both may commit for it then.
    """

    def __init__(self, held: Callable[[], Iterable[TopicPartition]]) -> None:
        """`held` is asked on the client's I/O thread before each request to join."""
        super().__init__()
        self._held = held

    def metadata(self, topics: Iterable[str]) -> Any:
        """What a request to join says of us."""
        self.member_assignment = list(self._held())
        return super().metadata(topics)


class KafkaSource:
    """A member of a consumer group. See `Source` for the contract.

    Positions: a group without a committed position begins at the oldest frame kept; a frame is never skipped. Frames
    are read as committed: of a transactional camera only what it committed.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        group: str,
        topic: str,
        clock: Clock,
        session_timeout_s: float = 10.0,
        fetch_wait_s: float = FETCH_WAIT_S,
        embedded: bool = False,
    ) -> None:
        """Join the group with the first polls. The topic must be there: the client would create a missing one.

        Args:
            connection: the cluster.
            group: the consumer group.
            topic: where frames are.
            clock: stamps what is fetched.
            session_timeout_s: how long a dead member keeps its partitions.
            fetch_wait_s: how long the broker may hold an answer back while there is no frame.
            embedded: whether it is the embedded broker, whose groups need care.

        Raises:
            BrokerError: the cluster cannot be reached, or refuses us.
        """
        self._clock = clock
        self._changes = _Changes()
        self._held: set[Partition] = set()
        self._next: dict[Partition, int] = {}
        self._at_end_s: dict[Partition, float] = {}
        self._paused = False
        self._linger_s = min(session_timeout_s, LINGER_S)
        self._lingers_since_s: float | None = None
        self._answering = True
        self._closed = False
        session_ms = int(session_timeout_s * 1000)
        build = partial(
            KafkaConsumer,
            **connection.common(),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            partition_assignment_strategy=(_Assignor(self._held_when_joining),),
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(3_000, session_ms // 6),
            max_poll_interval_ms=max(60_000, session_ms),
            fetch_max_wait_ms=int(fetch_wait_s * 1000),
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            receive_message_max_bytes=4 * FETCH_BYTES,
        )
        try:
            self._consumer = bootstrapped(build, within_s=BOOTSTRAP_S)
        except (KafkaError, NoAnswerError) as error:
            raise refused(connection, error) from error
        self._care = EmbeddedMember(self._consumer) if embedded else None
        self._consumer.subscribe([topic], listener=self._changes)

    def poll(self, timeout_s: float, max_frames: int) -> Fetched:
        """See `Source`. The client changes ownership only before it hands out frames, never between: so do we."""
        if self._consumer.group_metadata().state != MemberState.STABLE:
            timeout_s = max(timeout_s, JOIN_S)
        try:
            records = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_frames)
        except RetriableError as error:
            log.warning("fetching failed for now: %s", error)
            records = {}
        except CorruptRecordError as error:
            return self._set_aside(error)
        except (KafkaError, IllegalStateError) as error:
            msg = f"frames cannot be fetched: {type(error).__name__}: {error}; check the group's and the topic's rights"
            raise BrokerError(msg) from error
        at_s, now_s = self._clock.monotonic_s(), self._clock.epoch_s()
        self._mend_join()
        changes = self._take_changes()
        lines = [self._frames(Partition(*partition), batch, now_s) for partition, batch in records.items()]
        turns = itertools.zip_longest(*lines)
        frames = tuple(frame for turn in turns for frame in turn if frame is not None)
        return Fetched(changes, frames, at_s, self._fresh({Partition(*partition) for partition in records}, at_s))

    def pause(self) -> None:
        """See `Source`."""
        self._paused = True
        self._pause_all()

    def linger(self) -> Fetched:
        """See `Source`. Only a poll joins anew; heartbeats and commits do without.

        kafka-python sends no commit from its request to join until the group has formed: as long as the slowest member
        takes, and on the embedded broker half a session. When several members stop, each that leaves has the others
        join, and the time to drain would go by on that, for partitions that nobody reads any more. Until we join, a
        broker takes our positions as those of the generation that we are in.
        """
        at_s = self._clock.monotonic_s()
        if self._lingers_since_s is None:
            self._lingers_since_s = at_s
        joined = self._consumer.group_metadata().state == MemberState.STABLE
        if not joined or at_s - self._lingers_since_s >= self._linger_s:
            return self.poll(0.0, 1)
        return Fetched(self._take_changes(), (), at_s)

    def resume(self) -> None:
        """See `Source`."""
        self._paused = False
        for partition in self._consumer.paused():
            try:
                self._consumer.resume(partition)
            except KeyError:  # taken from us a moment ago
                continue

    def commit(self, positions: Mapping[Partition, int], timeout_s: float) -> bool:
        """See `Source`."""
        leaving = {partition for change in tuple(self._changes.recorded) for partition in change.partitions}
        offsets = {
            TopicPartition(*partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in positions.items()
            if partition in self._held and partition not in leaving
        }
        try:
            self._consumer.commit(offsets, timeout_ms=int(timeout_s * 1000))
        except (RebalanceInProgressError, CommitFailedError) as error:
            log.info("positions not committed while the group changes: %s", error)
            return False
        except RetriableError as error:
            self._answering = False
            log.warning("positions not committed for now: %s: %s", type(error).__name__, error)
            return False
        except (KafkaError, IllegalStateError) as error:
            msg = f"positions cannot be committed: {type(error).__name__}: {error}; check the group's rights"
            raise BrokerError(msg) from error
        self._answering = True
        return True

    def rewind(self, timeout_s: float) -> bool:
        """See `Source`. Positions are read as stable: one that a transaction is about to move is waited for."""
        end_s = self._clock.monotonic_s() + timeout_s
        positions: dict[TopicPartition, int | None] = {}
        self._forget_positions()
        try:
            for partition in self._changes.broken:
                left_ms = max(1, int((end_s - self._clock.monotonic_s()) * 1000))
                positions[TopicPartition(*partition)] = self._consumer.committed(
                    TopicPartition(*partition), timeout_ms=left_ms
                )
        except RetriableError as error:
            log.warning("the committed positions cannot be read for now: %s: %s", type(error).__name__, error)
            return False
        except (KafkaError, IllegalStateError) as error:
            msg = f"committed positions cannot be read: {type(error).__name__}: {error}; check the group's rights"
            raise BrokerError(msg) from error
        moved = [partition for partition, offset in positions.items() if self._seek(partition, offset)]
        self._changes.on_partitions_assigned(moved)
        return True

    def _seek(self, partition: TopicPartition, offset: int | None) -> bool:
        """Read on from there; False where the partition was taken from us a moment ago."""
        try:
            if offset is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(partition, offset)
        except (IllegalStateError, AssertionError, KeyError):
            return False
        return True

    def membership(self) -> ConsumerGroupMetadata:
        """Who we are in the group at this moment: what the broker checks a transaction's positions against.

        To be asked for before the claims are looked at. Any thread.
        """
        return self._consumer.group_metadata()

    def lag(self) -> Mapping[Partition, int]:
        """See `Source`."""
        behind = {}
        for partition in self._held:
            ends = self._highwater(partition)
            position = self._next.get(partition)
            if ends is not None and position is not None:
                behind[partition] = max(0, ends - position)
        return behind

    def ready(self) -> bool:
        """See `Source`. A lost broker shows with the first heartbeat that fails, or with a commit."""
        if self._closed or not self._answering:
            return False
        # The group's state alone stays as it was while the broker is away, and the client tells nothing else in public.
        known = self._consumer._coordinator.coordinator_id is not None  # noqa: SLF001 - see above
        return known and self._consumer.group_metadata().state == MemberState.STABLE

    def close(self, timeout_s: float) -> None:
        """See `Source`."""
        if self._closed:
            return
        self._closed = True
        if self._care is not None:
            self._care.leave()
        try:
            self._consumer.close(autocommit=False, timeout_ms=int(timeout_s * 1000))
        except KafkaError as error:
            log.warning("the group was not left in order: %s; it notices when the session ends", error)

    def _set_aside(self, error: CorruptRecordError) -> Fetched:
        """Step over a record that the client cannot read, and hand it out as a frame without an image.

        A header whose name is not UTF-8 is enough for the client to refuse a record, for ever; so is a batch whose
        checksum does not fit. Every restart would end there. Like this the frame gets its verdict, `none`, and the
        rest goes on; so do the frames behind it in the same producer's batch, which the client reads from the front.
        Which record it is, the client does not say in public.

        Raises:
            BrokerError: the client does not know the record either.
        """
        unread = self._consumer._fetcher._next_partition_records  # noqa: SLF001 - see above
        if not unread:
            msg = f"a record cannot be read, and the client does not say which: {error}"
            raise BrokerError(msg) from error
        partition = Partition(*unread.topic_partition)
        # Not where the client has read to: behind the middle of a batch it begins again at the batch's front.
        offset = self._consumer.position(unread.topic_partition)
        self._consumer.seek(unread.topic_partition, offset + 1)
        log.warning("record %d of %s-%d cannot be read: %s", offset, partition.topic, partition.number, error)
        at_s, now_s = self._clock.monotonic_s(), self._clock.epoch_s()
        changes = self._take_changes()
        position = Position(partition.topic, partition.number, offset)
        frame = frame_from_record(position, key=None, value=None, headers=[], timestamp_ms=None, now_s=now_s)
        held = partition in self._held
        if held:
            self._next[partition] = offset + 1
        return Fetched(changes, (frame,) if held else (), at_s)

    def _held_when_joining(self) -> Iterable[TopicPartition]:
        """What is ours as a request to join goes out; on the client's I/O thread.

        Where the group has thrown us out, nothing is. The client tells its listener so before it begins to join, but
        not where it is found out by a join that had begun already: kafka-python 3.0.12 then goes on reading as if
        nothing had happened, from where it was, whatever others have answered meanwhile.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001 - the client tells it nowhere in public
        subscription = coordinator._subscription  # noqa: SLF001 - the same
        held: set[TopicPartition] = subscription.assigned_partitions()
        if held and coordinator._generation.is_lost():  # noqa: SLF001 - the same
            self._changes.on_partitions_lost(held)
            subscription.assign_from_subscribed([])
            held = set()
        self._forget_positions()
        return held

    def _forget_positions(self) -> None:
        """Have committed positions asked for anew.

        kafka-python 3.0.12 keeps a question that nobody has waited for to its end, and gives its answer, however old,
        to the next one who asks for the same partitions.
        """
        self._consumer._coordinator._offset_fetch_futures.clear()  # noqa: SLF001 - see above

    def _mend_join(self) -> None:
        """Have a rejoin finished that the client has begun and forgotten.

        In kafka-python 3.0.12 a rejoin for changed metadata (partitions added, or learnt late) is needed only until its
        leader has assigned. A poll that times out between that and the broker's answer leaves it under way, and no
        later poll asks for it: no heartbeat, no partition, no error, for ever.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001 - the client has no public way to ask for a rejoin
        if self._consumer.group_metadata().state == MemberState.REBALANCING and not coordinator.need_rejoin():
            log.info("asking for the rejoin that the client has forgotten")
            coordinator.request_rejoin()

    def _take_changes(self) -> tuple[TenureChange, ...]:
        """What the listener recorded, applied here."""
        taken = []
        while self._changes.recorded:
            change = self._changes.recorded.popleft()
            taken.append(change)
            for partition in change.partitions:
                self._next.pop(partition, None)
            if change.kind == "assigned":
                self._held.update(change.partitions)
            else:
                self._held.difference_update(change.partitions)
        if taken and self._paused:
            self._pause_all()
        return tuple(taken)

    def _pause_all(self) -> None:
        """Pause what is assigned now."""
        for partition in self._consumer.assignment():
            try:
                self._consumer.pause(partition)
            except KeyError:  # taken from us a moment ago
                continue

    def _frames(self, partition: Partition, records: Sequence[Any], now_s: float) -> list[Frame]:
        """One partition's records as frames; none where it is not ours any more."""
        if partition not in self._held or not records:
            return []
        self._next[partition] = records[-1].offset + 1
        return [
            frame_from_record(
                Position(record.topic, record.partition, record.offset),
                key=record.key,
                value=record.value,
                headers=record.headers,
                timestamp_ms=record.timestamp,
                now_s=now_s,
            )
            for record in records
        ]

    def _fresh(self, brought: set[Partition], at_s: float) -> frozenset[Partition]:
        """Of what a poll brought, what was not there at the poll before; and remember what is read to its end now."""
        at_end = {partition for partition in self._held if self._is_at_end(partition)}
        fresh = frozenset(
            partition
            for partition in brought & at_end
            if at_s - self._at_end_s.get(partition, float("-inf")) <= FRESH_S
        )
        if not self._paused:
            self._at_end_s = dict.fromkeys(at_end, at_s)
        return fresh

    def _is_at_end(self, partition: Partition) -> bool:
        """Whether nothing is behind what was fetched of it, as of the last answer of the broker."""
        position = self._next.get(partition)
        return position is not None and position == self._highwater(partition)

    def _highwater(self, partition: Partition) -> int | None:
        """The offset that the partition's next frame will have, as of the last fetch."""
        try:
            ends: int | None = self._consumer.highwater(TopicPartition(*partition))
        except (IllegalStateError, KeyError):  # taken from us a moment ago
            return None
        return ends


class KafkaSink:
    """Verdicts through an idempotent producer. See `Sink` for the contract.

    Keyed by station, so that a station's verdicts stay in one partition and in order.
    """

    records_progress = False

    def __init__(
        self, connection: Connection, *, group: str, topic: str, delivery_timeout_s: float = DELIVERY_S
    ) -> None:
        """Connect. The topic must be there: the client would create a missing one.

        Args:
            connection: the cluster.
            group: names the source of the verdicts.
            topic: where verdicts go.
            delivery_timeout_s: how long one verdict is tried.

        Raises:
            BrokerError: the cluster cannot be reached, or refuses us.
        """
        self._group = group
        self._topic = topic
        self._producer = idempotent_producer(
            connection, delivery_timeout_s=delivery_timeout_s, max_block_s=SEND_BLOCK_S
        )
        try:
            # Learnt now, so that the first verdict does not wait for it on the loop's thread.
            self._producer.partitions_for(topic)
        except KafkaError as error:
            close_producer(self._producer, 0.0)
            raise refused(connection, error) from error

    def publish(
        self,
        verdicts: Sequence[Verdict],
        progress: Mapping[Partition, Progress],  # noqa: ARG002 - the source commits
    ) -> Delivery:
        """See `Sink`."""
        delivery = Delivery(len(verdicts))
        try:
            for verdict in verdicts:
                future = send(self._producer, self._topic, verdict_record(verdict, group=self._group))
                future.add_callback(lambda _: delivery.arrived())
                future.add_errback(delivery.failed)
        except (KafkaError, IllegalStateError, ValueError, TypeError) as error:
            delivery.failed(error)
        return delivery

    def close(self, timeout_s: float) -> None:
        """See `Sink`."""
        close_producer(self._producer, timeout_s)


class KafkaDeadLetterTopic:
    """Sends dead letters through a producer of its own, so that nothing about them can hold verdicts up."""

    def __init__(self, connection: Connection, *, topic: str, clock: Clock) -> None:
        """Connect.

        Args:
            connection: the cluster.
            topic: where dead letters go; it may be missing, then they are refused.
            clock: for the rest after a refusal.

        Raises:
            BrokerError: the cluster cannot be reached, or refuses us.
        """
        self._topic = topic
        self._clock = clock
        self._rest_until_s = -1.0
        # A topic that refuses one letter for a while must not cost all later ones; one of them may come twice.
        self._producer = plain_producer(
            connection, delivery_timeout_s=DEAD_LETTER_DELIVERY_S, max_block_s=DEAD_LETTER_START_S
        )
        try:
            self._producer.partitions_for(topic)
        except KafkaError as error:
            log.warning(
                "topic %s for dead letters cannot be used now: %s; frames get their verdicts without", topic, error
            )
        # Here it may take its time; from now on a topic that is missing must not keep the loop waiting.
        self._producer.config["max_block_ms"] = int(DEAD_LETTER_BLOCK_S * 1000)

    def send(self, record: WireRecord) -> Any:
        """Begin to send one record.

        Returns:
            The client's future: `add_callback`, `add_errback`.

        Raises:
            BrokerError: not now. A missing topic costs the caller 0.1 s once, and is then left alone for a while.
        """
        if self._clock.monotonic_s() < self._rest_until_s:
            msg = f"topic {self._topic} was not there a moment ago: create it, or go without dead letters"
            raise BrokerError(msg)
        try:
            return send(self._producer, self._topic, record)
        except (KafkaError, IllegalStateError, ValueError, TypeError) as error:
            self._rest_until_s = self._clock.monotonic_s() + DEAD_LETTER_REST_S
            msg = f"topic {self._topic} takes no dead letters: {type(error).__name__}: {error}"
            raise BrokerError(msg) from error

    def close(self, timeout_s: float) -> None:
        """Give up what is not sent within `timeout_s`."""
        close_producer(self._producer, timeout_s)


def checksums_are_fast() -> bool:
    """Whether crc32c is there: without it every record is checked in pure Python, twenty times slower."""
    return importlib.util.find_spec("crc32c") is not None
