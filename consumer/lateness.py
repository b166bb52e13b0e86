"""Is a frame too old to be of use to the line? Its age by the camera's clock, less what that clock is wrong by. Pure.

A verdict after the part has left the gate is worth nothing, and the engine's time is worth something. But a camera
whose clock is behind must not make its whole station late. A frame that comes while nothing else waits has only just
been sent, so whatever age it shows beyond a plausible transport is the clock's error: that much is forgiven to all the
station's frames. Under a backlog no frame is fresh, and nothing is learnt: there old frames are old.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumer.events import Frame

TRANSPORT_S = 1.0
"""What a frame may take from the camera to this process without anybody's clock being wrong."""

REMEMBERED = 32
"""Fresh frames of a station from which its clock is judged, the newest: their smallest age, since delays only add."""

MOST_STATIONS = 10_000
"""Stations remembered; beyond, the one heard of longest ago is forgotten, and its clock believed again."""


class Lateness:
    """A deadline, and what is known of the stations' clocks. Belongs to one thread."""

    def __init__(self, deadline_s: float | None) -> None:
        """None: no frame is ever late."""
        self.deadline_s = deadline_s
        self._ages_s: OrderedDict[str, deque[float]] = OrderedDict()

    def observe(self, frame: Frame, *, fresh: bool) -> None:
        """Learn from a frame just fetched; `fresh`: it was sent a moment ago, see `Fetched`."""
        if self.deadline_s is None or not fresh:
            return
        ages_s = self._ages_s.pop(frame.station, None) or deque(maxlen=REMEMBERED)
        ages_s.append(frame.fetched_at_s - frame.captured_at_s)
        self._ages_s[frame.station] = ages_s
        while len(self._ages_s) > MOST_STATIONS:
            self._ages_s.popitem(last=False)

    def clock_error_s(self, station: str) -> float:
        """By how much the station's clock is behind, as far as known; 0 where it is plausible."""
        ages_s = self._ages_s.get(station)
        smallest_s = min(ages_s) if ages_s else 0.0
        return smallest_s if smallest_s > TRANSPORT_S else 0.0

    def age_s(self, frame: Frame, since_fetched_s: float) -> float:
        """A frame's age, `since_fetched_s` monotonic seconds after it was fetched."""
        return frame.fetched_at_s - frame.captured_at_s - self.clock_error_s(frame.station) + since_fetched_s

    def is_late(self, frame: Frame, since_fetched_s: float) -> bool:
        """Whether its verdict would come after the deadline already."""
        return self.deadline_s is not None and self.age_s(frame, since_fetched_s) > self.deadline_s
