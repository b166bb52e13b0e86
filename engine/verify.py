"""Is a backend's answer the reference's answer? Measured on the held-out images that the bundle brings along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import BundleError
from engine.heads import decide

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.scorer import Scorer

POOLED_COSINE = 0.9995
PROBABILITY_DIFFERENCE = 0.01


def verify_scorer(scorer: Scorer, clock: Callable[[], float]) -> dict[str, Any]:
    """Compare with the reference; `agrees` is true where no decision changed and the numbers are close.

    Raises:
        BundleError: the bundle brings no reference.
    """
    bundle, reference = scorer.bundle, scorer.bundle.reference
    if reference is None:
        msg = f"bundle {bundle.name!r} brings no reference images: expected a bundle with reference/; train it again"
        raise BundleError(msg)
    scorer.features(reference.images[:1])  # the first call pays for loading, not the rate
    start_s = clock()
    features = scorer.features(reference.images)
    seconds = clock() - start_s
    predictions = scorer.predict(reference.images, features)
    probabilities = np.array([prediction.defect_probability for prediction in predictions])
    plain = [decide(float(p), bundle.head.operating_point, None).decision for p in reference.probabilities]
    now = [decide(float(p), bundle.head.operating_point, None).decision for p in probabilities]
    changed = sum(a != b for a, b in zip(plain, now, strict=True))
    cosine = float(_cosine(features.pooled, reference.pooled).min())
    difference = float(np.abs(probabilities - reference.probabilities).max())
    return {
        "agrees": changed == 0 and cosine >= POOLED_COSINE and difference <= PROBABILITY_DIFFERENCE,
        "backend": scorer.backend.name,
        "device": scorer.backend.device,
        "precision": scorer.backend.precision,
        "images": len(reference.images),
        "decisions_changed": changed,
        "pooled_cosine_min": cosine,
        "probability_difference_max": difference,
        "evidence_difference_max": float(np.abs(features.evidence[:, 0] - reference.evidence).max()),
        "images_per_s": len(reference.images) / seconds,
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, (n,)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine: np.ndarray = np.einsum("ij,ij->i", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosine
