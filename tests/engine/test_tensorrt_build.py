"""The engine's own build function on TensorRT-RTX: it reads, checks and builds real plans on a CPU.

A sibling of TensorRT, not TensorRT itself: this shows that the graph and the calls are sound, not that TensorRT agrees.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from engine.backbone import FeaturizerSpec, build_serving_graph
from engine.cuda import DeviceMemoryError
from engine.errors import GraphError, PlanError
from engine.graph import ServingShapes, is_quantized, read_graph
from engine.half import typed_graph
from engine.patch_distance import PatchDistance
from engine.quantize import FULL_PRECISION_UNTIL, quantized
from engine.specs import BatchProfile, ImageSpec
from engine.tensorrt_build import BuildStep, build_plan, input_ranges
from engine.tensorrt_options import TensorRTOptions
from tests.bundles import graph, pictures

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("tensorrt_rtx_libs", reason="tensorrt-rtx is not installed (x86_64 only)")
trt = pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed (x86_64 only)")

LATENCY, THROUGHPUT = BatchProfile(1, 1, 4), BatchProfile(1, 32, 64)
SERVING = ImageSpec(160, 160)


class Watched:
    """The module as it is, but for a builder that lets its network, configuration and profiles be looked at after."""

    def __init__(self) -> None:
        self.network: Any = None
        self.config: Any = None
        self.profiles: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)

    def Builder(self, logger: Any) -> Any:  # noqa: N802 - its name
        return WatchedBuilder(trt.Builder(logger), self)


class WatchedBuilder:
    def __init__(self, builder: Any, watched: Watched) -> None:
        self._builder, self._watched = builder, watched

    def create_network(self, flags: int) -> Any:
        self._watched.network = self._builder.create_network(flags)
        return self._watched.network

    def create_builder_config(self) -> Any:
        self._watched.config = self._builder.create_builder_config()
        return self._watched.config

    def create_optimization_profile(self) -> Any:
        self._watched.profiles.append(self._builder.create_optimization_profile())
        return self._watched.profiles[-1]

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return self._builder.build_serialized_network(network, config)


def ranges_of(data: bytes, *profiles: BatchProfile) -> Any:
    inputs = ServingShapes.of(read_graph(data)).inputs
    return tuple(input_ranges(inputs, profile, 64) for profile in profiles)


def small() -> bytes:
    return typed_graph(graph(), "fp16")


def build(data: bytes, ranges: Any = None, **options: Any) -> bytes:
    settings = TensorRTOptions(**options)
    return build_plan(trt, data, ranges or ranges_of(data, LATENCY), settings).plan


@pytest.mark.parametrize("embedding", [False, True], ids=["cut", "embedding"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_serving_graph_becomes_a_plan_as_asked(precision: str, *, embedding: bool) -> None:
    featurizer = FeaturizerSpec(embedding=embedding)
    data = typed_graph(build_serving_graph(featurizer, SERVING), precision)
    options = TensorRTOptions(precision=precision, exact=False)
    watched, steps = Watched(), list[BuildStep]()
    built = build_plan(watched, data, ranges_of(data, *options.profiles), options, progress=steps.append)
    assert built.plan[:16].strip(b"\0")
    assert len(built.plan) > 1_000_000
    network, config = watched.network, watched.config
    inputs = {t.name: (tuple(t.shape), t.dtype) for t in map(network.get_input, range(network.num_inputs))}
    outputs = {t.name: (tuple(t.shape), t.dtype) for t in map(network.get_output, range(network.num_outputs))}
    float32 = trt.DataType.FLOAT
    assert inputs == {
        "images": ((-1, 160, 160, 3), trt.DataType.UINT8),
        "head_weights": ((256, -1), float32),
        "head_biases": ((-1,), float32),
    }
    assert outputs == {
        "evidence": ((-1, -1), float32),
        "pooled": ((-1, featurizer.pooled_size), float32),
        "locations": ((-1, 20, 20, -1), float32),
    }
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    convolutions = {layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.CONVOLUTION}
    assert convolutions == {trt.DataType.HALF if precision == "fp16" else float32}
    assert config.num_optimization_profiles == 2
    images, heads = (
        [[tuple(shape) for shape in p.get_shape(name)] for p in watched.profiles] for name in ("images", "head_weights")
    )
    assert [[shape[0] for shape in shapes] for shapes in images] == [[1, 1, 4], [1, 32, 64]]
    assert heads == [[(256, 4), (256, 4), (256, 64)]] * 2
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert steps
    assert all(0 <= step.done <= step.total for step in steps)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_graph_with_distances_becomes_a_plan(precision: str) -> None:
    featurizer = FeaturizerSpec(distance=True)
    count = featurizer.tap_channels
    good_parts = PatchDistance.of(np.zeros(count), np.eye(count) + 0.1, featurizer.fine_channels)
    data = typed_graph(build_serving_graph(featurizer, ImageSpec(64, 64), good_parts), precision)
    watched = Watched()
    assert build_plan(watched, data, ranges_of(data, LATENCY), TensorRTOptions(precision=precision)).plan
    layers = [watched.network.get_layer(index) for index in range(watched.network.num_layers)]
    own = [layer for layer in layers if layer.name.startswith("distance_")]
    assert len(own) > 10
    assert trt.DataType.HALF not in {layer.get_output(0).dtype for layer in own}


def test_exact_plans_hold_one_profile_each() -> None:
    options = TensorRTOptions()
    assert options.plan_profiles == ((LATENCY,), (THROUGHPUT,))
    for profiles in options.plan_profiles:
        watched = Watched()
        assert build_plan(watched, small(), ranges_of(small(), *profiles), options).plan
        assert watched.config.get_flag(trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE)
        assert watched.config.num_optimization_profiles == 1
    with pytest.raises(PlanError, match=r"not supported when multiple optimization profiles .* exact=False"):
        build_plan(trt, small(), ranges_of(small(), LATENCY, THROUGHPUT), options)


def test_settings_reach_the_builder() -> None:
    watched = Watched()
    options = TensorRTOptions(workspace_bytes=1 << 28, tf32=True, exact=False, optimization_level=1)
    build_plan(watched, small(), ranges_of(small(), LATENCY), options)
    config = watched.config
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert config.get_flag(trt.BuilderFlag.TF32)
    assert config.builder_optimization_level == 1
    assert not config.get_flag(trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE)


def test_a_wrong_input_name_is_refused() -> None:
    ranges = dict(ranges_of(small(), LATENCY)[0])
    ranges["pictures"] = ranges.pop("images")
    with pytest.raises(PlanError, match=r"'pictures'\]: expected the graph's own, \['head_biases'"):
        build(small(), (ranges,))


@pytest.mark.parametrize("images", [(4, 2, 1), (1, 4, 2), (2, 1, 4)])
def test_a_range_out_of_order_is_refused(images: tuple[int, int, int]) -> None:
    ranges = {**ranges_of(small(), LATENCY)[0], "images": tuple((n, 64, 64, 3) for n in images)}
    with pytest.raises(PlanError, match=r"refuses the profile .* MIN<=OPT<=MAX"):
        build(small(), (ranges,))


@pytest.mark.parametrize(("shape", "reason"), [((96, 64, 3), "has min=96"), ((64, 64), "has 3 dimensions")])
def test_a_range_of_another_shape_is_refused(shape: tuple[int, ...], reason: str) -> None:
    ranges = {**ranges_of(small(), LATENCY)[0], "images": ((1, *shape),) * 3}
    with pytest.raises(PlanError, match=reason):
        build(small(), (ranges,))


@pytest.mark.parametrize("data", [b"", b"not a graph", small()[: len(small()) // 2]], ids=["empty", "other", "half"])
def test_a_file_that_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(GraphError, match=r"cannot read the graph .* train the bundle again"):
        build(data, ranges_of(small(), LATENCY))


def test_a_node_that_it_does_not_know_is_named() -> None:
    model = onnx.load_model_from_string(small())
    node = next(node for node in model.graph.node if node.op_type == "Sqrt")
    node.op_type = "Bernoulli"
    with pytest.raises(GraphError, match=f"node '{node.name}': "):
        build(model.SerializeToString())


def test_the_graph_as_it_is_in_the_bundle_is_refused() -> None:
    """Why `typed_graph` casts first: nothing but a cast takes uint8."""
    with pytest.raises(GraphError, match=r"node 'images_nchw': .* UInt8"):
        build(graph())


@pytest.mark.parametrize(("n_bytes", "reason"), [(1000, "within workspace limit"), (1 << 23, "OutOfMemory")])
def test_too_little_workspace_is_out_of_memory(n_bytes: int, reason: str) -> None:
    with pytest.raises(DeviceMemoryError, match=f"batches of 64 with a workspace of {n_bytes} bytes .*{reason}"):
        build(small(), ranges_of(small(), THROUGHPUT), workspace_bytes=n_bytes)


def test_what_progress_raises_ends_the_build() -> None:
    def stop(_: BuildStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, small(), ranges_of(small(), LATENCY), TensorRTOptions(), progress=stop)


def test_a_timing_cache_of_something_else_is_left_aside() -> None:
    ranges = ranges_of(small(), LATENCY)
    first = build_plan(trt, small(), ranges, TensorRTOptions())
    for timing in (first.timing, b"not a timing cache"):
        assert build_plan(trt, small(), ranges, TensorRTOptions(), timing=timing).plan


class Reader(CalibrationDataReader):  # type: ignore[misc] # without types
    """Pictures, and a head, for the quantizer to see what values there are."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        heads = {
            "head_weights": rng.normal(0, 0.05, (256, 4)).astype(np.float32),
            "head_biases": np.zeros(4, np.float32),
        }
        self._rows = iter([{"images": picture[None], **heads} for picture in pictures(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def quantized_otherwise(folder: Path, **options: Any) -> bytes:
    (folder / "float.onnx").write_bytes(graph())
    logging.disable(logging.WARNING)  # it recommends a shape inference that this graph does not need
    try:
        quantize_static(folder / "float.onnx", folder / "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, **options)
    finally:
        logging.disable(logging.NOTSET)
    return (folder / "int8.onnx").read_bytes()


SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_symmetric_int8_becomes_a_plan(precision: str) -> None:
    data = quantized(graph(), pictures(4), FULL_PRECISION_UNTIL[0])
    assert is_quantized(read_graph(data))
    plan = build(typed_graph(data, precision))
    assert hashlib.sha256(plan).digest() != hashlib.sha256(build(typed_graph(graph(), precision))).digest()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_type": QuantType.QUInt8, "extra_options": {"QuantizeBias": False}},
        {"activation_type": QuantType.QInt8, "extra_options": {**SYMMETRIC, "QuantizeBias": True}},
        {"activation_type": QuantType.QInt8, "extra_options": {**SYMMETRIC, "ActivationSymmetric": False}},
    ],
    ids=["default", "unsigned", "quantized bias", "asymmetric"],
)
def test_another_quantization_is_refused_by_name(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        GraphError, match=r"node '\w+_(Dequantize|Quantize)Linear': .* symmetric int8 without quantized"
    ):
        build(typed_graph(quantized_otherwise(tmp_path, **options), "fp32"))
