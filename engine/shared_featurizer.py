"""One featurizer in the engine's process: a backend, the thread that alone calls it, and the workers' requests."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from engine.backend import SLOTS, Features
from engine.errors import DeviceError
from engine.shared_layout import MOST_HEADS
from engine.shared_queue import Gathering, Request, Together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.backend import Backend, Ticket

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Computed:
    """What is told of one batch.

    Attributes:
        images: in it; `largest`: that fit.
        requests: of workers that were in it.
        seconds: from handing it to the backend to its numbers.
        failed: it was tried again, each request alone.
    """

    images: int
    largest: int
    requests: int
    seconds: float
    failed: bool


class Featurizer:
    """Computes for many workers. Any thread may `add`; who needs it, holds it.

    Attributes:
        pooled: size of the pooled vector; `grid`: rows and columns of locations.
        most_heads: different heads in one request, at most.
    """

    def __init__(self, backend: Backend, told: Callable[[Computed], None]) -> None:
        """Take over a backend; it computes one blank image, to see what it gives. Raises as `Backend.infer`."""
        self.backend = backend
        # A TensorRT plan is built for so many; a processor takes any number.
        most = getattr(backend, "most_heads", float("inf"))
        self.most_heads = int(min(most, MOST_HEADS))
        sides = tuple(side or 0 for side in backend.inputs[0].shape[1:])
        channels = backend.inputs[1].shape[0] or 0
        heads = np.zeros((channels, 1), np.float32), np.zeros(1, np.float32)
        blank = backend.infer(np.zeros((1, *sides), np.uint8), *heads, locations=True)
        self.pooled = blank.pooled.shape[1]
        self.grid: tuple[int, int] = (0, 0) if blank.locations is None else blank.locations.shape[1:3]
        self._told = told
        self._largest = backend.profile.largest
        self._queue = Gathering(best=backend.profile.best, largest=self._largest, most_heads=most)
        self._changed = threading.Condition()
        self._ended = False
        self._begun_s: float | None = None
        self._rooms = [np.empty((0, *sides), np.uint8)] * SLOTS
        self._turn = 0
        self._thread = threading.Thread(target=self._run, name="featurizer", daemon=True)
        self._thread.start()

    def add(self, request: Request) -> None:
        """Have it computed; its `answer` is called on the featurizer's thread."""
        with self._changed:
            ended = self._ended
            if not ended:
                self._queue.add(request)
                self._changed.notify()
        if ended:
            request.answer(DeviceError("the featurizer is closed: expected whoever computes to hold it"))

    def infer(
        self, frames: Sequence[np.ndarray], weights: np.ndarray, biases: np.ndarray, timeout_s: float
    ) -> Features:
        """Compute among the workers' requests. Raises as `Backend.infer`, and TimeoutError."""
        answer: Future[Features] = Future()

        def take(found: Features | BaseException) -> None:
            if isinstance(found, BaseException):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        self.add(Request(frames, weights, biases, locations=False, answer=take))
        return answer.result(timeout_s)

    def busy_for_s(self, now_s: float) -> float:
        """How long the call that is being made of the backend takes already; 0: none."""
        begun_s = self._begun_s
        return 0.0 if begun_s is None else now_s - begun_s

    def close(self, timeout_s: float = 5.0) -> bool:
        """Finish the batches under way and close the backend. False: it is still at work after so long."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """The thread's life."""
        flying: deque[tuple[Together, Ticket, float]] = deque()
        while True:
            batch = self._next(idle=not flying)
            if batch is not None and batch.requests:
                self._begin(batch, flying)
                if len(flying) < SLOTS:
                    continue
            if flying:
                self._end(*flying.popleft())
            elif batch is None:
                break
        self.backend.close()

    def _next(self, *, idle: bool) -> Together | None:
        """A batch to begin now. Where nothing computes it waits for one; None then: it is over."""
        with self._changed:
            while True:
                batch = self._queue.take(idle=idle or self._ended)
                if batch is not None or not idle or self._ended:
                    return batch
                self._changed.wait()

    def _begin(self, batch: Together, flying: deque[tuple[Together, Ticket, float]]) -> None:
        """Hand it to the backend."""
        self._begun_s = time.monotonic()
        try:
            ticket = self.backend.submit(self._images(batch), *batch.heads(), locations=batch.requests[0].locations)
        except Exception as error:  # noqa: BLE001 - whatever a backend raises belongs to whoever waits
            self._each_alone(batch, error)
        else:
            flying.append((batch, ticket, self._begun_s))
        finally:
            self._begun_s = None

    def _end(self, batch: Together, ticket: Ticket, began_s: float) -> None:
        """Wait for it, and answer."""
        self._begun_s = time.monotonic()
        try:
            parts = batch.split(self.backend.collect(ticket))
        except Exception as error:  # noqa: BLE001 - as above
            self._each_alone(batch, error)
            return
        finally:
            self._begun_s = None
        self._told(Computed(batch.images, self._largest, len(batch.requests), time.monotonic() - began_s, failed=False))
        for request, part in zip(batch.requests, parts, strict=True):
            request.answer(part)

    def _each_alone(self, batch: Together, error: Exception) -> None:
        """No worker is to pay for another one's frames."""
        self._told(Computed(batch.images, self._largest, len(batch.requests), 0.0, failed=True))
        if len(batch.requests) == 1:
            batch.requests[0].answer(error)
            return
        log.warning("a batch of %d workers failed; each is tried alone: %s", len(batch.requests), error)
        for request in batch.requests:
            found: Features | BaseException
            heads = request.weights, request.biases
            self._begun_s = time.monotonic()
            try:
                found = self.backend.infer(np.stack(request.frames), *heads, locations=request.locations)
            except Exception as own:  # noqa: BLE001 - as above
                found = own
            self._begun_s = None
            request.answer(found)

    def _images(self, batch: Together) -> np.ndarray:
        """(n, h, w, 3) in one piece, in a room that is not used again before this batch is done.

        The one copy of a frame between the decoder and the backend: a batch mixes the memories of several workers. A
        backend that has to copy frames itself, into its own page-locked memory, is given them as they lie.
        """
        frames = [frame for request in batch.requests for frame in request.frames]
        if getattr(self.backend, "takes_frames", False):
            return cast("np.ndarray", frames)
        whole = _in_one_piece(frames)
        if whole is not None:
            return whole
        self._turn = (self._turn + 1) % SLOTS  # batches end in their order, and no more than that are under way
        return np.stack(frames, out=self._room(self._turn, len(frames)))

    def _room(self, turn: int, count: int) -> np.ndarray:
        """Room for so many frames."""
        if len(self._rooms[turn]) < count:
            size = min(self._largest, max(count, 2 * len(self._rooms[turn])))
            self._rooms[turn] = np.empty((size, *self._rooms[turn].shape[1:]), np.uint8)
        return self._rooms[turn][:count]


def _in_one_piece(frames: list[np.ndarray]) -> np.ndarray | None:
    """The frames as one array where they lie one behind the other in one memory; None where they do not."""
    first = frames[0]
    base = first.base
    if not isinstance(base, np.ndarray) or base.ndim != first.ndim + 1 or any(f.base is not base for f in frames):
        return None
    at = [frame.__array_interface__["data"][0] for frame in frames]
    if any(there - here != first.nbytes for here, there in pairwise(at)):
        return None
    begin = (at[0] - base.__array_interface__["data"][0]) // first.nbytes
    piece: np.ndarray = base[begin : begin + len(frames)]
    return piece
