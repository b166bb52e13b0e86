"""How well distances from good parts tell the classes apart, where there are defects to judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.dataset import Dataset


def across_folds(data: Dataset, parts: Sequence[np.ndarray], scores: np.ndarray) -> dict[str, Any]:
    """Ranking over all images that a model of other groups judged, and in each part of them, as plain values.

    Args:
        data: the n images.
        parts: rows of each fold's held-out images, those that are held out for good among them.
        scores: (n,) evidence; NaN for images that no model judged.

    Returns:
        `folds`; `auroc` of all scores together: one line must serve all groups; `auroc_mean_of_folds`; `by_fold`.
        AUROC is None where only one class is there.
    """
    judged = np.isfinite(scores)
    by_fold = [
        {
            "images": len(rows),
            "defects": int(data.defect[rows].sum()),
            "groups": len(np.unique(data.groups[rows])),
            "auroc": _auroc(data.defect[rows], scores[rows]),
        }
        for rows in parts
    ]
    known = [fold["auroc"] for fold in by_fold if fold["auroc"] is not None]
    return {
        "folds": len(parts),
        "auroc": _auroc(data.defect[judged], scores[judged]),
        "auroc_mean_of_folds": float(np.mean(known)) if known else None,
        "by_fold": by_fold,
    }


def _auroc(defect: np.ndarray, scores: np.ndarray) -> float | None:
    both = bool(defect.any() and not defect.all())
    return float(roc_auc_score(defect, scores)) if both else None
