"""Batches on a CPU: cut into chunks, each computed by one thread, as many side by side as there are streams.

One thread a chunk beats one batch on all cores: convolutions on small images are too short to be shared out.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.backend import Features, Slots, Ticket, check_batch, in_groups, without_filling

if TYPE_CHECKING:
    from engine.specs import BatchProfile, TensorSpec


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def cut(count: int, streams: int, largest: int) -> list[slice]:
    """`count` images in chunks of at most `largest`, as even as can be, over all streams where there are enough."""
    pieces = max(-(-count // largest), min(streams, count))
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


class Runner(Protocol):
    """Computes one chunk on the calling thread. Called from several threads at once."""

    def __call__(self, images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]) -> list[np.ndarray]:
        """The named outputs for uint8 (n, h, w, 3) images under whole groups of heads; arrays of the caller's own."""
        ...


class StreamedBackend:
    """What the CPU backends share: two slots of batches, each batch in chunks on a pool of threads.

    Meets `engine.backend.Backend` but for its name, device and precision, which a backend sets itself.
    """

    def __init__(
        self, inputs: tuple[TensorSpec, ...], run: Runner, profile: BatchProfile, *, streams: int, chunk: int
    ) -> None:
        """Start the threads.

        Args:
            inputs: what the graph takes.
            run: computes a chunk.
            profile: the batches to accept.
            streams: how many chunks compute at once.
            chunk: images in the largest chunk.
        """
        self.inputs = inputs
        self.profile = profile
        self.streams = streams
        self.chunk = chunk
        self._run = run
        self._slots = Slots()
        self._out: dict[int, tuple[list[Future[list[np.ndarray]]], int]] = {}
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="engine")

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        """See `Backend.infer`."""
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        """See `Backend.submit`.

        A batch that comes alone is spread over all streams, for its latency; one that comes while another computes is
        cut into chunks as large as are good, since the streams have work already.
        """
        check_batch(self.inputs, images, weights, biases, largest=self.profile.largest)
        ticket, slot = self._slots.take()
        names = ["evidence", "pooled", *(["locations"] if locations else [])]
        heads = in_groups(weights, biases)
        chunks = cut(len(images), 1 if self._out else self.streams, self.chunk)
        parts = [self._pool.submit(self._run, images[chunk], heads, names) for chunk in chunks]
        self._out[slot] = parts, weights.shape[1]
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        """See `Backend.collect`."""
        parts, heads = self._out.pop(self._slots.slot(ticket))
        self._slots.give_back(ticket)
        outputs = zip(*(part.result() for part in parts), strict=True)
        return without_filling([rows[0] if len(rows) == 1 else np.concatenate(rows) for rows in outputs], heads)

    def close(self) -> None:
        """See `Backend.close`."""
        self._pool.shutdown(cancel_futures=True)
