from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaAdminClient

from consumer.broker import EmbeddedBroker
from consumer.errors import BrokerError, SettingsError, TopicError
from consumer.topics import (
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    ClusterState,
    _topic_id,
    check_topics,
    cluster_identity,
    consumer_limits,
    ensure_topics,
    producer_limits,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kafka_cluster import RunningBroker


def names(unique: str) -> dict[str, str]:
    return {"frames": f"frames-{unique}", "verdicts": f"verdicts-{unique}", "dead": f"frames.dead-{unique}"}


def ensure(
    broker: RunningBroker, wanted: dict[str, str], *, partitions: int = 1, reviews: str | None = None
) -> tuple[str, ...]:
    return ensure_topics(
        broker.bootstrap_servers,
        partitions=partitions,
        replication=1,
        frames=wanted["frames"],
        verdicts=wanted["verdicts"],
        dead=wanted["dead"],
        reviews=reviews,
    )


@pytest.fixture
def admin(embedded_broker: RunningBroker) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(bootstrap_servers=embedded_broker.bootstrap_servers) as client:
        yield client


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_topics_are_made_once(embedded_broker: RunningBroker, unique: str) -> None:
    wanted = names(unique)
    servers = embedded_broker.bootstrap_servers
    assert ensure(embedded_broker, wanted, partitions=4) == tuple(wanted.values())
    before = check_topics(servers, list(wanted.values()))
    assert {topic.partitions for topic in before.topics.values()} == {4}
    assert ensure(embedded_broker, wanted, partitions=4) == ()
    assert check_topics(servers, list(wanted.values())) == before


def test_reviews_are_added_to_what_is_there(embedded_broker: RunningBroker, unique: str) -> None:
    wanted = names(unique)
    ensure(embedded_broker, wanted, partitions=2)
    reviews = f"reviews-{unique}"
    assert ensure(embedded_broker, wanted, partitions=2, reviews=reviews) == (reviews,)


def test_partitions_of_a_live_topic_are_left_alone(embedded_broker: RunningBroker, unique: str) -> None:
    wanted = names(unique)
    servers = embedded_broker.bootstrap_servers
    ensure(embedded_broker, wanted, partitions=2)
    with pytest.raises(TopicError, match=r"is there with 2 partitions, wanted 3.*move stations and break their order"):
        ensure(embedded_broker, wanted, partitions=3)
    assert check_topics(servers, [wanted["frames"]]).topics[wanted["frames"]].partitions == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partitions": 0}, "partitions must be 1 or more, got 0"),
        ({"replication": 0}, "replication must be 1 or more, got 0"),
        ({"max_message_bytes": -1}, "max_message_bytes must be 1 or more, got -1"),
        ({"verdicts": "frames"}, "different names, got frames, frames"),
    ],
)
def test_what_no_broker_can_make_is_refused_before_one_is_asked(
    change: dict[str, object], message: str, dead_port: int
) -> None:
    arguments: dict[str, object] = {"partitions": 1, "replication": 1, **change}
    with pytest.raises(SettingsError, match=message):
        ensure_topics(f"127.0.0.1:{dead_port}", **arguments)  # type: ignore[arg-type]


def test_missing_topics_are_named_and_not_made(
    embedded_broker: RunningBroker, admin: KafkaAdminClient, unique: str
) -> None:
    wanted = names(unique)
    servers = embedded_broker.bootstrap_servers
    ensure(embedded_broker, wanted)
    absent = [f"absent-{unique}", f"gone-{unique}"]
    with pytest.raises(TopicError) as caught:
        check_topics(servers, [absent[0], wanted["frames"], absent[1]])
    message = str(caught.value)
    assert f"`{absent[0]}`, `{absent[1]}`" in message
    assert wanted["frames"] not in message
    assert f"framegate topics create --bootstrap-servers {servers}" in message
    assert not set(absent) & set(admin.list_topics())


def test_a_topic_that_appears_while_we_look_is_found(embedded_broker: RunningBroker, unique: str) -> None:
    servers = embedded_broker.bootstrap_servers
    found: list[ClusterState] = []
    look = threading.Thread(target=lambda: found.append(check_topics(servers, [f"frames-{unique}"])))
    look.start()
    time.sleep(0.3)
    ensure(embedded_broker, names(unique))
    look.join(10)
    assert list(found[0].topics) == [f"frames-{unique}"]


def test_a_broker_that_is_not_there_is_named_with_the_cure(dead_port: int) -> None:
    threads = threading.active_count()
    began_s = time.monotonic()
    with pytest.raises(BrokerError) as caught:
        check_topics(f"127.0.0.1:{dead_port}", ["frames"], timeout_s=0.5)
    assert time.monotonic() - began_s < 3
    assert f"no broker at 127.0.0.1:{dead_port} within 0.5 s" in str(caught.value)
    assert "framegate broker" in str(caught.value)
    assert "--bootstrap-servers" in str(caught.value)
    assert _ends_within(threads, 5.0)


