"""Plans for one graph on this machine: out of the cache, or built; and loaded, once more after a rebuild if need be."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.cuda import DeviceMemoryError
from engine.errors import PlanError
from engine.plan_cache import Machine, PlanKey
from engine.tensorrt_build import build_plan, input_ranges, made
from engine.tensorrt_log import tensorrt_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.cuda import Device
    from engine.graph import ServingShapes
    from engine.plan_cache import CachedPlan, PlanCache
    from engine.specs import BatchProfile
    from engine.tensorrt_build import BuildStep
    from engine.tensorrt_options import TensorRTOptions

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """One plan that is in use.

    Attributes:
        path: its file.
        profiles: what it is tuned for.
        n_bytes: its size.
        built: whether it was built now, not found.
        seconds: what finding or building it took.
    """

    path: Path
    profiles: tuple[BatchProfile, ...]
    n_bytes: int
    built: bool
    seconds: float


class Plans:
    """Finds, builds and loads the plans of one graph. For the thread that owns the device."""

    def __init__(
        self,
        trt: Any,
        device: Device,
        cache: PlanCache,
        graph: bytes,
        shapes: ServingShapes,
        progress: Callable[[BuildStep], None],
    ) -> None:
        """Nothing is read or built yet."""
        self._trt, self._cache, self._graph, self._shapes, self._progress = trt, cache, graph, shapes, progress
        self._onnx_sha256 = hashlib.sha256(graph).hexdigest()
        self._machine = Machine(
            tensorrt=str(trt.__version__),
            gpu=device.name,
            capability=".".join(map(str, device.capability)),
            driver=device.driver,
            cuda=device.cuda,
        )
        self._logger, self._complaints = tensorrt_log(trt)

    def runtime(self) -> Any:
        """What plans are loaded with. Raises DeviceError where TensorRT cannot start."""
        return made(lambda: self._trt.Runtime(self._logger), self._complaints, "runtime")

    def load(
        self, runtime: Any, profiles: tuple[BatchProfile, ...], options: TensorRTOptions
    ) -> tuple[Any, PlanReport]:
        """The engine of a plan that holds these profiles.

        A plan out of the cache that does not load is deleted and built anew, once.

        Raises:
            PlanError: it does not load though it was built just now, or cannot be built or kept.
            DeviceMemoryError: there is no room for it.
            GraphError, DeviceError: see `build_plan`.
        """
        start_s = time.perf_counter()
        key, found = self._plan(profiles, options)
        engine = self._engine(runtime, found)
        if engine is None and found.hit:
            _LOG.warning(
                "plan %s does not load (%s): it is deleted and built again", found.path, self._complaints.text()
            )
            self._cache.discard(key)
            key, found = self._plan(profiles, options)
            engine = self._engine(runtime, found)
        if engine is None:
            self._cache.discard(key)
            msg = (
                f"plan {found.path} does not load though it was built just now ({self._complaints.text()}): expected "
                "TensorRT's builder and runtime of one version; install the extra [gpu] anew, or use --backend auto"
            )
            raise PlanError(msg)
        seconds = time.perf_counter() - start_s
        return engine, PlanReport(found.path, profiles, len(found.plan), not found.hit, seconds)

    def _engine(self, runtime: Any, found: CachedPlan) -> Any:
        """The loaded plan, or None. Raises DeviceMemoryError."""
        self._complaints.clear()
        engine = runtime.deserialize_cuda_engine(found.plan)
        if engine is None and self._complaints.out_of_memory():
            msg = f"no room on the GPU for the plan of {len(found.plan)} bytes ({self._complaints.text()})"
            raise DeviceMemoryError(msg)
        return engine

    def _plan(self, profiles: tuple[BatchProfile, ...], options: TensorRTOptions) -> tuple[PlanKey, CachedPlan]:
        ranges = tuple(input_ranges(self._shapes.inputs, profile, options.most_heads) for profile in profiles)
        key = PlanKey(self._onnx_sha256, self._machine, ranges, options.built_in())

        def build() -> bytes:
            _LOG.info("building a plan for batches of %s; this can take minutes", [p.largest for p in profiles])
            timing = self._cache.timing(self._machine)
            built = build_plan(self._trt, self._graph, ranges, options, timing=timing, progress=self._progress)
            self._cache.keep_timing(self._machine, built.timing)
            return built.plan

        return key, self._cache.get_or_build(key, build)
