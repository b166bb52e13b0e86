"""Labelled samples through the frozen featurizer: decoded as in serving, computed by the same engine code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import InputError
from engine.watching import SIDE
from trainer.errors import MemberError
from trainer.featurize import CHANNELS_DTYPE, Featurizer, in_order, row_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec
    from trainer.featurize import Row

LIMIT_BYTES = 8 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """What n images look like apart from their features.

    Attributes:
        levels: (n,) mean grey value.
        noises: (n,) as `image_noise` gives them.
        glances: (n, 64, 64) uint8.
    """

    levels: np.ndarray
    noises: np.ndarray
    glances: np.ndarray

    @classmethod
    def empty(cls, count: int) -> Looks:
        """To be filled."""
        return cls(np.empty(count), np.empty(count), np.empty((count, SIDE, SIDE), np.uint8))

    def take(self, rows: np.ndarray | slice) -> Looks:
        """Those of some images, in the order given."""
        return Looks(self.levels[rows], self.noises[rows], self.glances[rows])


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Features of the samples that could be decoded, in the samples' order.

    Attributes:
        kept: (n,) indices into the samples.
        pooled: (n, d) float32.
        channels: (n, cells, 4 fine + coarse) float16.
        pixels: (n, 2) contrast and detail of each image.
        sha256: (n,) of each image's encoded bytes: equal bytes, equal part.
        skipped: (name, why) of the samples that could not be decoded.
        looks: of each image.
    """

    kept: np.ndarray
    pooled: np.ndarray
    channels: np.ndarray
    pixels: np.ndarray
    sha256: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    looks: Looks

    def take(self, rows: np.ndarray) -> FeatureSet:
        """The features of some rows, in the order given; copied only where a row is left out."""
        if len(rows) == len(self.kept) and (rows == np.arange(len(rows))).all():
            return self
        digests = tuple(self.sha256[row] for row in rows)
        return FeatureSet(
            self.kept[rows],
            self.pooled[rows],
            self.channels[rows],
            self.pixels[rows],
            digests,
            self.skipped,
            self.looks.take(rows),
        )


def extract(
    names: Sequence[str],
    read: Callable[[str], bytes],
    image: ImageSpec,
    featurizer: FeaturizerSpec,
    *,
    turn: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> FeatureSet:
    """Read, decode and featurize; `progress` is called with the number of samples done since the last call.

    `turn` is the view that the network sees, see `trainer.turns`; 0 is the image as it was taken.

    Raises:
        InputError: the features would take more memory than 8 GiB.
    """
    pooled = np.empty((len(names), featurizer.pooled_size), np.float32)
    channels = _allocate((len(names), *row_shape(image, featurizer)))
    kept: list[int] = []
    pixels: list[tuple[float, float]] = []
    looks = Looks.empty(len(names))
    digests: list[str] = []
    skipped: list[tuple[str, str]] = []
    with Featurizer(image, featurizer, turn) as running:

        def begun(name: str) -> Future[Row | str] | str:
            payload = _read(read, name)
            return str(payload) if isinstance(payload, MemberError) else running.submit(payload)

        for index, row in enumerate(in_order(map(begun, names), running.ahead)):
            if isinstance(row, str):
                skipped.append((names[index], row))
            else:
                place = len(kept)
                pooled[place], channels[place] = row.pooled, row.channels
                looks.levels[place], looks.noises[place], looks.glances[place] = row.level, row.noise, row.glance
                pixels.append((row.contrast, row.detail))
                kept.append(index)
                digests.append(row.sha256)
            progress(1)
    n = len(kept)
    return FeatureSet(
        np.array(kept, np.int64),
        pooled[:n],
        channels[:n],
        np.array(pixels),
        tuple(digests),
        tuple(skipped),
        looks.take(slice(n)),
    )


def _read(read: Callable[[str], bytes], name: str) -> bytes | MemberError:
    """One at a time: a source belongs to one thread. What cannot be read is set aside, not fatal."""
    try:
        return read(name)
    except MemberError as error:
        return error


def _allocate(shape: tuple[int, int, int]) -> np.ndarray:
    size = CHANNELS_DTYPE.itemsize * int(np.prod(shape, dtype=np.int64))
    if size > LIMIT_BYTES:
        msg = (
            f"{shape[0]} images of {shape[1]} cells take {size / 2**30:.0f} GiB of features: "
            f"expected at most {LIMIT_BYTES >> 30} GiB; give a smaller --size or fewer images"
        )
        raise InputError(msg)
    return np.empty(shape, CHANNELS_DTYPE)
