"""A GPU and a `tensorrt` module that record what is asked of them, for the real backend to run on.

Not a stand-in that always works: what is queued runs only when somebody waits for it, so a buffer that is used again
or read too early gives wrong numbers; every call must come from the thread that opened the device; addresses,
shapes and profiles are held to TensorRT's rules. The numbers are those of the very ONNX that TensorRT would be given,
on ONNX Runtime. Public names are a subset of the real module's: `tests/engine/test_tensorrt_surface.py` checks it.
"""

from __future__ import annotations

import functools
import json
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from engine.cuda import DeviceMemoryError
from engine.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.cuda import Buffer, Stream

INPUTS, OUTPUTS = ("images", "head_weights", "head_biases"), ("evidence", "pooled", "locations")


class FakeGpu:
    """Meets `engine.cuda.Device`; `journal` is what happened, in order."""

    name = "Fake GPU"
    capability = (9, 0)
    driver = "580.65.06"
    cuda = "13.0, headers 13.0"

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.journal: list[str] = []
        self.broken: str | None = None
        self.owner = threading.get_ident()
        self.used_bytes = 0
        self._capacity_bytes = capacity_bytes
        self._memory: dict[int, FakeBuffer] = {}
        self._streams: dict[int, FakeStream] = {}
        self._next = 1 << 20

    def note(self, what: str) -> None:
        assert threading.get_ident() == self.owner, f"{what} on another thread"
        self.journal.append(what)

    def gone(self, what: str) -> None:
        """Like `note`, from where nothing can be raised."""
        here = threading.get_ident() == self.owner
        self.journal.append(f"{what} gone" if here else f"{what} gone on another thread")

    def address(self) -> int:
        self._next += 256
        return self._next

    def take(self, n_bytes: int) -> None:
        if self.used_bytes + n_bytes > self._capacity_bytes:
            msg = f"no memory for {n_bytes} bytes on {self.name}"
            raise DeviceMemoryError(msg)
        self.used_bytes += n_bytes

    def alloc(self, n_bytes: int) -> FakeBuffer:
        self.note("alloc")
        self.take(n_bytes)
        buffer = FakeBuffer(self, n_bytes)
        self._memory[buffer.address] = buffer
        return buffer

    def alloc_pinned(self, n_bytes: int) -> FakePinned:
        self.note("alloc pinned")
        return FakePinned(self, n_bytes)

    def stream(self) -> FakeStream:
        self.note("make stream")
        stream = FakeStream(self)
        self._streams[stream.handle] = stream
        return stream

    def event(self) -> FakeEvent:
        self.note("make event")
        return FakeEvent(self)

    def copy_in(self, target: Buffer, source: np.ndarray, stream: Stream) -> None:
        self.note("copy in")
        buffer = self._memory[target.address]
        flat = source.reshape(-1).view(np.uint8)
        assert np.shares_memory(flat, source), "not contiguous"
        self._streams[stream.handle].queue.append(lambda: buffer.put(flat))

    def copy_out(self, target: np.ndarray, source: Buffer, stream: Stream) -> None:
        self.note("copy out")
        buffer = self._memory[source.address]
        flat = target.reshape(-1).view(np.uint8)
        assert np.shares_memory(flat, target), "not contiguous"

        def copy() -> None:
            flat[:] = buffer.content[: len(flat)]

        self._streams[stream.handle].queue.append(copy)

    def synchronize(self) -> None:
        self.note("synchronize")
        self.check()
        for stream in self._streams.values():
            stream.run(len(stream.queue))

    def memory(self) -> tuple[int, int]:
        return self._capacity_bytes - self.used_bytes, self._capacity_bytes

    def check(self) -> None:
        if self.broken:
            msg = f"the GPU failed at {self.broken}: expected it to go on; look for its errors in the system's log"
            raise DeviceError(msg)

    def find(self, address: int) -> FakeBuffer:
        return self._memory[address]

    def find_stream(self, handle: int) -> FakeStream:
        return self._streams[handle]

    def close(self) -> None:
        self.note("close device")


class _Closable:
    def __init__(self, gpu: FakeGpu, kind: str) -> None:
        self._gpu, self._kind, self._closed = gpu, kind, False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._gpu.note(f"free {self._kind}")


class FakeBuffer(_Closable):
    def __init__(self, gpu: FakeGpu, n_bytes: int) -> None:
        super().__init__(gpu, "device")
        self.address = gpu.address()
        self.content = np.full(n_bytes, 0xAA, np.uint8)

    def put(self, flat: np.ndarray) -> None:
        self.content[: len(flat)] = flat

    def close(self) -> None:
        if not self._closed:
            self._gpu.used_bytes -= len(self.content)
        super().close()


