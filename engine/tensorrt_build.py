"""From an ONNX graph to a TensorRT plan. The `tensorrt` module is handed in, so that a sibling of it can stand in.

TensorRT fails quietly: a call returns None or False and the reason goes to the log. Here each becomes an error.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.cuda import DeviceMemoryError
from engine.errors import DeviceError, GraphError, PlanError
from engine.specs import HEAD_GROUP
from engine.tensorrt_log import tensorrt_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from engine.specs import BatchProfile, TensorSpec
    from engine.tensorrt_log import Complaints
    from engine.tensorrt_options import TensorRTOptions


@dataclass(frozen=True, slots=True)
class BuildStep:
    """How far a build is: `done` of `total` steps of what TensorRT is at, in its own words."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A plan, and what the builder measured on the way: handed to the next build, it saves most of its time."""

    plan: bytes
    timing: bytes


def input_ranges(
    inputs: tuple[TensorSpec, ...], profile: BatchProfile, most_heads: int
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, best and largest shape of each input of a serving graph, by name."""
    batches = (profile.smallest, profile.best, profile.largest)
    heads = (HEAD_GROUP, HEAD_GROUP, most_heads)
    ranges = {}
    for spec in inputs:
        varying = batches if spec is inputs[0] else heads
        smallest, best, largest = (tuple(n if side is None else side for side in spec.shape) for n in varying)
        ranges[spec.name] = smallest, best, largest
    return ranges


def build_plan(
    trt: Any,
    graph: bytes,
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...],
    options: TensorRTOptions,
    *,
    timing: bytes = b"",
    progress: Callable[[BuildStep], None] | None = None,
) -> BuiltPlan:
    """Build a plan on the current GPU. Takes seconds to minutes.

    Args:
        trt: the module `tensorrt`.
        graph: ONNX, typed as it shall compute (see `engine.half.typed_graph`).
        profiles: for each profile, the range of every input's shape (see `input_ranges`).
        options: the builder's settings.
        timing: a timing cache of this GPU and TensorRT; one that does not fit is left aside.
        progress: called as the build goes on, from TensorRT's own threads; what it raises ends the build, and is
            raised here.

    Raises:
        GraphError: TensorRT cannot read the graph, or does not know a part of it.
        DeviceMemoryError: the build ran out of memory; a smaller largest batch may fit.
        DeviceError: there is no GPU or driver that TensorRT can work with.
        PlanError: the profiles do not fit the graph, or TensorRT found no way to compute it.
    """
    logger, complaints = tensorrt_log(trt)
    complaints.clear()
    builder = made(lambda: trt.Builder(logger), complaints, "builder")
    network = builder.create_network(0)
    _parse(trt.OnnxParser(network, logger), network, graph)
    config = builder.create_builder_config()
    for ranges in profiles:
        _add_profile(builder, config, network, ranges, complaints)
    _configure(trt, config, options)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    with _timing_cache(config, timing, complaints) as saved:
        complaints.clear()
        plan = builder.build_serialized_network(network, config)
        if monitor.failure is not None:
            raise monitor.failure
        if plan is None:
            raise _no_plan(complaints, options)
        measured = saved()
    return BuiltPlan(bytes(plan), measured)


def made(make: Callable[[], Any], complaints: Complaints, what: str) -> Any:
    """One of TensorRT's root objects. Raises DeviceError where it cannot start on this machine."""
    try:
        value = make()
    except TypeError as error:  # what its bindings make of a null pointer
        msg = (
            f"TensorRT cannot start its {what} ({complaints.text()}): expected a GPU and a driver that fit this "
            "TensorRT; see what `nvidia-smi` says, or use --backend auto"
        )
        raise DeviceError(msg) from error
    return value


def _parse(parser: Any, network: Any, graph: bytes) -> None:
    """Read the graph into the network. Raises GraphError with every reason the parser has."""
    if (
        parser.parse(graph) and network.num_inputs and network.num_outputs
    ):  # bytes that are no ONNX may parse to nothing
        return
    reasons = []
    for index in range(parser.num_errors):
        problem = parser.get_error(index)
        node = problem.node_name()
        reasons.append(f"{f'node {node!r}: ' if node else ''}{' '.join(problem.desc().split())[:300]}")
    msg = (
        f"TensorRT cannot read the graph of {len(graph)} bytes ({'; '.join(reasons) or 'no reason given'}): expected "
        "an ONNX graph that Framegate wrote, if quantized then to symmetric int8 without quantized biases; train the "
        "bundle again or fetch it anew"
    )
    raise GraphError(msg)


def _add_profile(
    builder: Any,
    config: Any,
    network: Any,
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]],
    complaints: Complaints,
) -> None:
    """Give the plan one more range of shapes. Raises PlanError where it does not fit the graph."""
    optimization = builder.create_optimization_profile()
    names = {network.get_input(index).name for index in range(network.num_inputs)}
    if set(ranges) != names:
        msg = f"the profile is for inputs {sorted(ranges)}: expected the graph's own, {sorted(names)}"
        raise PlanError(msg)
    try:
        for name, (smallest, best, largest) in ranges.items():
            optimization.set_shape(name, smallest, best, largest)
    except ValueError as error:  # what its bindings make of False
        msg = (
            f"TensorRT refuses the profile {dict(ranges)}: {error}; expected smallest <= best <= largest on every side"
        )
        raise PlanError(msg) from error
    if config.add_optimization_profile(optimization) < 0:
        msg = f"TensorRT refuses the profile {dict(ranges)} ({complaints.text()}): expected one that fits the graph"
        raise PlanError(msg)


