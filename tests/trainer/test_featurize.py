"""Rows of features: what one image alone gives, in order, bounded, and what is set aside."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from engine.backbone import build_training_graph
from engine.backend_onnx import OnnxGraph
from engine.familiarity import all_pixel_statistics
from engine.featurizer import FeaturizerSpec
from engine.preprocess import preprocess
from engine.specs import ImageSpec
from engine.tiles import join_pooled, split
from engine.watching import glance
from trainer.featurize import CHANNELS_DTYPE, Featurizer, Row
from trainer.stream_limits import image_noise
from trainer.turns import turned

if TYPE_CHECKING:
    from collections.abc import Iterator

WHOLE = ImageSpec(128, 64)
TILED = ImageSpec(128, 64, tile_px=(64, 64))
FEATURIZER = FeaturizerSpec(taps=(2, 4, 7), embedding=False)


def payloads(count: int) -> list[bytes]:
    rng = np.random.default_rng(7)
    pictures = rng.integers(0, 256, (count, 80, 120, 3), np.uint8)
    return [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]


def row_of(found: Row | str) -> Row:
    assert isinstance(found, Row)
    return found


@pytest.mark.parametrize(("image", "turn"), [(WHOLE, 0), (WHOLE, 3), (TILED, 0), (TILED, 1)])
def test_rows_are_what_the_graph_says_of_the_decoded_images_to_the_last_bit(image: ImageSpec, turn: int) -> None:
    graph = OnnxGraph(build_training_graph(FEATURIZER, image.graph_input))
    encoded = payloads(9)
    with Featurizer(image, FEATURIZER, turn) as featurizer:
        rows = [row_of(found) for found in featurizer.featurize(encoded)]
    pictures = np.stack([preprocess(payload, image) for payload in encoded])
    tiles = split(turned(pictures, turn), image)
    outputs = [graph.run(["pooled", "channels"], {"images": tiles[i : i + 1]}) for i in range(len(tiles))]
    pooled = join_pooled(np.concatenate([each[0] for each in outputs]), image, FEATURIZER)
    channels = np.concatenate([each[1] for each in outputs]).reshape(len(rows), -1, FEATURIZER.cell_size)
    for index, row in enumerate(rows):
        assert row.sha256 == sha256(encoded[index]).hexdigest()
        assert row.pooled.dtype == np.float32
        assert (row.pooled == pooled[index]).all()
        assert row.channels.dtype == CHANNELS_DTYPE
        assert (row.channels == channels[index].astype(CHANNELS_DTYPE)).all()
        assert (row.contrast, row.detail, row.level) == all_pixel_statistics(pictures[index])
        assert row.noise == image_noise(pictures[index])
        assert (row.glance == glance(pictures[index])).all()


def test_what_is_no_image_is_a_reason_in_its_place() -> None:
    first, second = payloads(2)
    with Featurizer(WHOLE, FEATURIZER) as featurizer:
        rows = featurizer.featurize([first, b"none", b"", second])
    assert row_of(rows[0]).sha256 == sha256(first).hexdigest()
    assert isinstance(rows[1], str)
    assert "frame is empty" in str(rows[2])
    assert row_of(rows[3]).sha256 == sha256(second).hexdigest()


def test_no_more_payloads_are_taken_than_are_worth_having() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        (payload,) = payloads(1)
        while True:
            taken += 1
            yield payload

    with Featurizer(WHOLE, FEATURIZER) as featurizer:
        rows = featurizer.stream(endless())
        for _ in range(5):
            next(rows)
        assert taken <= 5 + featurizer.ahead
