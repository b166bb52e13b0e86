"""Which images are the same picture taken again: a burst, a copy encoded anew, a little brighter, shifted, cropped.

Features of two pictures of one part in one pose differ by little of what they change from one cell to the next (first
bound), and by less than those of other parts do (second bound): on a line with one fixture different parts are nearer
than that first bound, and only the second tells them apart. An image's yardstick is the distance of the neighbours
that follow on those in question, so that a burst is not measured by its own pictures, and both images of a pair must
agree. Measured on photos, boards and a rendered line: see `tests/trainer/test_near_duplicates.py`.

Pairs are linked, so a chain of ever so slight changes could run through a whole set. Where a cluster would hold too
much of a class, or too few clusters would be left to split, the bounds are tightened, at last until nothing is joined:
grouping makes no training impossible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.sketches import Sketches

OF_DETAIL = 0.5
"""Share of an image's detail: altered copies lay at .16 to .45 of it in nine tenths, different photos above .56."""

OF_OTHERS = 0.62
"""Share of the distance of the neighbours that follow: different parts at one fixture lay above .66 in 99 of 100."""

OF_DETAIL_FEW = 0.2
ENOUGH = 64
"""With fewer images an image may have no other of its kind to be measured by, only those of other stations: then only
what lies nearer than different parts of one fixture ever did (.217) is joined."""

ACROSS_CLASSES = 0.8
"""Of both bounds, for a good part and a defect: that they were told apart speaks against one picture."""

MOST_IN_BURST = 16
"""Larger bursts are only found where they fall apart into smaller ones; a sixteenth of the set where that is less."""

TIGHTER = (1.0, 0.85, 0.7, 0.55)
LARGEST_SHARE = 1 / 3
"""Of a class in one cluster."""

FEWEST_GROUPS = 5
"""Clusters that each class must lie in, as many as there are folds."""

MOST_SHOWN = 50
_NAMED = 8
_SKIPPED, _FOLLOWING = 3, 5
"""The yardstick is the median distance of five neighbours, three places after the one in question."""


@dataclass(frozen=True, slots=True, eq=False)
class NearDuplicates:
    """What was found among n images.

    Attributes:
        clusters: (n,) int64, numbered from 0 in the order of first appearance; most hold one image.
        bound: what the bounds were multiplied with, 1 or less; 0 where nothing may be joined.
    """

    clusters: NDArray[np.int64]
    bound: float


