"""What the text that names a camera's source means: files, a video, a stream, a device, a pipeline."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from consumer.errors import SettingsError
from engine.locations import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["files", "drop", "video", "stream", "device", "pipeline"]

SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "http", "https", "rtp", "udp", "tcp"})
"""What streams may come by."""

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class CameraSource:
    """One source.

    Attributes:
        kind: `files`: images, each once. `drop`: images as they appear in a folder. `video`: a file, frame by frame.
            `stream`, `device`, `pipeline`: live, by URL, by Video4Linux2, by GStreamer.
        location: a path, a URL or a pipeline; a URL may hold a password.
    """

    kind: Kind
    location: str

    @property
    def live(self) -> bool:
        """Whether pictures come when they come, without an end of their own."""
        return self.kind not in {"files", "video"}

    @property
    def path(self) -> Path:
        """The location of files, a video or a drop folder."""
        return Path(self.location)

    @property
    def name(self) -> str:
        """For messages: without user and password."""
        return shown(self.location)

    def __repr__(self) -> str:
        """As a dataclass has it, without what a URL may hold of a secret."""
        return f"CameraSource(kind={self.kind!r}, location={self.name!r})"


def source_of(text: str | Path, *, watch: bool, environment: Mapping[str, str] = os.environ) -> CameraSource:
    """What a source means.

    Args:
        text: a path; a URL, in which `${NAME}` is that environment variable; `/dev/…`; or a GStreamer pipeline, which
            has an exclamation mark between blanks.
        watch: whether folders are watched.
        environment: where the variables are.

    Raises:
        SettingsError: a URL that no stream comes by, a variable that is not set, or nothing at all.
    """
    location = str(text)
    if not location.strip():
        msg = "a source is empty: expected a folder, a video, a URL such as rtsp://…, or /dev/video0"
        raise SettingsError(msg)
    if " ! " in location:
        return CameraSource("pipeline", location)
    if scheme := _SCHEME.match(location):
        return CameraSource("stream", _url(location, scheme[1].lower(), environment))
    if location.startswith("/dev/"):
        return CameraSource("device", location)
    if Path(location).suffix.lower() in VIDEO_SUFFIXES:
        return CameraSource("video", location)
    return CameraSource("drop" if watch else "files", location)


def _url(location: str, scheme: str, environment: Mapping[str, str]) -> str:
    """The URL with its variables in place."""
    if scheme not in SCHEMES:
        msg = f"source {shown(location)} is no stream: expected a folder, or one of {', '.join(sorted(SCHEMES))}"
        raise SettingsError(msg)
    missing = sorted(name for name in _VARIABLE.findall(location) if name not in environment)
    if missing:
        msg = f"source {shown(location)} is to hold the variable {missing[0]}, which is not set: set it"
        raise SettingsError(msg)
    return _VARIABLE.sub(lambda found: environment[found[1]], location)
