"""Labelled samples through the frozen featurizer: decoded as in serving, computed by the same engine code."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from engine.backbone import FeaturizerSpec, build_training_graph, grid
from engine.backend_onnx import OneImageStreams
from engine.errors import FrameError, InputError
from engine.familiarity import all_pixel_statistics
from engine.featurizer import SUBLOCATIONS
from engine.preprocess import preprocess
from engine.tiles import join_pooled, split
from engine.watching import SIDE, glance
from trainer.errors import MemberError
from trainer.stream_limits import image_noise
from trainer.turns import turned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.specs import ImageSpec

BATCH = 32
"""Images that are decoded together; the graph runs on about as many at once, or on as many tiles."""

FLOAT32_BYTES = 3 << 29
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
        channels: (n, cells, 4 fine + coarse) float32, or float16 where float32 would take more than 1.5 GiB.
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
    rows, columns = grid(image)
    shape = (len(names), rows * columns // SUBLOCATIONS, featurizer.cell_size)
    pooled = np.empty((len(names), featurizer.pooled_size), np.float32)
    channels = _allocate(shape)
    kept: list[int] = []
    pixels: list[tuple[float, float]] = []
    looks = Looks.empty(len(names))
    digests: list[str] = []
    skipped: list[tuple[str, str]] = []

    def decode(loaded: tuple[int, bytes | MemberError]) -> tuple[int, str, np.ndarray | str]:
        index, data = loaded
        if isinstance(data, MemberError):
            return index, "", str(data)
        try:
            return index, sha256(data).hexdigest(), preprocess(data, image)
        except FrameError as error:
            return index, "", str(error)

    graph = OneImageStreams(build_training_graph(featurizer, image.graph_input))
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for start in range(0, len(names), BATCH):
                batch_range = range(start, min(start + BATCH, len(names)))
                loaded = list(pool.map(decode, [(index, _read(read, names[index])) for index in batch_range]))
                good = [(index, digest, pixel) for index, digest, pixel in loaded if isinstance(pixel, np.ndarray)]
                skipped += [(names[index], why) for index, _, why in loaded if isinstance(why, str)]
                if good:
                    place = slice(len(kept), len(kept) + len(good))
                    batch = np.stack([pixel for _, _, pixel in good])
                    _featurize(graph, turned(batch, turn), (image, featurizer), pooled[place], channels[place])
                    for row, pixel in enumerate(batch, len(kept)):
                        contrast, detail, looks.levels[row] = all_pixel_statistics(pixel)
                        looks.noises[row], looks.glances[row] = image_noise(pixel), glance(pixel)
                        pixels.append((contrast, detail))
                    kept += [index for index, _, _ in good]
                    digests += [digest for _, digest, _ in good]
                progress(len(loaded))
    finally:
        graph.close()
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


def _featurize(
    graph: OneImageStreams,
    images: np.ndarray,
    spec: tuple[ImageSpec, FeaturizerSpec],
    pooled: np.ndarray,
    channels: np.ndarray,
) -> None:
    """Fill pooled (n, d) and channels (n, cells, row) of n images; an image's cells are those of its tiles in turn."""
    image, featurizer = spec
    rows, columns = image.tiles
    step = -(-BATCH // (rows * columns))
    for begin in range(0, len(images), step):
        part = slice(begin, begin + step)
        tile_pooled, tile_channels = graph.run(["pooled", "channels"], split(images[part], image))
        pooled[part] = join_pooled(tile_pooled, image, featurizer)
        channels[part] = tile_channels.reshape(-1, *channels.shape[1:])


def _read(read: Callable[[str], bytes], name: str) -> bytes | MemberError:
    """One at a time: a source belongs to one thread. What cannot be read is set aside, not fatal."""
    try:
        return read(name)
    except MemberError as error:
        return error


def _allocate(shape: tuple[int, int, int]) -> np.ndarray:
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if size // 2 > LIMIT_BYTES:
        msg = (
            f"{shape[0]} images of {shape[1]} cells take {size / 2**31:.0f} GiB of features: "
            f"expected at most {LIMIT_BYTES >> 30} GiB; give a smaller --size or fewer images"
        )
        raise InputError(msg)
    return np.empty(shape, np.float32 if size <= FLOAT32_BYTES else np.float16)
