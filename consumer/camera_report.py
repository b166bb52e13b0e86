"""What became of a camera's frames, counted while they are under way; and where they go, as a protocol."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from consumer.wire import WireRecord


@dataclass(frozen=True, slots=True)
class SentFrame:
    """What is known of a frame when it is handed over: enough to pair its verdict with the truth."""

    frame_id: str
    station: str
    path: Path | None
    captured_at_s: float


@dataclass(frozen=True, slots=True)
class CameraReport:
    """What became of a run.

    Attributes:
        sent: frames the broker acknowledged.
        failed: frames it did not: lost, as far as the camera knows.
        late: frames handed over more than one period after their time.
        seconds: from the first frame's time to the last acknowledgement.
        by_station: acknowledged frames of every station.
        errors: why frames failed -> how many.
    """

    sent: int
    failed: int
    late: int
    seconds: float
    by_station: dict[str, int]
    errors: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class FrameProducer(Protocol):
    """Where frames go.

    Promised: frames of one station arrive in the order given. Not promised: that `send` returns at once; it waits
    where too much is under way.
    """

    def send(self, record: WireRecord, on_done: Callable[[BaseException | None], None]) -> None:
        """Begin to send one frame.

        `on_done` is called once, on any thread: with None when the frame is stored, with the error when it is lost.
        A frame that fails is never raised.
        """

    def flush(self) -> None:
        """Wait until every frame is stored or lost."""


class Tally:
    """Counts what became of frames; called from the producer's threads.

    Attributes:
        late: frames handed over late.
        lost_in_a_row: frames lost since the last one that was stored.
    """

    def __init__(self, stations: Iterable[str]) -> None:
        """Nothing was handed over yet."""
        self._lock = threading.Lock()
        self._by_station = dict.fromkeys(stations, 0)
        self._errors: Counter[str] = Counter()
        self._attempted = 0
        self.late = 0
        self.lost_in_a_row = 0

    def attempt(self, station: str) -> Callable[[BaseException | None], None]:
        """One more frame is handed over; the answer takes its fate."""
        with self._lock:
            self._attempted += 1
        return lambda error: self._settle(station, error)

    def _settle(self, station: str, error: BaseException | None) -> None:
        with self._lock:
            if error is None:
                self._by_station[station] += 1
                self.lost_in_a_row = 0
            else:
                self._errors[type(error).__name__] += 1
                self.lost_in_a_row += 1

    def report(self, seconds: float) -> CameraReport:
        """The sum; a frame without a fate counts as lost."""
        with self._lock:
            sent = sum(self._by_station.values())
            errors = dict(self._errors)
            silent = self._attempted - sent - sum(errors.values())
            if silent > 0:
                errors["NotAcknowledged"] = silent
            return CameraReport(sent, self._attempted - sent, self.late, seconds, dict(self._by_station), errors)
