"""Encoded images -> rows of features, decoded as in serving and computed by the same engine code.

Knows no files and no sources: the same class works for a training on this machine and in an executor of Spark. An image
is decoded, run through the network and summed up by one thread, as many side by side as there are cores: no core waits
for another kind of work, and an image that travels alone cannot be changed by its neighbours, not in its last bit.
"""

from __future__ import annotations

import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Self

import cv2
import numpy as np

from engine.backbone import build_training_graph, grid
from engine.backend_onnx import OnnxGraph
from engine.errors import DeviceError, FrameError
from engine.familiarity import all_pixel_statistics
from engine.featurizer import SUBLOCATIONS
from engine.preprocess import preprocess
from engine.streams import cores
from engine.tiles import join_pooled, split
from engine.watching import glance
from trainer.halves import narrow
from trainer.stream_limits import image_noise
from trainer.turns import turned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec

CHANNELS_DTYPE = np.dtype(np.float16)
"""Of all channels, however many images there are: results do not depend on it. The taps' outputs are projections of
values from 0 to 6 and stay far within its range."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What is kept of one image.

    Attributes:
        sha256: hexadecimal, of its encoded bytes.
        pooled: (d,) float32.
        channels: (cells, 4 fine + coarse) float16, see `engine.backbone.build_training_graph`.
        contrast, detail, level: see `engine.familiarity.all_pixel_statistics`.
        noise: see `trainer.stream_limits.image_noise`.
        glance: (64, 64) uint8.
    """

    sha256: str
    pooled: np.ndarray
    channels: np.ndarray
    contrast: float
    detail: float
    level: float
    noise: float
    glance: np.ndarray


def row_shape(image: ImageSpec, featurizer: FeaturizerSpec) -> tuple[int, int]:
    """(cells, 4 fine + coarse) of one image's channels."""
    rows, columns = grid(image)
    return rows * columns // SUBLOCATIONS, featurizer.cell_size


class Featurizer:
    """One featurizer at one input size, on this process's cores. A context manager; any thread may submit.

    Attributes:
        ahead: so many images are worth submitting before the first one's answer is waited for.
    """

    def __init__(self, image: ImageSpec, featurizer: FeaturizerSpec, turn: int = 0) -> None:
        """Load the graph. `turn` is the view that the network sees, see `trainer.turns`; 0 is the image as taken.

        Raises:
            InputError: the pretrained weights are missing or not the pinned ones.
        """
        self._image, self._featurizer, self._turn = image, featurizer, turn
        graph = build_training_graph(featurizer, image.graph_input)
        self._graph, self._graph_sha256 = OnnxGraph(graph), sha256(graph).hexdigest()
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="featurize")
        self.ahead = 2 * cores()

    def __enter__(self) -> Self:
        """Hand over itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads; what was submitted and not begun is given up."""
        self._pool.shutdown(cancel_futures=True)

    def digest(self) -> str:
        """sha256 of all that decides the rows' last bits: graph, input, view, and how this machine computes.

        The last by the row of an image made up for it, through decoder and engine as they are here: another version of
        theirs, or another processor, that answers otherwise in a single bit has another digest.
        """
        made_up = self._row(_made_up(self._image))
        if isinstance(made_up, str):
            msg = f"an image made up to try the featurizer cannot be decoded ({made_up}): expected it to; reinstall"
            raise DeviceError(msg)
        columns = made_up.pooled.tobytes() + made_up.channels.tobytes() + made_up.glance.tobytes()
        numbers = [made_up.contrast, made_up.detail, made_up.level, made_up.noise]
        told = {
            "graph": self._graph_sha256,
            "image": asdict(self._image),
            "turn": self._turn,
            "dtype": str(CHANNELS_DTYPE),
            "answer": sha256(columns).hexdigest(),
            "statistics": [number.hex() for number in numbers],
        }
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def submit(self, payload: bytes, digest: str | None = None) -> Future[Row | str]:
        """Begin one encoded image: its row, or the reason why it is set aside. `digest` is its sha256, where known.

        The future raises DeviceError where the engine fails.
        """
        return self._pool.submit(self._row, payload, digest)

    def stream(self, payloads: Iterable[bytes]) -> Iterator[Row | str]:
        """Rows, or reasons, in the order of the payloads; no more than `ahead` of them are held at once."""
        return in_order((self.submit(payload) for payload in payloads), self.ahead)

    def featurize(self, payloads: Sequence[bytes]) -> list[Row | str]:
        """Rows, or reasons, of encoded images, in their order."""
        return list(self.stream(payloads))

    def _row(self, payload: bytes, digest: str | None = None) -> Row | str:
        try:
            pixels = preprocess(payload, self._image)
        except FrameError as error:
            return str(error)
        pooled, channels = self._features(pixels)
        contrast, detail, level = all_pixel_statistics(pixels)
        digest = digest or sha256(payload).hexdigest()
        return Row(digest, pooled, channels, contrast, detail, level, image_noise(pixels), glance(pixels))

    def _features(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled (d,) and channels (cells, row) of one image; its cells are those of its tiles in turn."""
        tiles = split(turned(pixels[None], self._turn), self._image)
        pooled = np.empty((len(tiles), self._featurizer.pooled_size), np.float32)
        channels = np.empty(row_shape(self._image, self._featurizer), CHANNELS_DTYPE)
        for index, part in enumerate(np.split(channels, len(tiles))):
            tile_pooled, tile_channels = self._graph.run(["pooled", "channels"], {"images": tiles[index : index + 1]})
            pooled[index] = tile_pooled[0]
            narrow(tile_channels[0], part)
        return join_pooled(pooled, self._image, self._featurizer)[0], channels


def in_order(begun: Iterable[Future[Row | str] | Row | str], ahead: int) -> Iterator[Row | str]:
    """What was begun, or is there already, in its order; `ahead` more are taken before the first is waited for."""
    waiting: deque[Future[Row | str] | Row | str] = deque()
    for each in begun:
        waiting.append(each)
        if len(waiting) > ahead:
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def _result(each: Future[Row | str] | Row | str) -> Row | str:
    return each.result() if isinstance(each, Future) else each


def _made_up(image: ImageSpec) -> bytes:
    """A JPEG of any content, twice as large as the input: it is decoded, reduced and resized as others are."""
    down, across = np.indices((2 * image.height_px + 7, 2 * image.width_px + 5))
    pixels = np.stack([across * down % 251, across + down, across * 3 ^ down], axis=2).astype(np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()
