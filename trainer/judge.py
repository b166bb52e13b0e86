"""Compares scores by their AUROC, and says which differences are noise.

Noise is the standard error of the difference of two AUROC by the delete-one-group jackknife (Efron and Stein 1981):
what the difference would do on other boards, lots or days. One standard error is tolerated (Breiman et al. 1984), and
never more than `MOST_LOSS`: with few images the noise is wide and would excuse anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    from trainer.classifier import Folds

MOST_LOSS = 0.005
"""AUROC that is never given up for speed or simplicity, however wide the noise."""

JACKKNIFE_BLOCKS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """The images that candidates are compared on: their labels, folds and groups."""

    defect: np.ndarray
    groups: np.ndarray
    folds: Folds

    def auroc(self, scores: np.ndarray) -> float:
        """Of all images together."""
        return float(roc_auc_score(self.defect, scores))

    def difference(self, better: np.ndarray, worse: np.ndarray) -> tuple[float, float]:
        """AUROC of one minus that of the other, and the standard error of that difference."""
        blocks = np.unique(self.groups, return_inverse=True)[1] % JACKKNIFE_BLOCKS
        left_out = []
        for block in range(int(blocks.max()) + 1):
            kept = blocks != block
            if self.defect[kept].any() and not self.defect[kept].all():
                pair = (roc_auc_score(self.defect[kept], scores[kept]) for scores in (better, worse))
                left_out.append(next(pair) - next(pair))
        spread = np.array(left_out) - np.mean(left_out)
        error = float(np.sqrt((len(spread) - 1) / len(spread) * np.sum(spread**2)))
        return self.auroc(better) - self.auroc(worse), error

    def is_noise(self, better: np.ndarray, worse: np.ndarray, most_loss: float = MOST_LOSS) -> bool:
        """Whether the second is as good as the first, as far as these images can tell."""
        lost, error = self.difference(better, worse)
        return lost <= min(error, most_loss)
