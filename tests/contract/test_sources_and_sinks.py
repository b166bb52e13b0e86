"""One suite for every source and sink: in memory, and Kafka on each broker there is.

A world is a topic of frames with two partitions and a topic of verdicts, empty, and whoever opens readers of it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from consumer.clock import SystemClock
from consumer.events import EngineRef, Frame, ModelRef, Position, StageTimes, Verdict
from consumer.kafka_client import Connection
from consumer.kafka_io import KafkaSink, KafkaSource
from consumer.memory_io import MemoryLog, MemorySink, MemorySource
from consumer.tenure import Partition
from consumer.topics import ensure_topics, producer_limits
from consumer.wire import frame_from_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer.ports import Fetched, Sink, Source, TenureChange
    from tests.kafka_cluster import RunningBroker

PATIENCE_S = 40.0


class World(Protocol):
    """What a contract test needs around the port."""

    topic: str

    def put(self, partition: int, value: bytes | None, key: bytes | None = b"a") -> None:
        """Append one frame and see it stored."""

    def source(self) -> Source:
        """Another member of the same group."""

    def sink(self) -> Sink:
        """A sink of this world's verdicts."""

    def published(self, count: int) -> list[tuple[str, str]]:
        """(station, verdict id) of so many verdicts, in the order of their partition."""


class MemoryWorld:
    """The world in memory."""

    topic = "frames"

    def __init__(self) -> None:
        """Empty."""
        self._log = MemoryLog(self.topic, partitions=2)
        self._clock = SystemClock()
        self._sink = MemorySink()

    def put(self, partition: int, value: bytes | None, key: bytes | None = b"a") -> None:
        """Append one frame."""

        def make(offset: int) -> Frame:
            position = Position(self.topic, partition, offset)
            now_s = self._clock.epoch_s()
            return frame_from_record(position, key=key, value=value, headers=[], timestamp_ms=None, now_s=now_s)

        self._log.append(partition, make)

    def source(self) -> Source:
        """Another member; it owns everything."""
        return MemorySource(self._log, self._clock, wait=time.sleep)

    def sink(self) -> Sink:
        """The one sink."""
        return self._sink

    def published(self, count: int) -> list[tuple[str, str]]:
        """What it holds."""
        assert len(self._sink.verdicts) == count
        return [(verdict.frame.station, verdict.verdict_id) for verdict in self._sink.verdicts]


class KafkaWorld:
    """The world on a broker, with topics and a group of its own."""

    def __init__(self, broker: RunningBroker, mark: str) -> None:
        """Make the topics; `mark` is what no other test has."""
        bootstrap_servers = broker.bootstrap_servers
        self.topic, self.verdicts, self.group = f"frames-{mark}", f"verdicts-{mark}", f"group-{mark}"
        self._connection = Connection(bootstrap_servers)
        ensure_topics(
            bootstrap_servers,
            partitions=2,
            replication=1,
            frames=self.topic,
            verdicts=self.verdicts,
            dead=f"dead-{mark}",
        )
        self._session_s = 2.0 if broker.kind == "embedded" else 6.0
        self._clock = SystemClock()
        self._producer = KafkaProducer(bootstrap_servers=bootstrap_servers, **producer_limits())
        self._open: list[Any] = []

    def put(self, partition: int, value: bytes | None, key: bytes | None = b"a") -> None:
        """Append one frame and see it stored."""
        # The client refuses null key and null value together; an empty value is the same to a reader of frames.
        value = b"" if key is None and value is None else value
        self._producer.send(self.topic, value, key=key, partition=partition).get(20)

    def source(self) -> KafkaSource:
        """Another member; the embedded broker takes half the session timeout to form a group."""
        source = KafkaSource(
            self._connection,
            group=self.group,
            topic=self.topic,
            clock=self._clock,
            session_timeout_s=self._session_s,
        )
        self._open.append(source)
        return source

    def sink(self) -> KafkaSink:
        """A sink with a producer of its own."""
        sink = KafkaSink(self._connection, group=self.group, topic=self.verdicts, delivery_timeout_s=20.0)
        self._open.append(sink)
        return sink

    def widen(self, partitions: int) -> bool:
        """Add partitions to the topic of frames; False where the broker cannot."""
        admin = KafkaAdminClient(bootstrap_servers=self._connection.bootstrap_servers)
        try:
            admin.create_partitions({self.topic: partitions})
        except KafkaError:
            return False
        finally:
            admin.close()
        return True

    def published(self, count: int) -> list[tuple[str, str]]:
        """Read the verdicts back with the client alone."""
        reader = KafkaConsumer(bootstrap_servers=self._connection.bootstrap_servers, auto_offset_reset="earliest")
        try:
            reader.assign([TopicPartition(self.verdicts, number) for number in range(2)])
            found: list[tuple[str, str]] = []
            end_s = time.monotonic() + PATIENCE_S
            while len(found) < count and time.monotonic() < end_s:
                for records in reader.poll(timeout_ms=500).values():
                    found += [(record.key.decode(), dict(record.headers)["ce_id"].decode()) for record in records]
            return found
        finally:
            reader.close()

    def close(self) -> None:
        """Close everything that was opened."""
        for opened in self._open:
            opened.close(3.0)
        self._producer.close(timeout=5)


