"""The GPU backend on TensorRT 11. The one file that imports tensorrt, and only when a backend is opened.

One thread of its own makes every CUDA and TensorRT call: there the GPU's primary context is current, and neither
library has to be told about threads.
"""

from __future__ import annotations

import importlib.metadata
import logging
import threading
import traceback
import weakref
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from engine.backend import Features, Slots, Ticket, check_batch, check_frames, in_groups
from engine.cuda import DeviceMemoryError
from engine.errors import DeviceError, HeadError
from engine.graph import ServingShapes, is_quantized, read_graph
from engine.half import typed_graph
from engine.owner_thread import OwnerThread
from engine.plan_cache import PlanCache, default_folder
from engine.specs import BatchProfile
from engine.tensorrt_options import TensorRTOptions
from engine.tensorrt_plans import Plans
from engine.tensorrt_session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.cuda import Device
    from engine.tensorrt_build import BuildStep
    from engine.tensorrt_plans import PlanReport

_LOG = logging.getLogger(__name__)
_NEEDED_TENSORRT = 11
_NEEDED_CUDA = {"tensorrt_cu12_libs": 12_000, "tensorrt_cu13_libs": 13_000}
"""Package -> the oldest CUDA, as the driver counts it, that its TensorRT runs on."""


class TensorRTBackend:
    """The serving graph on TensorRT. Meets `engine.backend.Backend`.

    Attributes:
        plans: the plans in use, in the order of their profiles.
        warm_up_s: batch size -> seconds its first run took; empty where `options.warm` is off.
        most_heads: heads that one batch may have.
    """

    name = "tensorrt"
    takes_frames = True
    """`submit` also takes frames that lie apart, and copies each once, into page-locked memory."""

    def __init__(
        self,
        graph: bytes,
        options: TensorRTOptions | None = None,
        *,
        progress: Callable[[BuildStep], None] | None = None,
        trt: Any = None,
        open_device: Callable[[int, int], Device] | None = None,
    ) -> None:
        """Find or build the plans, load and warm them; the first time on a machine that takes minutes.

        Args:
            graph: a bundle's serving graph.
            options: settings; the defaults serve.
            progress: called from other threads as a build or the warm-up goes on.
            trt: the module `tensorrt`; imported by default.
            open_device: from a GPU's number and the oldest CUDA that will do to the device; on pycuda by default.

        Raises:
            GraphError: the graph is corrupt, no serving graph, or not to be expressed in TensorRT.
            DeviceError: TensorRT, pycuda, the driver or the GPU is missing, too old, failed, or has no room for a
                batch of one.
            PlanError: no plan can be built, kept or loaded.
        """
        options = options or TensorRTOptions()
        self.inputs = ServingShapes.of(read_graph(graph)).inputs
        self._slots = Slots()
        self._out: dict[int, tuple[Future[None], int]] = {}
        self._work = work = _Work(graph, options, progress, trt, open_device)
        self._owner = OwnerThread("engine-cuda")
        # Also when nobody calls `close`: once nothing holds the backend any more, at the latest when Python ends.
        self._end = weakref.finalize(self, _end, self._owner, work)
        try:
            self._owner.submit(work.open).result()
        except BaseException:
            work.stop.set()
            self._end()
            raise
        self.device, self.precision = work.description, work.precision
        self.plans, self.warm_up_s = work.plans, work.warm_up_s
        self.most_heads, largest = options.most_heads, work.options.largest
        self.profile = BatchProfile(1, min(options.throughput.best, largest), largest)

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """See `Backend.infer`."""
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        weights: np.ndarray,
        biases: np.ndarray,
        *,
        locations: bool = False,
    ) -> Ticket:
        """See `Backend.submit`. At most `options.most_heads` heads. `images` may also be frames, (h, w, 3) each."""
        if isinstance(images, np.ndarray):
            check_batch(self.inputs, images, weights, biases, largest=self.profile.largest)
        else:
            check_frames(self.inputs, images, weights, biases, largest=self.profile.largest)
        if weights.shape[1] > self.most_heads:
            msg = (
                f"batch has {weights.shape[1]} heads: expected at most {self.most_heads}, as the plan was built for; "
                "score them in turns or raise most_heads"
            )
            raise HeadError(msg)
        ticket, slot = self._slots.take()
        columns, offsets = in_groups(weights, biases)
        begun = self._owner.submit(self._work.begin, slot, images, columns, offsets, locations=locations)
        self._out[slot] = begun, weights.shape[1]
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        """See `Backend.collect`."""
        slot = self._slots.slot(ticket)
        begun, heads = self._out.pop(slot)
        try:
            begun.result()
            return self._owner.submit(self._work.finish, slot, heads).result()
        finally:
            self._slots.give_back(ticket)

    def device_memory_bytes(self) -> int:
        """What is taken of the GPU's memory now, by everybody on it."""
        free, total = self._owner.submit(self._work.memory).result()
        return total - free

    def close(self) -> None:
        """See `Backend.close`."""
        self._end()


def _end(owner: OwnerThread, work: _Work) -> None:
    """Have everything given back; also from the owner thread, should the garbage collector find the backend there."""
    done = owner.submit(work.release)
    owner.end()
    if not owner.is_current():
        done.result()


