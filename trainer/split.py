"""Splits that do not leak: images of one group, and copies of one image, are never on both sides.

Everything is decided by the seed and the order of the arguments; the same on every machine.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from trainer.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Indices = NDArray[np.intp]
    Pair = tuple[Indices, Indices]

ATTEMPTS = 8
"""Shuffles tried for a number of folds, since the folds are filled greedily and may leave one without a class."""

LARGEST_SHARE = 0.5


def group_ids(groups: Sequence[str | None], hashes: Sequence[str]) -> NDArray[np.int64]:
    """Number the sets of images that must stay together.

    Two images stay together where they have the same group or the same content hash, also through others: a copy of
    one image in two groups joins these groups. Drop copies first (`first_of_each`) where that costs too many groups.

    Args:
        groups: (n,) name of each image's group; None: the image stands alone.
        hashes: (n,) content hash of each image's bytes.

    Returns:
        (n,) int64, numbered from 0 in the order of first appearance.
    """
    count = len(hashes)
    keys = [("hash", value) for value in hashes]
    keys += [("group", group) for group in groups if group is not None]
    images = [*range(count), *(index for index, group in enumerate(groups) if group is not None)]
    numbers = {key: count + number for number, key in enumerate(dict.fromkeys(keys))}
    size = count + len(numbers)
    edges = coo_array((np.ones(len(keys), np.int8), (images, [numbers[key] for key in keys])), shape=(size, size))
    _, parts = connected_components(edges, directed=False)
    _, first, inverse = np.unique(parts[:count], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse], np.int64)


def first_of_each(hashes: Sequence[str]) -> Indices:
    """Positions of the first image of every content, ascending: what is left when copies are dropped."""
    first: dict[str, int] = {}
    for index, value in enumerate(hashes):
        first.setdefault(value, index)
    return np.fromiter(first.values(), np.intp, len(first))


def holdout(labels: ArrayLike, groups: ArrayLike, *, share: float = 0.25, seed: int) -> Pair:
    """Set whole groups aside for the test, with about the given share of the images and of each class.

    Of the 1 / share folds that scikit-learn offers, the one is taken whose shares of the classes come nearest.

    Args:
        labels: (n,) two different values, such as bool is_defect.
        groups: (n,) what stays together, as from `group_ids`.
        share: of the images in the test, above 0, at most 0.5; coarse groups allow only a coarse share.
        seed: decides among equals.

    Returns:
        (train, test) positions, ascending, disjoint, complete; both classes on both sides.

    Raises:
        SplitError: a class lies in one group, so that one side would not know it, or `share` is out of range.
    """
    _check_share(share)
    classes, members = _checked(labels, groups)
    most = min(max(round(1 / share), 2), _groups_per_class(classes, members))
    for count in range(most, 1, -1):
        found = _folds(classes, members, count, seed, both_sides=True)
        if found:
            return min(found, key=lambda pair: _distance(classes[pair[1]], classes, share))
    return _two_folds(classes, members)[0]


def holdout_again(
    labels: ArrayLike, groups: ArrayLike, earlier: Sequence[bool | None], *, share: float = 0.25, seed: int
) -> Pair:
    """A split that keeps an earlier one: what was held out stays held out, and only what is new is split.

    New groups too few to be split are all for training: that is what they were labelled for.

    Args:
        labels: (n,) two different values.
        groups: (n,) what stays together; a group with a new image in it stays on the side where it was.
        earlier: (n,) whether an image was held out; None: it is new.
        share: of the new images in the test.
        seed: decides among equals.

    Returns:
        (train, test) as from `holdout`.

    Raises:
        SplitError: a side would know one class only.
    """
    classes, members = _checked(labels, groups)
    known = np.array([side is not None for side in earlier])
    was_held = np.array([bool(side) for side in earlier])
    is_test = np.isin(members, members[was_held])
    new = np.flatnonzero(~np.isin(members, members[known]))
    with contextlib.suppress(SplitError):  # too few of them, or of one class
        is_test[new[holdout(classes[new], members[new], share=share, seed=seed)[1]]] = True
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    if not _knows_both(classes[train]) or not _knows_both(classes[test]):
        msg = (
            f"of the {len(train)} images to train on and {len(test)} held out before, one side has images of one class "
            "only: expected both on both; train anew on all images instead, without --refine"
        )
        raise SplitError(msg)
    return train, test


def grouped_folds(labels: ArrayLike, groups: ArrayLike, *, folds: int = 5, seed: int) -> list[Pair]:
    """Folds for cross-validation in which every image is tested once and no group is on both sides.

    Fewer folds come back where a class lies in fewer groups than `folds`: every training side knows both classes.
    A test side may hold only one of them.

    Args:
        labels: (n,) two different values.
        groups: (n,) what stays together.
        folds: wanted, at least 2.
        seed: decides among equals.

    Returns:
        (train, test) positions of each fold, ascending.

    Raises:
        SplitError: a class lies in one group, or fewer than two folds are wanted.
    """
    if folds < 2:  # noqa: PLR2004 - one to train on, one to test on
        msg = f"{folds} folds cannot be made: expected at least 2"
        raise SplitError(msg)
    classes, members = _checked(labels, groups)
    for count in range(min(folds, _groups_per_class(classes, members)), 1, -1):
        for attempt in range(ATTEMPTS):
            found = _folds(classes, members, count, seed + attempt, both_sides=False)
            if len(found) == count:
                return found
    return _two_folds(classes, members)


def good_folds(defect: ArrayLike, groups: ArrayLike, *, folds: int, seed: int) -> list[Pair]:
    """Folds over good parts alone: every good part is held out once, no group of them is on both sides.

    Args:
        defect: (n,) bool.
        groups: (n,) what stays together.
        folds: wanted, at least 2; fewer where the good parts lie in fewer groups.
        seed: decides which groups.

    Returns:
        (train, test) positions of each fold, ascending. The training side is good parts only; the test side is the
        good parts held out and the defects of their groups. A defect of a group without a good part is in none.

    Raises:
        SplitError: all good parts lie in one group, or there is none.
    """
    is_bad, members = np.asarray(defect, bool), np.unique(np.asarray(groups), return_inverse=True)[1]
    good = np.flatnonzero(~is_bad)
    count = min(folds, len(np.unique(members[good])))
    if count < 2:  # noqa: PLR2004 - one for each side
        msg = (
            f"all {len(good)} good parts lie in one group: expected at least two groups, so that parts never trained "
            "on can be held out; add good parts of another group, or give finer groups"
        )
        raise SplitError(msg)
    is_single = count == len(good) or len(np.unique(members[good])) == len(good)
    splitter = (KFold if is_single else StratifiedGroupKFold)(count, shuffle=True, random_state=seed % 2**32)
    same = np.zeros(len(good), np.intp)
    parts = [held for _, held in splitter.split(same[:, None], same, None if is_single else members[good])]
    parts = [held for held in parts if len(held)]
    return [(np.setdiff1d(good, good[held]), np.flatnonzero(np.isin(members, members[good[held]]))) for held in parts]


def good_holdout(defect: ArrayLike, groups: ArrayLike, *, share: float = 0.25, seed: int) -> Pair:
    """Set whole groups aside for the test, with about the given share of the good parts; only good ones are trained on.

    Args:
        defect: (n,) bool.
        groups: (n,) what stays together.
        share: of the good parts in the test, above 0, at most 0.5.
        seed: decides among equals.

    Returns:
        (train, test) positions, ascending, disjoint. The test holds all defects but those of groups that are trained
        on: these are in neither.

    Raises:
        SplitError: all good parts lie in one group, or `share` is out of range.
    """
    _check_share(share)
    is_bad, members = np.asarray(defect, bool), np.asarray(groups)
    wanted = share * float((~is_bad).sum())
    folds = good_folds(is_bad, members, folds=max(round(1 / share), 2), seed=seed)
    train, _ = min(folds, key=lambda pair: abs(float((~is_bad[pair[1]]).sum()) - wanted))
    return train, np.flatnonzero(~np.isin(members, members[train]))


def _check_share(share: float) -> None:
    """Refuse a share that leaves nothing to train on, or to test."""
    if not 0 < share <= LARGEST_SHARE:
        msg = f"held-out share {share} is out of range: expected above 0 and at most {LARGEST_SHARE}"
        raise SplitError(msg)


def _checked(labels: ArrayLike, groups: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Labels as 0 and 1, groups as 0, 1, 2, ..."""
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) != 2 or classes.shape != members.shape or classes.ndim != 1:  # noqa: PLR2004 - pass and fail
        got = f"{classes.shape} labels of {len(names)} classes with {members.shape} groups"
        msg = f"cannot split {got}: expected (n,) labels of two classes and (n,) groups"
        raise SplitError(msg)
    return classes, members