class FakePinned(_Closable):
    def __init__(self, gpu: FakeGpu, n_bytes: int) -> None:
        super().__init__(gpu, "pinned")
        self.array = np.full(n_bytes, 0xAA, np.uint8)


class FakeStream(_Closable):
    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__(gpu, "stream")
        self.handle = gpu.address()
        self.queue: list[Callable[[], None]] = []
        self.done = 0

    def run(self, until: int) -> None:
        """Do what is queued, up to a mark."""
        while self.done < until:
            self.queue[self.done]()
            self.done += 1


class FakeEvent(_Closable):
    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__(gpu, "event")
        self._mark: tuple[FakeStream, int] | None = None

    def record(self, stream: Stream) -> None:
        self._gpu.note("record event")
        fake = self._gpu.find_stream(stream.handle)
        self._mark = fake, len(fake.queue)

    def wait(self) -> None:
        self._gpu.note("wait event")
        self._gpu.check()
        assert self._mark is not None
        self._mark[0].run(self._mark[1])


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, msg: str) -> None: ...


class ProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool: ...  # type: ignore[empty-body]
    def phase_finish(self, phase_name: str) -> None: ...


class Tensor:
    def __init__(self, name: str) -> None:
        self.name = name


class Network:
    num_inputs, num_outputs = len(INPUTS), len(OUTPUTS)
    _graph = b""

    def get_input(self, index: int) -> Tensor:
        return Tensor(INPUTS[index])


class Profile:
    def __init__(self) -> None:
        self._ranges: dict[str, Any] = {}

    def set_shape(self, name: str, smallest: tuple[int, ...], best: tuple[int, ...], largest: tuple[int, ...]) -> None:
        self._ranges[name] = smallest, best, largest


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"+"


class BuilderConfig:
    def __init__(self) -> None:
        self._profiles: list[Profile] = []
        self._flags = {"TF32"}
        self._timing: TimingCache | None = None
        self.profiling_verbosity = ""
        self.builder_optimization_level = 3
        self.progress_monitor: Any = None

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_flag(self, flag: str) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None: ...

    def create_timing_cache(self, data: bytes) -> TimingCache | None:
        return None if data.startswith(b"garbage") else TimingCache(data)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:  # noqa: ARG002 - its signature
        self._timing = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._timing


class Parser:
    num_errors = 0

    def __init__(self, network: Network, logger: Logger) -> None:  # noqa: ARG002 - its signature
        self._network = network

    def parse(self, graph: bytes) -> bool:
        self._network._graph = graph
        return True

    def get_error(self, index: int) -> Any: ...


class FakeTensorRT:
    """What `import tensorrt` gives. `fail` names calls that shall return nothing, `reason` what the log says then."""

    __version__ = "11.4.0.106"
    ILogger, IProgressMonitor, OnnxParser = Logger, ProgressMonitor, Parser

    class BuilderFlag:
        TF32, DISTRIBUTIVE_INDEPENDENCE = "TF32", "DISTRIBUTIVE_INDEPENDENCE"

    class ProfilingVerbosity:
        DETAILED = "DETAILED"

    class MemoryPoolType:
        WORKSPACE = "WORKSPACE"

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = "USER_MANAGED"

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.reason = "Error Code 1: the fake was told to"
        self.gpu: FakeGpu | None = None
        self.gpus: list[FakeGpu] = []
        self.builds: list[dict[str, Any]] = []
        self.contexts: weakref.WeakSet[ExecutionContext] = weakref.WeakSet()
        self.capacity_bytes = 1 << 40
        self.scratch_bytes_per_image = 1000
        self.logger: Logger | None = None

    def open_device(self, index: int, needed_cuda: int) -> FakeGpu:
        assert needed_cuda >= 12_000
        assert index == 0
        self.gpu = FakeGpu(self.capacity_bytes)
        self.gpus.append(self.gpu)
        return self.gpu

    def refuses(self, call: str) -> bool:
        """Whether a call shall fail now; it says so in the log as TensorRT does."""
        if self.fail.get(call, 0) <= 0:
            return False
        self.fail[call] -= 1
        if self.logger is not None:
            self.logger.log(Logger.ERROR, self.reason)
        return True

    def opened(self) -> FakeGpu:
        assert self.gpu is not None
        return self.gpu

    def Builder(self, logger: Logger) -> Builder:  # noqa: N802 - its name
        self.logger = logger
        if self.refuses("Builder"):
            msg = "pybind11::init(): factory function returned nullptr"
            raise TypeError(msg)
        return Builder(self)

    def Runtime(self, logger: Logger) -> Runtime:  # noqa: N802 - its name
        self.logger = logger
        if self.refuses("Runtime"):
            msg = "pybind11::init(): factory function returned nullptr"
            raise TypeError(msg)
        return Runtime(self)