def find(sketches: Sketches, defect: np.ndarray) -> NearDuplicates:
    """Cluster n images; memory grows with n only, time with n squared times a sketch: 100,000 images take minutes.

    Args:
        sketches: of n images.
        defect: (n,) bool.
    """
    count = len(defect)
    apart = NearDuplicates(np.arange(count), 0.0)
    most = min(MOST_IN_BURST, max(count // MOST_IN_BURST, 2)) - 1
    wanted = most + _SKIPPED + _FOLLOWING
    if count <= wanted:
        return apart
    search = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(sketches.vectors)
    distances, neighbours = search.kneighbors()  # of each image, itself left out
    distances, neighbours = distances.astype(np.float64), neighbours[:, :most]
    across = defect[neighbours] != defect[:, None]
    limit = sketches.detail * (OF_DETAIL if count >= ENOUGH else OF_DETAIL_FEW)
    for bound in TIGHTER:
        joined = _joined(distances, limit, most, bound)
        joined &= ~across | _joined(distances, limit, most, bound * ACROSS_CLASSES)
        clusters = _clusters(neighbours, joined)
        if _can_be_split(clusters, defect):
            return NearDuplicates(clusters, bound)
    return apart


def _joined(distances: np.ndarray, limit: np.ndarray, most: int, bound: float) -> NDArray[np.bool_]:
    """(n, most) which of each image's nearest are the same picture: up to the last that both bounds speak for."""
    near = distances[:, :most]
    others = np.median([distances[:, _SKIPPED + 1 + i : _SKIPPED + 1 + i + most] for i in range(_FOLLOWING)], axis=0)
    found = (near <= bound * limit[:, None]) & (near <= bound * OF_OTHERS * others)
    return np.logical_or.accumulate(found[:, ::-1], axis=1)[:, ::-1]


def _clusters(neighbours: np.ndarray, joined: np.ndarray) -> NDArray[np.int64]:
    """(n,) numbers of what hangs together by pairs that are among each other's nearest."""
    count = len(neighbours)
    rows, _ = np.nonzero(joined)
    links = coo_array((np.ones(len(rows), np.int8), (rows, neighbours[joined])), shape=(count, count)).tocsr()
    _, parts = connected_components(links.multiply(links.T), directed=False)
    _, first, inverse = np.unique(parts, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse], np.int64)


def _can_be_split(clusters: np.ndarray, defect: np.ndarray) -> bool:
    """Whether each class that is there lies in clusters enough, none of them too large."""
    for label in np.unique(defect):
        sizes = np.bincount(clusters[defect == label])
        sizes = sizes[sizes > 0]
        if len(sizes) < FEWEST_GROUPS or sizes.max() > max(LARGEST_SHARE * sizes.sum(), 2):
            return False
    return True


def summary(found: NearDuplicates, names: Sequence[str], defect: np.ndarray) -> dict[str, Any]:
    """What the report says of it, as plain values.

    Returns:
        `clusters` with more than one image, `images` in them, the `largest`; `both_classes`: clusters
        that hold good parts and defects; `bound`: see `NearDuplicates`; `examples`: up to 50 clusters, those with both
        classes first, then the largest: their `images` (a number), up to eight `names`, and whether `both_classes`.
    """
    sizes = np.bincount(found.clusters)
    defects = np.bincount(found.clusters, defect)
    mixed = (defects > 0) & (defects < sizes)
    several = np.flatnonzero(sizes > 1)
    order = several[np.lexsort((several, -sizes[several], ~mixed[several]))]
    members = np.argsort(found.clusters, kind="stable")
    starts = np.cumsum(sizes) - sizes
    examples = []
    for cluster in order[:MOST_SHOWN]:
        rows = members[starts[cluster] : starts[cluster] + sizes[cluster]]
        examples.append(
            {
                "images": int(sizes[cluster]),
                "names": [names[row] for row in _of_both(rows, defect)[:_NAMED]],
                "both_classes": bool(mixed[cluster]),
            }
        )
    told: dict[str, Any] = {
        "clusters": len(several),
        "images": int(sizes[several].sum()),
        "largest": int(sizes.max()),
        "both_classes": int(mixed[several].sum()),
        "bound": found.bound,
        "examples": examples,
    }
    notes = _notes(told)
    return {**told, "notes": notes, "says": ". ".join(note[0].upper() + note[1:] for note in notes) + "."}


def _of_both(rows: np.ndarray, defect: np.ndarray) -> np.ndarray:
    """One of each class first, where there are both; the rest in their order."""
    _, first = np.unique(defect[rows], return_index=True)
    return np.concatenate([rows[np.sort(first)], np.delete(rows, first)])


def _notes(told: dict[str, Any]) -> list[str]:
    said: list[str] = []
    if told["both_classes"]:
        one, other = next(each for each in told["examples"] if each["both_classes"])["names"][:2]
        said.append(
            f"ATTENTION: {told['both_classes']} clusters of near-duplicates hold both classes, for example {one} and "
            f"{other}: the same part with two labels, or the same part before and after; look at them"
        )
    if told["clusters"]:
        said.append(
            f"no groups were given: {told['images']} images in {told['clusters']} clusters (the largest of "
            f"{told['largest']}) look like the same picture taken again and stay on one side of the split; give groups "
            "(lot, part, board) where you know them: one part from different sides is not found by its looks"
        )
    else:
        said.append(
            "no groups were given, and no near-duplicates were found: each image counts as a part of its own; give "
            "groups (lot, part, board) where several images show one"
        )
    if told["bound"] < 1:
        said.append(
            "so many images look alike that joining them would leave too little to split: "
            + (
                f"only those nearer than {told['bound']:.0%} of the usual bounds were joined"
                if told["bound"]
                else "near-duplicates were not joined, so figures on held-out images may be too good"
            )
        )
    return said