class _Work:
    """What the owner thread does and holds. It knows nothing of the backend, whose end must not depend on it."""

    def __init__(
        self,
        graph: bytes,
        options: TensorRTOptions,
        progress: Callable[[BuildStep], None] | None,
        trt: Any,
        open_device: Callable[[int, int], Device] | None,
    ) -> None:
        self.options = options
        self.stop = threading.Event()
        self.description, self.precision = "", options.precision
        self.plans: tuple[PlanReport, ...] = ()
        self.warm_up_s: Mapping[int, float] = {}
        self._graph, self._progress, self._trt, self._open_device = graph, progress, trt, open_device
        self._device: Device | None = None
        self._session: Session | None = None

    def begin(
        self,
        slot: int,
        images: np.ndarray | Sequence[np.ndarray],
        weights: np.ndarray,
        biases: np.ndarray,
        *,
        locations: bool,
    ) -> None:
        self._opened().begin(slot, images, weights, biases, locations=locations)

    def finish(self, slot: int, heads: int) -> Features:
        return self._opened().finish(slot, heads)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        self._opened()
        return cast("Device", self._device).memory()

    def _opened(self) -> Session:
        if self._session is None:
            msg = "the TensorRT backend is closed: expected it to be open; open it again"
            raise DeviceError(msg)
        return self._session

    def open(self) -> None:
        """From nothing to ready."""
        trt = self._trt or _import_tensorrt()
        model = read_graph(self._graph)
        if is_quantized(model):
            self.precision = "int8"
        typed, shapes = typed_graph(self._graph, self.options.precision), ServingShapes.of(model)
        open_device = self._open_device or _default_device()
        device = self._device = open_device(self.options.gpu, _needed_cuda())
        capability = ".".join(map(str, device.capability))
        self.description = f"{device.name} (compute {capability}, driver {device.driver})"
        cache = PlanCache(self.options.plans or default_folder({}), self._check_stop)
        plans = Plans(trt, device, cache, typed, shapes, self._tell)
        while not self._fits(trt, device, plans, shapes):
            halved = self.options.largest // 2
            _LOG.warning("batches are now at most %d, not %d: out of memory", halved, self.options.largest)
            self.options = self.options.limited(halved)

    def _fits(self, trt: Any, device: Device, plans: Plans, shapes: ServingShapes) -> bool:
        """Open a session for the largest batch as it stands; False where a smaller one may have more luck."""
        session = self._session = Session(trt, device, plans, shapes, self.options)
        try:
            session.open()
            self.plans = session.reports
            self.warm_up_s = session.warm_up(self._tell) if self.options.warm else {}
        except BaseException as error:
            _clear_frames(error)
            self._session = None
            session.close()
            if not isinstance(error, DeviceMemoryError):
                raise
            if self.options.largest == 1:
                free, total = device.memory()
                msg = (
                    f"not even one image fits ({error}): {free} of {total} bytes of {device.name} are free; "
                    "end what else runs on it, raise the memory limit, or use --backend auto"
                )
                raise DeviceError(msg) from error
            _LOG.info("out of memory: %s", error)
            return False
        return True

    def release(self) -> None:
        """TensorRT's objects first, the context they live in last."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._device is not None:
            self._device.close()
            self._device = None

    def _tell(self, step: BuildStep) -> None:
        self._check_stop()
        if self._progress is not None:
            self._progress(step)

    def _check_stop(self) -> None:
        """Raise CancelledError once whoever waits for this has given up."""
        if self.stop.is_set():
            raise CancelledError


def _clear_frames(error: BaseException | None) -> None:
    """Empty an error's frames: they hold TensorRT's objects, which must be gone before what these stand on is."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _import_tensorrt() -> Any:
    """The module. Raises DeviceError where it is missing, cannot be loaded, or is too old."""
    try:
        import tensorrt  # noqa: PLC0415 - only when asked for
    except ModuleNotFoundError as error:
        msg = (
            f"TensorRT is not installed (no module {error.name!r}): expected the package tensorrt, version "
            f"{_NEEDED_TENSORRT} or newer; install Framegate with its extra [gpu], or use --backend auto"
        )
        raise DeviceError(msg) from error
    except (ImportError, OSError) as error:
        msg = (
            f"TensorRT is installed but cannot be loaded ({' '.join(str(error).split())[:300]}): expected its "
            "libraries beside it; install Framegate's extra [gpu] anew, or use --backend auto"
        )
        raise DeviceError(msg) from error
    if int(tensorrt.__version__.split(".", 1)[0]) < _NEEDED_TENSORRT:
        msg = (
            f"TensorRT {tensorrt.__version__} is too old: expected {_NEEDED_TENSORRT} or newer; "
            "install Framegate with its extra [gpu], or use --backend auto"
        )
        raise DeviceError(msg)
    return tensorrt


def _default_device() -> Callable[[int, int], Device]:
    from engine.cuda_memory import open_gpu  # noqa: PLC0415 - only when asked for

    return open_gpu


def _needed_cuda() -> int:
    """The oldest CUDA that the installed TensorRT runs on, as the driver counts it: 13000 is 13.0."""
    for package, version in _NEEDED_CUDA.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return version
    return max(_NEEDED_CUDA.values())
