"""The featurizer against what the original network answered, and the serving graph against the training graph."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from engine.backbone import (
    FeaturizerSpec,
    build_reference_graph,
    build_serving_graph,
    build_training_graph,
    grid,
    inputs,
    load_weights,
)
from engine.errors import GraphError, InputError
from engine.featurizer import ARCHITECTURES, architecture, multiply_accumulates
from engine.preprocess import preprocess
from engine.specs import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOLDEN_IMAGES = 6
DOGS = frozenset(range(151, 276))
"""ImageNet's dogs and wild dogs; its domestic and wild cats are `CATS`."""
CATS = frozenset(range(281, 294))
SQUARE = ImageSpec(224, 224)


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    folder = shared_data / "golden"
    pictures = [
        np.asarray(cv2.imread(str(folder / f"input_{i}.png"), cv2.IMREAD_COLOR_RGB)) for i in range(GOLDEN_IMAGES)
    ]
    with np.load(folder / "efficientnet_lite0.npz") as answers:
        return np.stack(pictures), dict(answers)


def run(graph: bytes, feeds: dict[str, np.ndarray], *, plain: bool = False) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    if plain:  # the graph's own operators, without kernels that sum in another order
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, feeds), strict=True))


def at_locations(cells: np.ndarray, featurizer: FeaturizerSpec, rows: int, columns: int) -> np.ndarray:
    """(n, rows * columns, c) of the training graph's cells: coarse channels repeated at each of a cell's locations."""
    fine, n = featurizer.fine_channels, len(cells)
    cells = cells.reshape(n, rows // 2, columns // 2, -1)
    own = cells[..., : 4 * fine].reshape(n, rows // 2, columns // 2, 2, 2, fine).transpose(0, 1, 3, 2, 4, 5)
    shared = cells[..., 4 * fine :].repeat(2, axis=1).repeat(2, axis=2)
    return np.concatenate([own.reshape(n, rows, columns, fine), shared], axis=3).reshape(n, rows * columns, -1)


def plain_onnxruntime(graph: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """The graph's own operators. Those that serve are three times faster, and 3e-5 past the bound at block 4."""
    return run(graph, {"images": images}, plain=True)


def serving_openvino(graph: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """The kernels that `auto` serves fp32 with, one image at a time as it does."""
    from engine.backend_openvino import compile_graph  # noqa: PLC0415 - not at collection

    compiled = compile_graph(graph, "fp32", {"NUM_STREAMS": "1"}, batch=1)
    names = [port.get_any_name() for port in compiled.outputs]
    request = compiled.create_infer_request()
    rows = []
    for image in images:
        request.infer({"images": image[None]})
        rows.append([request.get_output_tensor(index).data.copy() for index in range(len(names))])
    return {name: np.concatenate(row) for name, row in zip(names, zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize("computed", [plain_onnxruntime, serving_openvino])
def test_graph_answers_as_the_original_network_at_every_block(
    golden: tuple[np.ndarray, dict[str, np.ndarray]], computed: Callable[[bytes, np.ndarray], dict[str, np.ndarray]]
) -> None:
    images, answers = golden
    outputs = computed(build_reference_graph(SQUARE), images)
    assert np.abs(outputs["embedding"] - answers["embedding"]).max() < 1e-4
    for index in range(len(architecture("efficientnet-lite0").blocks)):
        block = outputs[f"block{index:02d}"].astype(np.float64)
        assert np.abs(block.mean((2, 3)) - answers[f"block{index:02d}_mean"]).max() < 1e-4
        peak = block.max((2, 3))
        excess = np.abs(peak - answers[f"block{index:02d}_max"]) - (1e-4 + 1e-5 * np.abs(peak))
        assert excess.max() < 0, f"block {index}"


class _Counted(dict[str, np.ndarray]):
    """Tensors that count how often each is asked for."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        super().__init__(tensors)
        self.asked = Counter[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        self.asked[name] += 1
        return super().__getitem__(name)


@pytest.mark.parametrize("backbone", ARCHITECTURES)
def test_every_tensor_of_the_file_has_its_one_place(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block too few, too many or out of place would leave tensors over, ask for others or not fit the next block."""
    tensors = _Counted(load_weights(backbone))
    monkeypatch.setattr("engine.backbone.load_weights", lambda _: tensors)
    build_reference_graph(SQUARE, backbone)  # infers and checks every shape
    classifier = {"_fc.weight", "_fc.bias"}
    used = {name for name in tensors if not name.endswith("num_batches_tracked")} - classifier
    assert tensors.asked == Counter(used)


@pytest.mark.parametrize("backbone", ARCHITECTURES)
def test_cats_and_dogs_are_seen_as_such(backbone: str, shared_data: Path) -> None:
    """With the file's own classifier on top: a wrong padding, stride or residual would end this far below chance."""
    spec = ImageSpec(224, 224)
    tensors = load_weights(backbone)
    hits = []
    for label, wanted in (("good", CATS), ("fail", DOGS)):
        paths = sorted((shared_data / "data" / "catdog" / label).iterdir())[:12]
        images = np.stack([preprocess(path.read_bytes(), spec) for path in paths])
        embedding = run(build_reference_graph(spec, backbone), {"images": images})["embedding"]
        top = (embedding @ tensors["_fc.weight"].T + tensors["_fc.bias"]).argmax(1)
        hits += [int(index) in wanted for index in top]
    assert np.mean(hits) > 0.85


def test_the_files_own_classifier_says_what_the_original_network_said(
    golden: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    images, answers = golden
    tensors = load_weights()
    embedding = run(build_reference_graph(SQUARE), {"images": images})["embedding"]
    top = (embedding @ tensors["_fc.weight"].T + tensors["_fc.bias"]).argmax(1)
    np.testing.assert_array_equal(top, answers["top1"])


@pytest.mark.parametrize(
    ("backbone", "channels", "taps"),
    [
        ("efficientnet-lite0", (24, 40, 80, 112), (2, 4, 7, 10)),
        ("efficientnet-lite1", (24, 40, 80, 112), (3, 6, 10, 14)),
        ("efficientnet-lite2", (24, 48, 88, 120), (3, 6, 10, 14)),
    ],
)
def test_default_taps_end_the_same_stages_in_every_backbone(
    backbone: str, channels: tuple[int, ...], taps: tuple[int, ...]
) -> None:
    spec = FeaturizerSpec(backbone)
    assert spec.taps == taps
    assert tuple(block.channels_out for block in spec.tapped) == channels
    assert [block.total_stride for block in spec.tapped] == [4, 8, 16, 16]
    ends = [spec.network.blocks[tap + 1].channels_out for tap in taps]
    assert all(after != own for after, own in zip(ends, channels, strict=True))


def test_multiply_accumulates_are_those_of_the_published_network() -> None:
    """Lite0 at 224 is published as 407 million, of which 1.28 are the classifier's, which is never built."""
    published = multiply_accumulates(FeaturizerSpec(embedding=True), SQUARE)
    assert 380e6 < published < 410e6


@pytest.mark.parametrize("embedding", [False, True])
def test_multiply_accumulates_are_counted_from_the_graph_itself(*, embedding: bool) -> None:
    spec, image = FeaturizerSpec("efficientnet-lite2", embedding=embedding), ImageSpec(96, 64)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(build_training_graph(spec, image))).graph
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    sizes = {init.name: int(np.prod(init.dims)) for init in graph.initializer}
    counted = sum(sizes[n.input[1]] * int(np.prod(shapes[n.output[0]][2:])) for n in graph.node if n.op_type == "Conv")
    assert counted == multiply_accumulates(spec, image)


def test_embedding_in_serving_matches_with_the_kernels_that_serve(
    golden: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    images, answers = golden
    featurizer = FeaturizerSpec(embedding=True)
    heads = np.zeros((featurizer.channels, 4), np.float32), np.zeros(4, np.float32)
    feeds = {"images": images, "head_weights": heads[0], "head_biases": heads[1]}
    outputs = run(build_serving_graph(featurizer, SQUARE), feeds)
    assert np.abs(outputs["pooled"][:, -1280:] - answers["embedding"]).max() < 1e-4


@pytest.mark.parametrize(
    ("size", "featurizer"),
    [
        ((96, 64), FeaturizerSpec()),
        ((160, 160), FeaturizerSpec(embedding=True)),
        ((320, 192), FeaturizerSpec(taps=(4,))),
        ((96, 64), FeaturizerSpec(taps=(7, 10))),
        ((320, 192), FeaturizerSpec(embedding=True)),
        ((96, 64), FeaturizerSpec("efficientnet-lite1")),
        ((160, 160), FeaturizerSpec()),
        ((96, 160), FeaturizerSpec("efficientnet-lite2", taps=(2, 6, 9), embedding=True)),
    ],
)
def test_serving_graph_scores_what_the_training_graph_gives(size: tuple[int, int], featurizer: FeaturizerSpec) -> None:
    spec = ImageSpec(*size)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, spec.height_px, spec.width_px, 3), dtype=np.uint8)
    weights = rng.normal(0, 0.1, (featurizer.channels, 4)).astype(np.float32)
    biases = np.array([0.3, -0.7, 0.0, 2.0], np.float32)
    trained = run(build_training_graph(featurizer, spec), {"images": images})
    serving = build_serving_graph(featurizer, spec)
    served = run(serving, {"images": images, "head_weights": weights, "head_biases": biases})

    rows, columns = grid(spec)
    channels = at_locations(trained["channels"], featurizer, rows, columns)
    assert served["locations"].shape == (3, rows, columns, 4)
    assert served["pooled"].shape == (3, featurizer.pooled_size)
    np.testing.assert_array_equal(served["pooled"], trained["pooled"])
    scores = channels.astype(np.float64) @ weights + biases  # (n, locations, k)
    np.testing.assert_allclose(served["locations"].reshape(3, -1, 4), scores, atol=1e-4)
    evidence = np.log(np.exp(scores).mean(1))
    np.testing.assert_allclose(served["evidence"], evidence, atol=1e-4)


def test_evidence_does_not_overflow_where_scores_are_huge() -> None:
    spec, featurizer = ImageSpec(64, 64), FeaturizerSpec()
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    weights = np.full((featurizer.channels, 4), 1e3, np.float32)
    feeds: dict[str, np.ndarray] = {"images": images, "head_weights": weights, "head_biases": np.zeros(4, np.float32)}
    served = run(build_serving_graph(featurizer, spec), feeds)
    assert np.isfinite(served["evidence"]).all()
    assert served["evidence"].max() <= served["locations"].max()


def test_same_arguments_give_the_same_bytes_and_the_cut_leaves_the_rest_out() -> None:
    cut, whole = FeaturizerSpec(), FeaturizerSpec(embedding=True)
    spec = ImageSpec(64, 64)
    assert build_serving_graph(cut, spec) == build_serving_graph(cut, spec)
    assert len(build_serving_graph(cut, spec)) < 0.4 * len(build_serving_graph(whole, spec))


def test_inputs_say_what_the_graph_takes() -> None:
    images, weights, biases = inputs(FeaturizerSpec(), ImageSpec(96, 64))
    assert (images.name, images.shape, images.dtype) == ("images", (None, 64, 96, 3), "uint8")
    assert weights.shape == (256, None)
    assert biases.shape == (None,)


@pytest.mark.parametrize("taps", [(), (10, 7), (2, 2), (0, 4), (4, 15), (99,)])
def test_taps_that_do_not_fit_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="do not fit the backbone"):
        FeaturizerSpec(taps=taps)


def test_taps_of_another_backbone_are_refused_with_what_fits() -> None:
    with pytest.raises(GraphError, match=r"\[14\] do not fit .*lite0.* out of \[1, 2, .*, 10\]; .*\[2, 4, 7, 10\]"):
        FeaturizerSpec(taps=(14,))
    assert FeaturizerSpec("efficientnet-lite1", taps=(14,)).channels == 112


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"backbone": "efficientnet-lite0", "taps": [], "embedding": False},
        {"backbone": "efficientnet-lite0", "taps": [2, "4"], "embedding": False},
        {"backbone": "efficientnet-lite0", "taps": [-1], "embedding": False, "more": 1},
        {"backbone": "efficientnet-lite0", "taps": [True, 4], "embedding": False},
        {"backbone": ["efficientnet-lite0"], "taps": [4], "embedding": False},
        {"backbone": "efficientnet-lite0", "taps": [4, 99], "embedding": False},
    ],
)
def test_a_featurizer_that_is_none_is_one_clear_error(value: Any) -> None:
    with pytest.raises(GraphError, match=r"expected .*; (train|it|take)"):
        FeaturizerSpec.from_json(value)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="resnet50"):
        FeaturizerSpec(backbone="resnet50")


def test_spec_survives_json() -> None:
    spec = FeaturizerSpec(taps=(4, 10), embedding=True)
    assert FeaturizerSpec.from_json(spec.to_json()) == spec
