"""The float16 graph: valid, same face, and the reference's numbers and decisions as near as float16 can be."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.backbone import FeaturizerSpec, build_serving_graph
from engine.backend_onnx import OnnxBackend
from engine.errors import GraphError
from engine.graph import ServingShapes, is_quantized, read_graph
from engine.half import cast_first, to_half, typed_graph
from engine.heads import decide
from engine.prediction import OperatingPoint
from engine.preprocess import preprocess
from engine.specs import ImageSpec
from tests.bundles import graph, pictures, small_head

if TYPE_CHECKING:
    from pathlib import Path

COSINE = 0.9999
GUARD_BAND = 0.02
"""Half the width, in probability, of the band around a limit within which a decision may change."""


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    result: np.ndarray = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return result


def test_convolutions_are_half_and_everything_after_them_is_not() -> None:
    model = read_graph(typed_graph(graph(), "fp16"))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    by_op: dict[str, set[int]] = {}
    for node in model.graph.node:
        by_op.setdefault(node.op_type, set()).add(types[node.output[0]])
    assert by_op["Conv"] == by_op["Clip"] == {TensorProto.FLOAT16}
    for op in ("ReduceMean", "ReduceMax", "Mul", "Sqrt", "MatMul", "Exp", "Log", "Resize", "Concat"):
        assert by_op[op] == {TensorProto.FLOAT}, op
    casts = Counter(node.input[0] for node in model.graph.node if node.op_type == "Cast")
    assert casts["images"] == 1
    assert set(casts.values()) == {1}  # a tap is restored once, however many read it
    assert len(casts) == 1 + len(FeaturizerSpec().taps)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_face_and_the_bytes_stay(precision: str) -> None:
    data = typed_graph(graph(), precision)
    assert ServingShapes.of(read_graph(data)) == ServingShapes.of(read_graph(graph()))
    assert typed_graph(graph(), precision) == data
    assert len(data) < (0.6 if precision == "fp16" else 1.01) * len(graph())


def test_casting_first_changes_no_bit() -> None:
    data = typed_graph(graph(), "fp32")
    assert [node.op_type for node in read_graph(data).graph.node[:2]] == ["Cast", "Transpose"]
    assert cast_first(read_graph(data)).SerializeToString(deterministic=True) == data
    heads = small_head().evidence_weights[:, None], np.zeros(1, np.float32)
    before, after = OnnxBackend(graph(), streams=1), OnnxBackend(data, streams=1)
    one, two = (backend.infer(pictures(2), *heads) for backend in (before, after))
    np.testing.assert_array_equal(one.evidence, two.evidence)
    np.testing.assert_array_equal(one.pooled, two.pooled)
    before.close()
    after.close()


def run(data: bytes, images: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, ...]:
    """evidence, pooled, locations."""
    backend = OnnxBackend(data)
    try:
        parts = [
            backend.infer(images[start : start + 32], weights, biases, locations=True)
            for start in range(0, len(images), 32)
        ]
    finally:
        backend.close()
    return (
        np.concatenate([part.evidence for part in parts]),
        np.concatenate([part.pooled for part in parts]),
        np.concatenate([part.locations for part in parts if part.locations is not None]),
    )


def hardest() -> np.ndarray:
    """uint8 (8, 160, 160, 3): what no camera sees, but what drives a network's values furthest."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((160, 160))
    patterns = [
        np.zeros((160, 160)),
        np.full((160, 160), 255),
        255 * ((rows + columns) % 2),
        255 * (rows // 16 % 2),
        255 * (columns // 4 % 2),
        rows * 255 / 159,
        255 * (columns >= 80),
    ]
    images = [np.repeat(pattern[..., None], 3, axis=2).astype(np.uint8) for pattern in patterns]
    return np.stack([*images, rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)])


@pytest.mark.parametrize("embedding", [False, True], ids=["cut", "embedding"])
def test_nothing_leaves_the_range_of_float16(*, embedding: bool) -> None:
    data = build_serving_graph(FeaturizerSpec(embedding=embedding), ImageSpec(160, 160))
    rng = np.random.default_rng(1)
    weights, biases = rng.normal(0, 1, (256, 4)).astype(np.float32), np.array([0, 100, -100, 1e4], np.float32)
    plain = run(data, hardest(), weights, biases)
    half = run(typed_graph(data, "fp16"), hardest(), weights, biases)
    for values in half:
        assert np.isfinite(values).all()
    assert cosine(half[1], plain[1]).min() >= COSINE
    # Far from where squares and sums of float16 end, on the inside: what is half never comes near.
    model = read_graph(cast_first(read_graph(data)).SerializeToString())
    names = [
        node.output[0] for node in model.graph.node if node.op_type in {"Conv", "Add"} and node.name.startswith("block")
    ]
    names = [name for name in names if not name.endswith(("_total", "_nkhw", "_nk11"))]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inside = session.run(names, {"images": hardest(), "head_weights": weights, "head_biases": biases})
    assert max(float(np.abs(values).max()) for values in inside) < 65504 / 64


@pytest.mark.parametrize("index", range(6))
def test_golden_inputs_come_out_the_same(index: int, shared_data: Path) -> None:
    spec = ImageSpec(224, 224)
    data = build_serving_graph(FeaturizerSpec(embedding=True), spec)
    image = preprocess((shared_data / f"golden/input_{index}.png").read_bytes(), spec)[None]
    rng = np.random.default_rng(index)
    heads = rng.normal(0, 0.02, (256, 4)).astype(np.float32), np.zeros(4, np.float32)
    plain, half = (run(graph, image, *heads) for graph in (data, typed_graph(data, "fp16")))
    assert cosine(half[1], plain[1])[0] >= COSINE
    embedding = slice(FeaturizerSpec().pooled_size, None)
    golden = np.load(shared_data / "golden/efficientnet_lite0.npz")["embedding"][index : index + 1]
    assert cosine(half[1][:, embedding], golden)[0] >= COSINE
    np.testing.assert_allclose(half[0], plain[0], atol=0.05)


def read(folder: Path, spec: ImageSpec, count: int) -> np.ndarray:
    """Pictures spread over a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    chosen = files[:: max(len(files) // count, 1)][:count]
    return np.stack([preprocess(path.read_bytes(), spec) for path in chosen])


@pytest.mark.slow
def test_decisions_on_pictures_stay_the_same(shared_data: Path) -> None:
    """A head fitted on the float32 numbers decides pictures of a line: no decision changes outside the guard band."""
    spec = ImageSpec(160, 160)
    data = build_serving_graph(FeaturizerSpec(), spec)
    folders = sorted(path for path in (shared_data / "data/pcb").iterdir() if path.is_dir())
    images = [read(folder, spec, 60) for folder in folders]
    labels = np.concatenate([np.full(len(part), index) for index, part in enumerate(images)])
    every = np.concatenate(images)
    nothing = np.zeros((256, 1), np.float32), np.zeros(1, np.float32)
    _, pooled, _ = run(data, every, *nothing)
    means = pooled[:, :256]  # of each tap's channels: a head over the locations scores their mean alike
    weights = difference(means, labels)
    heads = weights[:, None], np.zeros(1, np.float32)
    plain, half = (run(graph, every, *heads) for graph in (data, typed_graph(data, "fp16")))
    middle, scale = float(np.median(plain[0])), float(plain[0].std())
    probabilities = [1 / (1 + np.exp(-(evidence[:, 0] - middle) / scale)) for evidence in (plain[0], half[0])]
    point = OperatingPoint(0.5, (0.4, 0.6))
    decisions = [[decide(float(p), point, None).decision for p in part] for part in probabilities]
    assert {"pass", "fail", "review"} == set(decisions[0])
    changed = [i for i in range(len(every)) if decisions[0][i] != decisions[1][i]]
    limits = (point.threshold, *point.review_band)
    outside = [i for i in changed if min(abs(probabilities[0][i] - limit) for limit in limits) > GUARD_BAND]
    assert cosine(half[1], plain[1]).min() >= COSINE
    assert np.abs(probabilities[0] - probabilities[1]).max() < GUARD_BAND
    assert outside == []


def difference(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(c,) float32: the direction between two classes' means, each channel by its own deviation."""
    last = labels == labels.max()
    scale = features.std(axis=0) + 1e-3
    result: np.ndarray = ((features[last].mean(axis=0) - features[~last].mean(axis=0)) / scale**2).astype(np.float32)
    return result


def test_a_graph_of_another_kind_is_refused() -> None:
    spare = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", spare[:1], spare[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    with pytest.raises(GraphError, match=r"takes and gives x float32 \*3, y float32 \*3: expected images uint8"):
        ServingShapes.of(model)


@pytest.mark.parametrize("data", [b"", b"not a graph", graph()[: len(graph()) // 2]])
def test_a_corrupt_graph_is_named_with_its_cure(data: bytes) -> None:
    with pytest.raises(GraphError, match=r"cannot be loaded .* train the bundle again"):
        typed_graph(data, "fp16")


def test_a_weight_beyond_float16_is_named() -> None:
    model = read_graph(graph())
    stem = next(tensor for tensor in model.graph.initializer if tensor.name == "stem_w")
    values = numpy_helper.to_array(stem).copy()
    values.flat[0] = 1e5
    stem.CopyFrom(numpy_helper.from_array(values, "stem_w"))
    with pytest.raises(GraphError, match=r"constant stem_w of the graph reaches 100000: expected at most 65504"):
        to_half(cast_first(model))
    assert typed_graph(model.SerializeToString(), "fp32")


def test_a_quantized_graph_is_left_in_int8() -> None:
    scale, zero = (
        numpy_helper.from_array(np.array(value, dtype), name)
        for value, dtype, name in ((0.1, np.float32, "s"), (0, np.int8, "z"))
    )
    model = cast_first(read_graph(graph()))
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    source = first.input[0]
    model.graph.initializer.extend([scale, zero])
    index = list(model.graph.node).index(first)
    model.graph.node.insert(index, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]))
    model.graph.node.insert(index, helper.make_node("QuantizeLinear", [source, "s", "z"], ["q"]))
    first.input[0] = "dq"
    assert is_quantized(model)
    with pytest.raises(GraphError, match="quantized already"):
        to_half(model)
    data = model.SerializeToString(deterministic=True)
    assert typed_graph(data, "fp16") == typed_graph(data, "fp32")
