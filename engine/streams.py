"""Batches on a CPU: cut into single images, each computed by one thread, as many side by side as there are streams.

One thread an image beats one batch on all cores: convolutions on small images are too short to be shared out, a larger
batch falls out of a core's cache, and a graph whose batch is fixed at one image is compiled better than one that must
take any. And an image that travels alone cannot be changed by its neighbours, not in its last bit.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.backend import Features, Slots, Ticket, check_batch, in_groups, without_filling
from engine.quota import cpu_quota
from engine.specs import LARGEST_BATCH, BatchProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.specs import TensorSpec


_sharing = 1


def share_cores(processes: int) -> None:
    """Say that so many processes like this one share the cores; to be said before a backend is opened.

    Each then takes its part of them. None binds a thread to a core: they do not know of each other, and would all bind
    to the same ones. Nor is a process bound to its part, for where one has less to do the others are to use the rest.
    """
    global _sharing  # noqa: PLW0603 - a fact about this process, as is its affinity
    _sharing = processes


def sharing() -> bool:
    """Whether other processes like this one run on the same cores."""
    return _sharing > 1


def cores() -> int:
    """How many cores this process is to use: those that it may, or its part of them; whole ones of its quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return max(1, (allowed if quota is None else min(allowed, int(quota))) // _sharing)


def profile(streams: int) -> BatchProfile:
    """The batches that suit so many streams: the best gives each stream two images."""
    return BatchProfile(1, min(2 * streams, LARGEST_BATCH), LARGEST_BATCH)


class Pending(Protocol):
    """One image that is being computed."""

    def result(self) -> list[np.ndarray]:
        """Wait for its outputs, one row each; arrays of the caller's own. Raises DeviceError."""
        ...

    def cancel(self) -> object:
        """Give it up: no result will be asked for."""
        ...


class Streams(Protocol):
    """Computes single images, several at once, in the order in which they were begun."""

    def begin(self, images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]) -> Sequence[Pending]:
        """Begin each of the uint8 (n, h, w, 3) images under whole groups of heads; returns without waiting."""
        ...

    def close(self) -> None:
        """Wait for what still computes and give the threads back. Twice is harmless."""
        ...


class ThreadStreams:
    """Streams for a runtime whose call computes on the calling thread: a pool of threads calls it."""

    def __init__(
        self, run: Callable[[np.ndarray, tuple[np.ndarray, np.ndarray], list[str]], list[np.ndarray]], streams: int
    ) -> None:
        """Start the threads; `run` computes the named outputs for one image (1, h, w, 3) under heads."""
        self._run = run
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="engine")

    def begin(self, images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]) -> Sequence[Pending]:
        """See `Streams.begin`."""
        return [self._pool.submit(self._run, images[i : i + 1], heads, names) for i in range(len(images))]

    def close(self) -> None:
        """See `Streams.close`."""
        self._pool.shutdown()


class StreamedBackend:
    """What the CPU backends share: two slots of batches, each batch image by image on streams.

    Meets `engine.backend.Backend` but for its name, device and precision, which a backend sets itself.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], computing: Streams, *, streams: int) -> None:
        """Take over `computing`, which computes so many images at once of the graph that takes `inputs`."""
        self.inputs = inputs
        self.streams = streams
        self.profile = profile(streams)
        self._computing = computing
        self._slots = Slots()
        self._out: dict[int, tuple[Sequence[Pending], int]] = {}

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """See `Backend.infer`."""
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        """See `Backend.submit`."""
        check_batch(self.inputs, images, weights, biases, largest=self.profile.largest)
        ticket, slot = self._slots.take()
        names = ["evidence", "pooled", *(["locations"] if locations else [])]
        try:
            begun = self._computing.begin(np.ascontiguousarray(images), in_groups(weights, biases), names)
        except BaseException:
            self._slots.give_back(ticket)
            raise
        self._out[slot] = begun, weights.shape[1]
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        """See `Backend.collect`."""
        images, heads = self._out.pop(self._slots.slot(ticket))
        self._slots.give_back(ticket)
        outputs = zip(*_all_results(images), strict=True)
        return without_filling([rows[0] if len(rows) == 1 else np.concatenate(rows) for rows in outputs], heads)

    def close(self) -> None:
        """See `Backend.close`."""
        for images, _ in self._out.values():
            for image in images:
                image.cancel()
        self._out.clear()
        self._computing.close()


def _all_results(images: Sequence[Pending]) -> list[list[np.ndarray]]:
    """Every image's outputs. Where one fails the others are waited for too: until then their pixels are read."""
    rows, failures = [], []
    for image in images:
        try:
            rows.append(image.result())
        except Exception as error:  # noqa: BLE001 - raised below, whatever it is
            failures.append(error)
    if failures:
        raise failures[0]
    return rows
