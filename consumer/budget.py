"""How much may be in flight: frames and bytes, taken by the thread that fetches, given back by the one that answers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import InputError

if TYPE_CHECKING:
    from consumer.events import Frame


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what lies between fetching and the broker's answer.

    Attributes:
        max_frames: never exceeded.
        max_bytes: encoded images and pixels held; exceeded by at most what one poll brings, since a frame's size is
            known only when it is in hand.
        low_water: once a bound was reached, fetching waits until both are below this part of it: pausing and resuming
            for every single frame would cost more than it holds. Not far below, for while a station floods the others'
            frames wait outside until then: 26 ms of the 34 that `framegate bench scale` told of at a half, 15 at this.
    """

    max_frames: int
    max_bytes: int
    low_water: float = 0.75

    def __post_init__(self) -> None:
        """Refuse bounds that nothing fits in."""
        if self.max_frames < 1 or self.max_bytes < 1 or not 0 < self.low_water <= 1:
            msg = (
                f"limits of {self.max_frames} frames, {self.max_bytes} bytes, low water {self.low_water} let nothing "
                "through: expected 1 or more frames and bytes, and a low water above 0 up to 1"
            )
            raise InputError(msg)


class Budget:
    """What is in flight, against its limits. Safe from any thread."""

    def __init__(self, limits: Limits, pixel_bytes: int = 0) -> None:
        """Begin with nothing in flight.

        Args:
            limits: the bounds.
            pixel_bytes: what one decoded image takes, before it is known who judges the frame.
        """
        self.limits = limits
        self._pixel_bytes = pixel_bytes
        self._changed = threading.Condition()
        self._frames = 0
        self._bytes = 0
        self._full = False

    @property
    def frames(self) -> int:
        """Frames in flight."""
        return self._frames

    @property
    def held_bytes(self) -> int:
        """Bytes held by them."""
        return self._bytes

    def size_of(self, frame: Frame) -> int:
        """Bytes a frame counts for: what it came as and what it will be decoded into."""
        return len(frame.payload) + self._pixel_bytes

    def room(self) -> int:
        """Frames that may be fetched now; 0 from reaching a bound until below the low water."""
        with self._changed:
            return self._room()

    def take(self, frames: int, held_bytes: int) -> None:
        """These are in flight now. Not refused: they are in hand already."""
        with self._changed:
            self._frames += frames
            self._bytes += held_bytes

    def give(self, frames: int, held_bytes: int) -> None:
        """These are not in flight any more."""
        with self._changed:
            self._frames -= frames
            self._bytes -= held_bytes
            if self._full and self._room():
                self._changed.notify_all()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until frames may be fetched. False: still not, after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(self._room, timeout_s) > 0

    def _room(self) -> int:
        """`room` under the lock; keeps the state between the two waters."""
        free = self.limits.max_frames - self._frames
        if free <= 0 or self._bytes >= self.limits.max_bytes:
            self._full = True
        elif self._full:
            low = self.limits.low_water
            self._full = self._frames > low * self.limits.max_frames or self._bytes > low * self.limits.max_bytes
        return 0 if self._full else free
