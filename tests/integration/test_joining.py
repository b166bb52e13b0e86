"""A member gets into its group however it is polled: kafka-python loses a join that ends between two polls."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from consumer.clock import SystemClock
from consumer.kafka_client import Connection
from consumer.kafka_io import KafkaSource
from consumer.topics import ensure_topics

if TYPE_CHECKING:
    from consumer.tenure import Partition
    from tests.kafka_cluster import RunningBroker

pytestmark = pytest.mark.slow

PATIENCE_S = 20.0
WORK_S = 0.05
SETTLED_S = 2.0


class Member(threading.Thread):
    """Polls as a consumer under backpressure does: shortly, with work in between."""

    def __init__(self, source: KafkaSource, timeout_s: float, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._source, self._timeout_s, self._stop_event = source, timeout_s, stop
        self.held: set[Partition] = set()
        self.ready_since_s: float | None = None

    def run(self) -> None:
        while not self._stop_event.wait(WORK_S):
            for change in self._source.poll(self._timeout_s, 10).changes:
                update = self.held.update if change.kind == "assigned" else self.held.difference_update
                update(change.partitions)
            if not self._source.ready():
                self.ready_since_s = None
            elif self.ready_since_s is None:
                self.ready_since_s = time.monotonic()
        self._source.close(5.0)


@pytest.mark.parametrize("timeout_s", [0.0, 0.05])
def test_two_members_get_in_and_stay_with_work_between_short_polls(
    broker: RunningBroker, unique: str, timeout_s: float
) -> None:
    verdicts, dead = f"{unique}-v", f"{unique}-d"
    ensure_topics(broker.bootstrap_servers, partitions=4, replication=1, frames=unique, verdicts=verdicts, dead=dead)
    stop = threading.Event()
    with ExitStack() as stack:
        members: list[Member] = []
        for _ in range(2):
            connection = Connection(broker.bootstrap_servers, client_id="joining")
            source = KafkaSource(connection, group=unique, topic=unique, clock=SystemClock(), session_timeout_s=6.0)
            members.append(Member(source, timeout_s, stop))
            members[-1].start()
            stack.callback(members[-1].join, 10.0)
        stack.callback(stop.set)
        deadline_s = time.monotonic() + PATIENCE_S
        while not _settled(members):
            assert time.monotonic() < deadline_s, [(member.held, member.ready_since_s) for member in members]
            time.sleep(0.1)


def _settled(members: list[Member]) -> bool:
    """Both have partitions, all are held once, and it has been so for a while."""
    now_s = time.monotonic()
    since = [member.ready_since_s for member in members]
    held = [partition for member in members for partition in member.held]
    return (
        all(start_s is not None and now_s - start_s > SETTLED_S for start_s in since)
        and all(member.held for member in members)
        and len(held) == len(set(held)) == 4
    )
