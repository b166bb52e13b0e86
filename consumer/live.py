"""Frames of cameras that give pictures when they have some: taken at a rate, never queued, sent as they come."""

from __future__ import annotations

import math
import time
import uuid
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from consumer.camera_report import CameraReport, FrameProducer, SentFrame, Tally
from consumer.errors import BrokerError
from consumer.pictures import record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consumer.pictures import Picture
    from consumer.wire import WireRecord

LOST_IN_A_ROW = 20
"""After so many frames that the broker did not take, one after the other, a run ends: whoever started it knows, and
begins anew with a fresh connection."""

_LOOK_AGAIN_S = 0.005
"""How late a picture may be noticed."""


class LiveSource(Protocol):
    """One live camera or watched folder; belongs to the thread that takes, but for `settle`.

    Promised: `take` does not wait for a picture. Not promised: that pictures are equally far apart.
    """

    def take(self) -> Picture | None:
        """The newest picture, or the next file; None while there is none.

        Raises:
            WorkError: there will be none: see the message.
        """

    def settle(self, picture: Picture, error: BaseException | None) -> None:
        """A picture is stored (None) or lost; called once for each that was taken, on any thread."""

    def tidy(self) -> None:
        """Do what settled pictures ask for.

        Raises:
            WorkError: a picture was lost that has to be sent again.
        """


def publish_live(
    sources: Mapping[str, LiveSource],
    producer: FrameProducer,
    *,
    rate_hz: float,
    count: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
    stop: Callable[[], bool] = lambda: False,
    on_sent: Callable[[SentFrame], None] = lambda _frame: None,
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> CameraReport:
    """Publish what live sources give, each at most at `rate_hz`, until a stop, and wait for the broker's answers.

    A station is asked from its due time on until it gives a picture; the next is due a period after
    that one was, or after now where that has passed: pictures that nobody took are never made up for.

    Args:
        sources: station -> its source.
        producer: where frames go.
        rate_hz: most frames a second of each station; 0: all that come.
        count: most frames of each station.
        clock: monotonic seconds.
        wall_clock: epoch seconds.
        sleep: waits for seconds; may return early.
        stop: True ends the run, after what was handed over is answered.
        on_sent: told of each frame just before it is handed over.
        new_id: a new frame id.

    Raises:
        BrokerError: `LOST_IN_A_ROW` frames were lost.
        WorkError: a source has come to an end, or a picture of a watched folder was lost.
    """
    tally = Tally(sources)
    start_s = clock()
    period_s = 1.0 / rate_hz if rate_hz > 0 else 0.0
    due_s = {station: start_s + period_s * number / len(sources) for number, station in enumerate(sources)}
    left = dict.fromkeys(sources, math.inf if count is None else count)
    try:
        while not stop() and any(number > 0 for number in left.values()):
            _require_taken(tally)
            took = False
            for station, source in sources.items():
                source.tidy()
                now_s = clock()
                if left[station] <= 0 or now_s < due_s[station]:
                    continue
                picture = source.take()
                if picture is None:
                    continue
                took = True
                left[station] -= 1
                late = period_s > 0 and now_s - due_s[station] > period_s
                due_s[station] = (now_s if late else due_s[station]) + period_s
                frame = SentFrame(
                    picture.frame_id or new_id(), station, picture.path, picture.captured_at_s or wall_clock()
                )
                tally.late += late
                on_sent(frame)
                answer = partial(_answer, source, picture, tally.attempt(station))
                producer.send(_record(frame, picture), answer)
            if not took:
                sleep(max(_LOOK_AGAIN_S, min(due_s.values()) - clock()))
    finally:
        producer.flush()
        with ExitStack() as every_one:  # also after one that raises
            for source in sources.values():
                every_one.callback(source.tidy)
    return tally.report(clock() - start_s)


def _require_taken(tally: Tally) -> None:
    """Raise where the broker takes nothing any more."""
    if tally.lost_in_a_row >= LOST_IN_A_ROW:
        why = ", ".join(sorted(tally.report(0.0).errors))
        msg = (
            f"the last {tally.lost_in_a_row} frames were not acknowledged ({why}): expected a broker that takes them; "
            "see that it runs and that the topic's max.message.bytes takes the largest image, then start again"
        )
        raise BrokerError(msg)


def _answer(
    source: LiveSource, picture: Picture, counted: Callable[[BaseException | None], None], error: BaseException | None
) -> None:
    """A frame is stored or lost: tell the tally and the source."""
    counted(error)
    source.settle(picture, error)


def _record(frame: SentFrame, picture: Picture) -> WireRecord:
    """The frame on the wire.

    A picture that waited in a folder while nobody could send it keeps the time of its arrival, also as the record's
    own: its age is true, and no sign of a wrong clock.
    """
    record = record_of(frame, picture)
    return record if picture.path is None else replace(record, timestamp_ms=round(frame.captured_at_s * 1000))
