"""The newest picture of a camera that is made by hand: nothing old, nothing queued, and found again when it goes."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from consumer import video
from consumer.video import CaptureError, NewestPicture, wait_s
from engine.errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer.pictures import Picture

WAIT_S = 30.0


class Camera:
    """Gives numbered pictures one by one, when it is told to."""

    period_s = 0.0

    def __init__(self, first: int = 0) -> None:
        self.number = first
        self._tickets = threading.Semaphore(0)
        self._gone = threading.Event()
        self.taken = threading.Semaphore(0)
        self.released = False

    def shoot(self, pictures: int = 1) -> None:
        """Pictures are there, one after the other has been taken."""
        for _ in range(pictures):
            self._tickets.release()
            assert self.taken.acquire(timeout=WAIT_S)

    def go(self) -> None:
        self._gone.set()

    def grab(self) -> bool:
        while not self._tickets.acquire(timeout=0.01):
            if self._gone.is_set():
                return False
        self.number += 1
        return True

    def jpeg(self) -> bytes:
        return str(self.number).encode()

    def release(self) -> None:
        self.released = True


class Shooting(NewestPicture):
    """Tells the camera when it is done with a picture."""

    camera: Camera

    def _keep(self, capture: video.Capture) -> None:
        super()._keep(capture)
        self.camera.taken.release()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(video, "SHORTEST_PERIOD_S", 0.0)


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def taken(source: NewestPicture) -> Picture:
    found: list[Picture] = []
    until(lambda: (picture := source.take()) is not None and not found.append(picture))  # type: ignore[func-returns-value]
    return found[0]


def test_the_picture_is_the_first_after_it_was_asked_for() -> None:
    camera = Camera()
    with Shooting("c", lambda: camera, wall_clock=lambda: 1_000.0 + camera.number) as source:
        source.camera = camera
        camera.shoot(3)
        assert source.take() is None
        camera.shoot(5)
        picture = source.take()
        assert picture is not None
        assert (picture.payload, picture.captured_at_s) == (b"4", 1_004.0)
        assert source.take() is None, "each once"
        camera.shoot()
        assert taken(source).payload == b"9"
        camera.go()


def test_pictures_out_of_a_buffer_are_left_out() -> None:
    now_s = 0.0
    waits = [0.001] * 7 + [0.030, 0.002, 0.033]

    class Buffered(Camera):
        period_s = 1 / 30

        def grab(self) -> bool:
            nonlocal now_s
            if self.number == len(waits):
                return False
            now_s += waits[self.number]
            self.number += 1
            return True

    source = NewestPicture("c", Buffered, clock=lambda: now_s, wall_clock=lambda: 0.0)
    kept: list[int] = []
    source._keep = lambda capture: kept.append(capture.number)  # type: ignore[method-assign, attr-defined]
    source._read(Buffered())
    assert kept == [8, 9, 10]


def test_a_camera_that_goes_is_found_again(caplog: pytest.LogCaptureFixture) -> None:
    cameras = [Camera(), Camera(first=100)]
    given: list[Camera] = []

    def connect() -> Camera:
        if len(given) == 1 and not cameras[0].released:
            raise AssertionError
        if len(given) == 2:
            msg = "it cannot be opened"
            raise CaptureError(msg)
        given.append(cameras[len(given)])
        source.camera = given[-1]
        return given[-1]

    source = Shooting("rtsp://c", connect)
    with source:
        source.take()
        until(lambda: len(given) == 1)
        cameras[0].shoot()
        assert taken(source).payload == b"1"
        cameras[0].go()
        until(lambda: len(given) == 2)
        source.take()
        cameras[1].shoot()
        assert taken(source).payload == b"101"
        cameras[1].go()
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "camera rtsp://c has gone or is not there yet: it gives no more pictures; looking for it"
    assert said[1] == "camera rtsp://c gives pictures"


def test_it_is_looked_for_less_and_less_often_and_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "FIRST_WAIT_S", 0.5)
    assert [wait_s(failures) for failures in (1, 2, 3, 4, 5, 6, 10_000)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_camera_that_never_comes_ends_the_run_with_the_reason() -> None:
    now_s = 0.0

    def connect() -> Camera:
        msg = "it cannot be opened"
        raise CaptureError(msg)

    with NewestPicture("rtsp://c", connect, start_timeout_s=30.0, clock=lambda: now_s) as source:
        assert source.take() is None
        until(lambda: source._why == "it cannot be opened")
        now_s = 30.1
        with pytest.raises(WorkError, match=r"camera rtsp://c gave no picture within 30 s: it cannot be opened"):
            source.take()


def test_one_that_was_there_is_waited_for() -> None:
    now_s = 0.0
    camera = Camera()
    connected = threading.Event()

    def connect() -> Camera:
        if connected.is_set():
            msg = "it cannot be opened"
            raise CaptureError(msg)
        connected.set()
        return camera

    with Shooting("c", connect, start_timeout_s=1.0, clock=lambda: now_s) as source:
        source.camera = camera
        source.take()
        camera.shoot()
        assert taken(source).payload == b"1"
        camera.go()
        now_s = 10_000.0
        until(lambda: source._missed)
        assert source.take() is None


def test_what_nobody_expected_reaches_the_run() -> None:
    def connect() -> Camera:
        msg = "broken"
        raise ValueError(msg)

    with NewestPicture("c", connect) as source:
        until(lambda: source._error is not None)
        with pytest.raises(WorkError, match="camera c cannot be read: ValueError: broken"):
            source.take()
