"""What the engine says of images: plain values, the same from `score` and from the consumer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Decision = Literal["pass", "fail", "review"]
Reason = Literal["band", "out_of_distribution", "camera"]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where pass ends and fail begins.

    Attributes:
        threshold: a defect probability at or above it is `fail`, below it `pass`.
        review_band: (low, high); a probability p with low <= p < high is `review`. Empty where low == high.
    """

    threshold: float
    review_band: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The engine's answer for one image.

    Attributes:
        defect_probability: calibrated, 0 to 1, rounded to 1e-6 before anything is decided on it, so that the
            number published is the number that was compared with the threshold.
        reasons: why the answer is `review`; empty for a plain pass or fail.
    """

    decision: Decision
    defect_probability: float
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """One prediction per image, in the order given, and what the batch cost.

    Attributes:
        inference_ms: from giving it to the engine until that was done with it. Where two batches are with the engine at
            a time, the second's includes what it waited for the first: the times of batches overlap.
        classify_ms: of making the predictions.
    """

    predictions: tuple[Prediction, ...]
    inference_ms: float
    classify_ms: float
