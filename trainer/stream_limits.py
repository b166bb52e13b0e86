"""What the training images say of the stream that they came from: noise, scene, usual distance.

Everything is measured as the consumer will measure it, on groups that were held back. What the images cannot tell is
left open, with the reason: a check that would be wrong on the training set is not made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from sklearn.cluster import AgglomerativeClustering

from engine.watching import REACH, SIDE, WINDOW, Scenes, StreamLimits, soften

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trainer.stored_rows import Rows

    Folds = Sequence[tuple[np.ndarray, np.ndarray]]

NOISE_SHARE = 0.25
"""Two pictures that differ by less than this share of the noise are one, encoded again: that differs by a tenth."""

QUIET = 0.1
"""Share of an image's cells in which next to nothing but noise is seen."""

SCENE_COUNTS = (1, 2, 4, 8)
"""Numbers of scenes to try. With more than there are the same one is split, which does no harm."""

MOVED = 5
"""Cells, 8 % of a side: a displacement that must be found in the held-back images for the check to be made."""

FOUND_SHARE = 0.98
"""Of the displaced windows."""

FEWEST_GLANCES = 32
_WINDOWS = 12
_PARTS = 5
_OFF_CELLS = 1.5
"""How well displacements are read: to a cell, and along both sides."""
_MOST_GLANCES = 800
_MOST_PAIRED = 200
_FEWEST_IN_GROUP = WINDOW // 2
_LIKENESS_SPARE = 0.02
_DRIFT_WINDOW = 64


