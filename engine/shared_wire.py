"""What is said between a worker and the engine's process: small messages on a Unix-domain socket that keeps them apart.

Neither pixels nor numbers are in them: those lie in the shared memory, and a message says where. Nothing is pickled.
A socket of this kind gives a message whole or not at all, and an end as soon as the other side is gone, killed or not.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

from engine import cuda, errors
from engine.errors import DeviceError, FramegateError, InputError

OPEN, MAP, SUBMIT = b"O", b"M", b"S"
"""From a worker: open a featurizer (with a packed bundle), map memory (with it), compute a batch."""

OPENED, REFUSED, MAPPED, DONE, FAILED = b"o", b"r", b"m", b"d", b"f"
"""From the engine's process."""

MAX_MESSAGE_BYTES = 1 << 16
MAX_TEXT = 8000
CONNECT_S = 1.0
"""Only a process that hangs lets a connection wait."""

_SUBMIT = struct.Struct("<QBHHB")
_DONE = struct.Struct("<Q")


class PeerGoneError(Exception):
    """The other side has ended, or broken off. Never leaves the files that speak over this wire."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Compute a batch.

    Attributes:
        number: of the ticket.
        slot: where its heads lie and its numbers are to be put.
        heads: how many.
        locations: whether they are wanted too.
        cells: where its frames lie.
    """

    number: int
    slot: int
    heads: int
    locations: bool
    cells: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """As a message."""
        head = _SUBMIT.pack(self.number, self.slot, self.heads, len(self.cells), self.locations)
        return SUBMIT + head + struct.pack(f"<{len(self.cells)}I", *self.cells)

    @classmethod
    def from_bytes(cls, body: bytes) -> Submit:
        """The opposite. Raises InputError where it is none."""
        try:
            number, slot, heads, frames, locations = _SUBMIT.unpack_from(body)
            cells = struct.unpack(f"<{frames}I", body[_SUBMIT.size :])
        except struct.error as error:
            msg = f"a message of {len(body)} bytes is no batch ({error}): expected one of this Framegate"
            raise InputError(msg) from error
        return cls(number, slot, heads, bool(locations), cells)


def done(number: int) -> bytes:
    """The numbers of a batch are there."""
    return DONE + _DONE.pack(number)


def done_number(body: bytes) -> int:
    """The opposite of `done`."""
    return int(_DONE.unpack(body)[0])


def failed(number: int, error: BaseException) -> bytes:
    """A batch failed."""
    return FAILED + json.dumps({"number": number, **_error_json(error)}).encode()


def refused(error: BaseException) -> bytes:
    """A featurizer, or a piece of memory, was refused."""
    return REFUSED + json.dumps(_error_json(error)).encode()


def with_json(kind: bytes, document: dict[str, Any]) -> bytes:
    """Any other message."""
    return kind + json.dumps(document).encode()


def error_of(document: dict[str, Any]) -> FramegateError:
    """The error that was told: of the same class and with the same text as where it happened."""
    for name in document["kinds"]:
        found = getattr(errors, name, None) or getattr(cuda, name, None)
        if isinstance(found, type) and issubclass(found, FramegateError) and found is not errors.FrameError:
            return found(document["text"])
    return DeviceError(f"{document['kinds'][0]}: {document['text']}")


def _error_json(error: BaseException) -> dict[str, Any]:
    return {"kinds": [kind.__name__ for kind in type(error).__mro__][:8], "text": str(error)[:MAX_TEXT]}


def connect(address: str) -> socket.socket:
    """A connection to the engine's process. Raises PeerGoneError where nothing listens."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(CONNECT_S)
    try:
        link.connect(address)
    except OSError as error:
        link.close()
        raise PeerGoneError(str(error)) from error
    return link


def listen(address: str, backlog: int = 256) -> socket.socket:
    """A socket that is connected to, for processes of the same user. Raises DeviceError where it cannot be made."""
    if sys.platform != "linux":
        msg = f"an engine cannot be shared on {sys.platform}: expected Linux; give each worker its own"
        raise DeviceError(msg)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.bind(address)
        link.listen(backlog)
    except OSError as error:
        link.close()
        msg = f"no socket for the engine's process at {address} ({error}): expected a short path; set TMPDIR to one"
        raise DeviceError(msg) from error
    return link


def is_ours(link: socket.socket) -> bool:
    """Whether the other side runs as the same user."""
    told = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", told)[1] == os.getuid())


def is_over(link: socket.socket) -> bool:
    """Whether the other side is gone, without waiting; takes nothing of what it said."""
    looking = select.poll()
    looking.register(link, select.POLLIN)
    try:
        return bool(looking.poll(0)) and not link.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def send(link: socket.socket, message: bytes, fd: int | None = None) -> None:
    """Send one message, with a descriptor where there is one. Raises PeerGoneError."""
    try:
        if fd is None:
            link.send(message)
        else:
            link.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    except OSError as error:
        raise PeerGoneError(str(error)) from error


def receive(link: socket.socket) -> tuple[bytes, bytes, int | None]:
    """One message: its kind, its body, and a descriptor that is ours to close.

    Raises:
        PeerGoneError: the other side is gone, or says what it must not.
        TimeoutError: nothing came within the socket's timeout.
    """
    try:
        message, ancillary, flags, _ = link.recvmsg(MAX_MESSAGE_BYTES, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise
    except OSError as error:
        raise PeerGoneError(str(error)) from error
    fds = _descriptors(ancillary)
    if not message or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > 1:
        for fd in fds:
            os.close(fd)
        raise PeerGoneError("ended" if not message else "said more than was expected")
    return message[:1], message[1:], fds[0] if fds else None


_FD_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
