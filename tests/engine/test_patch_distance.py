"""The distance from good parts: as its definition says, the same in numpy, in the graph and on every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from engine.backbone import FeaturizerSpec, build_serving_graph, build_training_graph
from engine.backend import CPU_BACKENDS, open_backend
from engine.backend_onnx import OnnxGraph
from engine.errors import GraphError
from engine.graph import read_graph
from engine.half import typed_graph
from engine.patch_distance import PatchDistance
from engine.processor import has_bfloat16
from engine.quantize import FULL_PRECISION_UNTIL, quantized
from engine.specs import HEAD_GROUP, ImageSpec
from tests.bundles import pictures
from tests.graphs import run_alone

IMAGE = ImageSpec(64, 64)
TAPS = ((2, 4, 7, 10), (2, 4), (7, 10), (10,), (1, 3, 4, 6))


def spec_of(taps: tuple[int, ...]) -> FeaturizerSpec:
    return FeaturizerSpec(taps=taps, distance=True)


def cells_of(featurizer: FeaturizerSpec, images: np.ndarray) -> np.ndarray:
    return run_alone(OnnxGraph(build_training_graph(featurizer, IMAGE)), ["channels"], images)[0]


def locations_of(cells: np.ndarray, fine: int) -> np.ndarray:
    """(n * cells * 4, c) float64, by plain repetition."""
    flat = cells.reshape(-1, cells.shape[2]).astype(np.float64)
    own, shared = flat[:, : 4 * fine].reshape(len(flat), 4, fine), flat[:, 4 * fine :]
    return np.concatenate([own, np.repeat(shared[:, None], 4, axis=1)], axis=2).reshape(4 * len(flat), -1)


def good_parts(featurizer: FeaturizerSpec, seed: int = 0) -> PatchDistance:
    """Of smooth pictures; a ridge as in training."""
    locations = locations_of(cells_of(featurizer, pictures(40, seed)), featurizer.fine_channels)
    covariance = np.cov(locations.T, bias=True)
    shrunk = 0.99 * covariance + 0.01 * np.diag(covariance.diagonal()) + 1e-6 * np.eye(len(covariance))
    return PatchDistance.of(locations.mean(0), shrunk, featurizer.fine_channels)


def heads(featurizer: FeaturizerSpec) -> tuple[np.ndarray, np.ndarray]:
    """The distance alone, and a head of random weights beside it that gives it some weight too."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 0.02, (featurizer.channels, 2)).astype(np.float32)
    weights[:, 0] = 0
    weights[-1] = 16, 0.5
    return weights, np.array([0.25, -1], np.float32)


@pytest.mark.parametrize("fine", [0, 3, 7])
def test_it_is_the_mahalanobis_distance(fine: int) -> None:
    rng = np.random.default_rng(fine)
    mixing = rng.normal(size=(7, 7))
    covariance, mean = mixing @ mixing.T + 0.1 * np.eye(7), rng.normal(size=7)
    cells = rng.normal(size=(3, 5, 4 * fine + (7 - fine))).astype(np.float32)
    off = locations_of(cells, fine) - mean
    expected = np.sqrt(np.einsum("ij,ij->i", off @ np.linalg.inv(covariance), off) / 7)
    got = PatchDistance.of(mean, covariance, fine)(cells)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-5)


def test_good_parts_lie_about_one_away() -> None:
    featurizer = spec_of(TAPS[0])
    distances = good_parts(featurizer)(cells_of(featurizer, pictures(40)))
    assert 0.9 < np.sqrt(np.square(distances).mean()) <= 1.001


@pytest.mark.parametrize("taps", TAPS)
def test_the_serving_graph_and_numpy_give_the_same(taps: tuple[int, ...]) -> None:
    featurizer, images = spec_of(taps), pictures(5, seed=9)
    distance = good_parts(featurizer)
    weights, biases = heads(featurizer)
    cells = cells_of(featurizer, images)
    backend = open_backend("onnxruntime", build_serving_graph(featurizer, IMAGE, distance))
    try:
        served = backend.infer(images, weights, biases, locations=True)
    finally:
        backend.close()
    assert served.locations is not None
    found = distance(cells).reshape(5, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(5, 8, 8)
    np.testing.assert_allclose(served.locations[..., 0], 16 * found + 0.25, rtol=1e-4)
    scores = 16 * found.reshape(5, -1).astype(np.float64)
    np.testing.assert_allclose(served.evidence[:, 0], np.log(np.exp(scores).mean(1)) + 0.25, rtol=1e-4)
    channels = locations_of(cells, featurizer.fine_channels).reshape(5, 4, 4, 2, 2, -1).swapaxes(2, 3)
    expected = channels.reshape(5, 8, 8, -1) @ weights[:-1, 1] + 0.5 * found - 1
    np.testing.assert_allclose(served.locations[..., 1], expected, rtol=1e-4, atol=1e-4)


def test_pooled_vectors_and_other_heads_are_what_they_are_without_it() -> None:
    """So a two-class head on the same taps can be served beside a good-only one."""
    with_it, images = spec_of(TAPS[0]), pictures(3, seed=2)
    weights, biases = heads(with_it)
    weights[-1, 1] = 0
    plain = open_backend("onnxruntime", build_serving_graph(replace(with_it, distance=False), IMAGE))
    own = open_backend("onnxruntime", build_serving_graph(with_it, IMAGE, good_parts(with_it)))
    one, two = plain.infer(images, weights[:-1, 1:].copy(), biases[1:]), own.infer(images, weights, biases)
    plain.close()
    own.close()
    np.testing.assert_array_equal(two.pooled, one.pooled)
    np.testing.assert_allclose(two.evidence[:, 1], one.evidence[:, 0], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in CPU_BACKENDS if name != "onnxruntime"])
