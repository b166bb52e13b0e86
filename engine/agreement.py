"""Is one backend's answer the reference's answer? Measured on held-out images, whose answers travel in the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.backend import Features
from engine.heads import decide

if TYPE_CHECKING:
    from engine.backend import Backend
    from engine.bundle import Reference
    from engine.heads import Head
    from engine.prediction import OperatingPoint

POOLED_COSINE = {"fp32": 0.99999, "bf16": 0.9995, "fp16": 0.9995, "int8": 0.998}
"""Below it the features are others, whatever the head makes of them: fp32 differs in the order of sums only."""

PROBABILITY_DIFFERENCE = {"fp32": 0.001, "bf16": 0.05, "fp16": 0.05, "int8": 0.05}
"""Largest difference of a probability."""

GUARD = 0.02
"""The guard band: where the reference lies so close to an edge of the operating point, another decision is no fault.

Two good cameras differ by more on the same part. Further from an edge every decision must be the reference's.
"""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near one backend's answers are to the reference's on the same images.

    Attributes:
        images: how many were compared.
        pooled_cosine_min: cosine of the pooled vectors, the worst image's.
        evidence_difference_max: in units of evidence.
        probability_difference_max: of calibrated defect probabilities.
        decisions_changed: decisions that differ; `changed_outside_guard` of them where the guard band excuses nothing.
        precision: of the backend: decides how near is near enough.
    """

    images: int
    pooled_cosine_min: float
    evidence_difference_max: float
    probability_difference_max: float
    decisions_changed: int
    changed_outside_guard: int
    precision: str

    @property
    def agrees(self) -> bool:
        """Whether it is the reference's answer. Written so that a difference that is no number does not agree."""
        return (
            self.changed_outside_guard == 0
            and self.pooled_cosine_min >= POOLED_COSINE[self.precision]
            and self.probability_difference_max <= PROBABILITY_DIFFERENCE[self.precision]
        )

    def __str__(self) -> str:
        """In a few words, for a log line."""
        return (
            f"{self.decisions_changed} of {self.images} decisions changed, {self.changed_outside_guard} outside the "
            f"guard band; largest difference of a probability {self.probability_difference_max:.4f}, smallest "
            f"cosine {self.pooled_cosine_min:.5f}"
        )


def infer_all(backend: Backend, images: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> Features:
    """`Backend.infer` on any number of images, in batches that the backend takes."""
    step = backend.profile.largest
    parts = [backend.infer(images[i : i + step], weights, biases) for i in range(0, len(images), step)]
    return Features(np.concatenate([p.evidence for p in parts]), np.concatenate([p.pooled for p in parts]))


def compare(features: Features, reference: Reference, head: Head, precision: str) -> Agreement:
    """Features of the reference's own images against its answers."""
    evidence = features.evidence[:, 0]
    probabilities = np.array(
        [head.probability(float(e), row) for e, row in zip(evidence, features.pooled, strict=True)]
    )
    changed = [
        float(expected)
        for got, expected in zip(probabilities, reference.probabilities, strict=True)
        if _decision(float(got), head.operating_point) != _decision(float(expected), head.operating_point)
    ]
    return Agreement(
        images=len(evidence),
        pooled_cosine_min=float(cosine(features.pooled, reference.pooled).min()),
        evidence_difference_max=float(np.abs(evidence - reference.evidence).max()),
        probability_difference_max=float(np.abs(probabilities - reference.probabilities).max()),
        decisions_changed=len(changed),
        changed_outside_guard=sum(not in_guard_band(p, head.operating_point) for p in changed),
        precision=precision,
    )


def in_guard_band(probability: float, point: OperatingPoint) -> bool:
    """Whether a reference's probability lies so close to an edge that either side is right."""
    low, high = point.review_band
    edges = [low, high] if low < high else []
    if not low <= point.threshold < high:
        edges.append(point.threshold)  # inside the band it decides nothing
    return any(abs(probability - edge) <= GUARD for edge in edges)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, (n,)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    values: np.ndarray = np.einsum("ij,ij->i", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return values


def _decision(probability: float, point: OperatingPoint) -> str:
    return decide(probability, point, None).decision
