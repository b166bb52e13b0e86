"""Tiles: cut without a pixel lost, joined as if all their locations were one map; and the backend that does both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backbone import FeaturizerSpec, build_serving_graph, build_training_graph
from engine.backend import Features, Ticket
from engine.backend_onnx import OnnxBackend, OnnxGraph
from engine.backend_tiled import TiledBackend, on_whole_images
from engine.bundle import open_bundle, write_bundle
from engine.choice import agreement, open_for
from engine.errors import BundleError, DeviceError
from engine.featurizer import multiply_accumulates
from engine.heads import Calibration, stack
from engine.scorer import Scorer
from engine.specs import BatchProfile, ImageSpec, tile_sides
from engine.tiles import join, join_pooled, split
from engine.verify import verify_scorer
from tests.bundles import FEATURIZER, IMAGE, TILED, graph, pictures, small_bundle, small_head, wide_pictures
from tests.graphs import run_alone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADS = stack([small_head(0), small_head(1)])
SCENE = ImageSpec(192, 128, tile_px=(64, 64))
"""Two rows of three tiles."""


def scenes(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, 128, 192, 3), every tile another picture."""
    tiles = pictures(count * 6, seed).reshape(count, 2, 3, 64, 64, 3)
    return np.ascontiguousarray(tiles.swapaxes(2, 3)).reshape(count, 128, 192, 3)


@pytest.fixture(scope="module")
def inner() -> Iterator[OnnxBackend]:
    backend = OnnxBackend(graph())
    yield backend
    backend.close()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.sampled_from([(64, 64), (96, 64), (64, 128)]))
def test_tiles_are_the_image_in_reading_order(rows: int, columns: int, count: int, tile_px: tuple[int, int]) -> None:
    width_px, height_px = tile_px
    image = ImageSpec(columns * width_px, rows * height_px, tile_px=tile_px)
    images = np.random.default_rng(rows).integers(0, 256, (count, image.height_px, image.width_px, 3), dtype=np.uint8)
    tiles = split(images, image)
    assert tiles.shape == (count * rows * columns, height_px, width_px, 3)
    assert tiles.flags.c_contiguous
    places = [(n, row, column) for n in range(count) for row in range(rows) for column in range(columns)]
    for tile, (n, row, column) in zip(tiles, places, strict=True):
        y, x = row * height_px, column * width_px
        np.testing.assert_array_equal(tile, images[n, y : y + height_px, x : x + width_px])


def test_an_image_that_is_not_cut_stays_as_it_is(inner: OnnxBackend) -> None:
    images = pictures(2)
    features = inner.infer(images, *HEADS)
    assert split(images, IMAGE) is images
    assert join(features, IMAGE, FEATURIZER) is features
    assert join_pooled(features.pooled, IMAGE, FEATURIZER) is features.pooled
    assert on_whole_images(inner, IMAGE, FEATURIZER) is inner


def test_location_maps_lie_side_by_side_and_evidence_is_log_mean_exp_over_all_of_them(inner: OnnxBackend) -> None:
    images = scenes(2)
    found = join(inner.infer(split(images, SCENE), *HEADS, locations=True), SCENE, FEATURIZER)
    assert found.locations is not None
    assert found.locations.shape == (2, 16, 24, 2)
    last = inner.infer(images[1:, 64:, 128:], *HEADS, locations=True).locations
    assert last is not None
    np.testing.assert_array_equal(found.locations[1, 8:, 16:], last[0])
    flat = found.locations.astype(np.float64).reshape(2, -1, 2)
    np.testing.assert_allclose(found.evidence, np.log(np.exp(flat).mean(axis=1)), rtol=1e-5, atol=1e-5)
    assert {array.dtype for array in (found.evidence, found.pooled, found.locations)} == {np.dtype(np.float32)}


def test_evidence_neither_overflows_nor_warns() -> None:
    pooled = np.zeros((6, FEATURIZER.pooled_size), np.float32)
    loud = np.array([[1e4], [0], [0], [-1e30], [np.inf], [np.nan]], np.float32)
    image = ImageSpec(192, 64, tile_px=(64, 64))
    found = join(Features(loud, pooled), image, FEATURIZER).evidence[:, 0]
    assert found[0] == pytest.approx(1e4 - np.log(3))
    assert np.isnan(found[1])
    pooled[0], pooled[3, 0] = np.inf, np.nan
    assert not np.isfinite(join_pooled(pooled, image, FEATURIZER)[:, 0]).any()


