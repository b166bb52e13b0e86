"""Memory that two processes map, without a name: it is gone once neither has it, however either of them ends.

Linux only, as sharing an engine is: memory files with seals, handed over as descriptors.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress

from engine.errors import DeviceError, InputError


def new_memory(n_bytes: int) -> int:
    """A descriptor of zeroed memory that cannot change its size any more, so no reader falls off its end.

    Raises:
        DeviceError: the system has no such memory, or none left.
    """
    try:
        fd = os.memfd_create("framegate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError) as error:
        msg = f"there is no memory to share with the engine's process ({error}): expected Linux; run without sharing"
        raise DeviceError(msg) from error
    try:
        os.ftruncate(fd, n_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        msg = f"no {n_bytes} bytes to share with the engine's process ({error.strerror}): expected more memory"
        raise DeviceError(msg) from error
    return fd


def map_memory(fd: int, n_bytes: int) -> mmap.mmap:
    """Map memory that somebody handed over. It stays until nothing looks at it any more.

    Raises:
        InputError: it is not of that size, or could still shrink under whoever reads it.
    """
    try:
        size, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        msg = f"what was handed over is no memory to share ({error.strerror}): expected a sealed memory file"
        raise InputError(msg) from error
    if size != n_bytes or not seals & fcntl.F_SEAL_SHRINK:
        msg = f"shared memory has {size} bytes and seals {seals:#x}: expected {n_bytes}, sealed against shrinking"
        raise InputError(msg)
    return mmap.mmap(fd, n_bytes)


def memory_with(content: bytes) -> int:
    """A descriptor of memory that holds these bytes. Raises DeviceError."""
    fd = new_memory(len(content))
    with mmap.mmap(fd, len(content)) as mapped:
        mapped[:] = content
    return fd


def content_of(fd: int, largest: int) -> bytes:
    """The bytes of memory that somebody handed over. Raises InputError where they are more than `largest`."""
    with suppress(OSError):
        n_bytes = os.fstat(fd).st_size
        if 0 < n_bytes <= largest:
            with map_memory(fd, n_bytes) as mapped:
                return mapped[:]
    msg = f"what was handed over is no memory of 1 to {largest} bytes: expected a packed bundle"
    raise InputError(msg)