def _configure(trt: Any, config: Any, options: TensorRTOptions) -> None:
    """Everything the builder is told besides profiles."""
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.exact:
        config.set_flag(trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)


@contextlib.contextmanager
def _timing_cache(config: Any, timing: bytes, complaints: Complaints) -> Iterator[Callable[[], bytes]]:
    """Let the builder know what earlier builds measured; yields what gives back all that is known after."""
    with warnings.catch_warnings():
        # TensorRT-RTX, which the tests build with, has no use for these calls any more and says so. TensorRT does.
        warnings.filterwarnings("ignore", "(?s).*[Tt]iming cache", DeprecationWarning)
        known = config.create_timing_cache(timing)
        if known is None or not config.set_timing_cache(known, False):  # noqa: FBT003 - the bindings take no name
            known = config.create_timing_cache(b"")
            config.set_timing_cache(known, False)  # noqa: FBT003
        complaints.clear()

        def serialized() -> bytes:
            cache = config.get_timing_cache()
            memory = None if cache is None else cache.serialize()
            return b"" if memory is None else bytes(memory)

        yield serialized
        del known  # TensorRT wants it alive for as long as it builds


def _no_plan(complaints: Complaints, options: TensorRTOptions) -> DeviceError | PlanError:
    if complaints.out_of_memory():
        limit = "" if options.workspace_bytes is None else f" with a workspace of {options.workspace_bytes} bytes"
        return DeviceMemoryError(
            f"TensorRT ran out of memory as it built the plan for batches of {options.largest}{limit} "
            f"({complaints.text()}): free the GPU, allow more workspace, or take smaller batches"
        )
    return PlanError(
        f"TensorRT built no plan ({complaints.text()}): expected a graph that it can compute on this GPU; "
        "try precision fp32 or exact=False, or use --backend auto"
    )


def _monitor(trt: Any, progress: Callable[[BuildStep], None] | None) -> Any:
    """TensorRT's progress, phase by phase, for a callback; may be called from several of its threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the module is handed in
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002 - its signature
            self._totals[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            total = self._totals.get(phase_name)
            if total is not None:
                self._tell(phase_name, total)

        def _tell(self, name: str, done: int) -> None:
            if progress is None or self.failure is not None:
                return
            try:
                progress(BuildStep(name, done, self._totals.get(name, done)))
            except BaseException as error:  # noqa: BLE001 - it must not unwind through native code; raised after
                self.failure = error

    return Monitor()
