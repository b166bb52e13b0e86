"""Reading from the broker in large pieces: everything that is there, and the end of a connection as an error."""

from __future__ import annotations

import inspect
import select
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from kafka.errors import KafkaConnectionError
from kafka.net import transport as kafka_transport
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from consumer import kafka_transport as ours_transport
from consumer.kafka_transport import PIECE_BYTES, mend_reading
from tests.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FRAME = bytes(range(256)) * 280
"""70 kB."""


class Counted:
    """A socket that counts how often a read brought something."""

    def __init__(self, sock: socket.socket) -> None:
        self.reads = 0
        self._sock = sock

    def recv_into(self, buffer: memoryview) -> int:
        received = self._sock.recv_into(buffer)
        self.reads += 1
        return received


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the broker's, ours) of a TCP connection on loopback; ours does not block, like the client's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.settimeout(0)
    with ours, theirs:
        yield theirs, ours


def receive(kind: Any, sock: Any) -> tuple[bytes, Exception | None]:
    """What the client would be given."""
    mend_reading()
    transport = kind.__new__(kind)
    transport._sock = sock
    received, trouble = transport._sock_recv()
    return bytes(received), trouble


@pytest.mark.parametrize("kind", [KafkaTCPTransport, KafkaSSLTransport])
def test_a_frame_comes_whole_in_a_few_reads(
    kind: type[KafkaTCPTransport], ends: tuple[socket.socket, socket.socket]
) -> None:
    theirs, ours = ends
    theirs.sendall(FRAME)
    counted = Counted(ours)
    got = b""
    while len(got) < len(FRAME):
        select.select([ours], [], [], 10)
        received, trouble = receive(kind, counted)
        assert trouble is None
        got += received
    assert got == FRAME
    assert counted.reads < len(FRAME) // 4096, "no better than the client's own pieces"
    assert receive(kind, counted) == (b"", None)


def test_more_than_a_piece_comes_in_several(ends: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = ends
    sent = FRAME * 20
    sending = threading.Thread(target=theirs.sendall, args=(sent,))
    sending.start()
    got = b""
    while len(got) < len(sent):
        select.select([ours], [], [], 10)
        received, trouble = receive(KafkaTCPTransport, ours)
        assert trouble is None
        assert len(received) <= PIECE_BYTES
        got += received
    sending.join(10)
    assert got == sent


def test_tls_keeps_nothing_back(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TLS has decrypted and not handed over wakes nobody: were it left, the last of an answer would never come."""
    monkeypatch.setattr(ours_transport, "PIECE_BYTES", 1000)  # less than a record of TLS: something is left in each
    monkeypatch.setattr(ours_transport, "_reading", threading.local())
    authority = Authority(tmp_path, "authority")
    theirs, ours = ends
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*authority.sign("broker"))
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    sent = FRAME * 20

    def send() -> None:
        with serving.wrap_socket(theirs, server_side=True) as secured:
            secured.sendall(sent)
            assert secured.recv(1) == b"!"

    sending = threading.Thread(target=send)
    sending.start()
    ours.settimeout(10)
    with trusting.wrap_socket(ours, server_hostname="127.0.0.1") as secured:
        secured.settimeout(0)
        got = b""
        while len(got) < len(sent):
            assert select.select([secured], [], [], 10)[0], f"{len(sent) - len(got)} bytes never came"
            received, trouble = receive(KafkaSSLTransport, secured)
            assert trouble is None
            got += received
        assert got == sent
        secured.send(b"!")
        sending.join(10)


def test_what_came_before_the_end_is_kept(ends: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = ends
    """kafka-python forgets what comes together with an error: first the words, then the end."""
    theirs.sendall(b"last words")
    theirs.close()
    assert receive(KafkaTCPTransport, ours) == (b"last words", None)
    assert select.select([ours], [], [], 10)[0]
    received, trouble = receive(KafkaTCPTransport, ours)
    assert (received, type(trouble)) == (b"", KafkaConnectionError)


def test_what_came_before_the_end_of_tls_is_kept(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    theirs, ours = ends
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*authority.sign("broker"))
    trusting = ssl.create_default_context(cafile=str(authority.certificate))

    def say_and_hang_up() -> None:
        with serving.wrap_socket(theirs, server_side=True) as secured:
            secured.sendall(b"last words")
            secured.settimeout(0)
            with suppress(ssl.SSLWantReadError):  # it does not wait for us to take leave as well, like a broker
                secured.unwrap()

    saying = threading.Thread(target=say_and_hang_up)
    saying.start()
    ours.settimeout(10)
    with trusting.wrap_socket(ours, server_hostname="127.0.0.1") as secured:
        secured.settimeout(0)
        time.sleep(0.2)  # so that all of it is there
        received, trouble = b"", None
        while trouble is None:
            assert select.select([secured], [], [], 10)[0]
            more, trouble = receive(KafkaSSLTransport, secured)
            assert not (more and trouble)
            received += more
    assert received == b"last words"
    saying.join(10)


def test_a_connection_that_is_reset_is_an_error(ends: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = ends
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    received, trouble = receive(KafkaTCPTransport, ours)
    assert received == b""
    assert isinstance(trouble, KafkaConnectionError)
    assert isinstance(trouble.args[0], ConnectionResetError)


def test_the_client_has_no_better_way_of_its_own() -> None:
    """When this fails, kafka-python has changed how it reads: see whether our way is still needed."""
    assert PIECE_BYTES > 4096
    assert inspect.getsource(kafka_transport).count("self._sock.recv(4096)") == 2
