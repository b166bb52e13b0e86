"""Loaded plans at work: two lanes, each with a stream, buffers of its own and an execution context for each profile.

A lane's buffers are made once, for the largest batch, and its contexts are told their addresses once. Copy in, compute
and copy out of one batch follow each other in the lane's stream, and run beside those of the other lane.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from engine.backend import SLOTS, Features
from engine.cuda import Closable, DeviceMemoryError
from engine.errors import DeviceError
from engine.specs import HEAD_GROUP
from engine.tensorrt_build import BuildStep
from engine.tensorrt_log import tensorrt_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.cuda import Buffer, Device, Event, PinnedBuffer, Stream
    from engine.graph import ServingShapes
    from engine.specs import BatchProfile, TensorSpec
    from engine.tensorrt_options import TensorRTOptions
    from engine.tensorrt_plans import PlanReport, Plans

_Resource = TypeVar("_Resource", bound=Closable)


@dataclass(slots=True)
class _Lane:
    """What one batch at a time travels through."""

    stream: Stream
    event: Event
    host: dict[str, PinnedBuffer]
    device: dict[str, Buffer]
    contexts: list[tuple[BatchProfile, Any]] = field(default_factory=list)
    under_way: tuple[int, int, bool] | None = None


class Session:
    """Plans loaded on a device. For the thread that owns the device; `close` before the device's own."""

    def __init__(self, trt: Any, device: Device, plans: Plans, shapes: ServingShapes, options: TensorRTOptions) -> None:
        """Nothing is loaded yet: see `open`."""
        self._trt, self._device, self._plans, self._shapes, self._options = trt, device, plans, shapes, options
        self._complaints = tensorrt_log(trt)[1]
        self._runtime: Any = None
        self._engines: list[tuple[Any, tuple[BatchProfile, ...]]] = []
        self._lanes: list[_Lane] = []
        self._resources: list[Closable] = []
        self._used_bytes = 0
        self.reports: tuple[PlanReport, ...] = ()

    def open(self) -> None:
        """Find or build the plans, load them, and make room for two batches. `close` also after this has failed.

        Raises:
            DeviceMemoryError: a batch that large does not fit, or not within the set limit.
            PlanError, GraphError, DeviceError: see `Plans.load`.
        """
        self._runtime = self._plans.runtime()
        for profiles in self._options.plan_profiles:
            engine, report = self._plans.load(self._runtime, profiles, self._options)
            self._engines.append((engine, profiles))
            self._take(report.n_bytes)  # its weights, about
            self.reports = (*self.reports, report)
        for _ in range(SLOTS):
            self._add_lane()

    def warm_up(self, progress: Callable[[BuildStep], None]) -> dict[int, float]:
        """Run every size of batch once in each lane; what the first run of each took, in seconds.

        Raises:
            DeviceMemoryError: the device ran out of memory as it loaded a kernel.
            DeviceError: a size does not run.
        """
        images, *heads = self._shapes.inputs
        sheet = np.zeros(_shape(images, self._options.largest, HEAD_GROUP), np.uint8)
        weights, biases = (np.zeros(_shape(spec, 1, HEAD_GROUP), np.float32) for spec in heads)
        took: dict[int, float] = {}
        for size in range(1, self._options.largest + 1):
            for lane in range(len(self._lanes)):
                start_s = time.perf_counter()
                self.begin(lane, sheet[:size], weights, biases, locations=True)
                self.finish(lane, 1)
                took.setdefault(size, time.perf_counter() - start_s)
            progress(BuildStep("warm up", size, self._options.largest))
        return took

    def begin(
        self,
        slot: int,
        images: np.ndarray | Sequence[np.ndarray],
        weights: np.ndarray,
        biases: np.ndarray,
        *,
        locations: bool,
    ) -> None:
        """Queue a batch in a lane that is free: whole groups of heads, (c, k) and (k,). Frames may lie apart.

        Raises:
            DeviceError: the device failed. The lane is free again.
        """
        lane = self._lanes[slot]
        batch, heads = len(images), weights.shape[1]
        try:
            for spec, values in zip(self._shapes.inputs, (images, weights, biases), strict=True):
                source = _view(lane.host[spec.name], spec, batch, heads)
                if isinstance(values, np.ndarray):
                    source[...] = values
                else:
                    np.stack(values, out=source)
                self._device.copy_in(lane.device[spec.name], source, lane.stream)
            self._execute(self._context(lane, batch), lane, batch, heads)
            for spec in self._wanted(locations=locations):
                self._device.copy_out(
                    _view(lane.host[spec.name], spec, batch, heads), lane.device[spec.name], lane.stream
                )
            lane.event.record(lane.stream)
        except DeviceError:
            # What was queued may still run, on buffers that the next batch will want.
            with contextlib.suppress(DeviceError):
                self._device.synchronize()
            raise
        lane.under_way = batch, heads, locations

    def finish(self, slot: int, heads: int) -> Features:
        """Wait for a lane's batch; its features under the first `heads` heads, in arrays of the caller's own.

        Raises:
            DeviceError: the device failed on it. The lane is free again.
        """
        lane = self._lanes[slot]
        if lane.under_way is None:
            msg = f"lane {slot} has no batch under way: expected one that was begun"
            raise DeviceError(msg)
        batch, columns, locations = lane.under_way
        lane.under_way = None
        lane.event.wait()
        evidence, pooled, *rest = (
            _view(lane.host[spec.name], spec, batch, columns) for spec in self._wanted(locations=locations)
        )
        scores = rest[0][..., :heads].copy() if rest else None
        return Features(evidence[:, :heads].copy(), pooled.copy(), scores)

    def close(self) -> None:
        """Give everything back, what was made last first: contexts, engines, runtime, then buffers and streams."""
        if self._resources:
            with contextlib.suppress(DeviceError):  # what failed still has to be given back
                self._device.synchronize()
        for lane in self._lanes:
            lane.contexts.clear()
        self._lanes.clear()
        self._engines.clear()
        self._runtime = None
        while self._resources:
            with contextlib.suppress(DeviceError):
                self._resources.pop().close()

    def _wanted(self, *, locations: bool) -> tuple[TensorSpec, ...]:
        return self._shapes.outputs if locations else self._shapes.outputs[:-1]

    def _context(self, lane: _Lane, batch: int) -> Any:
        """The context of the first profile that takes so many images."""
        return next(context for profile, context in lane.contexts if batch <= profile.largest)

    def _execute(self, context: Any, lane: _Lane, batch: int, heads: int) -> None:
        """Queue the computation itself."""
        self._complaints.clear()
        for spec in self._shapes.inputs:
            shape = _shape(spec, batch, heads)
            self._check(context.set_input_shape(spec.name, shape), f"refuses the shape {shape} of input {spec.name}")
        self._check(context.execute_async_v3(lane.stream.handle), f"does not run {batch} images under {heads} heads")

    def _add_lane(self) -> None:
        """Streams, buffers, and one context for each profile, which share the lane's scratch memory."""
        largest, heads = self._options.largest, self._options.most_heads
        specs = (*self._shapes.inputs, *self._shapes.outputs)
        sizes = {spec.name: _n_bytes(spec, largest, heads) for spec in specs}
        lane = _Lane(
            stream=self._keep(self._device.stream()),
            event=self._keep(self._device.event()),
            host={name: self._keep(self._device.alloc_pinned(size)) for name, size in sizes.items()},
            device={name: self._keep(self._device.alloc(self._take(size))) for name, size in sizes.items()},
        )
        self._lanes.append(lane)
        scratch_bytes = max(1, *(int(engine.device_memory_size_v2) for engine, _ in self._engines))
        scratch = self._keep(self._device.alloc(self._take(scratch_bytes)))
        for engine, profiles in self._engines:
            for index, profile in enumerate(profiles):
                context = self._new_context(engine, index, lane)
                lane.contexts.append((profile, context))
                self._complaints.clear()
                context.set_device_memory(scratch.address, scratch_bytes)
                self._check(not any(self._complaints), f"refuses {scratch_bytes} bytes of scratch memory")
        self._device.synchronize()  # the profiles were set in the stream

    def _new_context(self, engine: Any, index: int, lane: _Lane) -> Any:
        """A context on one profile, told where its inputs and outputs lie."""
        self._complaints.clear()
        context = engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._check(context is not None, "makes no execution context")
        self._check(context.set_optimization_profile_async(index, lane.stream.handle), f"refuses profile {index}")
        for name, buffer in lane.device.items():
            self._check(context.set_tensor_address(name, buffer.address), f"refuses the buffer of {name}")
        return context

    def _keep(self, resource: _Resource) -> _Resource:
        self._resources.append(resource)
        return resource

    def _take(self, n_bytes: int) -> int:
        """Count device memory against the limit. Raises DeviceMemoryError over it."""
        self._used_bytes += n_bytes
        limit = self._options.memory_limit_bytes
        if limit is not None and self._used_bytes > limit:
            msg = f"batches of {self._options.largest} take more than the set limit of {limit} bytes of device memory"
            raise DeviceMemoryError(msg)
        return n_bytes

    def _check(self, done: bool, what: str) -> None:
        """Raise what a call that returned False or None becomes."""
        if done:
            return
        kind = DeviceMemoryError if self._complaints.out_of_memory() else DeviceError
        msg = (
            f"TensorRT {what} ({self._complaints.text()}) on {self._device.name}: expected it to; look for errors of "
            "the GPU in the system's log, then start again, or use --backend auto"
        )
        raise kind(msg)


def _shape(spec: TensorSpec, batch: int, heads: int) -> tuple[int, ...]:
    """A tensor's shape for so many images and heads: images come first, except in the heads themselves."""
    sides = list(spec.shape)
    if not spec.name.startswith("head_"):
        sides[0] = batch
    return tuple(heads if side is None else side for side in sides)


def _n_bytes(spec: TensorSpec, batch: int, heads: int) -> int:
    return math.prod(_shape(spec, batch, heads)) * np.dtype(spec.dtype).itemsize


def _view(buffer: PinnedBuffer, spec: TensorSpec, batch: int, heads: int) -> np.ndarray:
    """The start of a pinned buffer as a tensor."""
    raw = buffer.array[: _n_bytes(spec, batch, heads)]
    return raw.view(spec.dtype).reshape(_shape(spec, batch, heads))
