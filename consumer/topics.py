"""Topics: made, checked and identified before the first frame, through Kafka's admin interface.

Partitions. A partition holds whole stations (the key is the station), so order per station is order per partition.
Adding partitions to a live topic moves stations to other partitions: a station's frames then lie in two of them and
are judged out of order until the old one is drained. So choose the number once, generously (it also bounds how many
consumers can share the work), and to change it make a new topic.

Size of a frame. Each of these must let a frame pass, and the smallest decides:

| where | setting | default |
|---|---|---|
| camera (producer) | `max_request_size` | 1 MiB |
| topic | `max.message.bytes` | the broker's |
| broker | `message.max.bytes` (only where the topic sets nothing), `replica.fetch.max.bytes` | 1 MiB |
| consumer | `max_partition_fetch_bytes`, `fetch_max_bytes`, `receive_message_max_bytes` | 1 MiB, 50 MiB, 100 MB |

`ensure_topics` sets the topic's, `producer_limits` and `consumer_limits` are the clients', and the broker's own stay
with whoever runs it: brokers and consumers still hand on a record above their fetch sizes when it is the first of a
fetch, so those cost memory and speed and do not lose frames.

Time. What a consumer writes is stamped by the broker (`message.timestamp.type=LogAppendTime`). Stamped by the consumer,
verdicts would be refused from the moment that its clock is an hour ahead, and soon be deleted as old ones where it is
far behind. What the consumer's clock said stands in the verdict.

Why the check comes first: kafka-python 3.0.12 does not pass `allow_auto_create_topics` on, so a consumer that
subscribes to a topic that is not there creates it wherever the broker allows that, with the broker's defaults. The
admin interface asks without creating.
"""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.cluster import collect_hosts
from kafka.errors import KafkaConfigurationError, KafkaError, RetriableError, for_code

from consumer.bootstrap import NoAnswerError, bootstrapped
from consumer.errors import BrokerError, SettingsError, TopicError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""The largest encoded image that is meant to pass: far above a camera's JPEG, below an uncompressed 8-megapixel one."""

RECORD_OVERHEAD_BYTES = 64 * 1024
"""Room for the key, the headers and Kafka's own framing around one frame."""

MAX_MESSAGE_BYTES = MAX_FRAME_BYTES + RECORD_OVERHEAD_BYTES
"""`max.message.bytes` of the topic of frames."""

FETCH_MAX_BYTES = 50 * 1024 * 1024
"""What one fetch may bring from one broker, over all its partitions."""

CONNECT_TIMEOUT_S = 10.0
"""How long a broker is waited for: long enough for one that is just starting beside us."""

_CREATE = "framegate topics create"
_TRY_AGAIN_S = 0.2
_VISIBLE_S = 2.0
_ONE_CONNECT_S = 3.0
_UNKNOWN_TOPIC = 3
_ALREADY_EXISTS = 36
_NO_ID = UUID(int=0)
_LIMIT_KEY = "max.message.bytes"
_STAMPED_BY_BROKER = {"message.timestamp.type": "LogAppendTime"}


@dataclass(frozen=True, slots=True)
class ClusterIdentity:
    """What names a record's home for ever: with partition and offset it makes a verdict's id.

    Attributes:
        cluster_id: the cluster's own id; does not change while its data lives.
        topic_id: the topic's UUID in hexadecimal with dashes, another one when a topic is deleted and made again; the
            topic's name where the broker gives no ids (before Kafka 2.8).
    """

    cluster_id: str
    topic_id: str


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as the broker describes it.

    Attributes:
        topic_id: see `ClusterIdentity`.
        partitions: their number.
        replication: replicas of the partition that has the fewest.
    """

    name: str
    topic_id: str
    partitions: int
    replication: int


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What was found at `check_topics`.

    Attributes:
        cluster_id: the cluster's own id.
        brokers: number of brokers that are up; those that are registered and down (fenced) do not count.
        topics: the topics asked for, by name.
    """

    cluster_id: str
    brokers: int
    topics: Mapping[str, Topic]

    def identity(self, topic: str) -> ClusterIdentity:
        """The identity of one of the topics asked for; KeyError for another."""
        return ClusterIdentity(self.cluster_id, self.topics[topic].topic_id)


def producer_limits(max_message_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, int]:
    """KafkaProducer settings under which a record of this size leaves.

    Never give more than the topic's `max.message.bytes`: a record that the producer refuses is that frame's error, and
    one that the topic refuses ends kafka-python's idempotent producer, whose every later send then fails.
    """
    return {"max_request_size": max_message_bytes}


