"""The featurizer against what the original network answered, and the serving graph against the training graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import onnxruntime as ort
import pytest

from engine.backbone import (
    BLOCKS,
    FeaturizerSpec,
    build_reference_graph,
    build_serving_graph,
    build_training_graph,
    fine_channels,
    grid,
    inputs,
)
from engine.errors import InputError
from engine.specs import ImageSpec

if TYPE_CHECKING:
    from pathlib import Path

GOLDEN_IMAGES = 6
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
    fine, n = fine_channels(featurizer), len(cells)
    cells = cells.reshape(n, rows // 2, columns // 2, -1)
    own = cells[..., : 4 * fine].reshape(n, rows // 2, columns // 2, 2, 2, fine).transpose(0, 1, 3, 2, 4, 5)
    shared = cells[..., 4 * fine :].repeat(2, axis=1).repeat(2, axis=2)
    return np.concatenate([own.reshape(n, rows, columns, fine), shared], axis=3).reshape(n, rows * columns, -1)


def test_graph_answers_as_the_original_network_at_every_block(golden: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    images, answers = golden
    outputs = run(build_reference_graph(SQUARE), {"images": images}, plain=True)
    assert np.abs(outputs["embedding"] - answers["embedding"]).max() < 1e-4
    for index in range(len(BLOCKS)):
        block = outputs[f"block{index:02d}"].astype(np.float64)
        assert np.abs(block.mean((2, 3)) - answers[f"block{index:02d}_mean"]).max() < 1e-4
        peak = block.max((2, 3))
        excess = np.abs(peak - answers[f"block{index:02d}_max"]) - (1e-4 + 1e-5 * np.abs(peak))
        assert excess.max() < 0, f"block {index}"


def test_embedding_in_serving_matches_with_the_kernels_that_serve(
    golden: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    images, answers = golden
    featurizer = FeaturizerSpec(embedding=True)
    heads = np.zeros((featurizer.channels, 4), np.float32), np.zeros(4, np.float32)
    feeds = {"images": images, "head_weights": heads[0], "head_biases": heads[1]}
    outputs = run(build_serving_graph(featurizer, SQUARE), feeds)
    assert np.abs(outputs["pooled"][:, -1280:] - answers["embedding"]).max() < 1e-4


@pytest.mark.parametrize("size", [(96, 64), (160, 160), (320, 192)])
@pytest.mark.parametrize("embedding", [False, True])
def test_serving_graph_scores_what_the_training_graph_gives(size: tuple[int, int], *, embedding: bool) -> None:
    spec, featurizer = ImageSpec(*size), FeaturizerSpec(embedding=embedding)
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


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="resnet50"):
        FeaturizerSpec(backbone="resnet50")


def test_spec_survives_json() -> None:
    spec = FeaturizerSpec(taps=(4, 10), embedding=True)
    assert FeaturizerSpec.from_json(spec.to_json()) == spec