@pytest.mark.parametrize("featurizer", [FEATURIZER, FeaturizerSpec(taps=(4, 10), embedding=True)])
def test_pooled_values_are_those_over_all_locations(featurizer: FeaturizerSpec) -> None:
    """Against mean, maximum and deviation computed from the channels of all tiles, where every tap has its own rows."""
    training = OnnxGraph(build_training_graph(featurizer, SCENE.graph_input))
    pooled, cells = run_alone(training, ["pooled", "channels"], split(scenes(2), SCENE))
    found = join_pooled(pooled, SCENE, featurizer)
    cells = cells.reshape(2, -1, featurizer.cell_size).astype(np.float64)
    fine = featurizer.fine_channels
    taps, start, fine_start, coarse_start = 0, 0, 0, 4 * fine
    for block in featurizer.tapped:
        size = block.channels_out
        if block.total_stride == 8:
            at = np.concatenate([np.arange(fine_start, fine_start + size) + fine * place for place in range(4)])
            values = cells[:, :, at].reshape(2, -1, 4, size).reshape(2, -1, size)
        else:
            values = cells[:, :, coarse_start : coarse_start + size]
        if block.total_stride >= 8:  # a tap of stride 4 is averaged in the cells and pooled before that
            expected = (values.mean(axis=1), values.max(axis=1), values.std(axis=1))
            got = found[:, start : start + 3 * size].reshape(2, 3, size)
            np.testing.assert_allclose(got, np.stack(expected, axis=1), rtol=1e-4, atol=1e-4)
            taps += 1
        start += 3 * size
        fine_start += size if block.total_stride <= 8 else 0
        coarse_start += size if block.total_stride > 8 else 0
    assert taps >= 2
    if featurizer.embedding:
        np.testing.assert_allclose(found[:, start:], pooled[:, start:].reshape(2, 6, -1).mean(axis=1), rtol=1e-6)


def test_away_from_the_seams_a_scene_is_the_same_as_whole() -> None:
    """A tap that sees less than 32 px around it: further than that from a seam its scores are the whole scene's."""
    featurizer, image = FeaturizerSpec(taps=(2,)), ImageSpec(256, 128, tile_px=(128, 128))
    images = np.concatenate(
        [np.concatenate([pictures(2, 4 * row + column) for column in range(4)], axis=2) for row in range(2)], axis=1
    )
    weights = np.random.default_rng(0).normal(0, 0.1, (featurizer.channels, 1)).astype(np.float32)
    maps = []
    for spec in (image, replace(image, tile_px=None)):
        backend = on_whole_images(OnnxBackend(build_serving_graph(featurizer, spec.graph_input)), spec, featurizer)
        maps.append(backend.infer(images, weights, np.zeros(1, np.float32), locations=True).locations)
        backend.close()
    tiled, whole = maps
    assert tiled is not None
    assert whole is not None
    assert tiled.shape == whole.shape == (2, 16, 32, 1)
    difference = np.abs(tiled - whole).max(axis=(0, 1, 3))  # by column
    assert difference[[*range(12), *range(20, 32)]].max() < 1e-4
    assert difference[15:17].max() > 1e-2


