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
        left_out = self._without_each_block(better) - self._without_each_block(worse)
        left_out = left_out[np.isfinite(left_out)]
        spread = np.square(left_out - left_out.mean()).sum()
        error = float(np.sqrt((len(left_out) - 1) / len(left_out) * spread))
        return self.auroc(better) - self.auroc(worse), error

    def _without_each_block(self, scores: np.ndarray) -> np.ndarray:
        """(blocks,) AUROC of the images outside each block of groups; NaN where a class is not among them.

        AUROC is the share of pairs of a defect and a good part that stand in the right order (a tie counts half), so
        what a block takes away is counted once from the table of its pairs with every other.
        """
        blocks = np.unique(self.groups, return_inverse=True)[1] % JACKKNIFE_BLOCKS
        count = int(blocks.max()) + 1
        positive, own = scores[self.defect], blocks[self.defect]
        right = np.empty((count, count))  # (block of the defect, block of the good part)
        for block in range(count):
            negative = np.sort(scores[~self.defect & (blocks == block)])
            below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
            right[:, block] = np.bincount(own, below / 2, count)
        kept = right.sum() - right.sum(0) - right.sum(1) + right.diagonal()
        pairs = [np.bincount(blocks[self.defect == label], minlength=count) for label in (False, True)]
        outside = np.prod([counts.sum() - counts for counts in pairs], axis=0).astype(float)
        left_out: np.ndarray = np.divide(kept, outside, out=np.full(count, np.nan), where=outside > 0)
        return left_out

    def is_noise(self, better: np.ndarray, worse: np.ndarray, most_loss: float = MOST_LOSS) -> bool:
        """Whether the second is as good as the first, as far as these images can tell."""
        lost, error = self.difference(better, worse)
        return lost <= min(error, most_loss)
