"""Where in a picture the evidence lies: the location map over the picture, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from engine.heads import sigmoid
from engine.preprocess import decode

if TYPE_CHECKING:
    from engine.heads import Head
    from engine.prediction import Prediction
    from engine.scorer import Scorer
    from engine.specs import Region

OPACITY = 0.6
_STRIP_PX, _MIN_WIDTH_PX, _PLAIN_WIDTH_PX = 22, 240, 480
_COLOURS = {"pass": (46, 160, 67), "fail": (200, 40, 40), "review": (190, 130, 0)}


def draw(scorer: Scorer, payload: bytes, image: np.ndarray) -> tuple[Prediction, bytes]:
    """One picture's prediction, and the picture as a PNG with its heat over it and its decision above it.

    Args:
        scorer: an open bundle.
        payload: the encoded picture; it was decoded once before, so it can be.
        image: uint8 (h, w, 3), what `scorer.decode` made of it.
    """
    features = scorer.features(image[None], locations=True)
    (prediction,) = scorer.predict(image[None], features)
    scores = cast("np.ndarray", features.locations)[0, :, :, 0]
    warm = heat(scores, scorer.bundle.head, features.pooled[0])
    whole = decode(payload, scorer.image_spec)
    return prediction, encode_png(with_caption(overlay(whole, warm, scorer.image_spec.region), prediction))


def heat(locations: np.ndarray, head: Head, pooled: np.ndarray) -> np.ndarray:
    """How strongly each location speaks for a defect.

    It is the defect probability that the picture would have if all of it looked as this location does. So the scale is
    the same for every picture of a head, and a good part stays dark. A head that gives evidence no weight has no such
    scale: then the strongest location is 1 and everything else is relative to it.

    Args:
        locations: (rows, columns) float32, one head's scores as a backend gives them.
        head: the head that they are of.
        pooled: (d,) the same picture's pooled vector.

    Returns:
        (rows, columns) float32, 0 to 1.
    """
    slope = head.calibration.evidence_slope
    if slope <= 0:
        offset = (locations - locations.max()) / max(float(locations.std()), 1e-6)
        return np.asarray(np.exp(offset), np.float32)
    logits = slope * locations.astype(np.float64) + head.logit(0.0, pooled)
    return np.asarray(np.vectorize(sigmoid)(logits), np.float32)


def overlay(image: np.ndarray, heat_map: np.ndarray, region: Region) -> np.ndarray:
    """The picture with its heat over the region of interest; where nothing speaks for a defect it stays as it is.

    Args:
        image: uint8 (h, w, 3) RGB, the whole picture, upright.
        heat_map: (rows, columns), 0 to 1, over the region.
        region: what of the picture the network saw.

    Returns:
        uint8 (h, w, 3) RGB, a new array.
    """
    x0, y0, x1, y1 = region.pixels(image.shape[1], image.shape[0])
    fine = cv2.resize(heat_map.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    fine = np.clip(fine, 0.0, 1.0)
    colours = cv2.applyColorMap(np.round(fine * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    share = (OPACITY * np.sqrt(fine))[:, :, None]
    result = image.copy()
    part = result[y0:y1, x0:x1]
    part[:] = np.round(part * (1 - share) + colours * share).astype(np.uint8)
    return result


def with_caption(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """The picture with its decision and probability in a strip above it; small pictures are enlarged to be read."""
    factor = -(-_MIN_WIDTH_PX // image.shape[1])
    if factor > 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    scale = max(1.0, image.shape[1] / _PLAIN_WIDTH_PX)
    height = round(_STRIP_PX * scale)
    strip = np.full((height, image.shape[1], 3), _COLOURS[prediction.decision], np.uint8)
    words = f"{prediction.decision} {prediction.defect_probability:.3f} {' '.join(prediction.reasons)}".strip()
    place, thickness = (round(6 * scale), height - round(7 * scale)), round(scale)
    cv2.putText(strip, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return np.concatenate([strip, image])


def encode_png(image: np.ndarray) -> bytes:
    """uint8 (h, w, 3) RGB as a PNG."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))
    if not done:  # only where memory ran out
        msg = f"PNG of {image.shape[1]} x {image.shape[0]} px could not be written: expected memory for it"
        raise MemoryError(msg)
    return bytes(data.tobytes())
