"""Which requests of several workers become the next batch of one featurizer. No threads, no clock, no I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.backend import Features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Frames of one worker under its heads.

    Attributes:
        frames: uint8 (h, w, 3) each; they stay as they are until `answer` was called.
        weights, biases: (c, k) and (k,) float32.
        locations: whether they are wanted too.
        answer: called once with the features, or with what went wrong.
        wanted: False once nobody waits for it any more.
    """

    frames: Sequence[np.ndarray]
    weights: np.ndarray
    biases: np.ndarray
    locations: bool
    answer: Callable[[Features | BaseException], None]
    wanted: Callable[[], bool] = lambda: True
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Know equal heads by their bytes: workers of one line have the same ones."""
        object.__setattr__(self, "key", self.weights.tobytes() + self.biases.tobytes())


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """Requests as one batch: their frames one after the other, their heads side by side, equal ones once."""

    requests: tuple[Request, ...]

    @property
    def images(self) -> int:
        """Frames in it."""
        return sum(len(request.frames) for request in self.requests)

    def heads(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (c, k) and biases (k,) of all."""
        once = list({request.key: request for request in self.requests}.values())
        if len(once) == 1:
            return once[0].weights, once[0].biases
        return np.concatenate([r.weights for r in once], axis=1), np.concatenate([r.biases for r in once])

    def split(self, features: Features) -> list[Features]:
        """What each request gets of it; parts of the batch's own arrays."""
        columns: dict[bytes, slice] = {}
        begin = 0
        for request in self.requests:
            if request.key not in columns:
                columns[request.key] = slice(begin, begin + request.weights.shape[1])
                begin += request.weights.shape[1]
        parts, row = [], 0
        for request in self.requests:
            rows, heads = slice(row, row + len(request.frames)), columns[request.key]
            row = rows.stop
            maps = None if features.locations is None else features.locations[rows, ..., heads]
            parts.append(Features(features.evidence[rows, heads], features.pooled[rows], maps))
        return parts


class Gathering:
    """Requests that wait, oldest first.

    Every worker has at most two requests out, so the order of arrival is fair between them; nobody is overtaken.
    """

    def __init__(self, *, best: int, largest: int, most_heads: float) -> None:
        """Begin with none.

        Args:
            best: frames from which on a batch is worth its place behind one that computes.
            largest: frames in a batch, at most.
            most_heads: different heads in a batch, at most.
        """
        self._best, self._largest, self._most_heads = best, largest, most_heads
        self._waiting: deque[Request] = deque()

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Let it wait; alone it fits into a batch."""
        self._waiting.append(request)

    def take(self, *, idle: bool) -> Together | None:
        """The next batch, if there is one to be computed now.

        Args:
            idle: nothing computes, so whatever waits goes at once; else only a batch that is worth it, since what comes
                while the other one computes may still travel in this one.
        """
        while self._waiting and not self._waiting[0].wanted():
            self._waiting.popleft()
        taken, images, closed = self._prefix()
        if not taken or not (idle or closed or images >= self._best):
            return None
        for _ in taken:
            self._waiting.popleft()
        return Together(tuple(request for request in taken if request.wanted()))

    def _prefix(self) -> tuple[list[Request], int, bool]:
        """The oldest that go together, their frames, and whether the next one does not fit any more."""
        taken: list[Request] = []
        images, heads = 0, 0
        keys: set[bytes] = set()
        for request in self._waiting:
            more = 0 if request.key in keys else request.weights.shape[1]
            fits = images + len(request.frames) <= self._largest and heads + more <= self._most_heads
            if taken and not (fits and request.locations == taken[0].locations):
                return taken, images, True
            taken.append(request)
            keys.add(request.key)
            images, heads = images + len(request.frames), heads + more
        return taken, images, images >= self._largest
