"""How far a location's channels lie from what they are on good parts: the Mahalanobis distance, as a graph computes it.

Good parts' locations are taken as one Gaussian, wherever they lie in the picture (Mahalanobis 1936; of a pretrained
network's features with one Gaussian for each place: Defard et al. 2021, "PaDiM"). With L the Cholesky factor of the
covariance, the distance of x is |L^-1 (x - mean)| / sqrt(c): about 1 on a good part, whatever the number of channels.

The coarse channels come first in L, so that what they contribute is computed once for the four locations that share
them, and the fine ones add what the coarse ones do not explain: a quarter of the products, the same distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import GraphError
from engine.featurizer import SUBLOCATIONS


@dataclass(frozen=True, slots=True, eq=False)
class PatchDistance:
    """Good parts' channels as one Gaussian: `fine` channels f of a location's own and `coarse` ones c of its cell.

    Attributes:
        fine_mean, coarse_mean: (f,) and (c,) float32.
        coarse: (c, c) float32, lower triangular.
        mixed: (f, c) float32.
        fine: (f, f) float32, lower triangular; [[coarse, 0], [mixed, fine]] whitens the coarse channels and the fine.
    """

    fine_mean: np.ndarray
    coarse_mean: np.ndarray
    coarse: np.ndarray
    mixed: np.ndarray
    fine: np.ndarray

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray, fine: int) -> PatchDistance:
        """From the mean (f + c,) and the covariance (f + c, f + c) of the locations' channels, the fine ones first.

        Raises:
            GraphError: the covariance is not positive definite, or holds what is no number.
        """
        order = np.r_[fine : len(mean), :fine]
        try:
            factor = np.linalg.cholesky(covariance[np.ix_(order, order)])
        except np.linalg.LinAlgError as error:
            msg = "the good parts' patch features have no usable covariance: expected it to be positive definite"
            raise GraphError(msg) from error
        whitening = np.tril(np.linalg.inv(factor))
        if not np.isfinite(whitening).all():
            msg = "the good parts' patch features hold what is no number: expected finite values; check the images"
            raise GraphError(msg)
        coarse = len(mean) - fine
        parts = mean[:fine], mean[fine:], whitening[:coarse, :coarse], whitening[coarse:, :coarse]
        return cls(*(part.astype(np.float32) for part in (*parts, whitening[coarse:, coarse:])))

    @property
    def channels(self) -> int:
        """Of a location, both kinds."""
        return len(self.fine_mean) + len(self.coarse_mean)

    def __call__(self, cells: np.ndarray) -> np.ndarray:
        """Distances (n, cells, 4) float32 of the training graph's channels (n, cells, 4 f + c), as the graph has them.

        A cell's four locations are those of `engine.backbone.build_training_graph`, row by row.
        """
        fine, (n, count, _) = len(self.fine_mean), cells.shape
        shared = cells[:, :, SUBLOCATIONS * fine :].astype(np.float32) - self.coarse_mean
        own = cells[:, :, : SUBLOCATIONS * fine].astype(np.float32).reshape(n, count, SUBLOCATIONS, fine)
        own = own - self.fine_mean
        white = shared @ self.coarse.T
        rest = own @ self.fine.T + (shared @ self.mixed.T)[:, :, None]
        square = np.einsum("ncsf,ncsf->ncs", rest, rest) + np.einsum("ncf,ncf->nc", white, white)[..., None]
        distances: np.ndarray = np.sqrt(square / np.float32(self.channels))
        return distances
