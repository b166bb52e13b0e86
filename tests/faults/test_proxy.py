"""The proxy breaks what it is told to break, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import END_TXN, HOST, Network, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 10.0


class Echo(threading.Thread):
    """A broker that answers each request with its correlation id and its body."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests = 0

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while body := receive(connection):
                self.requests += 1
                send(connection, body[4:])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(struct.pack(">i", len(body)) + body)


def receive(connection: socket.socket) -> bytes:
    """One message; what there was of it where the connection ended."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while len(data) < 4 or len(data) < 4 + struct.unpack(">i", data[:4])[0]:
            chunk = connection.recv(65536)
            if not chunk:
                break
            data += chunk
    return data[4:]


def request(api_key: int, correlation: int, rest: bytes = b"") -> bytes:
    return struct.pack(">hhi", api_key, 3, correlation) + rest


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    echo.start()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Network([1]) as network:
        network[1].target = echo.port
        yield network[1]


@contextlib.contextmanager
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, proxy.port), timeout=PATIENCE_S) as connection:
        yield connection


def test_messages_pass_in_order_whatever_their_size(proxy: Proxy) -> None:
    with client(proxy) as connection:
        for number, size in enumerate((0, 10, 3_000_000, 7)):
            send(connection, request(1, number, bytes(size)))
            assert receive(connection) == struct.pack(">i", number) + bytes(size)


def test_an_answer_to_a_commit_is_lost_after_the_broker_has_had_the_request(proxy: Proxy, echo: Echo) -> None:
    proxy.lose_commits()
    with client(proxy) as connection:
        send(connection, request(1, 1))
        assert receive(connection)
        send(connection, request(END_TXN, 2))
        assert receive(connection) == b""
    assert (proxy.lost_commits, echo.requests) == (1, 2)
    with client(proxy) as connection:
        send(connection, request(END_TXN, 2))
        assert receive(connection), "only so many as were asked for"


def test_half_an_answer_is_half(proxy: Proxy) -> None:
    proxy.halve()
    with client(proxy) as connection:
        send(connection, request(1, 1, bytes(1000)))
        assert len(receive(connection)) == 502
    assert proxy.halved == 1


def test_a_cut_ends_connections_and_healing_lets_new_ones_pass(proxy: Proxy) -> None:
    with client(proxy) as connection:
        send(connection, request(1, 1))
        assert receive(connection)
        proxy.cut()
        assert receive(connection) == b""
    with client(proxy) as connection:
        assert receive(connection) == b""
    proxy.heal()
    with client(proxy) as connection:
        send(connection, request(1, 1))
        assert receive(connection)


def test_what_is_stalled_or_delayed_comes_later(proxy: Proxy) -> None:
    with client(proxy) as connection:
        proxy.stall()
        send(connection, request(1, 1))
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(PATIENCE_S)
        proxy.heal()
        assert receive(connection)
        proxy.delay_s = 0.1
        began_s = time.monotonic()
        send(connection, request(1, 2))
        assert receive(connection)
        assert time.monotonic() - began_s >= 0.2, "both ways"
