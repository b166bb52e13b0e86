"""Does a station's camera still see, and from where it used to? What only its stream shows, frame by frame. Pure.

**Frozen.** A sensor always has noise, so no two of its pictures are the same: `SAME_FRAMES` in a row whose bytes are
equal are one picture sent again. Encoded again, a picture differs from itself by less than the sensor's noise, which
the bundle knows: `ALIKE_FRAMES` of those. A line that stands still, or an empty fixture, still shows the noise; files
that are sent in turn differ from one to the next; a frame that its camera sent twice has the same id and says nothing.
It is over with the first picture that is another.

**Shifted.** The mean of `WINDOW` pictures in a row, in which the parts fade, is looked for in the scenes that the
bundle knows. Two such means in a row at one place further away than the training images ever were: the camera was
moved. A mean that fits nowhere says nothing. It is over with the first mean that is where it should be.

**Drift.** The mean distance of a station's images from the training set, the older the less, beside the distance that
held-back training images did not exceed. It changes no verdict.

The first frames of a freeze or shift are answered before it is known; from the one that proves it on they are faulty.
What is known of a station ends with the tenure of its partition: a new owner begins anew, and so does a reload.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.watching import SIDE, UNKNOWN, WINDOW, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from consumer.events import Frame
    from consumer.tenure import Partition
    from engine.watching import Glance, Match, Scenes, StreamLimits

FaultKind = Literal["frozen", "shifted"]

SAME_FRAMES = 8
"""More than a producer sends a frame when it tries again, and than a replay that draws from a few files draws one."""

ALIKE_FRAMES = 16
"""Likeness is a measurement, equality is none: twice as many."""

SHIFTED_WINDOWS = 2

DRIFT_FRAMES = 256
"""Frames that the mean distance goes back."""

DRIFT_KNOWN_FRAMES = 64
DRIFT_TOLD_EVERY = 16

MOST_STATIONS = 2048
"""Stations remembered, of 12 KiB each; beyond, the one heard of longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the camera of this frame."""

    kind: FaultKind
    why: str


@dataclass(frozen=True, slots=True)
class Change:
    """A station's camera has begun or ceased to be faulty."""

    station: str
    kind: FaultKind
    faulty: bool
    why: str


class CameraHealth:
    """The cameras of all stations. Belongs to one thread; each station's frames come in their order."""

    def __init__(self, told: Callable[[Change], None], *, most_stations: int = MOST_STATIONS) -> None:
        """Know nothing yet; `told` is called of each change."""
        self._told = told
        self._most = most_stations
        self._stations: OrderedDict[tuple[Partition, str], _Station] = OrderedDict()

    def __len__(self) -> int:
        """Stations remembered."""
        return len(self._stations)

    def look(self, partition: Partition, frame: Frame, seen: Glance, limits: StreamLimits) -> Finding | None:
        """What is wrong with the camera as of this frame, the next of its station; None: nothing that is known.

        Args:
            partition: where it came from.
            frame: its station and id are looked at, and its payload where it looks as the one before.
            seen: of the image decoded from it.
            limits: of the bundle that judges it.
        """
        state = self._state(partition, frame.station)
        if frame.frame_id != state.frame_id:
            state.frame_id = frame.frame_id
            self._tell(frame.station, "frozen", state.freeze.advance(frame.payload, seen, limits.noise))
            if limits.scenes is not state.shift.scenes:
                if state.shift.faulty:
                    self._told(Change(frame.station, "shifted", faulty=False, why="another bundle judges"))
                state.shift = _Shift(limits.scenes)
            if not state.freeze.faulty:
                self._tell(frame.station, "shifted", state.shift.advance(seen))
        return state.finding()

    def drift(self, partition: Partition, station: str, distance: float, limits: StreamLimits) -> float | None:
        """Take in the distance of a station's next image.

        Returns:
            The recent mean distance over `limits.drift`: above 1 they are not like the training images any more. None:
            not known, or told a moment ago.
        """
        state = self._state(partition, station)
        if limits is not state.drift_limits:  # another head's distances are others
            state.drift_limits, state.drift_frames, state.drift_mean = limits, 0, 0.0
        state.drift_frames += 1
        state.drift_mean += (distance - state.drift_mean) / min(state.drift_frames, DRIFT_FRAMES)
        if limits.drift is None or state.drift_frames < DRIFT_KNOWN_FRAMES or state.drift_frames % DRIFT_TOLD_EVERY:
            return None
        return state.drift_mean / limits.drift

    def end(self, partitions: Iterable[Partition]) -> None:
        """These are not ours any more, or ours anew: what is known of their stations is over."""
        ended = set(partitions)
        for key in [key for key in self._stations if key[0] in ended]:
            self._forget(key, self._stations.pop(key))

    def _state(self, partition: Partition, station: str) -> _Station:
        key = (partition, station)
        state = self._stations.get(key)
        if state is None:
            state = self._stations[key] = _Station()
            if len(self._stations) > self._most:
                self._forget(*self._stations.popitem(last=False))
        else:
            self._stations.move_to_end(key)
        return state

    def _forget(self, key: tuple[Partition, str], state: _Station) -> None:
        """Whoever was told that a camera is faulty is told that nothing is known any more."""
        over = False, "no longer watched here"
        self._tell(key[1], "frozen", over if state.freeze.faulty else None)
        self._tell(key[1], "shifted", over if state.shift.faulty else None)

    def _tell(self, station: str, kind: FaultKind, changed: tuple[bool, str] | None) -> None:
        if changed is not None:
            faulty, why = changed
            self._told(Change(station, kind, faulty, why))


