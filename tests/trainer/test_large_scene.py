"""A defect of a few pixels in a large scene: found at the scene's own size, in its place, wherever tiles meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from engine.bundle import open_bundle
from engine.choice import open_for
from engine.featurizer import GRID_STRIDE
from engine.heads import stack
from engine.preprocess import preprocess
from trainer.settings import TrainSettings
from trainer.train import train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEFECT_PX = 14
IMAGES_PER_CLASS = 10


def scene(seed: int, size_px: tuple[int, int]) -> np.ndarray:
    """Brushed metal with rivets, a little different each time."""
    width_px, height_px = size_px
    random = np.random.default_rng(seed)
    image = np.full((height_px, width_px), 128, np.float32) + random.normal(0, 6, (height_px, 1)).astype(np.float32)
    image += random.normal(0, 3, (height_px, width_px)).astype(np.float32)
    shift_x, shift_y = random.integers(0, 40, 2)
    for x in range(80 + shift_x, width_px - 60, 160):
        for y in range(80 + shift_y, height_px - 60, 160):
            cv2.circle(image, (x, y), 22, 90.0, 3)
    return cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)


def defect_at(seed: int, size_px: tuple[int, int]) -> tuple[int, int]:
    x, y = np.random.default_rng(1000 + seed).integers([40, 40], [side - 40 for side in size_px])
    return int(x), int(y)


def picture(seed: int, size_px: tuple[int, int], *, bad: bool) -> bytes:
    image = scene(seed, size_px)
    if bad:
        x, y = defect_at(seed, size_px)
        cv2.line(
            image, (x - DEFECT_PX // 2, y - DEFECT_PX // 2), (x + DEFECT_PX // 2, y + DEFECT_PX // 2), (20, 20, 20), 3
        )
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.mark.parametrize(("size_px", "tile_px"), [((1920, 1088), (320, 544)), ((960, 544), None)])
def test_a_few_pixels_in_up_to_two_million(
    tmp_path: Path, size_px: tuple[int, int], tile_px: tuple[int, int] | None
) -> None:
    for label, start in (("good", 0), ("fail", 100)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for index in range(IMAGES_PER_CLASS):
            (tmp_path / "set" / label / f"{index}.png").write_bytes(
                picture(start + index, size_px, bad=label == "fail")
            )
    settings = TrainSettings(str(tmp_path / "set"), tmp_path / "out", size_px=size_px, tile_px=tile_px)
    _, summary = train(settings)
    assert summary["tile_px"] == (list(tile_px) if tile_px else None)
    assert summary["cross_validated"]["auroc"] > 0.95  # over all images, the seams' chance neighbours included
    bundle = open_bundle(tmp_path / "out")
    assert (bundle.image.width_px, bundle.image.height_px) == size_px
    assert bundle.image.tiles == ((2, 6) if tile_px else (1, 1))
    new = range(200, 206)
    images = np.stack(
        [preprocess(picture(seed, size_px, bad=bad), bundle.image) for bad in (False, True) for seed in new]
    )
    backend = open_for(bundle, "onnxruntime")
    try:
        parts = [backend.infer(image[None], *stack([bundle.head]), locations=True) for image in images]
    finally:
        backend.close()
    evidence = np.array([part.evidence[0, 0] for part in parts])
    assert evidence[6:].min() > evidence[:6].max()
    for seed, part in zip(new, parts[6:], strict=True):
        assert part.locations is not None
        row, column = np.unravel_index(part.locations[0, :, :, 0].argmax(), part.locations.shape[1:3])
        x, y = defect_at(seed, size_px)
        assert abs((column + 0.5) * GRID_STRIDE - x) < 24
        assert abs((row + 0.5) * GRID_STRIDE - y) < 24