def image_noise(image: np.ndarray) -> float:
    """Noise in the quietest tenth of one uint8 (h, w, 3) image, as the mean absolute difference of two samples.

    From the diagonal detail of 2 x 2 pixels, which no slope has; in blocks, of which the quietest show the least
    texture. JPEG takes more of that detail than of other noise, so this is rather too small, and that is the safe side.
    """
    green = np.asarray(cv2.extractChannel(image, 1))[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    down = np.subtract(green[::2], green[1::2], dtype=np.int16)  # in whole numbers: exact, and half as much to move
    detail = np.abs(down[:, ::2] - down[:, 1::2]).astype(np.float32) / 2
    blocks_px = max(1, detail.shape[1] // 8), max(1, detail.shape[0] // 8)
    blocks = cv2.resize(detail, blocks_px, interpolation=cv2.INTER_AREA)
    return float(np.quantile(blocks, QUIET)) * float(np.sqrt(2))


def noise_limit(glances: Rows, noises: np.ndarray) -> float | None:
    """Below which difference two glances are one picture; None: even different parts may look the same.

    Args:
        glances: (n, 64, 64) uint8 of different images.
        noises: (n,) as `image_noise` gives them.
    """
    some = glances[:: -(-len(glances) // _MOST_PAIRED)]
    pairs = [(quiet, whole) for row in range(1, len(some)) for quiet, whole in _differences(some[:row], some[row])]
    quietest, nearest = np.min(np.array(pairs), axis=0)
    if nearest == 0:
        return None
    return NOISE_SHARE * min(float(np.percentile(noises, 1)), float(quietest), float(nearest))


def _differences(glances: np.ndarray, one: np.ndarray) -> Iterator[tuple[float, float]]:
    """(in the quietest tenth, of the whole) of each pair."""
    apart = np.abs(glances.astype(np.int16) - one)  # (n, 64, 64)
    blocks = apart.reshape(-1, 8, 8, 8, 8).mean((2, 4)).reshape(len(glances), -1)
    return zip(np.quantile(blocks, QUIET, axis=1).tolist(), blocks.mean(1).tolist(), strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """What held-back windows said of one number of scenes.

    Attributes:
        pictures: (k, 64, 64) float32, softened means.
        spread: the furthest that one of them lies from its scene, as a share of the sides.
        found: the share of those moved whose displacement was found.
        likeness: the least.
    """

    pictures: np.ndarray
    spread: float
    found: float
    likeness: float

    @property
    def limit(self) -> float:
        """A displacement that is none of theirs: beyond the furthest by as much again, and by what can be read."""
        return max(2 * self.spread, self.spread + _OFF_CELLS / SIDE)

    @property
    def tells(self) -> bool:
        """Whether it tells what stayed from what moved."""
        return self.limit <= (MOVED - 1) / SIDE and self.found >= FOUND_SHARE

    def __str__(self) -> str:
        """For the user."""
        return (
            f"with {len(self.pictures)} of them held-back windows lie up to {self.spread:.1%} off, {self.found:.0%} of "
            f"those moved by {MOVED / SIDE:.0%} are found"
        )


def scene_limits(glances: Rows, groups: np.ndarray, seed: int) -> tuple[Scenes | None, str]:
    """The scenes that the images have in common, and in words why there are some or none.

    Args:
        glances: (n, 64, 64) uint8.
        groups: (n,) what was taken together.
        seed: of the draws.
    """
    if len(glances) < FEWEST_GLANCES:
        return None, f"off: {len(glances)} images are too few to tell, at least {FEWEST_GLANCES} are"
    some = slice(None, None, -(-len(glances) // _MOST_GLANCES))
    few, groups = glances[some], groups[some]
    tried = [_try(few, groups, count, np.random.default_rng(seed)) for count in SCENE_COUNTS]
    able = [each for each in tried if each.tells]
    if not able:
        best = max(tried, key=lambda each: each.found)
        return None, f"off: the images have no scenes in common: {best}"
    best = min(able, key=lambda each: (each.limit, -each.likeness))
    return Scenes(best.pictures, best.limit, best.likeness - _LIKENESS_SPARE), f"on: {best}"


def _try(glances: np.ndarray, groups: np.ndarray, count: int, random: np.random.Generator) -> _Tried:
    """Match windows of each scene with what is left of it without them, as they are and moved."""
    labels = _alike(glances, count)
    pictures = np.stack([soften(glances[labels == scene].mean(0)) for scene in range(labels.max() + 1)])
    stayed: list[float] = []
    found: list[bool] = []
    likenesses: list[float] = []
    for scene in range(len(pictures)):
        rows = np.flatnonzero(labels == scene)
        for held in _held_back(rows, groups, random):
            without = pictures.copy()
            without[scene] = soften(glances[np.setdiff1d(rows, held)].mean(0))
            scenes = Scenes(without, 0.0, -1.0)
            for _ in range(_WINDOWS):
                window = glances[random.choice(held, WINDOW, replace=len(held) < WINDOW)]
                at = scenes.match(window.mean(0, dtype=np.float32))
                right, down = MOVED * random.permutation([random.choice([-1, 1]), 0])
                moved = scenes.match(_moved(window, right, down).mean(0, dtype=np.float32))
                stayed.append(at.distance)
                # From where the window lay before, which need not be the middle.
                off = np.hypot(moved.right - at.right - right / SIDE, moved.down - at.down - down / SIDE)
                found.append(bool(off <= _OFF_CELLS / SIDE))
                likenesses += [at.likeness, moved.likeness]
    if not found:  # each scene of one image
        return _Tried(pictures, 1.0, 0.0, 1.0)
    return _Tried(pictures, max(stayed), float(np.mean(found)), min(likenesses))


def _alike(glances: np.ndarray, count: int) -> np.ndarray:
    """(n,) the number, below `count`, of the set that each belongs to."""
    count = min(count, len(glances))
    if count == 1:
        return np.zeros(len(glances), int)
    labels: np.ndarray = AgglomerativeClustering(count).fit_predict(_coarse(glances))
    return labels


def _held_back(rows: np.ndarray, groups: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Parts of a scene's rows to be held back in turn: groups, where at least two have images enough, else any."""
    large = [rows[groups[rows] == group] for group in np.unique(groups[rows])]
    large = [group for group in large if len(group) >= _FEWEST_IN_GROUP]
    if len(large) > 1:
        return [large[number] for number in random.permutation(len(large))[:_PARTS]]
    return [] if len(rows) < _PARTS else np.array_split(random.permutation(rows), _PARTS)


def _coarse(glances: np.ndarray) -> np.ndarray:
    """(n, 256) in units of each one's own contrast: exposure makes no other scene."""
    cells = glances.reshape(-1, 16, 4, 16, 4).mean((2, 4), dtype=np.float32).reshape(len(glances), -1)
    cells -= cells.mean(1, keepdims=True)
    normed: np.ndarray = cells / (cells.std(1, keepdims=True) + 1)
    return normed


def _moved(glances: np.ndarray, right: int, down: int) -> np.ndarray:
    """The content moved by whole cells; what comes in at the border repeats it."""
    padded = np.pad(glances, ((0, 0), (REACH, REACH), (REACH, REACH)), mode="edge")
    top, left = REACH - down, REACH - right
    return padded[:, top : top + SIDE, left : left + SIDE]


def drift_limit(distances: Sequence[np.ndarray], groups: np.ndarray, folds: Folds) -> float:
    """Mean distance that no held-back group of training images exceeds by chance: three deviations above their mean.

    Args:
        distances: of each fold: from all else, of what is held back.
        groups: (n,) what was taken together.
        folds: positions to learn from and to hold back.
    """
    means: list[float] = []
    for (_, held), of_fold in zip(folds, distances, strict=True):
        sets = [of_fold[groups[held] == group] for group in np.unique(groups[held])]
        large = [group for group in sets if len(group) >= _FEWEST_IN_GROUP]
        parts = -(-len(of_fold) // _DRIFT_WINDOW)
        means += [float(group.mean()) for group in large or np.array_split(of_fold, parts)]
    return max(*means, float(np.mean(means) + 3 * np.std(means)))


def stream_limits(
    glances: Rows, noises: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[StreamLimits, dict[str, str]]:
    """Limits without those of drift, and what the user must hear of them."""
    noise = noise_limit(glances, noises)
    scenes, told = scene_limits(glances, groups, seed)
    frozen = "on" if noise is not None else "on, but only for the same bytes: training images may look the same"
    return StreamLimits(noise, scenes), {"frozen": frozen, "shifted": told}
