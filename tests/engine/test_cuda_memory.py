"""The CUDA device over a `pycuda.driver` that records: what is asked of it, and what each of its failures becomes."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engine import cuda_memory
from engine.cuda import DeviceMemoryError
from engine.cuda_memory import open_gpu
from engine.errors import DeviceError

if TYPE_CHECKING:
    from pathlib import Path


class Error(Exception):
    pass


class MemoryError_(Error):  # noqa: N801, N818 - pycuda's MemoryError
    pass


class Context:
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def push(self) -> None:
        self._calls.append("push")

    def pop(self) -> None:
        self._calls.append("pop")

    def detach(self) -> None:
        self._calls.append("detach")

    def synchronize(self) -> None:
        self._calls.append("synchronize")


class Device:
    calls: list[str]
    number = 1

    def __init__(self, index: int) -> None:
        assert index == 0

    @classmethod
    def count(cls) -> int:
        return cls.number

    def name(self) -> str:
        return "NVIDIA L4"

    def compute_capability(self) -> tuple[int, int]:
        return 8, 9

    def retain_primary_context(self) -> Context:
        self.calls.append("retain")
        return Context(self.calls)


class Allocation:
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def __int__(self) -> int:
        return 4096

    def free(self) -> None:
        self._calls.append("free")


class Stream:
    handle = 77


class Event:
    def __init__(self, flags: int) -> None:
        assert flags == 3

    def record(self, stream: Stream) -> None:
        assert stream.handle == 77

    def synchronize(self) -> None:
        msg = "cuEventSynchronize failed: an illegal memory access was encountered"
        raise Error(msg)


class Pinned(np.ndarray):
    """As pycuda's: its memory belongs to an allocation, which is its base."""

    allocation: Allocation

    @property
    def base(self) -> Any:
        return self.allocation


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A pycuda that is installed and works."""
    package, module = ModuleType("pycuda"), ModuleType("pycuda.driver")
    fake: Any = module
    fake.calls, fake.copies = [], []
    kind = type("Device", (Device,), {"calls": fake.calls})
    fake.Error, fake.MemoryError, fake.Device, fake.Stream, fake.Event = Error, MemoryError_, kind, Stream, Event
    fake.event_flags = type("event_flags", (), {"BLOCKING_SYNC": 1, "DISABLE_TIMING": 2})
    fake.init = lambda: fake.calls.append("init")
    fake.get_driver_version = lambda: 13_020
    fake.get_version = lambda: (13, 0, 0)
    fake.mem_alloc = lambda _: Allocation(fake.calls)

    def pagelocked_empty(shape: int, dtype: type) -> np.ndarray:
        array = np.zeros(shape, dtype).view(Pinned)
        array.allocation = Allocation(fake.calls)
        return array

    fake.pagelocked_empty = pagelocked_empty
    fake.memcpy_htod_async = lambda *arguments: fake.copies.append(arguments)
    fake.memcpy_dtoh_async = lambda *arguments: fake.copies.append(arguments)
    fake.mem_get_info = lambda: (10, 20)
    package.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    monkeypatch.setattr(cuda_memory, "_KERNEL_MODULE", tmp_path / "none")
    return fake


def test_the_primary_context_is_retained_pushed_and_given_back(driver: Any) -> None:
    gpu = open_gpu(0, 13_000)
    assert (gpu.name, gpu.capability, gpu.cuda) == ("NVIDIA L4", (8, 9), "13.2, headers 13.0.0")
    gpu.synchronize()
    gpu.close()
    gpu.close()
    assert driver.calls == ["init", "retain", "push", "synchronize", "pop", "detach"]


def test_memory_is_what_pycuda_gave_and_is_freed_once(driver: Any) -> None:
    gpu = open_gpu(0, 13_000)
    buffer, pinned, stream = gpu.alloc(100), gpu.alloc_pinned(100), gpu.stream()
    assert (buffer.address, stream.handle) == (4096, 77)
    assert (pinned.array.shape, str(pinned.array.dtype)) == ((100,), "uint8")
    gpu.copy_in(buffer, pinned.array[:10], stream)
    gpu.copy_out(pinned.array[:10], buffer, stream)
    assert [(type(a).__name__, type(b).__name__, c.handle) for a, b, c in driver.copies] == [
        ("int", "Pinned", 77),
        ("Pinned", "int", 77),
    ]
    assert gpu.memory() == (10, 20)
    for resource in (buffer, pinned, stream):
        resource.close()
        resource.close()
    assert driver.calls.count("free") == 2
    with pytest.raises(DeviceError, match="was given back"):
        _ = pinned.array


def test_no_memory_and_failures_are_told_apart(driver: Any) -> None:
    gpu = open_gpu(0, 13_000)

    def none_left(*_: object) -> None:
        msg = "cuMemAlloc failed: out of memory"
        raise MemoryError_(msg)

    driver.mem_alloc = driver.pagelocked_empty = none_left
    with pytest.raises(DeviceMemoryError, match=r"no memory for 100 bytes on NVIDIA L4 \(cuMemAlloc"):
        gpu.alloc(100)
    with pytest.raises(DeviceMemoryError, match="no memory for 100 page-locked bytes"):
        gpu.alloc_pinned(100)
    event = gpu.event()
    event.record(gpu.stream())
    with pytest.raises(DeviceError, match=r"failed at a batch \(.*illegal memory access.* --backend auto") as caught:
        event.wait()
    assert not isinstance(caught.value, DeviceMemoryError)


def test_no_gpu_is_named(driver: Any) -> None:
    def init() -> None:
        msg = "cuInit failed: no CUDA-capable device is detected"
        raise Error(msg)

    driver.init = init
    with pytest.raises(DeviceError, match=r"finds no GPU .*no CUDA-capable device.* --backend auto"):
        open_gpu(0, 13_000)


def test_an_old_driver_is_named_with_what_is_needed(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.get_driver_version = lambda: 12_040
    text = tmp_path / "version"
    text.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    monkeypatch.setattr(cuda_memory, "_KERNEL_MODULE", text)
    with pytest.raises(DeviceError, match=r"driver 550\.54\.15 supports CUDA 12\.4: expected CUDA 13\.0 or newer"):
        open_gpu(0, 13_000)
    assert "retain" not in driver.calls


def test_another_gpu_than_there_is_is_named(driver: Any) -> None:
    assert driver.Device.count() == 1
    with pytest.raises(DeviceError, match="there is no GPU 3: expected a number below 1"):
        open_gpu(3, 13_000)


class Failing:
    """Finds pycuda.driver and fails as it does."""

    def __init__(self, message: str) -> None:
        self._message = message

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pycuda.driver":
            raise ImportError(self._message)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("libcuda.so.1: cannot open shared object file", r"there is no NVIDIA driver here .* install the driver"),
        ("_driver.so: undefined symbol: cuCtxCreate_v4", r"driver is older than the CUDA that pycuda was built with"),
        ("numpy.core.multiarray failed to import", r"pycuda cannot be loaded .* extra \[gpu\] anew"),
    ],
)
@pytest.mark.usefixtures("driver")
def test_a_pycuda_that_does_not_load_says_why(message: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    package = ModuleType("pycuda")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setattr(sys, "meta_path", [Failing(message), *sys.meta_path])
    with pytest.raises(DeviceError, match=expected):
        open_gpu(0, 13_000)


def test_without_pycuda_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(DeviceError, match=r"pycuda is not installed .* extra \[gpu\], or use --backend auto"):
        open_gpu(0, 13_000)
