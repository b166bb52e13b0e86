"""Which images are shown, and what of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from engine.bundle import write_bundle
from engine.prediction import OperatingPoint, Prediction
from engine.scorer import Scorer, open_scorer
from tests.acceptance import decisions
from tests.bundles import pictures, small_bundle
from trainer.labels import Sample
from trainer.report.pictures import (
    DOUBTFUL,
    MOST_BYTES,
    PICTURES,
    doubtful_pictures,
    doubtful_rows,
    encode_jpeg,
    held_out_pictures,
    picks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POINT = OperatingPoint(0.5, (0.4, 0.6))


def test_the_worst_mistakes_come_first_then_the_nearest_calls() -> None:
    probability = np.array([0.01, 0.3, 0.99, 0.7, 0.45, 0.02, 0.98, 0.55])
    defect = np.array([True, True, False, False, True, False, True, False])
    found = picks(probability, decisions(probability, POINT), defect, POINT)
    assert [(pick.row, pick.why) for pick in found[:4]] == [
        (0, "escape"),
        (1, "escape"),
        (2, "false_reject"),
        (3, "false_reject"),
    ]
    assert [pick.row for pick in found[4:6]] == [4, 7]
    assert {pick.why for pick in found[4:]} == {"near"}
    assert sorted(pick.row for pick in found) == list(range(8))


def test_there_is_room_for_both_kinds_of_mistakes_and_for_near_calls() -> None:
    probability = np.concatenate([np.full(100, 0.1), np.full(100, 0.9), np.linspace(0.4, 0.59, 50)])
    defect = np.arange(250) < 100
    found = picks(probability, decisions(probability, POINT), defect, POINT)
    whys = [pick.why for pick in found]
    assert len(found) == PICTURES
    assert [whys.count(why) for why in ("escape", "false_reject", "near")] == [8, 8, 8]
    nothing_near = picks(probability[:200], decisions(probability[:200], POINT), defect[:200], POINT)
    assert len(nothing_near) == PICTURES


def test_labels_are_doubted_only_where_the_answer_is_clear() -> None:
    probability = np.array([0.95, 0.7, 0.1, 0.02, 0.9])
    assert doubtful_rows(probability, np.array([False, False, True, True, True])) == [3, 0, 2]
    assert len(doubtful_rows(np.full(50, 0.99), np.zeros(50, bool))) == DOUBTFUL


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Scorer]:
    write_bundle(tmp_path / "bundle", small_bundle())
    with open_scorer(tmp_path / "bundle", "onnxruntime") as opened:
        yield opened


def test_pictures_are_small_and_have_their_heat(scorer: Scorer) -> None:
    images = [np.ascontiguousarray(image.repeat(12, 0).repeat(16, 1)) for image in pictures(6)]
    payloads = {f"{index}.png": _png(image) for index, image in enumerate(images)}
    labels = {name: "good" if index % 2 else "bad" for index, name in enumerate(payloads)}
    samples = [Sample(name, label, label == "bad", f"lot of {name}") for name, label in labels.items()]
    scored = scorer.score(np.stack([scorer.decode(payloads[sample.name]) for sample in samples])).predictions
    shown = held_out_pictures(scorer, payloads.__getitem__, samples, scored, scorer.operating_point)
    assert sorted(each.name for each in shown) == sorted(payloads)
    for each in shown:
        assert each.size_px == (360, 270)
        plain, heated = _decoded(each.plain), _decoded(each.heated or b"-")
        assert plain.shape == heated.shape == (270, 360, 3)
        assert np.abs(plain.astype(int) - heated).mean() > 1
    answer = Prediction("pass", 0.1)
    (doubted,) = doubtful_pictures(payloads.__getitem__, scorer.image_spec, samples[:1], [answer])
    assert (doubted.heated, doubted.why, max(doubted.size_px)) == (None, "label", 200)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def _decoded(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image)


def test_a_jpeg_stays_small_whatever_it_shows() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (360, 360, 3), dtype=np.uint8)
    assert len(encode_jpeg(noise)) <= MOST_BYTES
    assert encode_jpeg(noise) == encode_jpeg(noise)
