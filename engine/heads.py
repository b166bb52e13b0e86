"""From the graph's outputs to a decision, in numpy: the same arithmetic for the trainer and the consumer.

Every sum runs over one image at a time, so that an image's numbers do not depend on the batch it travelled in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.familiarity import FeatureLimits, PixelLimits, unfamiliar
from engine.prediction import Decision, OperatingPoint, Prediction, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

PROBABILITY_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Calibration:
    """Turns evidence and pooled score into a probability: sigmoid(evidence_slope e + pooled_slope p + intercept).

    Fitted out of fold (Platt 1999), and shifted to the line's defect rate by moving the intercept.
    """

    evidence_slope: float
    pooled_slope: float
    intercept: float


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """One classifier on top of one featurizer.

    Attributes:
        featurizer: digest of the featurizer it was fitted on; it means nothing on another.
        evidence_weights: (c,) float32, the graph's input; evidence_bias likewise.
        pooled_weights: (d,) float32 over the pooled vector; pooled_bias likewise.
    """

    name: str
    featurizer: str
    evidence_weights: np.ndarray
    evidence_bias: float
    pooled_weights: np.ndarray
    pooled_bias: float
    calibration: Calibration
    operating_point: OperatingPoint
    pixels: PixelLimits
    features: FeatureLimits

    def predict(self, images: np.ndarray, evidence: np.ndarray, pooled: np.ndarray) -> list[Prediction]:
        """Decisions for uint8 (n, h, w, 3) images, their evidence (n,) and pooled vectors (n, d)."""
        return [
            decide(
                self.probability(float(evidence[i]), pooled[i]),
                self.operating_point,
                unfamiliar(images[i], pooled[i], self.pixels, self.features),
            )
            for i in range(len(images))
        ]

    def probability(self, evidence: float, pooled: np.ndarray) -> float:
        """Calibrated defect probability of one image, rounded to 1e-6."""
        return round(sigmoid(self.logit(evidence, pooled)), PROBABILITY_DECIMALS)

    def logit(self, evidence: float, pooled: np.ndarray) -> float:
        """Log odds of a defect, from one image's evidence and pooled vector (d,)."""
        score = float(np.dot(pooled, self.pooled_weights)) + self.pooled_bias
        return (
            self.calibration.evidence_slope * evidence
            + self.calibration.pooled_slope * score
            + self.calibration.intercept
        )


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) without overflow; a logit that is no number gives 1: never a pass."""
    if math.isnan(logit):
        return 1.0
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)


def decide(probability: float, point: OperatingPoint, doubt: Reason | None) -> Prediction:
    """Pass, fail or review. Doubt about the image itself outranks the probability: such a frame never passes."""
    if doubt is not None:
        return Prediction("review", probability, (doubt,))
    low, high = point.review_band
    if low <= probability < high:
        return Prediction("review", probability, ("band",))
    decision: Decision = "fail" if probability >= point.threshold else "pass"
    return Prediction(decision, probability)


def stack(heads: Sequence[Head]) -> tuple[np.ndarray, np.ndarray]:
    """The graph's head inputs: weights (c, k) and biases (k), float32."""
    weights = np.stack([head.evidence_weights for head in heads], axis=1).astype(np.float32)
    return np.ascontiguousarray(weights), np.array([head.evidence_bias for head in heads], np.float32)
