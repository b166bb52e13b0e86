"""Starting beside a broker that hangs: it costs time, not the start."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from consumer.kafka_client import Connection, close_producer, plain_producer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kafka_cluster import RunningBroker

TRIES = 12
"""Each asks the silent one first with a chance of a half."""


class Silent:
    """Takes connections and says nothing, as a broker that hangs, or a proxy before one that is gone."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(self._listener.accept()[0])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.taken:
            connection.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    silent = Silent()
    yield silent
    silent.close()


@pytest.mark.slow
def test_a_client_starts_though_the_first_broker_it_asks_hangs(embedded_broker: RunningBroker, silent: Silent) -> None:
    connection = Connection(f"127.0.0.1:{silent.port},{embedded_broker.bootstrap_servers}")
    for _ in range(TRIES):
        producer = plain_producer(connection, delivery_timeout_s=20.0, max_block_s=5.0)
        close_producer(producer, 1.0)
        if silent.taken:
            break
    assert silent.taken, "it never asked the one that hangs: nothing was shown"
