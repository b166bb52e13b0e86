"""How good, on images the model never saw: ranking, decisions at the operating point, by group and by kind.

Every rate comes with its exact interval; where images come in groups that holds for images like these, not for other
groups, which `by` shows apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.bounds import auroc_interval, interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.prediction import Prediction

DECISIONS = ("pass", "review", "fail")
CALIBRATION_BINS = 15


def evaluate(
    predictions: Sequence[Prediction],
    defect: np.ndarray,
    labels: Mapping[str, Sequence[str]],
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Metrics of held-out predictions, as plain values.

    `review` counts as not passed: an inspector looks at the part before it leaves the line.

    Args:
        predictions: one per image.
        defect: (n,) bool.
        labels: name of a breakdown (`group`, `kind`, ...) -> each image's value in it; empty values are left out.
        groups: (n,) images of one resemble each other; None: every image stands alone.

    Returns:
        Every rate with its two-sided 95 % interval beside it, `NAME_interval` (None where there is nothing to count);
        `confusion`: decisions by what the part is; `auroc_interval`: see `trainer.bounds.auroc_interval`;
        `auroc_interval_of_images`: the same if every image stood alone, as shuffled ones would; `by`: the breakdowns.
    """
    probabilities = np.array([prediction.defect_probability for prediction in predictions])
    return {
        **_metrics(predictions, probabilities, defect),
        **auroc_intervals(defect, probabilities, groups),
        "groups": len(predictions) if groups is None else len(np.unique(groups)),
        "by": {
            name: {
                value: _metrics([predictions[i] for i in rows], probabilities[rows], defect[rows])
                for value, rows in sorted(_rows(values).items())
            }
            for name, values in labels.items()
        },
    }


def auroc_intervals(defect: np.ndarray, score: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """The AUROC's interval over groups, and over images as if they stood alone."""
    return {
        "auroc_interval": _listed(auroc_interval(defect, score, groups)),
        "auroc_interval_of_images": _listed(auroc_interval(defect, score)),
    }


def calibration_metrics(probability: np.ndarray, defect: np.ndarray) -> dict[str, float]:
    """How far probabilities (n,) are from coming true, at the rate of defects that these images have.

    `expected_calibration_error`: mean distance between the mean probability and the share of defects, over 15 bins of
    equal numbers of images (Naeini et al. 2015, there in bins of equal width). It is not 0 for perfect probabilities:
    with few images a bin's share is far from its mean by chance alone. `brier_score`: mean squared error (Brier 1950).
    """
    bins = np.array_split(np.argsort(probability, kind="stable"), min(CALIBRATION_BINS, len(defect)))
    gaps = [len(rows) * abs(probability[rows].mean() - defect[rows].mean()) for rows in bins]
    return {
        "expected_calibration_error": float(sum(gaps) / len(defect)),
        "brier_score": float(np.square(probability - defect).mean()),
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
    decisions = np.array([prediction.decision for prediction in predictions])
    passed, failed = decisions == "pass", decisions == "fail"
    return {
        "images": len(predictions),
        "defects": int(defect.sum()),
        "auroc": float(roc_auc_score(defect, probabilities)) if both else None,
        "average_precision": float(average_precision_score(defect, probabilities)) if both else None,
        **_rate("recall", ~passed, defect),
        **_rate("escape_rate", passed, defect),
        **_rate("false_reject_rate", failed, ~defect),
        "decisions": dict(Counter(prediction.decision for prediction in predictions)),
        "confusion": {
            name: {decision: int((decisions[rows] == decision).sum()) for decision in DECISIONS}
            for name, rows in (("defect", defect), ("good", ~defect))
        },
    }


def _rate(name: str, event: np.ndarray, among: np.ndarray) -> dict[str, Any]:
    count, n = int(event[among].sum()), int(among.sum())
    return {name: count / n if n else None, f"{name}_interval": _listed(interval(count, n))}


def _listed(ends: tuple[float, float] | None) -> list[float] | None:
    return None if ends is None else list(ends)
