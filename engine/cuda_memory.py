"""The CUDA device on pycuda: context, streams, events, device and pinned memory. The one file that imports pycuda."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from engine.cuda import DeviceMemoryError
from engine.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.cuda import Buffer, Stream

_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_ELSE = "or use --backend auto"


def open_gpu(index: int, needed_cuda: int) -> Gpu:
    """Make a GPU's primary context, the one TensorRT works in too, current on this thread.

    Args:
        index: which GPU, counted from 0.
        needed_cuda: the oldest CUDA version that the driver must support, as it counts them: 13000 is 13.0.

    Raises:
        DeviceError: pycuda, the driver or the GPU is missing, the driver is too old, or the GPU cannot be used.
    """
    cuda = _driver()
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        msg = (
            f"CUDA finds no GPU to work with ({error}): expected an NVIDIA GPU and its driver; see what `nvidia-smi` "
            f"says, give a container its GPU, {_ELSE}"
        )
        raise DeviceError(msg) from error
    supported = cuda.get_driver_version()
    if supported < needed_cuda:
        msg = (
            f"the NVIDIA driver {_driver_version(supported)} supports CUDA {_dotted(supported)}: expected CUDA "
            f"{_dotted(needed_cuda)} or newer for this TensorRT; install a newer driver, {_ELSE}"
        )
        raise DeviceError(msg)
    if index >= count:
        msg = f"there is no GPU {index}: expected a number below {count}, as CUDA counts them; choose another, {_ELSE}"
        raise DeviceError(msg)
    return Gpu(cuda, index)


def _driver() -> Any:
    """The module pycuda.driver. Raises DeviceError where it is missing or does not find a driver it can use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns of a driver that is too old, then raises as well
            import pycuda.driver as cuda  # noqa: PLC0415 - only when asked for
    except ModuleNotFoundError as error:
        msg = (
            f"pycuda is not installed (no module {error.name!r}): expected the package pycuda; install Framegate with "
            f"its extra [gpu], {_ELSE}"
        )
        raise DeviceError(msg) from error
    except ImportError as error:
        detail = " ".join(str(error).split())
        if "libcuda" in detail:
            msg = f"there is no NVIDIA driver here ({detail}): expected libcuda.so.1; install the driver, {_ELSE}"
        elif "undefined symbol: cu" in detail:
            msg = (
                f"the NVIDIA driver is older than the CUDA that pycuda was built with ({detail}): expected one that "
                f"is as new; install a newer driver, {_ELSE}"
            )
        else:
            msg = f"pycuda cannot be loaded ({detail}): expected it whole; install the extra [gpu] anew, {_ELSE}"
        raise DeviceError(msg) from error
    return cuda


@contextmanager
def _errors(cuda: Any, what: str) -> Iterator[None]:
    """Turn pycuda's errors into the engine's."""
    try:
        yield
    except cuda.MemoryError as error:
        msg = f"no memory for {what} ({error})"
        raise DeviceMemoryError(msg) from error
    except cuda.Error as error:
        msg = (
            f"the GPU failed at {what} ({error}): expected it to go on; look for its errors in the system's log, then "
            f"start again, {_ELSE}"
        )
        raise DeviceError(msg) from error