def _groups_per_class(classes: NDArray[np.intp], members: NDArray[np.intp]) -> int:
    """In how many groups the rarer-spread class lies; refuses one."""
    spread = [len(np.unique(members[classes == label])) for label in (0, 1)]
    if min(spread) < 2:  # noqa: PLR2004 - one for each side
        msg = (
            f"all images of one class lie in one group (the classes lie in {spread[0]} and {spread[1]} groups): "
            "expected at least two groups for each, so that parts never trained on can be held out; add images of "
            "another group, or give finer groups"
        )
        raise SplitError(msg)
    return min(spread)


def _folds(
    classes: NDArray[np.intp], members: NDArray[np.intp], count: int, seed: int, *, both_sides: bool
) -> list[Pair]:
    """The folds in which training (and, if asked, the test) knows both classes."""
    is_single = len(np.unique(members)) == len(members)
    # Where every image stands alone the plain splitter gives the same promise, in no time.
    kind = StratifiedKFold if is_single else StratifiedGroupKFold
    splitter = kind(count, shuffle=True, random_state=seed % 2**32)  # numpy's seeds end there
    pairs = splitter.split(np.zeros((len(classes), 1)), classes, None if is_single else members)
    return [
        (train, test)
        for train, test in pairs
        if _knows_both(classes[train]) and len(test) and (not both_sides or _knows_both(classes[test]))
    ]


def _knows_both(classes: NDArray[np.intp]) -> bool:
    """Whether 0 and 1 both occur."""
    return bool(len(classes)) and int(classes.min()) != int(classes.max())


def _distance(test: NDArray[np.intp], classes: NDArray[np.intp], share: float) -> float:
    """How far the test's share of each class is from the wanted one; 0 is exact."""
    return max(abs(float(np.sum(test == label)) / float(np.sum(classes == label)) - share) for label in (0, 1))


def _two_folds(classes: NDArray[np.intp], members: NDArray[np.intp]) -> list[Pair]:
    """Two sides that both know both classes, however coarse the groups: where the greedy splitter finds none.

    Possible whenever each class lies in two groups: place two groups of the one class apart, then complete the other.
    """
    groups, size = np.unique(members, return_counts=True)
    smallest_first = groups[np.argsort(size, kind="stable")]
    own, other = ([group for group in smallest_first if np.any(classes[members == group] == label)] for label in (0, 1))
    shared = [group for group in own if group in other]
    in_test, in_train = (shared + [group for group in own if group not in shared])[:2]
    test_groups = {in_test}
    if in_test not in other:
        test_groups.add(next(group for group in other if group != in_train))
    is_test = np.isin(members, list(test_groups))
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    return [(train, test), (test, train)]
