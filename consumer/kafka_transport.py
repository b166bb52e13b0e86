"""Have kafka-python take what a broker has sent out of the kernel in large pieces, and to the last of it.

Version 3.0.12 asks for 4 KiB at a time, whatever lies there: some 18 system calls for a camera's frame of 70 kB, and
for each the interpreter's lock is given away and waited for among the threads that decode. There is no setting for it.
Measured in a consumer without an engine: 165 us of processor time a frame on the client's thread before, 128 after.

And what it has read in one go with the end of the connection it throws away. A broker that refuses a password says so
and hangs up: on a busy machine both are there together, and all that was left to tell was that nobody answers.
"""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING

from kafka.errors import KafkaConnectionError
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

if TYPE_CHECKING:
    from kafka.errors import KafkaError

PIECE_BYTES = 256 * 1024
"""What is taken at once: as much as a socket's buffer holds when it is full."""

_reading = threading.local()


def mend_reading() -> None:
    """From now on all clients of this process do; twice is harmless."""
    for transport in (KafkaTCPTransport, KafkaSSLTransport):
        transport._sock_recv = _receive  # noqa: SLF001 - as said above


def _receive(transport: KafkaTCPTransport) -> tuple[memoryview, KafkaError | None]:
    """What is there, about a piece of it, or why there will be no more: as the method it replaces.

    Never both, for the client would forget the first. The end of a connection is still there at the next call.

    The view is good until this thread reads again: the client copies it into the answer that it belongs to at once.
    """
    if not hasattr(_reading, "piece"):
        _reading.piece = bytearray(PIECE_BYTES)
    piece: bytearray = _reading.piece
    sock = transport._sock  # noqa: SLF001 - the same
    filled = 0
    trouble: KafkaError | None = None
    while True:
        if filled == len(piece):
            # What TLS has taken from the socket and keeps back wakes nobody: it has to be taken now.
            kept_back = sock.pending() if isinstance(sock, ssl.SSLSocket) else 0
            if not kept_back:
                break
            piece = _reading.piece = piece + bytes(kept_back)
        try:
            received = sock.recv_into(memoryview(piece)[filled:])
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            break
        except OSError as error:
            trouble = KafkaConnectionError(error)
            break
        if not received:
            trouble = KafkaConnectionError("socket disconnected")
            break
        filled += received
    return memoryview(piece)[:filled], None if filled else trouble
