"""The images that a person should look at: the worst mistakes, the nearest calls, labels worth a second look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from scipy.special import logit

from engine.heatmap import heat, overlay
from engine.preprocess import decode
from trainer.report.data import Picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.prediction import OperatingPoint, Prediction
    from engine.scorer import Scorer
    from engine.specs import ImageSpec
    from trainer.labels import Sample

PICTURES = 24
MOST_MISTAKES = 16
DOUBTFUL = 12
AGAINST = 0.8
"""Probability that must speak against a label for it to be worth a second look."""

SIDE_PX, SMALL_SIDE_PX = 360, 200
MOST_BYTES = 48 << 10
_QUALITIES = (82, 65, 45, 25)
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Pick:
    """A row, and why it is shown; see `Picture.why`."""

    row: int
    why: str


def picks(probability: np.ndarray, decision: np.ndarray, defect: np.ndarray, point: OperatingPoint) -> list[Pick]:
    """Rows to show: escapes and false rejects, the furthest on the wrong side first, then what came nearest to one.

    Args:
        probability: (n,) of a defect.
        decision: (n,) str.
        defect: (n,) bool.
        point: its threshold is what distances are measured from, in log odds.
    """
    odds = logit(np.clip(probability, _FLOOR, 1 - _FLOOR)) - logit(np.clip(point.threshold, _FLOOR, 1 - _FLOOR))
    furthest = np.argsort(-np.abs(odds), kind="stable")
    escapes = [Pick(int(row), "escape") for row in furthest if defect[row] and decision[row] == "pass"]
    rejects = [Pick(int(row), "false_reject") for row in furthest if not defect[row] and decision[row] == "fail"]
    wrong = {pick.row for pick in escapes + rejects}
    near = [Pick(int(row), "near") for row in np.argsort(np.abs(odds), kind="stable") if int(row) not in wrong]
    room = PICTURES - min(len(near), PICTURES - MOST_MISTAKES)
    of_escapes = min(len(escapes), max(room - len(rejects), room // 2))
    mistakes = escapes[:of_escapes] + rejects[: room - of_escapes]
    return mistakes + near[: PICTURES - len(mistakes)]


def doubtful_rows(probability: np.ndarray, defect: np.ndarray) -> list[int]:
    """Rows whose answer speaks most against their label; `probability` (n,) from models that had not seen them."""
    against = np.where(defect, 1 - probability, probability)
    return [int(row) for row in np.argsort(-against, kind="stable")[:DOUBTFUL] if against[row] >= AGAINST]


def held_out_pictures(
    scorer: Scorer,
    read: Callable[[str], bytes],
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    point: OperatingPoint,
) -> tuple[Picture, ...]:
    """Of the images held out, with their heat maps.

    Args:
        scorer: the written model, open.
        read: bytes of a sample by its name; they were decoded before, so they can be.
        samples: (n,).
        predictions: (n,), of these.
        point: at which they were decided.
    """
    probability = np.array([prediction.defect_probability for prediction in predictions])
    decision = np.array([prediction.decision for prediction in predictions])
    defect = np.array([sample.is_defect for sample in samples])
    shown = []
    for pick in picks(probability, decision, defect, point):
        sample, payload = samples[pick.row], read(samples[pick.row].name)
        plain = _thumbnail(payload, scorer.image_spec, SIDE_PX)
        heated = overlay(plain, _heat(scorer, payload), scorer.image_spec.region)
        shown.append(_picture(sample, predictions[pick.row], pick.why, plain, heated))
    return tuple(shown)


def doubtful_pictures(
    read: Callable[[str], bytes], spec: ImageSpec, samples: Sequence[Sample], predictions: Sequence[Prediction]
) -> tuple[Picture, ...]:
    """Samples whose label is worth a second look, as they are."""
    return tuple(
        _picture(sample, prediction, "label", _thumbnail(read(sample.name), spec, SMALL_SIDE_PX), None)
        for sample, prediction in zip(samples, predictions, strict=True)
    )


def encode_jpeg(image: np.ndarray) -> bytes:
    """uint8 (h, w, 3) RGB as a JPEG of at most `MOST_BYTES` where that can be had."""
    data = b""
    for quality in _QUALITIES:
        done, encoded = cv2.imencode(
            ".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        if not done:  # only where memory ran out
            msg = f"JPEG of {image.shape[1]} x {image.shape[0]} px could not be written: expected memory for it"
            raise MemoryError(msg)
        data = bytes(encoded.tobytes())
        if len(data) <= MOST_BYTES:
            break
    return data


def _heat(scorer: Scorer, payload: bytes) -> np.ndarray:
    image = scorer.decode(payload)
    features = scorer.features(image[None], locations=True)
    return heat(cast("np.ndarray", features.locations)[0, :, :, 0], scorer.bundle.head, features.pooled[0])


def _thumbnail(payload: bytes, spec: ImageSpec, side_px: int) -> np.ndarray:
    """The whole picture, its longer side no longer than asked; what is small stays as it is."""
    whole = decode(payload, spec)
    factor = side_px / max(whole.shape[:2])
    if factor >= 1:
        return whole
    size = max(1, round(whole.shape[1] * factor)), max(1, round(whole.shape[0] * factor))
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)


def _picture(sample: Sample, prediction: Prediction, why: str, plain: np.ndarray, heated: np.ndarray | None) -> Picture:
    return Picture(
        name=sample.name,
        label=sample.label,
        is_defect=sample.is_defect,
        group=sample.group or "",
        probability=prediction.defect_probability,
        decision=prediction.decision,
        reasons=prediction.reasons,
        why=why,
        plain=encode_jpeg(plain),
        heated=None if heated is None else encode_jpeg(heated),
        size_px=(plain.shape[1], plain.shape[0]),
    )
