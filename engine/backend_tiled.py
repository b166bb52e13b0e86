"""Whole images on a backend whose graph takes one tile of them. Meets `engine.backend.Backend`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.backend import Features, Slots, Ticket, check_batch
from engine.errors import BundleError
from engine.featurizer import inputs
from engine.specs import BatchProfile
from engine.tiles import join, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.backend import Backend
    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec


def on_whole_images(backend: Backend, image: ImageSpec, featurizer: FeaturizerSpec) -> Backend:
    """The backend as it is, or wrapped where the image is cut into tiles; it takes what `preprocess` makes.

    Args:
        backend: opened on a bundle's graph; belongs to what is returned, and is closed where it is refused.
        image: the bundle's.
        featurizer: the bundle's.

    Raises:
        BundleError: the graph takes images of another size than the image spec gives it.
    """
    expected = inputs(featurizer, image.graph_input)[0].shape
    got = backend.inputs[0].shape
    if got != expected:
        backend.close()
        cut = "" if image.tile_px is None else " as one tile"
        msg = (
            f"the bundle's graph takes images {got}: expected {expected}, what its image spec gives it{cut}; "
            "train the bundle again"
        )
        raise BundleError(msg)
    return backend if image.tile_px is None else TiledBackend(backend, image, featurizer)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Begun on the inner backend: a first batch of tiles, and what is left to compute after it, with its heads."""

    begun: Ticket
    later: list[np.ndarray]
    weights: np.ndarray
    biases: np.ndarray
    locations: bool


class TiledBackend:
    """Cuts images into tiles, has another backend compute them, and joins what it gives.

    As many images are taken at once as have no more tiles than the inner backend takes; at least one: where its tiles
    alone are more, they go through in several inner batches, all but the first of them when the image is collected.
    So each batch that is out holds one slot of the inner backend, and never two.
    """

    def __init__(self, inner: Backend, image: ImageSpec, featurizer: FeaturizerSpec) -> None:
        """Take over `inner`, which was opened on a graph for one tile of `image`."""
        rows, columns = image.tiles
        tiles = rows * columns
        self.name, self.device, self.precision = inner.name, inner.device, inner.precision
        self.inputs = (inputs(featurizer, image)[0], *inner.inputs[1:])
        self.profile = BatchProfile(1, max(1, inner.profile.best // tiles), max(1, inner.profile.largest // tiles))
        # Not of the contract, but told by those that have them.
        self.streams: int | None = getattr(inner, "streams", None)
        self.most_heads: float = getattr(inner, "most_heads", math.inf)
        self.device_memory_bytes: Callable[[], int] | None = getattr(inner, "device_memory_bytes", None)
        self._inner, self._image, self._featurizer = inner, image, featurizer
        self._slots = Slots()
        self._out: dict[int, _Batch] = {}

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """See `Backend.infer`."""
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        """See `Backend.submit`."""
        check_batch(self.inputs, images, weights, biases, largest=self.profile.largest)
        ticket, slot = self._slots.take()
        try:
            tiles, most = split(images, self._image), self._inner.profile.largest
            first, *later = [tiles[begin : begin + most] for begin in range(0, len(tiles), most)]
            begun = self._inner.submit(first, weights, biases, locations=locations)
        except BaseException:
            self._slots.give_back(ticket)
            raise
        self._out[slot] = _Batch(begun, later, weights.copy(), biases.copy(), locations)
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        """See `Backend.collect`."""
        batch = self._out.pop(self._slots.slot(ticket))
        try:
            parts = [self._inner.collect(batch.begun)]
            parts += [
                self._inner.infer(tiles, batch.weights, batch.biases, locations=batch.locations)
                for tiles in batch.later
            ]
        finally:
            self._slots.give_back(ticket)
        return join(_in_one(parts), self._image, self._featurizer)

    def close(self) -> None:
        """See `Backend.close`."""
        self._out.clear()
        self._inner.close()


def _in_one(parts: list[Features]) -> Features:
    """Batches one after the other as one."""
    if len(parts) == 1:
        return parts[0]
    evidence, pooled = (np.concatenate([getattr(part, name) for part in parts]) for name in ("evidence", "pooled"))
    maps = [part.locations for part in parts if part.locations is not None]
    return Features(evidence, pooled, np.concatenate(maps) if maps else None)
