"""How good, on images the model never saw: ranking, decisions at the operating point, by group and by kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.prediction import Prediction


def evaluate(
    predictions: Sequence[Prediction], defect: np.ndarray, labels: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Metrics of held-out predictions, as plain values.

    `review` counts as not passed: an inspector looks at the part before it leaves the line.

    Args:
        predictions: one per image.
        defect: (n,) bool.
        labels: name of a breakdown (`group`, `kind`, ...) -> each image's value in it; empty values are left out.
    """
    probabilities = np.array([prediction.defect_probability for prediction in predictions])
    return {
        **_metrics(predictions, probabilities, defect),
        "by": {
            name: {
                value: _metrics([predictions[i] for i in rows], probabilities[rows], defect[rows])
                for value, rows in sorted(_rows(values).items())
            }
            for name, values in labels.items()
        },
    }


def _rows(values: Sequence[str]) -> dict[str, np.ndarray]:
    rows = defaultdict(list)
    for index, value in enumerate(values):
        if value:
            rows[value].append(index)
    return {value: np.array(indices) for value, indices in rows.items()}


def _metrics(predictions: Sequence[Prediction], probabilities: np.ndarray, defect: np.ndarray) -> dict[str, Any]:
    """Ranking metrics are None where only one class is there: they mean nothing then."""
    both = bool(defect.any() and not defect.all())
    passed = np.array([prediction.decision == "pass" for prediction in predictions])
    failed = np.array([prediction.decision == "fail" for prediction in predictions])
    return {
        "images": len(predictions),
        "defects": int(defect.sum()),
        "auroc": float(roc_auc_score(defect, probabilities)) if both else None,
        "average_precision": float(average_precision_score(defect, probabilities)) if both else None,
        "recall": _share(~passed, defect),
        "escape_rate": _share(passed, defect),
        "false_reject_rate": _share(failed, ~defect),
        "decisions": dict(Counter(prediction.decision for prediction in predictions)),
    }


def _share(event: np.ndarray, among: np.ndarray) -> float | None:
    return float(event[among].mean()) if among.any() else None
