"""What `framegate camera` is told, checked once."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.camera_sources import CameraSource, source_of
from consumer.errors import SettingsError
from consumer.topics import CONNECT_TIMEOUT_S
from consumer.wire import MAX_NAME_CHARS

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

REPLAY_RATE_HZ = 5.0
"""Of recorded images and live cameras, where no rate is given; a watched folder gives what comes."""

JPEG_QUALITY = 95
"""OpenCV's own: a defect must not drown in what the compression does to it."""


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """What `framegate camera` is told.

    Attributes:
        streams: (station, source) for every station: a folder, a file, a video, a URL, a device or a pipeline.
        rate_hz: frames a second of each station; 0 is as fast as the broker takes them, or as they come. None: 5, and 0
            where folders are watched.
        count: most frames of each station; None for all there are.
        loop: begin again at the end of a folder or video, until `count` or a stop.
        shuffle_seed: a new order in every round, the same for the same seed; None keeps the order of the names.
        watch: publish images as they appear in the folders, and move them away.
        done_path: where sent images are moved to; None: the folder `done` in each folder. For `watch`.
        delete: sent images are deleted instead. For `watch`.
        settle_s: how long a file must have stopped growing; 0: files appear whole. For `watch`.
        part_pattern: its first group in a file's name is the part's id; None: frames carry none.
        jpeg_quality: 1 to 100, of frames that come as pixels: videos and live cameras.
        size_px: (width, height) to ask a device for; None: as it is.
        start_timeout_s: how long a live camera may take for its first picture; later it is waited for without an end.
        sent_path: where to write one JSON line for each frame; None writes none.
        connect_timeout_s: how long to wait for the broker.
        client: the Kafka client's TLS and SASL settings; hidden from logs.
    """

    bootstrap_servers: str
    streams: tuple[tuple[str, str | Path], ...] = field(repr=False)
    topic: str = "frames"
    rate_hz: float | None = None
    count: int | None = None
    loop: bool = False
    shuffle_seed: int | None = None
    watch: bool = False
    done_path: Path | None = None
    delete: bool = False
    settle_s: float = 1.0
    part_pattern: re.Pattern[str] | None = None
    jpeg_quality: int = JPEG_QUALITY
    size_px: tuple[int, int] | None = None
    start_timeout_s: float = 30.0
    sent_path: Path | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse what no camera can do."""
        if not self.streams:
            msg = "no station given: expected at least one; name it with --station"
            raise SettingsError(msg)
        for station, _source in self.streams:
            _require_station(station)
        twice = sorted(name for name, times in Counter(name for name, _ in self.streams).items() if times > 1)
        if twice:
            msg = f"station {', '.join(twice)} is given twice: expected each once; give each camera its own name"
            raise SettingsError(msg)
        _require_numbers(self)
        _require_one_kind(self)
        if self.part_pattern is not None and self.part_pattern.groups < 1:
            msg = (
                f"--part-pattern {self.part_pattern.pattern!r} has no group: expected one in parentheses, the part's id"
            )
            raise SettingsError(msg)

    @property
    def sources(self) -> dict[str, CameraSource]:
        """Station -> what its source means.

        Raises:
            SettingsError: a source that means nothing.
        """
        return {station: source_of(text, watch=self.watch) for station, text in self.streams}

    @property
    def live(self) -> bool:
        """Whether pictures come when they come: all of the sources are of one such kind, or none."""
        return any(source.live for source in self.sources.values())

    @property
    def paced_hz(self) -> float:
        """The rate, also where none is given."""
        if self.rate_hz is not None:
            return self.rate_hz
        return 0.0 if self.watch else REPLAY_RATE_HZ


def _require_numbers(settings: CameraSettings) -> None:
    """Numbers that mean something."""
    rate = settings.rate_hz
    if rate is not None and not (math.isfinite(rate) and rate >= 0):
        msg = f"rate {rate} is no number of frames a second: expected 0 (as fast as it goes) or more"
        raise SettingsError(msg)
    if settings.count is not None and settings.count < 1:
        msg = f"count {settings.count} sends nothing: expected at least 1 frame"
        raise SettingsError(msg)
    if not (math.isfinite(settings.settle_s) and settings.settle_s >= 0):
        msg = f"--settle-s {settings.settle_s} is no time: expected 0 (files appear whole) or more seconds"
        raise SettingsError(msg)
    if not 1 <= settings.jpeg_quality <= 100:  # noqa: PLR2004 - JPEG's own scale
        msg = f"--jpeg-quality {settings.jpeg_quality} is out of range: expected 1 to 100"
        raise SettingsError(msg)
    if settings.size_px is not None and min(settings.size_px) < 1:
        msg = f"--resolution {settings.size_px[0]}x{settings.size_px[1]} is no picture: expected WIDTHxHEIGHT in pixels"
        raise SettingsError(msg)


def _require_one_kind(settings: CameraSettings) -> None:
    """Options that fit the sources, and sources that fit each other."""
    sources = settings.sources
    kinds = {source.kind for source in sources.values()}
    if len({source.live for source in sources.values()}) > 1:
        msg = "recorded images and live cameras cannot go in one command: start a `framegate camera` for each"
        raise SettingsError(msg)
    if settings.watch and kinds != {"drop"}:
        odd = next(source for source in sources.values() if source.kind != "drop")
        msg = f"--watch is for folders: got {odd.name}; leave --watch out"
        raise SettingsError(msg)
    if not settings.watch and (settings.done_path is not None or settings.delete):
        msg = "--done and --delete say what becomes of images in a watched folder: expected --watch beside them"
        raise SettingsError(msg)
    if settings.done_path is not None and settings.delete:
        msg = "--done and --delete are two answers to one question: expected one of them"
        raise SettingsError(msg)
    if settings.live and (settings.loop or settings.shuffle_seed is not None):
        msg = "--loop and --shuffle are for recorded images: a live camera or a watched folder has no end"
        raise SettingsError(msg)
    if settings.shuffle_seed is not None and "video" in kinds:
        msg = "--shuffle is for folders of images: expected a video without it"
        raise SettingsError(msg)
    if settings.size_px is not None and kinds != {"device"}:
        msg = "--resolution is asked of devices (/dev/video0) alone: set it in the camera that gives a stream"
        raise SettingsError(msg)
    if settings.watch:
        _require_folders_apart([Path(source.location).absolute() for source in sources.values()])
    elif settings.live:
        _require_cameras_apart([source.location for source in sources.values()])


def _require_folders_apart(folders: list[Path]) -> None:
    """Each image belongs to one station."""
    for one, other in combinations(folders, 2):
        if one.is_relative_to(other) or other.is_relative_to(one):
            msg = f"stations share the watched folder {min(one, other)}: expected one of its own for each (NAME=FOLDER)"
            raise SettingsError(msg)


def _require_cameras_apart(locations: list[str]) -> None:
    """One camera is one station."""
    if len(set(locations)) < len(locations):
        msg = "stations share a camera: expected one of its own for each (--station NAME=URL)"
        raise SettingsError(msg)


def _require_station(station: str) -> None:
    """Refuse a name that would not come out of the topic as it went in."""
    try:
        station.encode()
    except UnicodeEncodeError as error:
        msg = f"station {station!r} is not UTF-8: expected a readable name"
        raise SettingsError(msg) from error
    if not station or len(station) > MAX_NAME_CHARS:
        msg = f"station name has {len(station)} characters: expected 1 to {MAX_NAME_CHARS}"
        raise SettingsError(msg)
