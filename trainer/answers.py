"""What a written model says of held-out images, through the serving path, and which of them become its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.bundle import Reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.prediction import Prediction
    from engine.scorer import Scorer
    from trainer.sources import Source
    from trainer.stored_rows import StoredRows

BATCH = 32
"""Held-out images that are judged together."""

REFERENCE_IMAGES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Of n held-out images.

    Attributes:
        evidence: (n,) float32.
        reference: of some of them.
        difference: the most that a pooled value lies away from what was fitted on; 0 where nothing was.
    """

    predictions: list[Prediction]
    evidence: np.ndarray
    reference: Reference
    difference: float


def answers_of(
    scorer: Scorer,
    source: Source,
    names: Sequence[str],
    kept: np.ndarray,
    fitted: np.ndarray | StoredRows | None = None,
) -> Answers:
    """Held-out images the whole way that a frame takes, from its bytes on; of most only the prediction is kept.

    Args:
        scorer: the written model, open.
        source: where the images are.
        names: (n,) of the images.
        kept: (k,) which of them become the reference, rising.
        fitted: (n, d) pooled values that the head was fitted on, to compare with.
    """
    predictions: list[Prediction] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    found: list[np.ndarray] = []
    difference = 0.0
    step = min(BATCH, scorer.backend.profile.largest)
    for start in range(0, len(names), step):
        images = np.stack([scorer.decode(source.read(name)) for name in names[start : start + step]])
        features = scorer.features(images)
        predictions += scorer.predict(images, features)
        if fitted is not None:
            off = np.abs(features.pooled - fitted[start : start + len(images)])
            difference = float(np.maximum(difference, off.max()))
        own = kept[(kept >= start) & (kept < start + len(images))] - start
        parts.append((images[own], features.pooled[own], features.evidence[own, 0]))
        found.append(features.evidence[:, 0])
    probabilities = np.array([predictions[row].defect_probability for row in kept])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    reference = Reference(columns[0], columns[1], columns[2], probabilities)
    return Answers(predictions, np.concatenate(found), reference, difference)


def balanced_rows(defect: np.ndarray) -> np.ndarray:
    """Up to 64 held-out images, as many of each class as there are."""
    good, bad = np.flatnonzero(~defect), np.flatnonzero(defect)
    share = REFERENCE_IMAGES // 2
    take_bad = min(len(bad), max(share, REFERENCE_IMAGES - len(good)))
    return np.sort(np.concatenate([good[: REFERENCE_IMAGES - take_bad], bad[:take_bad]]))


def odd_rows(defect: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Up to 64 held-out images: up to half of them defects, and of the good parts as many odd ones as others.

    Backends are held to these: where all are plainly good, a wrong distance would change no decision.
    """
    bad, good = np.flatnonzero(defect)[: REFERENCE_IMAGES // 2], np.flatnonzero(~defect)
    left = REFERENCE_IMAGES - len(bad)
    odd = good[np.argsort(-scores[good], kind="stable")][: left // 2]
    others = np.setdiff1d(good, odd)[: left - len(odd)]
    return np.sort(np.concatenate([bad, odd, others]))