class Reading:
    """A source and all that it has brought."""

    def __init__(self, source: Source) -> None:
        """Nothing yet."""
        self.source = source
        self.frames: list[Frame] = []
        self.changes: list[TenureChange] = []
        self.held: set[Partition] = set()

    def poll(self, max_frames: int = 100, timeout_s: float = 0.1) -> Fetched:
        """One poll; every frame has to belong to a partition that is ours by then."""
        fetched = self.source.poll(timeout_s, max_frames)
        for change in fetched.changes:
            if change.kind == "assigned":
                self.held.update(change.partitions)
            else:
                self.held.difference_update(change.partitions)
        for frame in fetched.frames:
            assert Partition(frame.position.topic, frame.position.partition) in self.held, "before its assignment"
        self.frames += fetched.frames
        self.changes += fetched.changes
        return fetched

    def until(self, done: Callable[[], bool], max_frames: int = 100) -> None:
        """Poll until something has come to pass."""
        end_s = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end_s, "it never came"
            self.poll(max_frames)

    def until_frames(self, count: int, max_frames: int = 100) -> None:
        """Poll until so many have come."""
        self.until(lambda: len(self.frames) >= count, max_frames)

    def offsets(self, partition: int) -> list[int]:
        """Offsets of a partition, as they came."""
        return [frame.position.offset for frame in self.frames if frame.position.partition == partition]


def break_claims(reading: Reading) -> None:
    """As a sink does that gave up publications of every partition."""
    for change in reading.changes:
        for claim in change.claims:
            claim.broken = True


def verdict(offset: int, station: str = "a") -> Verdict:
    """A verdict that can be told from others."""
    frame = Frame(Position("frames", 0, offset), station, f"f{offset}", b"", 1.76e9, 1.76e9 + 0.1)
    return Verdict(
        verdict_id=f"{station}{offset:04}",
        frame=frame,
        decision="pass",
        model=ModelRef("m", "1", "sha256:0", "pooled"),
        engine=EngineRef("null", "cpu", "fp32"),
        decided_at_s=1.76e9 + 0.2,
        threshold=0.5,
        review_band=(0.4, 0.6),
        times=StageTimes(),
        batch_size=1,
        defect_probability=0.25,
    )


class SourceContract:
    """What every source promises. One longer test where opening a group takes seconds."""

    def test_frames_come_in_order_once_after_their_assignment(self, world: World) -> None:
        for number in range(30):
            world.put(number % 2, b"%d" % number, key=b"station-%d" % (number % 2))
        reading = Reading(world.source())
        reading.until_frames(30, max_frames=7)
        assert reading.offsets(0) == reading.offsets(1) == list(range(15))
        assert {frame.station for frame in reading.frames if frame.position.partition == 1} == {"station-1"}
        assert [frame.payload for frame in reading.frames if frame.position.partition == 0][:2] == [b"0", b"2"]
        assert reading.changes[0].kind == "assigned"
        assert reading.held == {Partition(world.topic, 0), Partition(world.topic, 1)}
        assert reading.source.ready()
        assert reading.source.lag() == {Partition(world.topic, 0): 0, Partition(world.topic, 1): 0}
        assert reading.poll().frames == ()
        now_s = time.time()
        assert all(0 <= now_s - frame.fetched_at_s < PATIENCE_S for frame in reading.frames)

    def test_no_poll_brings_more_than_asked_for(self, world: World) -> None:
        for number in range(10):
            world.put(number % 2, b"x")
        reading = Reading(world.source())
        while len(reading.frames) < 10:
            assert len(reading.poll(max_frames=3).frames) <= 3

    def test_null_key_and_null_value_are_frames(self, world: World) -> None:
        world.put(0, None, key=b"a")
        world.put(0, b"x", key=None)
        world.put(0, None, key=None)
        reading = Reading(world.source())
        reading.until_frames(3)
        assert [(frame.station, frame.payload) for frame in reading.frames] == [
            ("a", b""),
            ("unknown", b"x"),
            ("unknown", b""),
        ]

    def test_the_next_owner_begins_at_the_committed_position_and_skips_nothing(self, world: World) -> None:
        for number in range(20):
            world.put(number % 2, b"x")
        first = Reading(world.source())
        first.until_frames(20)
        assert first.source.commit({Partition(world.topic, 0): 4}, 5.0)
        assert first.source.commit({Partition(world.topic, 0): 7}, 5.0)
        assert first.source.commit({}, 5.0)
        assert first.source.commit({Partition("somebody-elses", 3): 9}, 5.0), "left out, not an error"
        first.source.close(5.0)
        first.source.close(5.0)
        assert not first.source.ready()
        began_s = time.monotonic()
        second = Reading(world.source())
        second.until_frames(13)
        assert time.monotonic() - began_s < 15, "the group was not left, so its partitions came late"
        assert second.offsets(0) == [7, 8, 9]
        assert second.offsets(1) == list(range(10))

    def test_a_rewind_brings_what_is_broken_again_from_the_committed_positions(self, world: World) -> None:
        for number in range(20):
            world.put(number % 2, b"x")
        reading = Reading(world.source())
        reading.until_frames(20)
        source, before = reading.source, reading.changes[-1]
        assert source.commit({Partition(world.topic, 0): 4}, 5.0)
        assert all(claim.running for claim in before.claims)
        reading.frames.clear()
        assert source.rewind(10.0)
        assert all(claim.running for claim in before.claims), "nothing was broken"
        break_claims(reading)
        assert source.rewind(10.0)
        assert all(claim.over for claim in before.claims), "at once: a commit may be under way elsewhere"
        reading.until_frames(16)
        assert reading.offsets(0) == list(range(4, 10))
        assert reading.offsets(1) == list(range(10))
        again = reading.changes[-1]
        assert (again.kind, set(again.partitions)) == ("assigned", set(reading.held))
        assert len(again.claims) == 2
        assert all(claim.running for claim in again.claims)
        source.pause()
        break_claims(reading)
        assert source.rewind(10.0)
        assert reading.poll().frames == (), "a rewind does not end a pause"
        source.resume()
        reading.until_frames(32)
        kept, broken = reading.changes[-1].claims
        broken.broken = True
        reading.frames.clear()
        assert source.rewind(10.0)
        number = reading.changes[-1].partitions[1].number
        reading.until_frames(6 if number == 0 else 10)
        assert {frame.position.partition for frame in reading.frames} == {number}
        assert (kept.running, broken.over) == (True, True), "a commit of the other may be under way"

    def test_a_pause_holds_frames_back_and_loses_none(self, world: World) -> None:
        for number in range(6):
            world.put(number % 2, b"x")
        reading = Reading(world.source())
        reading.until_frames(2, max_frames=2)
        reading.source.pause()
        world.put(0, b"x")
        held = len(reading.frames)
        for _ in range(5):
            reading.poll()
        assert len(reading.frames) == held
        reading.source.resume()
        reading.until_frames(7)
        assert (reading.offsets(0), reading.offsets(1)) == ([0, 1, 2, 3], [0, 1, 2])

    def test_who_lingers_gets_no_more_frames_and_commits(self, world: World) -> None:
        for number in range(6):
            world.put(number % 2, b"x")
        reading = Reading(world.source())
        reading.until_frames(6)
        reading.source.pause()
        world.put(0, b"x")
        for _ in range(5):
            fetched = reading.source.linger()
            assert (fetched.frames, fetched.changes) == ((), ())
        assert reading.source.ready()
        assert reading.source.commit({Partition(world.topic, 0): 3, Partition(world.topic, 1): 3}, 5.0)
        reading.source.close(5.0)
        after = Reading(world.source())
        after.until_frames(1)
        assert (after.offsets(0), after.offsets(1)) == ([3], [])


