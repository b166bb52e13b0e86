"""Which input the tiles asked for make; and that the trainer's features are those that are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from engine.backend_onnx import OnnxBackend
from engine.backend_tiled import TiledBackend
from engine.errors import InputError
from engine.featurizer import FeaturizerSpec
from engine.heads import stack
from engine.preprocess import preprocess
from engine.specs import ImageSpec, Region
from tests.bundles import FEATURIZER, graph, pictures, small_head
from trainer.features import extract
from trainer.patch_evidence import PatchEvidence
from trainer.settings import TrainSettings
from trainer.tiling import cut, tiled
from trainer.train import train
from trainer.turns import turned

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCENE = ImageSpec(192, 128, tile_px=(64, 64))


def test_the_tile_asked_for_is_taken_and_one_of_the_inputs_size_keeps_it_whole() -> None:
    region = Region(0.1, 0.2, 0.9, 0.8)
    assert cut((1280, 640), (640, 640), region) == ImageSpec(1280, 640, region, tile_px=(640, 640))
    assert cut((1920, 1088), None, region) == ImageSpec(1920, 1088, region)
    assert cut((320, 64), (64, 64), region).tiles == (1, 5)
    assert cut((1280, 640), (1280, 640), region) == ImageSpec(1280, 640, region)
    with pytest.raises(InputError, match="does not cut the input's 1280 px evenly"):
        cut((1280, 640), (96, 64), region)


@pytest.mark.parametrize(
    ("own_px", "tile_px", "expected"),
    [
        ((1920.0, 1080.0), (320, 320), (1920, 960)),
        ((1920.0, 1080.0), (320, 544), (1920, 1088)),
        ((4000.0, 3000.0), (320, 320), (1920, 1920)),  # as large as the backbone takes
        ((200.0, 90.0), (64, 64), (192, 64)),
        ((60.0, 700.0), (64, 320), (64, 640)),
    ],
)
def test_without_a_size_the_images_own_is_taken_as_near_as_whole_tiles_come(
    own_px: tuple[float, float], tile_px: tuple[int, int], expected: tuple[int, int]
) -> None:
    found = tiled(own_px, tile_px, Region(0.5))
    assert found == ImageSpec(*expected, Region(0.5), tile_px=tile_px)


@pytest.mark.parametrize("tile_px", [(100, 64), (64, 32), (64, 2080)])
def test_tiles_that_the_backbone_does_not_take_are_refused_with_a_cure(tile_px: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"tile (width|height) \d+ does not fit the backbone: .*take \d+"):
        tiled((640.0, 640.0), tile_px, Region())


def test_a_featurizer_of_a_bundle_brings_its_own_tiles(tmp_path: Path) -> None:
    settings = TrainSettings("set", tmp_path / "out", featurizer_of="bundle", tile_px=(64, 64))
    with pytest.raises(InputError, match=r"given with --tile: .*leave these out"):
        train(settings)


def encoded(count: int) -> Mapping[str, bytes]:
    tiles = pictures(count * 6).reshape(count, 2, 3, 64, 64, 3).swapaxes(2, 3).reshape(count, 128, 192, 3)
    return {str(index): cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for index, image in enumerate(tiles)}


@pytest.mark.parametrize("turn", [0, 3])
def test_what_is_fitted_on_is_what_is_served(turn: int) -> None:
    """More images than are run at once, an image that is none among them; also turned: cut after it was turned."""
    files = {**encoded(7), "x": b"none"}
    found = extract(list(files), files.__getitem__, SCENE, FEATURIZER, turn=turn)
    assert found.skipped[0][0] == "x"
    assert found.channels.shape == (7, 16 * 24 // 4, FEATURIZER.cell_size)
    images = np.stack([preprocess(files[str(index)], SCENE) for index in range(7)])
    head = small_head()
    backend = TiledBackend(OnnxBackend(graph()), SCENE, FEATURIZER)
    served = backend.infer(turned(images, turn), *stack([head]))
    backend.close()
    np.testing.assert_allclose(found.pooled, served.pooled, rtol=1e-5, atol=1e-5)
    model = PatchEvidence(fine=FeaturizerSpec().fine_channels)
    model.weights_, model.bias_ = head.evidence_weights.astype(np.float64), head.evidence_bias
    np.testing.assert_allclose(model.decision_function(found.channels), served.evidence[:, 0], rtol=1e-4, atol=1e-4)
