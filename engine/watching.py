"""What a bundle knows of the stream that its images came from: their noise, their scenes, their usual distance.

It is compared with a stream by the consumer, and learned by the trainer, on the same glances. A single image is not
judged by it: that is `engine.familiarity`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Glance = NDArray[np.uint8]
"""(64, 64): one green sample for each cell of an image's grid."""

SIDE = 64
"""Cells along each side of a glance, whatever the image's own sides are."""

WINDOW = 16
"""Glances that are averaged before they are compared with a scene: what differs from part to part fades."""

REACH = 14
"""Cells by which a displacement can be followed each way; further away another part of the scene is in the picture."""

_BLANK = 0.5
"""Deviation in grey values: rounding makes as much."""

_SOFTEN = 1.0
"""Sigma in cells: samples are not averages, so a glance has more fine detail than a grid can place."""


def glance(image: np.ndarray) -> Glance:
    """A grid of single green samples of one uint8 (h, w, 3) image.

    Sampled, not averaged: the sensor's noise is what tells a standing scene from a standing picture, and averaging
    takes it away. And it costs 6 us at any size.
    """
    samples = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.extractChannel(samples, 1), np.uint8)


def difference(one: Glance, other: Glance) -> float:
    """Mean absolute difference of two glances, in grey values."""
    return float(cv2.norm(one, other, cv2.NORM_L1)) / one.size


@dataclass(frozen=True, slots=True)
class Match:
    """Where a picture fits a scene best.

    Attributes:
        scene: number of the scene.
        right, down: by how much the picture's content lies further that way than the scene's, as shares of the image's
            width and height.
        likeness: normalised correlation there, -1 to 1.
    """

    scene: int
    right: float
    down: float
    likeness: float

    @property
    def distance(self) -> float:
        """How far that is, as a share of the sides."""
        return math.hypot(self.right, self.down)


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """The scenes that the training images show, one for each kind of station, as mean pictures.

    Compared by normalised correlation over all displacements, not by phase: whitened spectra of mean pictures are
    mostly what differs between parts. On the rendered line phase correlation placed one window in eight, this all.

    Attributes:
        pictures: (k, 64, 64) float32, grey values, softened.
        limit: a displacement above it is more than the training images show among themselves.
        likeness: a match below it says nothing: the picture is of something else.
    """

    pictures: NDArray[np.float32]
    limit: float
    likeness: float

    def match(self, mean: NDArray[np.float32], likely: int | None = None) -> Match:
        """Where the mean (64, 64) of a window of glances fits best.

        Args:
            mean: grey values.
            likely: a scene to be tried first; where it fits, and where it was, the others are not.
        """
        inner = soften(mean)[REACH:-REACH, REACH:-REACH]
        if likely is not None:
            found = self._match_one(inner, likely)
            if found.likeness >= self.likeness and found.distance <= self.limit:
                return found
        return max((self._match_one(inner, scene) for scene in range(len(self.pictures))), key=lambda at: at.likeness)

    def _match_one(self, inner: NDArray[np.float32], scene: int) -> Match:
        likenesses = cv2.matchTemplate(self.pictures[scene], inner, cv2.TM_CCOEFF_NORMED)
        _, likeness, _, (x, y) = cv2.minMaxLoc(likenesses)
        # A blank picture has no place, and OpenCV calls everything its perfect match.
        known = likeness if float(inner.std()) > _BLANK and math.isfinite(likeness) else -1.0
        return Match(scene, (REACH - x) / SIDE, (REACH - y) / SIDE, known)


def soften(picture: np.ndarray) -> NDArray[np.float32]:
    """A (64, 64) picture as scenes are compared."""
    return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), _SOFTEN), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class StreamLimits:
    """What a stream is compared with. None, each by itself: the training images cannot tell, or nobody asked them.

    Attributes:
        noise: mean absolute difference of two glances, in grey values, below which they are one picture and not two.
        scenes: what the camera is to see.
        drift: mean distance of a station's images above which they are not like the training images any more.
    """

    noise: float | None = None
    scenes: Scenes | None = None
    drift: float | None = None


UNKNOWN = StreamLimits()
"""Of a bundle from before there were such limits."""
