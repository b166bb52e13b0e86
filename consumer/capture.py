"""Cameras and videos through OpenCV: the camera's only file that imports it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2

from consumer.errors import SettingsError
from consumer.pictures import Picture
from consumer.video import Capture, CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from consumer.camera_sources import CameraSource

OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 5_000
"""How long FFmpeg waits for a camera to answer, and then for each picture."""

_BACKENDS = {"stream": cv2.CAP_FFMPEG, "device": cv2.CAP_V4L2, "pipeline": cv2.CAP_GSTREAMER, "video": cv2.CAP_FFMPEG}


def _quiet() -> None:
    """The libraries' own lines would stand between the user and the one that says what happened."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class OpenCvCapture:
    """A `Capture` on cv2.VideoCapture."""

    def __init__(self, capture: cv2.VideoCapture, jpeg_quality: int) -> None:
        """Take over an open one."""
        self._capture = capture
        self._quality = jpeg_quality

    @property
    def period_s(self) -> float:
        """See `Capture`."""
        rate_hz = self._capture.get(cv2.CAP_PROP_FPS)
        # Streams without a rate of their own are said to have 90,000, the clock of their time stamps.
        return 1.0 / rate_hz if 0 < rate_hz <= 1000 else 0.0  # noqa: PLR2004 - as said above

    def grab(self) -> bool:
        """See `Capture`."""
        return self._capture.grab()

    def jpeg(self) -> bytes:
        """See `Capture`."""
        try:
            done, image = self._capture.retrieve()  # image: (height, width, 3) uint8, BGR
            if not done:
                msg = "it gave a picture that cannot be decoded"
                raise CaptureError(msg)
            return encoded(image, self._quality)
        except cv2.error as error:
            msg = f"it gave a picture that cannot be encoded: {error.err}"
            raise CaptureError(msg) from error

    def release(self) -> None:
        """See `Capture`."""
        self._capture.release()


def connecting(
    source: CameraSource, *, jpeg_quality: int, size_px: tuple[int, int] | None = None
) -> Callable[[], Capture]:
    """A function that opens a live camera.

    Args:
        source: a stream, a device or a pipeline.
        jpeg_quality: 1 to 100.
        size_px: (width, height) to ask a device for, as Motion JPEG, which reaches a USB camera's full rate.

    Raises:
        SettingsError: this OpenCV has no way to such a source. (What the function raises is CaptureError.)
    """
    _quiet()
    backend = _BACKENDS[source.kind]
    if not cv2.videoio_registry.hasBackend(backend):
        msg = (
            f"this OpenCV {cv2.__version__} was built without {cv2.videoio_registry.getBackendName(backend)}, which "
            f"{source.name!r} needs: let another program write pictures into a folder and give that with --watch, or "
            "install an OpenCV that has it"
        )
        raise SettingsError(msg)
    timeouts = (
        [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
        if backend == cv2.CAP_FFMPEG
        else []
    )

    def connect() -> Capture:
        capture = cv2.VideoCapture(source.location, backend, timeouts)
        if not capture.isOpened():
            capture.release()
            msg = "it cannot be opened"
            raise CaptureError(msg)
        if size_px is not None:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, size_px[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size_px[1])
        return OpenCvCapture(capture, jpeg_quality)

    return connect


def encoded(image: cv2.typing.MatLike, jpeg_quality: int) -> bytes:
    """A JPEG of a picture, (height, width, 3) or (height, width) uint8, BGR."""
    _done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    return data.tobytes()


def video_pictures(path: Path, *, jpeg_quality: int, loop: bool = False) -> Iterator[Picture]:
    """The pictures of a video file in order, each encoded when it is asked for.

    Raises:
        SettingsError: at once, where the file is not there or no video.
    """
    if not path.is_file():
        msg = f"{path} is not there: expected a video"
        raise SettingsError(msg)
    _quiet()
    with _opened(path) as first:
        if not first.grab():
            msg = f"{path} holds no picture that can be decoded: expected a video"
            raise SettingsError(msg)
    return _rounds(path, jpeg_quality, loop=loop)


def _rounds(path: Path, jpeg_quality: int, *, loop: bool) -> Iterator[Picture]:
    """Read the video once, or round by round."""
    while True:
        with _opened(path) as video:
            while video.grab():
                done, image = video.retrieve()
                if done:
                    yield Picture(encoded(image, jpeg_quality), "image/jpeg", path)
        if not loop:
            return


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    """The video, open within the context; one that is none gives no picture."""
    video = cv2.VideoCapture(str(path), _BACKENDS["video"])
    try:
        yield video
    finally:
        video.release()
