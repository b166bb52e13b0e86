"""A group on the embedded broker forms, whoever left it and in whichever order: see `consumer.embedded_groups`."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from consumer.clock import SystemClock
from consumer.kafka_client import Connection
from consumer.kafka_io import KafkaSource
from consumer.topics import ensure_topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.kafka_cluster import RunningBroker

PATIENCE_S = 90.0
"""A member that is told of a leader who has gone waits for it up to five seconds before it looks who that is."""

SESSION_S = 2.0
"""The broker takes half of it for each request to join."""

NEVER_S = 15.0
"""A group without that hole forms in two seconds."""


class Group:
    """A group of readers of one topic."""

    def __init__(self, servers: str, name: str) -> None:
        self._servers, self._name = servers, name
        ensure_topics(servers, partitions=4, replication=1, frames=name, verdicts=f"{name}-v", dead=f"{name}-d")
        self.members: list[KafkaSource] = []

    def careful(self) -> KafkaSource:
        """Another member, as the product has it on the embedded broker."""
        return self._member(embedded=True)

    def plain(self) -> KafkaSource:
        """Another member, as the client has it."""
        return self._member(embedded=False)

    def _member(self, *, embedded: bool) -> KafkaSource:
        self.members.append(
            KafkaSource(
                Connection(self._servers, client_id="grouped"),
                group=self._name,
                topic=self._name,
                clock=SystemClock(),
                session_timeout_s=SESSION_S,
                embedded=embedded,
            )
        )
        return self.members[-1]


@pytest.fixture
def group(embedded_broker: RunningBroker, unique: str) -> Iterator[Group]:
    group = Group(embedded_broker.bootstrap_servers, unique)
    yield group
    for member in group.members:
        member.close(2.0)


def formed(sources: Sequence[KafkaSource], within_s: float = PATIENCE_S) -> bool:
    """Poll them side by side until all four partitions are held; False: they are not, in that time."""
    end_s = time.monotonic() + within_s
    with ThreadPoolExecutor(len(sources)) as crew:
        while time.monotonic() < end_s:
            list(crew.map(lambda source: source.poll(0.05, 10), sources))
            held = [partition for source in sources for partition in source._consumer.assignment()]
            if len(held) == len(set(held)) == 4 and all(source.ready() for source in sources):
                return True
    return False


def leave_leader_last(sources: Sequence[KafkaSource]) -> None:
    """All leave, and nobody has joined anew when the leader does."""
    for source in sorted(sources, key=lambda source: source._consumer._coordinator._is_leader):
        source.close(5.0)


def test_a_careful_leader_leaves_nothing_behind_that_keeps_others_out(group: Group) -> None:
    members = [group.careful(), group.careful()]
    assert formed(members)
    leave_leader_last(members)
    assert formed([group.plain()]), "the broker waits for a leader that has gone"


@pytest.mark.slow
def test_a_careful_member_sets_right_what_a_leader_left_behind(group: Group) -> None:
    """As after a leader's end in between. An embedded broker without the hole ends the first half of this test."""
    members = [group.plain(), group.plain()]
    assert formed(members)
    leave_leader_last(members)
    stuck = group.plain()
    assert not formed([stuck], NEVER_S), "the embedded broker does better: `consumer.embedded_groups` can go"
    careful = [group.careful(), group.careful()]
    assert formed([stuck, *careful])


def test_who_is_left_gets_all_when_a_leader_and_another_leave(group: Group) -> None:
    members = [group.careful() for _ in range(3)]
    assert formed(members)
    leader, other, last = sorted(members, key=lambda source: not source._consumer._coordinator._is_leader)
    other.close(5.0)
    leader.close(5.0)
    assert formed([last])