class Builder:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt

    def create_network(self, flags: int) -> Network:
        assert flags == 0
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes | None:
        self._trt.opened().note("build")
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if self._trt.refuses("build_serialized_network"):
            return None
        assert not ("DISTRIBUTIVE_INDEPENDENCE" in config._flags and len(config._profiles) > 1)
        about = {
            "profiles": [profile._ranges for profile in config._profiles],
            "flags": sorted(config._flags),
            "verbosity": config.profiling_verbosity,
            "timing": len(config._timing._data) if config._timing else None,
        }
        self._trt.builds.append(about)
        return json.dumps(about).encode() + b"\0" + network._graph


class Runtime:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        self._trt.opened().note("deserialize")
        about, _, graph = plan.partition(b"\0")
        if not graph:
            self._trt.fail["deserialize_cuda_engine"] = 1  # another's plan
        if self._trt.refuses("deserialize_cuda_engine"):
            return None
        return Engine(self._trt, json.loads(about)["profiles"], graph)

    def __del__(self) -> None:
        self._trt.opened().gone("runtime")


class Engine:
    def __init__(self, trt: FakeTensorRT, profiles: list[Any], graph: bytes) -> None:
        self._trt, self._profiles, self._graph = trt, profiles, graph
        images = max(ranges["images"][2][0] for ranges in profiles)
        self.device_memory_size_v2 = trt.scratch_bytes_per_image * images

    def create_execution_context(self, strategy: str) -> ExecutionContext | None:
        assert strategy == "USER_MANAGED"
        self._trt.opened().note("create context")
        if self._trt.refuses("create_execution_context"):
            return None
        context = ExecutionContext(self)
        self._trt.contexts.add(context)
        return context

    def __del__(self) -> None:
        self._trt.opened().gone("engine")


class ExecutionContext:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._trt = engine, engine._trt
        self._ranges: dict[str, Any] = {}
        self._stream = 0
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scratch_bytes = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._ranges, self._stream = self._engine._profiles[index], stream
        return not self._trt.refuses("set_optimization_profile_async")

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name not in self._addresses, f"the address of {name} was set twice"
        self._addresses[name] = address
        return not self._trt.refuses("set_tensor_address")

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(self._trt.opened().find(address).content) >= size >= self._engine.device_memory_size_v2
        self._scratch_bytes = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._trt.opened().note("set shape")
        if self._trt.refuses("set_input_shape"):
            return False
        smallest, _, largest = self._ranges[name]
        self._shapes[name] = shape
        return all(low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True))

    def execute_async_v3(self, stream: int) -> bool:
        gpu = self._trt.opened()
        gpu.note("execute")
        if self._trt.refuses("execute_async_v3"):
            return False
        assert stream == self._stream, "a context serves one stream"
        assert self._scratch_bytes
        assert set(self._addresses) == {*INPUTS, *OUTPUTS}
        shapes, self._shapes = self._shapes, {}
        assert set(shapes) == set(INPUTS), "every shape is set before each execution"
        gpu.find_stream(stream).queue.append(lambda: self._compute(shapes))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        gpu = self._trt.opened()
        session = _session(self._engine._graph)
        inputs: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            dtype = np.dtype(np.uint8 if name == "images" else np.float32)
            count = int(np.prod(shape)) * dtype.itemsize
            inputs[name] = gpu.find(self._addresses[name]).content[:count].copy().view(dtype).reshape(shape)
        images = inputs.pop("images")
        # One by one, as the engine's contract has it: an image's numbers do not depend on its neighbours.
        rows = [session.run(list(OUTPUTS), {"images": images[i : i + 1], **inputs}) for i in range(len(images))]
        for name, values in zip(OUTPUTS, zip(*rows, strict=True), strict=True):
            gpu.find(self._addresses[name]).put(np.concatenate(values).reshape(-1).view(np.uint8))

    def __del__(self) -> None:
        self._trt.opened().gone("context")


SURFACE: dict[str, Any] = {
    "Builder": Builder,
    "INetworkDefinition": Network,
    "ITensor": Tensor,
    "IOptimizationProfile": Profile,
    "ITimingCache": TimingCache,
    "IBuilderConfig": BuilderConfig,
    "OnnxParser": Parser,
    "ILogger": Logger,
    "IProgressMonitor": ProgressMonitor,
    "Runtime": Runtime,
    "ICudaEngine": Engine,
    "IExecutionContext": ExecutionContext,
    "BuilderFlag": FakeTensorRT.BuilderFlag,
    "ProfilingVerbosity": FakeTensorRT.ProfilingVerbosity,
    "MemoryPoolType": FakeTensorRT.MemoryPoolType,
    "ExecutionContextAllocationStrategy": FakeTensorRT.ExecutionContextAllocationStrategy,
}
"""Name in the real module -> what plays it here."""


@functools.cache
def _session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