class SinkContract:
    """What every sink promises."""

    def test_a_delivery_without_an_error_is_stored_in_order(self, world: World) -> None:
        sink = world.sink()
        told: list[int] = []
        deliveries = [sink.publish([verdict(2 * n), verdict(2 * n + 1)], {}) for n in range(20)]
        deliveries.append(sink.publish([verdict(n, "b") for n in range(20)], {}))
        for number, delivery in enumerate(deliveries):
            delivery.when_done(lambda number=number: told.append(number))  # type: ignore[misc] # bound now
        end_s = time.monotonic() + PATIENCE_S
        while len(told) < 21:
            assert time.monotonic() < end_s, "not acknowledged"
            time.sleep(0.01)
        assert [delivery.error for delivery in deliveries] == [None] * 21
        published = world.published(60)
        assert [vid for station, vid in published if station == "a"] == [f"a{n:04}" for n in range(40)]
        assert [vid for station, vid in published if station == "b"] == [f"b{n:04}" for n in range(20)]

    def test_nothing_to_publish_is_done_at_once(self, world: World) -> None:
        delivery = world.sink().publish([], {})
        assert delivery.done
        assert delivery.error is None

    def test_after_closing_a_delivery_fails_and_nothing_is_raised(self, world: World) -> None:
        sink = world.sink()
        sink.close(5.0)
        sink.close(5.0)
        delivery = sink.publish([verdict(0)], {})
        assert delivery.done
        assert delivery.error is not None


class TestMemory(SourceContract, SinkContract):
    """In memory."""

    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()


