"""Keep a native library from changing where this thread runs its signal handlers. Linux only, like the pinned wheels.

OpenVINO's processor plugin gives the thread that loads it a signal stack of its own (`sigaltstack`), of the least size
that the kernel accepts, and takes it away when it is unloaded, by putting back whatever was there before. Two that live
side by side and are unloaded in the order of their loading leave the thread on memory that is gone: the next SIGTERM
ends the process with SIGSEGV instead of a drain, and without a word.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """`stack_t` of <signal.h>."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put back at the end what the calling thread had as its signal stack at the beginning.

    Raises:
        OSError: the system refused; only from inside a signal handler.
    """
    before = _Stack()
    _sigaltstack(None, before)
    try:
        yield
    finally:
        _sigaltstack(before, None)


def signal_stack() -> tuple[int | None, int]:
    """(address, size in bytes) of the calling thread's signal stack; the address is None where it has none."""
    now = _Stack()
    _sigaltstack(None, now)
    return now.ss_sp, now.ss_size


def _sigaltstack(new: _Stack | None, old: _Stack | None) -> None:
    """The system call of this name."""
    if _LIBC.sigaltstack(None if new is None else ctypes.byref(new), None if old is None else ctypes.byref(old)):
        error = ctypes.get_errno()
        raise OSError(error, f"sigaltstack: {os.strerror(error)}")
