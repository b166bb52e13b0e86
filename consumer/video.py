"""The newest picture of a live camera: a thread reads all, keeps one, and finds the camera again when it goes."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self

from consumer.pictures import Picture
from engine.errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
"""Before a camera that went, or did not come, is looked for again: doubled each time, up to the longest."""

STALE_S = 5.0
"""How long after connecting pictures may come out of a buffer before those that are new."""

SHORTEST_PERIOD_S = 0.01
"""Of a camera that does not say how often it takes a picture."""

_END_S = 10.0
"""How long a thread is waited for that reads from a camera that says nothing."""

_log = logging.getLogger(__name__)


class CaptureError(Exception):
    """A camera cannot be opened, or what it gives cannot be used; the message says why, without its password."""


class Capture(Protocol):
    """An open camera.

    Promised: `grab` ends within some seconds, whatever becomes of the camera.
    """

    @property
    def period_s(self) -> float:
        """Seconds between two pictures, as far as the camera says; 0 where it does not."""

    def grab(self) -> bool:
        """Wait for the next picture and take it; False: the camera has gone."""

    def jpeg(self) -> bytes:
        """The picture that was taken last, encoded.

        Raises:
            CaptureError: it is none.
        """

    def release(self) -> None:
        """Let go of the camera."""


def wait_s(failures: int) -> float:
    """How long to wait after so many failures in a row, at least one."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 16))


class NewestPicture:
    """A `LiveSource` of one camera. A context manager: a thread reads from its beginning to its end.

    Every picture is taken off the camera, so that none waits in a queue; the first one after it was asked for is
    encoded and kept. Its capture time is when it was in hand here.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Capture],
        *,
        start_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep the settings.

        Args:
            name: the camera, for messages.
            connect: opens it; raises CaptureError.
            start_timeout_s: how long its first picture may take. One that was there once is looked for without an end.
            clock: monotonic seconds.
            wall_clock: epoch seconds.
        """
        self._name = name
        self._connect = connect
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._wanted = False
        self._picture: Picture | None = None
        self._came = self._missed = False
        self._why = "it says nothing"
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)

    def __enter__(self) -> Self:
        """Begin to read."""
        self._started_s = self._clock()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join(_END_S)

    def take(self) -> Picture | None:
        """The picture that has come since it was asked for; None: not yet. See `LiveSource`.

        Raises:
            WorkError: the camera has given no picture since the start, or cannot be read at all.
        """
        with self._lock:
            if self._error is not None:
                msg = f"camera {self._name} cannot be read: {type(self._error).__name__}: {self._error}"
                raise WorkError(msg) from self._error
            picture, self._picture = self._picture, None
            self._wanted = picture is None
            came, why = self._came, self._why
        if not came and self._clock() - self._started_s > self._start_timeout_s:
            msg = (
                f"camera {self._name} gave no picture within {self._start_timeout_s:g} s: {why}; see its address, user "
                "and password, and that it runs"
            )
            raise WorkError(msg)
        return picture

    def settle(self, picture: Picture, error: BaseException | None) -> None:
        """Nothing: a live picture cannot be taken again. See `LiveSource`."""

    def tidy(self) -> None:
        """Nothing: see `settle`."""

    def _run(self) -> None:
        """Read, and connect again, until the end."""
        failures = 0
        try:
            while not self._over.is_set():
                try:
                    read = self._read_all()
                except CaptureError as reason:
                    read, self._why = False, str(reason)
                if self._over.is_set():
                    return
                failures = 1 if read else failures + 1
                if not self._missed:
                    self._missed = True
                    _log.warning("camera %s has gone or is not there yet: %s; looking for it", self._name, self._why)
                self._over.wait(wait_s(failures))
        except BaseException as error:  # noqa: BLE001 - told by `take`, on the thread that can end the run
            with self._lock:
                self._error = error

    def _read_all(self) -> bool:
        """Read until the camera goes; whether it gave anything."""
        capture = self._connect()
        try:
            return self._read(capture)
        finally:
            capture.release()

    def _read(self, capture: Capture) -> bool:
        """Read until the camera goes; whether it gave anything."""
        read = False
        opened_s = self._clock()
        fresh = False
        while not self._over.is_set():
            asked_s = self._clock()
            if not capture.grab():
                self._why = "it gives no more pictures"
                return read
            read = True
            now_s = self._clock()
            # While it was connecting, pictures were buffered: they come faster than the camera takes them.
            fresh = (
                fresh or now_s - asked_s >= max(capture.period_s, SHORTEST_PERIOD_S) / 2 or now_s - opened_s > STALE_S
            )
            if fresh:
                self._keep(capture)
        return read

    def _keep(self, capture: Capture) -> None:
        """Encode the picture where one is wanted."""
        at_s = self._wall_clock()
        if self._missed:
            _log.warning("camera %s gives pictures", self._name)
        self._came, self._missed = True, False
        if not self._wanted:
            return
        picture = Picture(capture.jpeg(), "image/jpeg", captured_at_s=at_s)
        with self._lock:
            self._picture, self._wanted = picture, False
