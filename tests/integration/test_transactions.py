"""Exactly once on a real Apache Kafka: the sink's own promises, and the holes of the client that it is built around.

The tests of the holes drive kafka-python alone. They fail on the day that a newer version closes one, which is the day
to make `consumer.transactions` simpler.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.future import Future
from kafka.structs import ConsumerGroupMetadata

from consumer import kafka_client
from consumer.claims import Progress
from consumer.clock import SystemClock
from consumer.errors import BrokerError, GivenUpError
from consumer.kafka_client import Connection, close_producer, idempotent_producer
from consumer.kafka_io import KafkaSource
from consumer.tenure import Partition
from consumer.topics import ensure_topics
from consumer.transactions import TransactionalSink
from tests.contract.test_sources_and_sinks import PATIENCE_S, Reading, break_claims, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer.claims import Claim
    from consumer.delivery import Delivery
    from tests.kafka_cluster import RunningBroker

pytestmark = pytest.mark.apache
CLOCK = SystemClock()


class Line:
    """Frames, verdicts, a member of the group that has all partitions, and sinks."""

    def __init__(self, broker: RunningBroker, mark: str) -> None:
        self.connection = Connection(broker.bootstrap_servers)
        self.frames, self.verdicts, self.group, self.mark = f"frames-{mark}", f"verdicts-{mark}", f"group-{mark}", mark
        ensure_topics(
            broker.bootstrap_servers,
            partitions=2,
            replication=1,
            frames=self.frames,
            verdicts=self.verdicts,
            dead=f"dead-{mark}",
        )
        self.producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
        for number in range(20):
            self.producer.send(self.frames, b"%d" % number, key=b"a", partition=number % 2)
        self.producer.flush(20)
        self.reading = self.member()
        self.opened: list[Any] = []

    def member(self) -> Reading:
        source = KafkaSource(self.connection, group=self.group, topic=self.frames, clock=CLOCK, session_timeout_s=6.0)
        reading = Reading(source)
        reading.until(lambda: len(reading.held) == 2)
        return reading

    @property
    def source(self) -> KafkaSource:
        assert isinstance(self.reading.source, KafkaSource)
        return self.reading.source

    def sink(self, name: str = "one") -> TransactionalSink:
        sink = TransactionalSink(
            self.connection,
            group=self.group,
            topic=self.verdicts,
            transactional_id=f"{self.mark}-{name}",
            membership=self.source.membership,
            clock=CLOCK,
        )
        self.opened.append(sink)
        return sink

    def claim(self, partition: int = 0) -> Claim:
        """Of the running tenure."""
        for change in reversed(self.reading.changes):
            for owned, claim in zip(change.partitions, change.claims, strict=False):
                if owned.number == partition:
                    return claim
        raise AssertionError

    def progress(self, offset: int, partition: int = 0) -> dict[Partition, Progress]:
        return {Partition(self.frames, partition): Progress(offset, self.claim(partition))}

    def rewind_all(self) -> None:
        break_claims(self.reading)
        assert self.source.rewind(10.0)

    def committed(self, partition: int = 0) -> int | None:
        reader = KafkaConsumer(
            bootstrap_servers=self.connection.bootstrap_servers, group_id=self.group, isolation_level="read_committed"
        )
        try:
            found: int | None = reader.committed(TopicPartition(self.frames, partition), timeout_ms=15_000)
            return found
        finally:
            reader.close()

    def visible(self) -> list[str]:
        """Verdict ids that a reader of committed records sees, once the topic's end is decided."""
        reader = KafkaConsumer(
            bootstrap_servers=self.connection.bootstrap_servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            partitions = [TopicPartition(self.verdicts, number) for number in range(2)]
            reader.assign(partitions)
            found: list[str] = []
            silent_s = time.monotonic() + 1.5
            while time.monotonic() < silent_s:
                for records in reader.poll(timeout_ms=200).values():
                    found += [dict(record.headers)["ce_id"].decode() for record in records]
                    silent_s = time.monotonic() + 1.5
            return found
        finally:
            reader.close()

    def close(self) -> None:
        for sink in self.opened:
            sink.close(3.0)
        self.source.close(3.0)
        self.producer.close(timeout=5)


@pytest.fixture
def line(apache_kafka: RunningBroker, unique: str) -> Iterator[Line]:
    line = Line(apache_kafka, unique)
    yield line
    line.close()


def settled(delivery: Delivery) -> Exception | None:
    end_s = time.monotonic() + PATIENCE_S
    while not delivery.done:
        assert time.monotonic() < end_s, "never settled"
        time.sleep(0.005)
    return delivery.error


def test_verdicts_and_positions_become_visible_together(line: Line) -> None:
    sink = line.sink()
    deliveries = [sink.publish([verdict(n)], line.progress(n + 1)) for n in range(10)]
    assert [settled(delivery) for delivery in deliveries] == [None] * 10
    assert line.visible() == [f"a{n:04}" for n in range(10)]
    assert line.committed() == 10
    assert line.committed(1) is None


def test_a_claim_that_is_over_is_given_up_and_what_follows_under_a_broken_one_too(line: Line) -> None:
    sink = line.sink()
    claim = line.claim(0)
    both = line.progress(1) | line.progress(1, partition=1)
    claim.over = True
    assert isinstance(settled(sink.publish([verdict(0)], both)), GivenUpError)
    # Partition 1 is still ours, and what was given up of it must not be passed over.
    assert isinstance(settled(sink.publish([verdict(1)], line.progress(2, partition=1))), GivenUpError)
    assert line.visible() == []
    assert line.committed() is None
    assert line.committed(1) is None
    assert line.source.rewind(10.0)
    line.reading.until(lambda: line.claim(1).running)
    assert settled(sink.publish([verdict(2)], line.progress(1, partition=1))) is None
    assert line.visible() == ["a0002"]
    assert line.committed(1) == 1


def test_positions_of_an_older_generation_are_refused_by_the_broker(line: Line) -> None:
    sink = line.sink()
    old = line.source.membership()
    line.source._consumer._coordinator.request_rejoin()
    line.reading.until(lambda: line.source.membership().generation_id > old.generation_id)
    line.reading.until(line.source.ready)
    sink._membership = lambda: old
    assert isinstance(settled(sink.publish([verdict(0)], line.progress(1))), GivenUpError)
    sink._membership = line.source.membership
    assert line.visible() == []
    assert line.committed() is None
    assert line.source.rewind(10.0)
    line.reading.poll()
    assert settled(sink.publish([verdict(1)], line.progress(1))) is None
    assert line.visible() == ["a0001"], "a new producer, and what was aborted stays unseen"


def test_a_commit_whose_answer_is_lost_is_found_out_by_the_positions(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = line.sink()
    line.reading.until_frames(20)
    real = sink._wait

    def lose(result: Any, end_s: float, doing: str) -> None:
        real(result, end_s, doing)
        if doing == "committing":
            monkeypatch.undo()
            msg = "the answer was lost"
            raise KafkaTimeoutError(msg)

    monkeypatch.setattr(sink, "_wait", lose)
    assert isinstance(settled(sink.publish([verdict(0), verdict(1)], line.progress(2))), GivenUpError)
    line.reading.frames.clear()
    line.rewind_all()
    line.reading.until_frames(18)
    assert line.reading.offsets(0) == list(range(2, 10)), "the two that were committed do not come again"
    assert settled(sink.publish([verdict(2)], line.progress(3))) is None
    assert line.visible() == ["a0000", "a0001", "a0002"]


def test_a_rewind_leaves_alone_what_another_transaction_is_about_to_record(line: Line) -> None:
    """Reading the committed position of a partition with a transaction under way would bring its frames twice."""
    sink = line.sink()
    line.reading.until_frames(20)
    line.claim(0).broken = True
    moving = line.claim(1)
    line.reading.frames.clear()
    assert line.source.rewind(10.0)
    assert settled(sink.publish([verdict(0)], line.progress(10, partition=1))) is None
    line.reading.until_frames(10)
    for _ in range(5):
        line.reading.poll()
    assert moving.running
    assert line.reading.offsets(1) == []
    assert line.reading.offsets(0) == list(range(10))


def test_a_send_that_failed_is_never_committed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = line.sink()
    producer = sink._producer
    assert producer is not None
    real: Callable[..., Any] = producer.send

    def expire(*arguments: Any, **options: Any) -> Any:
        future = real(*arguments, **options)
        future.get(timeout=10)
        future.is_done, future.value, future.exception = True, None, KafkaTimeoutError("expired")
        return future

    monkeypatch.setattr(producer, "send", expire)
    assert isinstance(settled(sink.publish([verdict(0)], line.progress(1))), GivenUpError)
    assert line.visible() == []
    assert line.committed() is None


def test_a_dead_consumers_transaction_is_decided_by_the_next_one_of_the_same_id(line: Line) -> None:
    dead = KafkaProducer(
        bootstrap_servers=line.connection.bootstrap_servers,
        transactional_id=f"{line.mark}-one",
        transaction_timeout_ms=60_000,
    )
    dead.init_transactions()
    dead.begin_transaction()
    dead.send(line.verdicts, b"{}", key=b"a", headers=[("ce_id", b"dead")]).get(10)
    partition = TopicPartition(line.frames, 0)
    dead.send_offsets_to_transaction({partition: OffsetAndMetadata(5, "", -1)}, line.source.membership())
    began_s = time.monotonic()
    sink = line.sink()
    assert settled(sink.publish([verdict(0)], line.progress(1))) is None
    assert line.visible() == ["a0000"]
    assert line.committed() == 1
    assert time.monotonic() - began_s < 20, "not the sixty seconds of its timeout"
    with pytest.raises(KafkaError):
        dead.commit_transaction()
    dead._sender.force_close()
    assert line.visible() == ["a0000"], "a zombie is fenced"


def test_two_consumers_of_one_id_do_not_fight_for_ever(line: Line) -> None:
    one, two = line.sink("same"), line.sink("same")
    failure: Exception | None = None
    offset = 0
    for _ in range(20):
        for sink in (one, two):
            line.rewind_all()
            line.reading.poll()
            error = settled(sink.publish([verdict(offset)], line.progress(offset + 1)))
            if error is None:
                offset += 1
            elif not isinstance(error, GivenUpError):
                failure = error
        if failure is not None:
            break
    assert isinstance(failure, BrokerError)
    assert "another --instance" in str(failure)
    assert line.visible() == [f"a{n:04}" for n in range(offset)], "whoever was fenced, each once"


def test_a_rewind_leaves_a_partition_alone_whose_transaction_is_under_way(line: Line) -> None:
    """One partition's gap is read again while the thread of the transactions goes on with the other's."""
    sink = line.sink()
    line.reading.until_frames(20)
    line.reading.frames.clear()
    line.claim(1).broken = True
    producer = sink._producer
    assert producer is not None
    manager = producer._transaction_manager
    real, looked = manager.send_offsets_to_transaction, []

    def rewind_first(*arguments: Any) -> Any:
        looked.append(line.source.rewind(10.0))
        return real(*arguments)

    manager.send_offsets_to_transaction = rewind_first
    assert settled(sink.publish([verdict(0), verdict(1)], line.progress(2))) is None
    assert looked == [True]
    line.reading.until_frames(10)
    assert line.reading.poll().frames == ()
    assert line.reading.offsets(1) == list(range(10)), "the gap"
    assert line.reading.offsets(0) == [], "these are answered: read again, they would be answered twice"


def test_a_claim_is_not_broken_while_a_transaction_under_it_is_under_way(line: Line) -> None:
    """The second publication spans both partitions and is given up for the other one's sake."""
    sink = line.sink()
    line.reading.until_frames(20)
    line.claim(1).broken = True
    producer = sink._producer
    assert producer is not None
    manager = producer._transaction_manager
    real, looked = manager.send_offsets_to_transaction, []

    def look_first(*arguments: Any) -> Any:
        looked.append((line.claim(0).broken, second.done))
        return real(*arguments)

    manager.send_offsets_to_transaction = look_first
    with sink._changed:  # so that both are taken together
        first = sink.publish([verdict(0), verdict(1)], line.progress(2))
        second = sink.publish([verdict(2), verdict(9)], line.progress(3) | line.progress(1, partition=1))
        third = sink.publish([verdict(3)], line.progress(4))
    assert settled(first) is None
    assert looked == [(False, False)], "or it would be read again from before this transaction"
    assert isinstance(settled(second), GivenUpError)
    assert isinstance(settled(third), GivenUpError), "nothing passes over the gap"
    line.reading.frames.clear()
    assert line.source.rewind(10.0)
    line.reading.until_frames(18)
    assert line.reading.offsets(0) == list(range(2, 10))
    assert line.visible() == ["a0000", "a0001"]


def test_a_start_waits_for_a_coordinator_that_is_moving(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = KafkaProducer.init_transactions, iter([KafkaTimeoutError("loading"), KafkaTimeoutError("loading")])

    def load_first(producer: KafkaProducer) -> None:
        for refusal in refusals:
            raise refusal
        real(producer)

    monkeypatch.setattr(KafkaProducer, "init_transactions", load_first)
    assert settled(line.sink().publish([verdict(0)], line.progress(1))) is None


def test_a_consumer_whose_clock_is_wrong_is_heard_all_the_same(line: Line) -> None:
    """Kafka refuses what its sender stamps an hour ahead, and deletes what it stamps as old."""
    sink = line.sink()
    for offset, clock_s in enumerate((time.time() + 30 * 86_400.0, time.time() - 30 * 86_400.0)):
        said = replace(verdict(offset), decided_at_s=clock_s)
        assert settled(sink.publish([said], line.progress(offset + 1))) is None
    assert line.visible() == ["a0000", "a0001"]


def test_a_topic_that_refuses_the_time_of_a_verdict_ends_the_consumer_with_the_cure(line: Line, unique: str) -> None:
    """On a topic that somebody made otherwise; trying on, at full speed, would help nobody."""
    line.verdicts = f"stamped-by-us-{unique}"
    with KafkaAdminClient(bootstrap_servers=line.connection.bootstrap_servers) as admin:
        admin.create_topics({line.verdicts: {"num_partitions": 2, "replication_factor": 1}})
        admin.wait_for_topics([line.verdicts])
    ahead = replace(verdict(0), decided_at_s=time.time() + 7_200.0)
    error = settled(line.sink().publish([ahead], line.progress(1)))
    assert isinstance(error, BrokerError)
    assert not isinstance(error, GivenUpError)
    assert "clock" in str(error)
    assert "LogAppendTime" in str(error)


def test_a_consumer_that_the_group_has_excluded_publishes_nothing(line: Line) -> None:
    sink = line.sink()
    line.source._consumer._coordinator.reset_generation()  # what a heartbeat's answer does, on the client's own thread
    assert isinstance(settled(sink.publish([verdict(0)], line.progress(1))), GivenUpError)
    assert line.visible() == []
    assert line.committed() is None


@pytest.mark.parametrize("joining", [False, True])
def test_an_excluded_member_claims_nothing_when_it_joins_again(line: Line, joining: bool) -> None:
    """Found out by a heartbeat or, worse, by a join that had begun: the client then tells its listener nothing."""
    before = [line.claim(0), line.claim(1)]
    coordinator = line.source._consumer._coordinator
    real, told = coordinator.group_protocols, []

    def listen() -> Any:
        protocols = real()
        told.append([owned.partitions for _, metadata in protocols for owned in metadata.owned_partitions])
        return protocols

    coordinator.group_protocols = listen
    coordinator.rejoining = joining
    coordinator.reset_generation()
    changes = len(line.reading.changes)
    line.reading.until(lambda: len(line.reading.changes) >= changes + 2)
    assert [change.kind for change in line.reading.changes[changes:]] == ["lost", "assigned"]
    assert all(claim.over for claim in before)
    assert told
    assert all(owned == [] for owned in told), "others may have had them for a while"
    sink = line.sink()
    assert settled(sink.publish([verdict(0)], line.progress(1))) is None


def test_a_question_for_positions_that_nobody_waited_for_is_not_answered_later(line: Line) -> None:
    """Asked for before a rebalance and answered after the next, it would have frames judged that others answered."""
    coordinator = line.source._consumer._coordinator
    both = [TopicPartition(line.frames, number) for number in range(2)]
    keys = [frozenset(both), *(frozenset([partition]) for partition in both)]

    def leave_old_answers() -> None:
        for key in keys:
            old = {partition: OffsetAndMetadata(1, "", -1) for partition in key}
            coordinator._offset_fetch_futures[key] = Future().success(old)

    sink = line.sink()
    assert settled(sink.publish([verdict(n) for n in range(4)], line.progress(4))) is None
    assert settled(sink.publish([verdict(9)], line.progress(4, partition=1))) is None
    line.reading.until_frames(20)
    line.reading.frames.clear()
    leave_old_answers()
    line.rewind_all()
    line.reading.until_frames(12)
    assert line.reading.offsets(0) == line.reading.offsets(1) == list(range(4, 10))
    line.reading.frames.clear()
    leave_old_answers()
    coordinator.reset_generation()
    line.reading.until_frames(12)
    assert line.reading.offsets(0) == line.reading.offsets(1) == list(range(4, 10))


def test_a_producer_whose_sender_does_not_end_is_closed_all_the_same(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may wait for a silent broker for longer than anybody has time for."""
    monkeypatch.setattr(kafka_client, "FORCED_S", 0.05)
    producer = idempotent_producer(line.connection, delivery_timeout_s=60.0, max_block_s=10.0)
    producer.partitions_for(line.verdicts)
    producer._accumulator.muted.add(TopicPartition(line.verdicts, 0))
    producer.send(line.verdicts, b"{}", partition=0)
    forced = producer._sender.force_close
    with monkeypatch.context() as deaf:
        deaf.setattr(producer._sender, "force_close", lambda: None)
        close_producer(producer, 0.0)
    assert producer._sender.is_alive(), "as if it still waited"
    forced()
    producer._sender.join(10)
    assert not producer._sender.is_alive()


def test_closing_gives_up_what_has_not_begun_and_loses_no_word_about_it(line: Line) -> None:
    sink = line.sink()
    deliveries = [sink.publish([verdict(n)], line.progress(n + 1)) for n in range(50)]
    sink.close(5.0)
    errors = [settled(delivery) for delivery in deliveries]
    stored = errors.count(None)
    assert errors == [None] * stored + [error for error in errors[stored:] if isinstance(error, GivenUpError)]
    assert line.committed() == (stored or None)
    assert len(line.visible()) == stored


class TestHolesOfTheClient:
    """What kafka-python 3.0.12 does alone."""

    def test_a_commit_succeeds_after_a_send_has_expired(self, line: Line) -> None:
        producer = KafkaProducer(
            bootstrap_servers=line.connection.bootstrap_servers,
            transactional_id=f"{line.mark}-hole",
            delivery_timeout_ms=300,
            request_timeout_ms=200,
            linger_ms=0,
        )
        producer.init_transactions()
        producer.begin_transaction()
        partition = TopicPartition(line.verdicts, 0)
        producer.send(line.verdicts, b"{}", partition=1, headers=[("ce_id", b"kept")]).get(10)
        producer._accumulator.muted.add(partition)  # as while an earlier batch of it is under way
        lost = producer.send(line.verdicts, b"{}", partition=0, headers=[("ce_id", b"lost")])
        end_s = time.monotonic() + 10
        while not lost.is_done and time.monotonic() < end_s:
            time.sleep(0.02)
        producer._accumulator.muted.discard(partition)
        assert lost.failed()
        producer.commit_transaction()  # raises nothing
        producer.close(timeout=5)
        assert line.visible() == ["kept"]

    def test_positions_survive_an_abort(self, line: Line) -> None:
        producer = KafkaProducer(
            bootstrap_servers=line.connection.bootstrap_servers, transactional_id=f"{line.mark}-hole"
        )
        producer.init_transactions()
        manager = producer._transaction_manager
        stale = line.source.membership()
        wrong = type(stale)(group_id=stale.group_id, generation_id=stale.generation_id + 5, member_id=stale.member_id)
        producer.begin_transaction()
        producer.send(line.verdicts, b"{}", partition=1, headers=[("ce_id", b"aborted")]).get(10)
        with pytest.raises(KafkaError):
            producer.send_offsets_to_transaction({TopicPartition(line.frames, 0): OffsetAndMetadata(9, "", -1)}, wrong)
        producer.abort_transaction()
        assert manager._pending_txn_offset_commits, "closed: the next transaction would not commit them"
        producer.close(timeout=5)

    def test_the_broker_takes_positions_of_nobody_while_the_group_has_members(self, line: Line) -> None:
        """Not the client's hole, but it calls itself nobody from the moment that it hears of its exclusion."""
        producer = KafkaProducer(
            bootstrap_servers=line.connection.bootstrap_servers, transactional_id=f"{line.mark}-hole"
        )
        producer.init_transactions()
        producer.begin_transaction()
        nobody = ConsumerGroupMetadata(group_id=line.group)
        producer.send_offsets_to_transaction({TopicPartition(line.frames, 0): OffsetAndMetadata(9, "", -1)}, nobody)
        producer.commit_transaction()
        producer.close(timeout=5)
        assert line.source.ready()
        assert line.committed() == 9