def test_other_backends_give_nearly_the_same(name: str) -> None:
    if name.endswith("bf16") and not has_bfloat16():
        pytest.skip("this processor has no bfloat16")
    featurizer, images = spec_of(TAPS[0]), np.concatenate([pictures(6, seed=9), pictures(2)])
    graph = build_serving_graph(featurizer, IMAGE, good_parts(featurizer))
    answers = []
    for each in ("onnxruntime", name):
        backend = open_backend(each, graph)
        answers.append(backend.infer(images, *heads(featurizer)).evidence[:, 0] / 16)
        backend.close()
    tolerance = 0.05 if name.endswith("bf16") else 1e-4
    np.testing.assert_allclose(answers[1], answers[0], rtol=tolerance)


def test_float16_and_int8_end_before_it() -> None:
    """Whitening makes small differences large: it runs in float32 whatever the convolutions run in."""
    featurizer = spec_of(TAPS[0])
    graph = build_serving_graph(featurizer, IMAGE, good_parts(featurizer))
    half = onnx.shape_inference.infer_shapes(read_graph(typed_graph(graph, "fp16")), strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    own = [node.output[0] for node in half.graph.node if node.name.startswith("distance_")]
    assert len(own) > 15
    assert {types[name] for name in own if name in types} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    in_int8 = read_graph(quantized(graph, pictures(4), FULL_PRECISION_UNTIL[0]))
    assert all(node.op_type != "Conv" for node in in_int8.graph.node if node.name.startswith("distance_"))
    backend = open_backend("onnxruntime", typed_graph(graph, "fp16"))
    reference = open_backend("onnxruntime", graph)
    images = pictures(6, seed=9)
    one, two = (each.infer(images, *heads(featurizer)).evidence[:, 0] / 16 for each in (reference, backend))
    backend.close()
    reference.close()
    np.testing.assert_allclose(two, one, rtol=0.01)


def test_the_same_good_parts_give_the_same_bytes() -> None:
    featurizer = spec_of(TAPS[0])
    one, two = (build_serving_graph(featurizer, IMAGE, good_parts(featurizer)) for _ in range(2))
    assert one == two
    assert one != build_serving_graph(featurizer, IMAGE, good_parts(featurizer, seed=1))


def test_the_spec_says_it_only_where_it_is_there() -> None:
    plain, own = FeaturizerSpec(), FeaturizerSpec(distance=True)
    assert "distance" not in plain.to_json()
    assert own.to_json()["distance"] is True
    assert FeaturizerSpec.from_json(own.to_json()) == own
    assert FeaturizerSpec.from_json(plain.to_json()) == plain
    assert (own.channels, own.pooled_size, own.cell_size) == (257, plain.pooled_size, plain.cell_size)
    for odd in ({"distance": False}, {"distance": 1}, {"mean": True}):
        with pytest.raises(GraphError, match="is not a spec"):
            FeaturizerSpec.from_json({**plain.to_json(), **odd})


def test_good_parts_that_do_not_fit_are_refused() -> None:
    own = spec_of((2, 4))
    for featurizer, distance in (
        (own, None),
        (replace(own, distance=False), good_parts(own)),
        (spec_of(TAPS[0]), good_parts(own)),
    ):
        with pytest.raises(GraphError, match="was given good parts of"):
            build_serving_graph(featurizer, IMAGE, distance)
    with pytest.raises(GraphError, match="positive definite"):
        PatchDistance.of(np.zeros(3), np.zeros((3, 3)), 1)


def test_heads_still_come_in_groups() -> None:
    featurizer = spec_of(TAPS[0])
    backend = open_backend("onnxruntime", build_serving_graph(featurizer, IMAGE, good_parts(featurizer)))
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 0.05, (featurizer.channels, HEAD_GROUP + 1)).astype(np.float32)
    biases = np.zeros(HEAD_GROUP + 1, np.float32)
    images = pictures(2)
    many = backend.infer(images, weights, biases).evidence
    one = backend.infer(images, weights[:, -1:].copy(), biases[-1:]).evidence
    backend.close()
    np.testing.assert_array_equal(many[:, -1], one[:, 0])