class Gpu:
    """One GPU on pycuda. Meets `engine.cuda.Device`."""

    def __init__(self, cuda: Any, index: int) -> None:
        """Retain the primary context and make it current."""
        self._cuda = cuda
        with _errors(cuda, f"opening GPU {index}"):
            device = cuda.Device(index)
            self.name: str = device.name()
            self.capability: tuple[int, int] = tuple(device.compute_capability())
            supported = cuda.get_driver_version()
            self.driver = _driver_version(supported)
            self.cuda = f"{_dotted(supported)}, headers {'.'.join(str(part) for part in cuda.get_version())}"
            self._context: Any = device.retain_primary_context()
            self._context.push()

    def alloc(self, n_bytes: int) -> DeviceMemory:
        """See `Device.alloc`."""
        with _errors(self._cuda, f"{n_bytes} bytes on {self.name}"):
            return DeviceMemory(self._cuda, self._cuda.mem_alloc(n_bytes))

    def alloc_pinned(self, n_bytes: int) -> PinnedMemory:
        """See `Device.alloc_pinned`."""
        with _errors(self._cuda, f"{n_bytes} page-locked bytes on the host"):
            return PinnedMemory(self._cuda, self._cuda.pagelocked_empty(n_bytes, np.uint8))

    def stream(self) -> GpuStream:
        """See `Device.stream`."""
        with _errors(self._cuda, "making a stream"):
            return GpuStream(self._cuda.Stream())

    def event(self) -> GpuEvent:
        """See `Device.event`. It sleeps where it waits, and measures no time."""
        flags = self._cuda.event_flags
        with _errors(self._cuda, "making an event"):
            return GpuEvent(self._cuda, self._cuda.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING))

    def copy_in(self, target: Buffer, source: np.ndarray, stream: Stream) -> None:
        """See `Device.copy_in`."""
        with _errors(self._cuda, "copying in"):
            self._cuda.memcpy_htod_async(target.address, source, cast("GpuStream", stream).stream)

    def copy_out(self, target: np.ndarray, source: Buffer, stream: Stream) -> None:
        """See `Device.copy_out`."""
        with _errors(self._cuda, "copying out"):
            self._cuda.memcpy_dtoh_async(target, source.address, cast("GpuStream", stream).stream)

    def synchronize(self) -> None:
        """See `Device.synchronize`."""
        with _errors(self._cuda, "what it was given to do"):
            self._context.synchronize()

    def memory(self) -> tuple[int, int]:
        """See `Device.memory`."""
        with _errors(self._cuda, "telling its memory"):
            free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        """See `Device.close`: take the context off this thread and release it."""
        if self._context is not None:
            context, self._context = self._context, None
            with suppress(self._cuda.Error):  # a GPU that failed may refuse even this; there is nothing left to save
                context.pop()
                context.detach()


class DeviceMemory:
    """Device memory on pycuda."""

    def __init__(self, cuda: Any, allocation: Any) -> None:
        """Own an allocation."""
        self._cuda, self._allocation = cuda, allocation

    @property
    def address(self) -> int:
        """See `Buffer.address`."""
        return int(self._allocation)

    def close(self) -> None:
        """Free it. Raises DeviceError."""
        if self._allocation is not None:
            device_memory, self._allocation = self._allocation, None
            with _errors(self._cuda, "freeing memory"):
                device_memory.free()


class PinnedMemory:
    """Page-locked host memory on pycuda."""

    def __init__(self, cuda: Any, array: np.ndarray) -> None:
        """Own an array of `pagelocked_empty`."""
        self._cuda = cuda
        self._array: np.ndarray | None = array

    @property
    def array(self) -> np.ndarray:
        """See `PinnedBuffer.array`."""
        if self._array is None:
            msg = "page-locked memory was given back: expected it to be in use; open the backend again"
            raise DeviceError(msg)
        return self._array

    def close(self) -> None:
        """Free it; nothing may look at it any more. Raises DeviceError."""
        if self._array is not None:
            allocation: Any = self._array.base
            self._array = None
            with _errors(self._cuda, "freeing page-locked memory"):
                allocation.free()


class GpuStream:
    """A stream on pycuda."""

    def __init__(self, stream: Any) -> None:
        """Own a stream."""
        self.stream = stream

    @property
    def handle(self) -> int:
        """See `Stream.handle`."""
        return int(self.stream.handle)

    def close(self) -> None:
        """Let pycuda destroy it."""
        self.stream = None


class GpuEvent:
    """An event on pycuda."""

    def __init__(self, cuda: Any, event: Any) -> None:
        """Own an event."""
        self._cuda, self._event = cuda, event

    def record(self, stream: Stream) -> None:
        """See `Event.record`."""
        with _errors(self._cuda, "recording an event"):
            self._event.record(cast("GpuStream", stream).stream)

    def wait(self) -> None:
        """See `Event.wait`."""
        with _errors(self._cuda, "a batch"):
            self._event.synchronize()

    def close(self) -> None:
        """Let pycuda destroy it."""
        self._event = None


def _dotted(version: int) -> str:
    """13020 -> 13.2, as CUDA writes its versions."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _driver_version(supported: int) -> str:
    """The driver's own version where the kernel tells it, else the CUDA it supports."""
    try:
        text = _KERNEL_MODULE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text)
    return found[0] if found else f"of CUDA {_dotted(supported)}"
