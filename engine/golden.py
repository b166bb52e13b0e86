"""Pictures that need no file, hard on arithmetic rather than like parts; and how near two backends' answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.agreement import cosine, infer_all

if TYPE_CHECKING:
    from engine.backend import Backend, Features

GOLDEN = 26
"""How many are compared: black, white and four of each kind."""

COSINE = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.9995, "int8": 0.99}
EVIDENCE_DIFFERENCE = {"fp32": 0.001, "bf16": 0.25, "fp16": 0.05, "int8": 1.0}
"""Largest difference of a head's evidence, as a share of that evidence's deviation over the golden pictures.

Both are looser than on the bundle's reference images, where decisions count: no line sends pictures such as these. In
bf16 0.9994 and 0.12 were seen.
"""


def golden_pictures(count: int, height_px: int, width_px: int) -> np.ndarray:
    """uint8 (count, height_px, width_px, 3): black, white, then smooth and sharp pictures in turn, no two the same."""
    rng = np.random.default_rng(20)
    rows, columns = np.mgrid[0:height_px, 0:width_px].astype(np.float64)
    pictures = np.empty((count, height_px, width_px, 3), np.uint8)
    pictures[:2] = np.array([0, 255], np.uint8)[:count, None, None, None]
    for index in range(2, count):
        pictures[index] = _KINDS[index % len(_KINDS)](rows, columns, rng)
    return pictures


def _noise(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001 - as the others
    return rng.integers(0, 256, (*rows.shape, 3), dtype=np.uint8)


def _patches(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = rng.integers(4, 17)
    colours = rng.integers(0, 256, (len(rows), len(columns[0]), 3), dtype=np.uint8)
    picked: np.ndarray = colours[(rows // side).astype(int), (columns // side).astype(int)]
    return picked


def _spot(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x, radius = rng.uniform(0, len(rows)), rng.uniform(0, len(columns[0])), rng.uniform(2, 8)
    return _mixed((rows - y) ** 2 + (columns - x) ** 2 < radius**2, rng)


def _ramp(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    share = np.cos(angle) * rows / len(rows) + np.sin(angle) * columns / len(columns[0])
    return _mixed((share - share.min()) / (share.max() - share.min()), rng)


def _stripes(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _mixed((rows * rng.integers(0, 3) + columns) // rng.integers(1, 9) % 2, rng)


def _waves(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    phases, periods_px = rng.uniform(0, 2 * np.pi, 2), rng.uniform(8, 64, 2)
    waves = [np.sin(2 * np.pi * at / periods_px[i] + phases[i]) for i, at in enumerate((rows, columns))]
    return _mixed(0.5 + (waves[0] + waves[1]) / 4, rng)


_KINDS = (_noise, _patches, _spot, _ramp, _stripes, _waves)


def _mixed(share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two colours, mixed by a share of 0 to 1 at each pixel."""
    one, other = rng.integers(0, 256, (2, 3))
    mixed: np.ndarray = one + (other - one) * share[..., None]
    return mixed.round().astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Nearness:
    """How near some answers are to others on the same pictures under the same heads.

    Attributes:
        images: how many were compared.
        pooled_cosine_min: cosine of the pooled vectors, the worst picture's.
        pooled_difference_max: of any pooled value.
        evidence_difference_max: in units of evidence, the worst head's.
        evidence_difference_share: the same as a share of that head's deviation.
        precision: what they were computed in: decides how near is near enough.
    """

    images: int
    pooled_cosine_min: float
    pooled_difference_max: float
    evidence_difference_max: float
    evidence_difference_share: float
    precision: str

    @property
    def agrees(self) -> bool:
        """Whether it is the same answer. Written so that a difference that is no number does not agree."""
        return (
            self.pooled_cosine_min >= COSINE[self.precision]
            and self.evidence_difference_share <= EVIDENCE_DIFFERENCE[self.precision]
        )


def nearness(got: Features, expected: Features, deviation: np.ndarray, precision: str) -> Nearness:
    """Compare; `deviation` (k,) is of each head's evidence over many pictures."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # a difference that is no number is told
        difference = np.abs(got.evidence - expected.evidence).max(axis=0)  # (k,)
        return Nearness(
            images=len(got.pooled),
            pooled_cosine_min=float(cosine(got.pooled, expected.pooled).min()),
            pooled_difference_max=float(np.abs(got.pooled - expected.pooled).max()),
            evidence_difference_max=float(difference.max()),
            evidence_difference_share=float((difference / deviation).max()),
            precision=precision,
        )


def compare_golden(
    backend: Backend, reference: Backend, weights: np.ndarray, biases: np.ndarray, count: int = GOLDEN
) -> Nearness:
    """Run both on the golden pictures under heads (c, k) and (k,)."""
    _, height, width, _ = backend.inputs[0].shape
    pictures = golden_pictures(count, height or 1, width or 1)
    got, expected = (infer_all(each, pictures, weights, biases) for each in (backend, reference))
    return nearness(got, expected, expected.evidence.std(axis=0), backend.precision)