class TestKafka(SourceContract, SinkContract):
    """On each broker there is."""

    @pytest.fixture
    def world(self, broker: RunningBroker, unique: str) -> Iterator[KafkaWorld]:
        world = KafkaWorld(broker, unique)
        yield world
        world.close()

    def test_a_second_member_takes_its_share_and_nothing_is_lost(self, world: KafkaWorld) -> None:
        for number in range(20):
            world.put(number % 2, b"x")
        first = Reading(world.source())
        first.until_frames(20)
        second = Reading(world.source())
        end_s = time.monotonic() + PATIENCE_S
        # Side by side, as members are: each waits in its poll for the other to join too.
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            while not (len(first.held) == len(second.held) == 1):
                assert time.monotonic() < end_s, "the group did not share its partitions"
                polls = [one.submit(first.poll), other.submit(second.poll)]
                for poll in polls:
                    poll.result()
        kept, (moved,) = first.held, second.held
        assert kept != {moved}
        assert {change.kind for change in first.changes} <= {"assigned", "revoked"}
        (kept_partition,) = kept
        assert first.offsets(kept_partition.number) == list(range(10)), "what it kept was not read again"
        assert first.source.commit({moved: 10}, 5.0), "left out: it is not ours any more"
        second.until(lambda: len(second.offsets(moved.number)) >= 10)
        assert second.offsets(moved.number) == list(range(10)), "the stale commit counted for nothing"

    def test_who_lingers_commits_while_the_others_wait_to_join(self, world: KafkaWorld) -> None:
        """As of a consumer that stops, while another one leaves or comes: for it nobody has to wait any more."""
        for number in range(20):
            world.put(number % 2, b"x")
        stopping, idle = Reading(world.source()), Reading(world.source())
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            end_s = time.monotonic() + PATIENCE_S
            while not (
                len(stopping.held) == len(idle.held) == 1 and len(stopping.offsets(min(stopping.held).number)) == 10
            ):
                assert time.monotonic() < end_s, "the group did not share its partitions"
                for poll in [one.submit(stopping.poll), other.submit(idle.poll)]:
                    poll.result()
        (held,) = stopping.held
        stopping.source.pause()
        newcomer = world.source()
        coordinator = stopping.source._consumer._coordinator  # type: ignore[attr-defined] # KafkaWorld's
        with ThreadPoolExecutor(1) as other:
            joining = other.submit(newcomer.poll, 5.0, 1)
            end_s = time.monotonic() + PATIENCE_S
            while not coordinator.need_rejoin():
                assert time.monotonic() < end_s, "it was not told that somebody wants to join"
                assert stopping.source.linger().frames == ()
            assert not idle.source.poll(0.0, 1).frames
            for offset in range(1, 11):
                stopping.source.linger()
                assert stopping.source.commit({held: offset}, 5.0), "not while the group changes"
            assert stopping.source.ready()
            stopping.source.close(5.0)
            joining.result()
        # Asked by one who joins nothing: a broker keeps all that a member asks until its request to join is answered.
        assert world.source()._consumer.committed(TopicPartition(*held), timeout_ms=20_000) == 10

    def test_added_partitions_are_found_however_short_the_polls(self, world: KafkaWorld) -> None:
        source = world.source()
        reading = Reading(source)
        reading.until(lambda: len(reading.held) == 2)
        for partitions in range(3, 15):
            if not world.widen(partitions):
                pytest.skip("this broker adds no partitions")
            end_s = time.monotonic() + PATIENCE_S
            while len(reading.held) < partitions:
                assert time.monotonic() < end_s, "the rejoin was begun and never finished"
                source._consumer._cluster.request_update()  # instead of waiting for the metadata's age
                reading.poll(timeout_s=partitions * 0.001)
            reading.until(source.ready)

    def test_frames_of_twelve_mebibytes_pass_among_small_ones(self, world: KafkaWorld) -> None:
        large = bytes(12 * 1024 * 1024)
        for partition in (0, 1, 0, 1):
            world.put(partition, b"small")
            world.put(partition, large)
        reading = Reading(world.source())
        reading.until_frames(8)
        assert reading.offsets(0) == reading.offsets(1) == [0, 1, 2, 3]
        assert [len(f.payload) for f in reading.frames if f.position.partition == 1] == [5, len(large)] * 2

    def test_a_verdict_that_breaks_its_contract_fails_its_delivery_only(self, world: KafkaWorld) -> None:
        sink = world.sink()
        wrong = sink.publish([replace(verdict(0), defect_probability=None)], {})
        right = sink.publish([verdict(1)], {})
        end_s = time.monotonic() + PATIENCE_S
        while not right.done and time.monotonic() < end_s:
            time.sleep(0.01)
        assert isinstance(wrong.error, ValueError)
        assert right.done
        assert right.error is None