def test_a_host_that_is_not_there_is_an_error_too() -> None:
    with pytest.raises(BrokerError, match=r"no broker at no-such-host\.invalid:9092"):
        check_topics("no-such-host.invalid:9092", ["frames"], timeout_s=0.5)


def test_one_address_of_several_is_enough(embedded_broker: RunningBroker, dead_port: int) -> None:
    servers = f"127.0.0.1:{dead_port},{embedded_broker.bootstrap_servers}"
    assert check_topics(servers, [], timeout_s=10).brokers == 1


@pytest.mark.kafka
def test_a_broker_that_starts_late_is_waited_for() -> None:
    broker = EmbeddedBroker()
    found: list[ClusterState] = []
    look = threading.Thread(target=lambda: found.append(check_topics(broker.bootstrap_servers, [])))
    look.start()
    time.sleep(0.5)
    with broker:
        look.join(10)
    assert len(found) == 1


def _ends_within(threads: int, timeout_s: float) -> bool:
    """Whether the watchdog and the client's thread end: a moment after the answer, not before it."""
    deadline_s = time.monotonic() + timeout_s
    while threading.active_count() > threads and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return threading.active_count() <= threads


def test_a_listener_that_says_nothing_is_given_up(silent_port: int) -> None:
    threads = threading.active_count()
    began_s = time.monotonic()
    with pytest.raises(BrokerError, match="gives no answer"):
        check_topics(f"127.0.0.1:{silent_port}", [], timeout_s=1.0)
    assert time.monotonic() - began_s < 5
    assert _ends_within(threads, 5.0)


@pytest.mark.usefixtures("dropped_sockets")
def test_a_tls_handshake_that_is_never_answered_is_given_up(silent_port: int) -> None:
    began_s = time.monotonic()
    with pytest.raises(BrokerError, match="security settings"):
        check_topics(f"127.0.0.1:{silent_port}", [], client={"security_protocol": "SSL"}, timeout_s=1.0)
    assert time.monotonic() - began_s < 6


def test_an_unknown_client_setting_is_named(embedded_broker: RunningBroker) -> None:
    with pytest.raises(SettingsError, match="sasl_mecanism"):
        check_topics(embedded_broker.bootstrap_servers, [], client={"sasl_mecanism": "PLAIN"})


def test_the_identity_of_a_topic_is_its_own_and_stays(embedded_broker: RunningBroker, unique: str) -> None:
    wanted = names(unique)
    servers = embedded_broker.bootstrap_servers
    ensure(embedded_broker, wanted)
    first = cluster_identity(servers, wanted["frames"])
    assert cluster_identity(servers, wanted["frames"]) == first
    assert cluster_identity(servers, wanted["verdicts"]).cluster_id == first.cluster_id
    assert cluster_identity(servers, wanted["verdicts"]).topic_id != first.topic_id


def test_a_topic_made_again_is_another_one(
    embedded_broker: RunningBroker, admin: KafkaAdminClient, unique: str
) -> None:
    wanted = names(unique)
    servers = embedded_broker.bootstrap_servers
    ensure(embedded_broker, wanted)
    first = cluster_identity(servers, wanted["frames"])
    admin.delete_topics([wanted["frames"]])
    assert ensure(embedded_broker, wanted) == (wanted["frames"],)
    assert cluster_identity(servers, wanted["frames"]).topic_id != first.topic_id


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "frames"),
        ("00000000-0000-0000-0000-000000000000", "frames"),
        ("6ef20c2b-9d1b-4152-85f5-32c15434104f", "6ef20c2b-9d1b-4152-85f5-32c15434104f"),
    ],
)
def test_the_name_serves_where_a_broker_gives_no_topic_id(given: str | None, expected: str) -> None:
    assert _topic_id(given, "frames") == expected


@pytest.mark.parametrize("max_message_bytes", [1_000_000, MAX_MESSAGE_BYTES, 60_000_000])
def test_the_clients_limits_let_a_frame_pass(max_message_bytes: int) -> None:
    consumer = consumer_limits(max_message_bytes)
    assert producer_limits(max_message_bytes)["max_request_size"] >= max_message_bytes
    assert consumer["max_partition_fetch_bytes"] >= max_message_bytes
    assert consumer["fetch_max_bytes"] >= max_message_bytes
    assert consumer["receive_message_max_bytes"] >= consumer["fetch_max_bytes"] + consumer["max_partition_fetch_bytes"]


def test_there_is_room_around_the_largest_frame() -> None:
    assert MAX_MESSAGE_BYTES > MAX_FRAME_BYTES >= 12_000_000