def consumer_limits(max_message_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, int]:
    """KafkaConsumer settings under which a record of this size arrives.

    `receive_message_max_bytes` guards against a broken length on the wire and must hold a whole fetch.
    """
    fetch_max_bytes = max(FETCH_MAX_BYTES, max_message_bytes)
    return {
        "max_partition_fetch_bytes": max_message_bytes,
        "fetch_max_bytes": fetch_max_bytes,
        "receive_message_max_bytes": 2 * fetch_max_bytes,
    }


def ensure_topics(
    bootstrap_servers: str,
    *,
    partitions: int,
    replication: int,
    frames: str = "frames",
    verdicts: str = "verdicts",
    dead: str = "frames.dead",
    reviews: str | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    client: Mapping[str, object] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> tuple[str, ...]:
    """Make the topics that are not there, and see that those that are there fit. Running it again changes nothing.

    An existing topic is never altered: partitions added to a live topic move stations to other partitions and break
    their order (see the module's text), so a topic with another number of partitions is an error here.

    Args:
        bootstrap_servers: `host:port`, several separated by commas.
        partitions: of each topic; the most consumers that can share the work. Cannot be raised later without harm.
        replication: copies of each partition; at most the number of brokers. 3 in production, 1 on one broker.
        frames: topic of the frames; the only one whose size limit is set.
        verdicts: topic of the verdicts; stamped by the broker, as is the next.
        dead: topic of what is recorded of frames that could not be judged.
        reviews: topic of the inspectors' labels; None leaves it out.
        max_message_bytes: the largest record on `frames`: image, key, headers and framing.
        client: further settings of the Kafka client: TLS, SASL.
        timeout_s: how long to wait for a broker, and then for each answer.

    Returns:
        The names of the topics that were made, in the order frames, verdicts, dead, reviews.

    Raises:
        SettingsError: a number below 1, twice the same name, or a client setting that kafka-python does not know.
        BrokerError: no broker within `timeout_s`, or it refused us.
        TopicError: a topic could not be made, or one that is there does not fit.
    """
    names = [name for name in (frames, verdicts, dead, reviews) if name is not None]
    _require_sound(names, partitions=partitions, replication=replication, max_message_bytes=max_message_bytes)
    configs = {frames: {_LIMIT_KEY: str(max_message_bytes)}, verdicts: _STAMPED_BY_BROKER, dead: _STAMPED_BY_BROKER}

    def ensure(admin: Any) -> tuple[str, ...]:
        there = _describe(admin, names)
        for topic in there.values():
            _require_partitions(topic, partitions)
        if frames in there:
            _require_limit(admin, frames, max_message_bytes)
        missing = [name for name in names if name not in there]
        return _create(admin, missing, partitions, replication, configs, timeout_s) if missing else ()

    return _ask(bootstrap_servers, client, timeout_s, ensure)


def check_topics(
    bootstrap_servers: str,
    topics: Sequence[str],
    *,
    client: Mapping[str, object] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> ClusterState:
    """See that a broker answers and that the topics are there: what a consumer does before it subscribes.

    Creates nothing. With no topics it asks only for the cluster.

    Args:
        bootstrap_servers: `host:port`, several separated by commas.
        topics: names that must be there.
        client: further settings of the Kafka client: TLS, SASL.
        timeout_s: how long to wait for a broker.

    Raises:
        SettingsError: a client setting that kafka-python does not know.
        BrokerError: no broker within `timeout_s`, or it refused us; the message names the address and the cure.
        TopicError: a topic is not there or may not be read; the message names it and the cure.
    """

    def check(admin: Any) -> ClusterState:
        cluster = admin.describe_cluster()
        cluster_id = cluster.get("cluster_id")
        if not cluster_id:
            msg = f"the broker at {bootstrap_servers} gives no cluster id; expected Apache Kafka 2.8 or newer"
            raise BrokerError(msg)
        found = _describe_when_visible(admin, topics)
        missing = ", ".join(f"`{name}`" for name in topics if name not in found)
        if missing:
            msg = (
                f"no topic {missing} on {bootstrap_servers} (cluster {cluster_id}); "
                f"make it with: {_CREATE} --bootstrap-servers {bootstrap_servers} "
                "(its --help says how to give topics other names)"
            )
            raise TopicError(msg)
        return ClusterState(
            cluster_id=cluster_id,
            brokers=sum(not broker.get("is_fenced") for broker in cluster["brokers"]),
            topics=found,
        )

    return _ask(bootstrap_servers, client, timeout_s, check)


def cluster_identity(
    bootstrap_servers: str,
    topic: str,
    *,
    client: Mapping[str, object] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> ClusterIdentity:
    """Cluster id and topic id of one topic; arguments and errors as in `check_topics`, which gives that and more."""
    return check_topics(bootstrap_servers, [topic], client=client, timeout_s=timeout_s).identity(topic)


def _ask(
    bootstrap_servers: str, client: Mapping[str, object] | None, timeout_s: float, question: Callable[[Any], Answer]
) -> Answer:
    """What a broker answers to a question put to an admin client; every error of kafka-python becomes ours.

    A request goes to any broker of the cluster, and fails at once where that one has just died: the question is put
    again, to a fresh view of the cluster, until `timeout_s` is over. So it must bear being put twice.
    """
    settings = {"request_timeout_ms": int(timeout_s * 1000), **(client or {}), "bootstrap_servers": bootstrap_servers}
    deadline_s = time.monotonic() + timeout_s
    while True:
        if settings.get("proxy_url") is None:
            _wait_for_listener(bootstrap_servers, deadline_s, timeout_s)
        admin = _connect(settings, max(1.0, deadline_s - time.monotonic()))
        try:
            return question(admin)
        except KafkaError as error:
            if not isinstance(error, RetriableError) or time.monotonic() + _TRY_AGAIN_S >= deadline_s:
                msg = f"the broker at {bootstrap_servers} refused or fell silent: {error}; see its log"
                raise BrokerError(msg) from error
        finally:
            admin.close()
        time.sleep(_TRY_AGAIN_S)


def _connect(settings: Mapping[str, Any], timeout_s: float) -> Any:
    """An admin client that has the cluster's metadata; where that fails nothing is left behind."""
    try:
        return bootstrapped(partial(KafkaAdminClient, **settings), within_s=timeout_s)
    except KafkaConfigurationError as error:
        msg = f"a setting of the Kafka client is wrong: {error}"
        raise SettingsError(msg) from error
    except NoAnswerError as error:
        servers = settings["bootstrap_servers"]
        if error.for_good:
            cure = "see user and password, the certificates, and the key with its password"
            msg = f"the broker at {servers} does not let us in: {error.reason}; {cure}"
        else:
            msg = f"the broker at {servers} gives no answer: {error.reason}; is it Kafka, do the security settings fit?"
        raise BrokerError(msg) from error


def _wait_for_listener(bootstrap_servers: str, deadline_s: float, timeout_s: float) -> None:
    """Return when one of the addresses accepts a connection.

    kafka-python would wait as well, but leaves an open socket behind for every attempt that fails.
    """
    addresses = [(host, port) for host, port, _ in collect_hosts(bootstrap_servers, randomize=False)]
    last: Exception | None = None
    while True:
        for address in addresses:
            left_s = max(0.1, deadline_s - time.monotonic())
            try:
                socket.create_connection(address, timeout=min(_ONE_CONNECT_S, left_s)).close()
            except OSError as error:
                last = error
            else:
                return
        if time.monotonic() + _TRY_AGAIN_S >= deadline_s:
            msg = (
                f"no broker at {bootstrap_servers} within {timeout_s:g} s: {last}; start one (`framegate broker` on a "
                f"laptop) or give its address with --bootstrap-servers HOST:PORT"
            )
            raise BrokerError(msg) from last
        time.sleep(_TRY_AGAIN_S)


def _describe(admin: Any, names: Sequence[str]) -> dict[str, Topic]:
    """Those of the topics that are there, by name; TopicError for one that may not be described."""
    if not names:
        return {}
    found: dict[str, Topic] = {}
    for entry in admin.describe_topics(list(names)):
        if entry["error_code"] == _UNKNOWN_TOPIC or entry["name"] not in names:
            continue
        partitions = entry["partitions"]
        if entry["error_code"] or not partitions:
            reason = for_code(entry["error_code"]).__name__ if entry["error_code"] else "it has no partitions"
            msg = f"topic `{entry['name']}` cannot be used: {reason}; see its name, and the rights of this client"
            raise TopicError(msg)
        found[entry["name"]] = Topic(
            name=entry["name"],
            topic_id=_topic_id(entry.get("topic_id"), entry["name"]),
            partitions=len(partitions),
            replication=min(len(partition["replica_nodes"]) for partition in partitions),
        )
    return found


def _describe_when_visible(admin: Any, names: Sequence[str]) -> dict[str, Topic]:
    """As `_describe`; a topic made a moment ago through another broker may not be known to this one yet."""
    visible_by_s = time.monotonic() + _VISIBLE_S
    found = _describe(admin, names)
    while len(found) < len(set(names)) and time.monotonic() < visible_by_s:
        time.sleep(_TRY_AGAIN_S)
        found = _describe(admin, names)
    return found


def _create(
    admin: Any,
    names: Sequence[str],
    partitions: int,
    replication: int,
    configs: Mapping[str, Mapping[str, str]],
    timeout_s: float,
) -> tuple[str, ...]:
    """Make these topics, wait until they can be used, and give the names of those that we made."""
    wanted: dict[str, dict[str, Any]] = {
        name: {
            "num_partitions": partitions,
            "replication_factor": replication,
            "configs": dict(configs.get(name, {})),
        }
        for name in names
    }
    entries = admin.create_topics(wanted, raise_errors=False)["topics"]
    made = {entry["name"] for entry in entries if _was_made(entry, partitions, replication)}
    admin.wait_for_topics(names, timeout_ms=timeout_s * 1000)
    return tuple(name for name in names if name in made)


def _topic_id(given: object, name: str) -> str:
    """The id the broker gave; the topic's name where it gave none or zeros."""
    return name if given is None or UUID(str(given)) == _NO_ID else str(given)


def _require_sound(names: Sequence[str], *, partitions: int, replication: int, max_message_bytes: int) -> None:
    """Raise SettingsError for what no broker can make."""
    if len(set(names)) < len(names):
        msg = f"the topics must have different names, got {', '.join(names)}"
        raise SettingsError(msg)
    numbers = {"partitions": partitions, "replication": replication, "max_message_bytes": max_message_bytes}
    for name, number in numbers.items():
        if number < 1:
            msg = f"{name} must be 1 or more, got {number}"
            raise SettingsError(msg)


def _require_partitions(topic: Topic, partitions: int) -> None:
    """Raise TopicError where an existing topic has another number of partitions."""
    if topic.partitions != partitions:
        msg = (
            f"topic `{topic.name}` is there with {topic.partitions} partitions, wanted {partitions}; it is left as it "
            f"is, because partitions added to a live topic move stations and break their order: "
            f"say {topic.partitions}, or make a new topic"
        )
        raise TopicError(msg)


def _require_limit(admin: Any, frames: str, max_message_bytes: int) -> None:
    """Raise TopicError where the existing topic of frames takes only smaller records.

    Whoever may not see the topic's settings is told so and goes on: he may well be right about the size. The embedded
    broker has no such limit.
    """
    # All settings are asked for: asked for one by name, the embedded broker hangs up.
    resource = ConfigResource(ConfigResourceType.TOPIC, frames)
    settings = admin.describe_configs([resource], config_filter="all")["topic"].get(frames, {})
    if not settings:  # kafka-python drops the error's code, which is the missing right's; a topic has settings
        log.warning(
            "whether topic `%s` takes records of %d bytes was not seen: its settings may not be read by this user; "
            "allow it DescribeConfigs, or look with kafka-configs.sh --describe --entity-type topics --entity-name %s",
            frames,
            max_message_bytes,
            frames,
        )
    limit = settings.get(_LIMIT_KEY, {}).get("value")
    if limit is not None and int(limit) < max_message_bytes:
        cure = f"--alter --entity-type topics --entity-name {frames} --add-config {_LIMIT_KEY}={max_message_bytes}"
        msg = f"topic `{frames}` takes records up to {limit} bytes, wanted {max_message_bytes}: kafka-configs.sh {cure}"
        raise TopicError(msg)


def _was_made(entry: Mapping[str, Any], partitions: int, replication: int) -> bool:
    """Whether the broker made this topic; somebody else may have in the meantime. TopicError when it refused."""
    code: int = entry["error_code"]
    if code in {0, _ALREADY_EXISTS}:
        return code == 0
    msg = (
        f"topic `{entry['name']}` could not be made with {partitions} partitions and {replication} copies: "
        f"{entry['error_message'] or for_code(code).__name__}"
    )
    raise TopicError(msg)
