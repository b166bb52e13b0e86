"""A candidate beside the models that judge: what it would have decided, told and never published.

It must not cost the verdicts more than one column of their own batches. So what it computes from such a column is
decided on a thread of its own; and what needs pixels or an engine of its own is computed while the engine rests, one
image at a time, and left out where that cannot keep up.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import FrameError
from engine.preprocess import preprocess

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from consumer.lineup import Seat

log = logging.getLogger(__name__)

REST_S = 0.002
"""An engine that had nothing to do for that long is at rest, not between two batches."""

BESIDE_FRAMES = 128
APART_FRAMES = 64
"""Frames that wait to be compared, at most; the newest are left out beyond it."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A frame that was judged, and what the candidate needs to judge it too.

    Attributes:
        station: whose it is.
        decision: what was decided.
        seat: the candidate's; its lane is held until this was looked at.
        image: uint8 (h, w, 3) as the candidate takes it, or None: it has to be decoded for it.
        payload: the encoded image.
        features: (evidence, pooled (d,)) where they came with the batch.
    """

    station: str
    decision: str
    seat: Seat
    image: NDArray[np.uint8] | None
    payload: bytes
    features: tuple[float, NDArray[np.float32]] | None


class Shadow:
    """Compares. The engine's thread calls `show`, `engine_works` and `engine_rests`; they cost next to nothing."""

    def __init__(self, told: Callable[[str, str, str], None], left_out: Callable[[int], None]) -> None:
        """Begin at once, on two threads.

        Args:
            told: called with station, decision and the candidate's decision, `none` where it could not judge.
            left_out: called with a number of frames that were not compared.
        """
        self._told = told
        self._left_out = left_out
        self._resting = threading.Event()
        self._resting.set()
        self._closed = False
        self._beside = _Line("shadow-beside", BESIDE_FRAMES, self._compare)
        self._apart = _Line("shadow-apart", APART_FRAMES, self._compare_at_rest)
        self._complained = False

    def engine_works(self) -> None:
        """A batch begins."""
        self._resting.clear()

    def engine_rests(self) -> None:
        """A batch is over."""
        self._resting.set()

    def show(self, shown: list[Shown]) -> None:
        """Compare these, in time."""
        left_out = 0
        for item in shown:
            line = self._apart if item.features is None else self._beside
            if not item.seat.lane.hold():
                left_out += 1
            elif not line.put(item):
                item.seat.lane.let_go()
                left_out += 1
        if left_out:
            self._left_out(left_out)

    def wait_done(self, timeout_s: float) -> bool:
        """Wait until all that was shown is compared. False: not yet."""
        return self._beside.wait_done(timeout_s) and self._apart.wait_done(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Compare no more."""
        self._closed = True
        for line in (self._beside, self._apart):
            for item in line.close(timeout_s):
                item.seat.lane.let_go()

    def _compare_at_rest(self, item: Shown) -> None:
        """As soon as the engine has nothing to do."""
        while not self._closed:
            if self._resting.wait(0.1) and not _works_within(self._resting, REST_S):
                self._compare(item)
                return
        item.seat.lane.let_go()

    def _compare(self, item: Shown) -> None:
        """One frame."""
        try:
            self._told(item.station, item.decision, _decision(item))
        except Exception:  # a candidate may fail in any way it likes: it must cost no verdict
            self._left_out(1)
            if not self._complained:
                log.exception(
                    "the shadow bundle failed on a frame of station %r; further ones are counted", item.station
                )
            self._complained = True
        finally:
            item.seat.lane.let_go()


def _works_within(resting: threading.Event, seconds: float) -> bool:
    """Whether the engine begins to work within so many seconds."""
    threading.Event().wait(seconds)
    return not resting.is_set()


def _decision(item: Shown) -> str:
    """What the candidate decides."""
    seat, image = item.seat, item.image
    if image is None:
        try:
            image = preprocess(item.payload, seat.image_spec)
        except FrameError:
            return "none"
    if item.features is None:
        features = seat.lane.infer(image[None], [seat.head])
        return seat.head.predict(image[None], features.evidence[:, 0], features.pooled)[0].decision
    evidence, pooled = item.features
    return seat.head.predict(image[None], np.array([evidence]), pooled[None])[0].decision


class _Line:
    """Frames in a bounded line, and the thread that works it off."""

    def __init__(self, name: str, limit: int, work: Callable[[Shown], None]) -> None:
        self._limit = limit
        self._work = work
        self._items: deque[Shown] = deque()
        self._changed = threading.Condition()
        self._working = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Shown) -> bool:
        """Append it. False: the line is full."""
        with self._changed:
            if self._closed or len(self._items) >= self._limit:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def wait_done(self, timeout_s: float) -> bool:
        """Wait until nothing is left."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._items and not self._working, timeout_s)

    def close(self, timeout_s: float) -> list[Shown]:
        """End the thread. Returns what was not worked off."""
        with self._changed:
            self._closed = True
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return left

    def _run(self) -> None:
        while True:
            with self._changed:
                self._working = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items or self._closed)
                if self._closed:
                    return
                item = self._items.popleft()
                self._working = True
            self._work(item)
