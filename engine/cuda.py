"""The little of CUDA that a backend needs, as protocols: one implementation on pycuda, one that records for the tests.

Who calls them sees to it that all calls come from one thread, the owner of the CUDA context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np


class DeviceMemoryError(DeviceError):
    """No memory of that size is left, on the device or page-locked on the host. A smaller batch may still fit."""


class Closable(Protocol):
    """What is given back once, before the device is."""

    def close(self) -> None:
        """Give it back; twice is harmless."""
        ...


class Buffer(Closable, Protocol):
    """Memory on the device."""

    @property
    def address(self) -> int:
        """Where it begins; aligned to 256 bytes."""
        ...


class PinnedBuffer(Closable, Protocol):
    """Page-locked memory on the host: only from there does a copy run beside other work."""

    @property
    def array(self) -> np.ndarray:
        """uint8 (n_bytes,), writable; not to be touched while a copy from or to it is under way."""
        ...


class Stream(Closable, Protocol):
    """A queue of work on the device, done in its order."""

    @property
    def handle(self) -> int:
        """What TensorRT takes."""
        ...


class Event(Closable, Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Set the mark behind everything that is in the stream now. Raises DeviceError."""
        ...

    def wait(self) -> None:
        """Return once the stream has passed the mark.

        Raises:
            DeviceError: the work before it failed.
        """
        ...


class Device(Closable, Protocol):
    """One GPU with its primary context current on the calling thread; `close` gives the context back.

    Attributes:
        name: as its driver calls it.
        capability: its compute capability, (major, minor).
        driver: the driver's version, in full where the system tells it.
        cuda: the CUDA versions of driver and headers.
    """

    name: str
    capability: tuple[int, int]
    driver: str
    cuda: str

    def alloc(self, n_bytes: int) -> Buffer:
        """Device memory, contents undefined. Raises DeviceMemoryError."""
        ...

    def alloc_pinned(self, n_bytes: int) -> PinnedBuffer:
        """Page-locked host memory, contents undefined. Raises DeviceMemoryError."""
        ...

    def stream(self) -> Stream:
        """A new stream, not the default one, which would hold up all others. Raises DeviceError."""
        ...

    def event(self) -> Event:
        """A new event. Raises DeviceError."""
        ...

    def copy_in(self, target: Buffer, source: np.ndarray, stream: Stream) -> None:
        """Queue a copy of a part of a pinned buffer's array to the start of `target`. Raises DeviceError."""
        ...

    def copy_out(self, target: np.ndarray, source: Buffer, stream: Stream) -> None:
        """Queue a copy from the start of `source` into a part of a pinned buffer's array. Raises DeviceError."""
        ...

    def synchronize(self) -> None:
        """Wait for all streams. Raises DeviceError where work on them failed."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all. Raises DeviceError."""
        ...