class _Freeze:
    """Is it one picture all the time?"""

    def __init__(self) -> None:
        self.faulty = False
        self._checksum: int | None = None
        self._first: Glance | None = None
        self._same = self._alike = 0

    @property
    def why(self) -> str:
        """In words."""
        return f"the same picture for {max(self._same, self._alike)} frames: see to the camera or the frame grabber"

    def advance(self, payload: bytes, seen: Glance, noise: float | None) -> tuple[bool, str] | None:
        """Take in the next frame. Returns (is it now faulty, why) where that has changed."""
        lasted = max(self._same, self._alike)
        apart = np.inf if self._first is None else difference(seen, self._first)
        is_same = apart == 0 and self._has_the_same_bytes(payload)
        is_alike = is_same or (noise is not None and apart <= noise)
        self._same = self._same + 1 if is_same else 1
        self._alike = self._alike + 1 if is_alike else 1
        if not is_alike:
            self._first, self._checksum = seen, None
        proven = self._same >= SAME_FRAMES or (noise is not None and self._alike >= ALIKE_FRAMES)
        before, self.faulty = self.faulty, proven or (self.faulty and is_alike)
        if self.faulty == before:
            return None
        return self.faulty, self.why if self.faulty else f"another picture after {lasted} frames"

    def _has_the_same_bytes(self, payload: bytes) -> bool:
        """Whether a frame that looks like the first has the bytes of the last that did.

        Only asked of those: a checksum costs more than all the rest. So the first repetition is believed its looks.
        """
        before, self._checksum = self._checksum, zlib.crc32(payload)
        return before in {None, self._checksum}


class _Shift:
    """Does it look where it used to?"""

    def __init__(self, scenes: Scenes | None) -> None:
        self.faulty = False
        self.why = ""
        self.scenes = scenes
        self._sum = np.zeros((0 if scenes is None else SIDE, SIDE), np.uint16)
        self._frames = 0
        self._scene: int | None = None
        self._away: list[Match] = []

    def advance(self, seen: Glance) -> tuple[bool, str] | None:
        """Take in the next frame. Returns (is it now faulty, why) where that has changed."""
        if self.scenes is None:
            return None
        self._sum += seen
        self._frames += 1
        if self._frames < WINDOW:
            return None
        mean = np.divide(self._sum, WINDOW, dtype=np.float32)
        self._sum[:] = 0
        self._frames = 0
        return self._place(self.scenes, self.scenes.match(mean, self._scene))

    def _place(self, scenes: Scenes, found: Match) -> tuple[bool, str] | None:
        """Take in where a window lies."""
        if found.likeness < scenes.likeness:
            self._away.clear()
            return None
        self._scene = found.scene
        if found.distance <= scenes.limit:
            self._away.clear()
            was_faulty, self.faulty = self.faulty, False
            return (False, "the camera sees its scene where it was") if was_faulty else None
        if self._away and not _at_one_place(self._away[-1], found, scenes.limit):
            self._away.clear()
        self._away = [*self._away[-SHIFTED_WINDOWS + 1 :], found]
        if self.faulty or len(self._away) < SHIFTED_WINDOWS:
            return None
        self.faulty = True
        self.why = (
            f"the scene lies {found.right:+.1%} right and {found.down:+.1%} down of where it was in training: expected "
            f"at most {scenes.limit:.1%} away; turn the camera back, or train again"
        )
        return True, self.why


def _at_one_place(one: Match, other: Match, limit: float) -> bool:
    return float(np.hypot(one.right - other.right, one.down - other.down)) <= limit


@dataclass(slots=True)
class _Station:
    """What is known of one station."""

    frame_id: str | None = None
    freeze: _Freeze = field(default_factory=_Freeze)
    shift: _Shift = field(default_factory=lambda: _Shift(None))
    drift_limits: StreamLimits = UNKNOWN
    drift_frames: int = 0
    drift_mean: float = 0.0

    def finding(self) -> Finding | None:
        """What is wrong now."""
        if self.freeze.faulty:
            return Finding("frozen", self.freeze.why)
        return Finding("shifted", self.shift.why) if self.shift.faulty else None
