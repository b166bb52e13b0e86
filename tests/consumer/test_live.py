"""Live sources on a clock set by hand: when they are asked, what is made up for (nothing), and when a run ends."""

from __future__ import annotations

from itertools import count as counting
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from consumer.camera_report import CameraReport, SentFrame
from consumer.errors import BrokerError
from consumer.live import LOST_IN_A_ROW, publish_live
from consumer.pictures import Picture
from consumer.wire import WireRecord, rfc3339
from engine.errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WALL_S = 1_772_344_800.0


class Line:
    """Time and a broker, both by hand: sleeping is what moves the clock, and sending may take time."""

    def __init__(self, *, sending_s: Mapping[int, float] | None = None, error: BaseException | None = None) -> None:
        self.now_s = 0.0
        self.sent: list[tuple[float, WireRecord]] = []
        self._sending_s = sending_s or {}
        self._error = error

    def send(self, record: WireRecord, on_done: Callable[[BaseException | None], None]) -> None:
        self.sent.append((round(self.now_s, 2), record))
        self.now_s += self._sending_s.get(len(self.sent) - 1, 0.0)
        on_done(self._error)

    def flush(self) -> None:
        pass

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds

    def publish(self, sources: Mapping[str, Camera], rate_hz: float, **more: Any) -> CameraReport:
        ids = counting()
        return publish_live(
            sources,
            self,
            rate_hz=rate_hz,
            clock=lambda: self.now_s,
            wall_clock=lambda: WALL_S + self.now_s,
            sleep=self.sleep,
            new_id=lambda: f"id{next(ids)}",
            **more,
        )

    def times(self, station: str) -> list[float]:
        return [when for when, record in self.sent if record.key == station.encode()]


class Camera:
    """Has a picture at every `period_s`; who asks gets the newest that he has not had."""

    def __init__(self, line: Line, period_s: float, *, picture: Picture | None = None) -> None:
        self._line = line
        self._period_s = period_s
        self._had = -1
        self._picture = picture or Picture(b"x", "image/jpeg")
        self.settled: list[BaseException | None] = []
        self.trouble: WorkError | None = None
        self.tidied = 0

    def take(self) -> Picture | None:
        newest = int(self._line.now_s / self._period_s + 1e-9)
        if newest == self._had:
            return None
        self._had = newest
        return self._picture

    def settle(self, picture: Picture, error: BaseException | None) -> None:
        assert picture is self._picture
        self.settled.append(error)

    def tidy(self) -> None:
        self.tidied += 1
        if self.trouble is not None and self.settled:
            raise self.trouble


def test_a_fast_camera_is_taken_at_the_rate() -> None:
    line = Line()
    report = line.publish({"a": Camera(line, 1 / 30)}, 5.0, count=5)
    assert line.times("a") == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8], abs=0.04)
    assert (report.sent, report.late) == (5, 0)


def test_a_slow_camera_gives_what_it_has_and_each_picture_once() -> None:
    line = Line()
    report = line.publish({"a": Camera(line, 1.0)}, 5.0, count=4)
    assert line.times("a") == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=0.02)
    assert report.late == 3


def test_rate_zero_takes_all_that_come() -> None:
    line = Line()
    line.publish({"a": Camera(line, 0.1)}, 0, count=4)
    assert line.times("a") == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=0.02)


def test_what_a_slow_broker_kept_from_being_taken_is_not_made_up_for() -> None:
    line = Line(sending_s={1: 3.0})
    line.publish({"a": Camera(line, 1 / 30)}, 5.0, count=5)
    assert line.times("a") == pytest.approx([0.0, 0.2, 3.2, 3.4, 3.6], abs=0.04)


def test_a_camera_that_says_nothing_keeps_no_other_waiting() -> None:
    line = Line()
    line.publish({"a": Camera(line, 0.1), "dead": Camera(line, 1e9)}, 10.0, stop=lambda: len(line.sent) >= 12)
    assert line.times("dead") == [0.0] or len(line.times("dead")) == 1
    assert len(line.times("a")) == 11


def test_a_frame_says_when_its_picture_was_taken_and_a_file_also_when_it_came() -> None:
    line = Line()
    told: list[SentFrame] = []
    live = Picture(b"x", "image/jpeg", captured_at_s=WALL_S - 0.25)
    file = Picture(b"y", "image/png", Path("a.png"), "A17", WALL_S - 600.0, "own-id")
    cameras = {"live": Camera(line, 1e9, picture=live), "file": Camera(line, 1e9, picture=file)}
    line.publish(cameras, 0, count=1, on_sent=told.append)
    records = [record for _, record in line.sent]
    headers = [dict(record.headers) for record in records]
    assert [header["ce_time"].decode() for header in headers] == [rfc3339(WALL_S - 0.25), rfc3339(WALL_S - 600.0)]
    assert [record.timestamp_ms for record in records] == [None, (WALL_S - 600.0) * 1000]
    assert [header.get("ce_partid") for header in headers] == [None, b"A17"]
    assert told == [
        SentFrame("id0", "live", None, WALL_S - 0.25),
        SentFrame("own-id", "file", Path("a.png"), WALL_S - 600.0),
    ]


def test_a_broker_that_takes_nothing_any_more_ends_the_run() -> None:
    line = Line(error=TimeoutError())
    with pytest.raises(BrokerError, match=rf"the last {LOST_IN_A_ROW} frames were not acknowledged \(TimeoutError\)"):
        line.publish({"a": Camera(line, 0.1)}, 0)
    assert len(line.sent) == LOST_IN_A_ROW


def test_a_source_in_trouble_ends_the_run_and_the_others_are_tidied() -> None:
    line = Line()
    bad, good = Camera(line, 0.1), Camera(line, 0.1)
    bad.trouble = WorkError("image lost")
    with pytest.raises(WorkError, match="image lost"):
        line.publish({"bad": bad, "good": good}, 0)
    assert len(good.settled) == 1
    assert good.tidied == 2, "once before it was asked, once at the end"
