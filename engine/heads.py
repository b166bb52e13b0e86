"""From the graph's outputs to a decision, in numpy: the same arithmetic for the trainer and the consumer.

Every sum runs over one image at a time, so that an image's numbers do not depend on the batch it travelled in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import HeadError
from engine.familiarity import Examined, FeatureLimits, PixelLimits, examine
from engine.prediction import Decision, OperatingPoint, Prediction, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROBABILITY_DECIMALS = 6

NOT_EXAMINED = Examined(None, None, None)


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
        stations: operating points of stations that have one of their own; `operating_point` is all others'.
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
    stations: Mapping[str, OperatingPoint] = field(default_factory=dict)

    def at(self, station: str) -> Head:
        """The head as it decides at a station; itself where that has no operating point of its own."""
        return replace(self, operating_point=self.stations[station]) if station in self.stations else self

    def check_fits(self, featurizer: str, *, channels: int, pooled_size: int) -> None:
        """Refuse to be put on another featurizer than the one it was fitted on: its numbers mean nothing there.

        Args:
            featurizer: sha256 of the serving graph.
            channels: of each location, c.
            pooled_size: of the pooled vector, d.

        Raises:
            HeadError: another digest, or arrays of another shape or dtype than the featurizer gives.
        """
        if self.featurizer != featurizer:
            msg = (
                f"head {self.name!r} was fitted on featurizer {self.featurizer}: expected {featurizer}, the one it is "
                "put on; serve it with its own bundle, or train one with --featurizer-of"
            )
            raise HeadError(msg)
        wanted = {"evidence_weights": (channels,), "pooled_weights": (pooled_size,)}
        got = {name: (getattr(self, name).shape, str(getattr(self, name).dtype)) for name in wanted}
        if got != {name: (shape, "float32") for name, shape in wanted.items()}:
            msg = (
                f"head {self.name!r} has arrays {got}: expected float32 {wanted}, as its featurizer's taps give them; "
                "train the bundle again"
            )
            raise HeadError(msg)

    def predict(self, images: np.ndarray, evidence: np.ndarray, pooled: np.ndarray) -> list[Prediction]:
        """Decisions for uint8 (n, h, w, 3) images, their evidence (n,) and pooled vectors (n, d)."""
        return [self._predict(images[i], float(evidence[i]), pooled[i]) for i in range(len(images))]

    def _predict(self, image: np.ndarray, evidence: float, pooled: np.ndarray) -> Prediction:
        examined = examine(image, pooled, self.pixels, self.features)
        return decide(self.probability(evidence, pooled), self.operating_point, examined.doubt, examined)

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


def decide(
    probability: float, point: OperatingPoint, doubt: Reason | None, examined: Examined = NOT_EXAMINED
) -> Prediction:
    """Pass, fail or review. Doubt about the image itself outranks the probability: such a frame never passes.

    `examined` is passed on, for metrics.
    """
    _, trouble, distance = examined
    if doubt is not None:
        return Prediction("review", probability, (doubt,), trouble, distance)
    low, high = point.review_band
    if low <= probability < high:
        return Prediction("review", probability, ("band",), trouble, distance)
    decision: Decision = "fail" if probability >= point.threshold else "pass"
    return Prediction(decision, probability, (), trouble, distance)


def stack(heads: Sequence[Head]) -> tuple[np.ndarray, np.ndarray]:
    """The graph's head inputs: weights (c, k) and biases (k), float32.

    Raises:
        HeadError: the heads were fitted on different featurizers; one graph cannot serve them together.
    """
    for head in heads[1:]:
        head.check_fits(
            heads[0].featurizer, channels=len(heads[0].evidence_weights), pooled_size=len(heads[0].pooled_weights)
        )
    weights = np.stack([head.evidence_weights for head in heads], axis=1).astype(np.float32)
    return np.ascontiguousarray(weights), np.array([head.evidence_bias for head in heads], np.float32)