class Narrow:
    """An honest backend that takes few images at once, counts what it is given, and may fail at one batch."""

    def __init__(self, honest: OnnxBackend, largest: int, fails_at: int = 0) -> None:
        self.name, self.device, self.precision, self.inputs = honest.name, honest.device, "fp32", honest.inputs
        self.profile = BatchProfile(1, largest, largest)
        self.given: list[int] = []
        self.closed = 0
        self._honest, self._fails_at = honest, fails_at

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        assert len(images) <= self.profile.largest
        self.given.append(len(images))
        if len(self.given) == self._fails_at:
            msg = "the device is gone: expected it to compute; restart the process"
            raise DeviceError(msg)
        return self._honest.submit(images, weights, biases, locations=locations)

    def collect(self, ticket: Ticket) -> Features:
        return self._honest.collect(ticket)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("most", "largest", "given"), [(4, 1, [4, 2]), (5, 1, [5, 1]), (6, 1, [6]), (13, 2, [12]), (1, 1, [1] * 6)]
)
def test_more_tiles_than_the_backend_takes_go_through_in_turn(
    inner: OnnxBackend, most: int, largest: int, given: list[int]
) -> None:
    narrow = Narrow(inner, most)
    tiled = TiledBackend(narrow, SCENE, FEATURIZER)
    assert tiled.profile.largest == largest
    images, weights = scenes(largest), HEADS[0].copy()
    expected = TiledBackend(inner, SCENE, FEATURIZER).infer(images, *HEADS, locations=True)
    other = tiled.submit(scenes(1, seed=5), *HEADS)  # the other slot stays of use meanwhile
    del narrow.given[:]
    ticket = tiled.submit(images, weights, HEADS[1], locations=True)
    weights[:] = np.nan
    found = tiled.collect(ticket)
    assert narrow.given == given
    np.testing.assert_array_equal(found.evidence, expected.evidence)
    np.testing.assert_array_equal(found.pooled, expected.pooled)
    assert found.locations is not None
    assert expected.locations is not None
    np.testing.assert_array_equal(found.locations, expected.locations)
    tiled.collect(other)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_batch_that_fails_gives_its_slot_back(inner: OnnxBackend, fails_at: int) -> None:
    tiled = TiledBackend(Narrow(inner, 4, fails_at), SCENE, FEATURIZER)
    with pytest.raises(DeviceError, match="is gone"):
        tiled.infer(scenes(1), *HEADS)
    tickets = [tiled.submit(scenes(1), *HEADS) for _ in range(2)]
    for ticket in tickets:
        assert tiled.collect(ticket).evidence.shape == (1, 2)


def test_a_graph_for_another_size_is_refused_and_closed(inner: OnnxBackend) -> None:
    narrow = Narrow(inner, 4)
    image = ImageSpec(192, 128, tile_px=(96, 64))
    with pytest.raises(BundleError, match=r"\(None, 64, 64, 3\): expected \(None, 64, 96, 3\), .* as one tile; train"):
        on_whole_images(narrow, image, FEATURIZER)
    with pytest.raises(BundleError, match="train the bundle again"):
        open_for(replace(small_bundle(), image=ImageSpec(128, 64)), "onnxruntime")
    assert narrow.closed == 1


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_tiled_bundle_is_opened_for_whole_images(tmp_path: Path, name: str) -> None:
    bundle = write_bundle(tmp_path / "parts", small_bundle(image=TILED))
    bundle = open_bundle(tmp_path / "parts")
    assert bundle.image == TILED
    with Scorer(bundle, open_for(bundle, name)) as scorer:
        assert scorer.backend.inputs[0].shape == (None, 64, 128, 3)
        found = agreement(bundle, scorer.backend)
        assert found is not None
        assert found.agrees
        assert verify_scorer(scorer, iter(range(10)).__next__)["agrees"]
        assert len(scorer.score(wide_pictures(3)).predictions) == 3


@pytest.mark.slow
def test_int8_is_calibrated_on_tiles() -> None:
    calm = replace(small_head(), calibration=Calibration(0.2, 0.0, 0.0))
    backend = open_for(small_bundle(head=calm, image=TILED), "openvino-int8")
    assert (backend.precision, backend.inputs[0].shape) == ("int8", (None, 64, 128, 3))
    backend.close()


def test_all_tiles_cost_what_the_whole_costs() -> None:
    for embedding in (False, True):
        featurizer = FeaturizerSpec(embedding=embedding)
        one = multiply_accumulates(featurizer, SCENE.graph_input)
        assert multiply_accumulates(featurizer, SCENE) == 6 * one


def test_sides_of_tiles() -> None:
    assert tile_sides(320) == [64, 160, 320]
    assert tile_sides(1088) == [64, 544, 1088]
    assert tile_sides(96) == [96]
