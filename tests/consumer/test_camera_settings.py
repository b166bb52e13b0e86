"""What the camera is told: what a source means, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from consumer.camera_settings import CameraSettings
from consumer.camera_sources import source_of
from consumer.errors import SettingsError


def settings(*sources: str, **more: Any) -> CameraSettings:
    streams = tuple((f"s{number}", source) for number, source in enumerate(sources or ("images",)))
    return CameraSettings("localhost:9092", streams, **more)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("images", "files"),
        ("one.jpg", "files"),
        ("line.MP4", "video"),
        ("/dev/video0", "device"),
        ("rtsp://10.0.0.21/stream", "stream"),
        ("HTTP://10.0.0.21/mjpeg", "stream"),
        ("aravissrc ! videoconvert ! appsink", "pipeline"),
    ],
)
def test_a_source_is_told_by_its_looks(text: str, kind: str) -> None:
    assert source_of(text, watch=False).kind == kind


def test_a_watched_folder_is_a_source_of_its_own() -> None:
    assert source_of(Path("images"), watch=True).kind == "drop"


def test_a_password_comes_from_the_environment_and_is_shown_nowhere() -> None:
    source = source_of("rtsp://line:${PW}@10.0.0.21/stream?x=1", watch=False, environment={"PW": "s3cret"})
    assert source.location == "rtsp://line:s3cret@10.0.0.21/stream?x=1"
    assert "s3cret" not in source.name + repr(source)
    assert "s3cret" not in repr(settings("rtsp://line:s3cret@10.0.0.21/stream"))
    with pytest.raises(SettingsError, match="variable PW, which is not set"):
        source_of("rtsp://line:${PW}@10.0.0.21/stream", watch=False, environment={})


def test_a_rate_that_nobody_gave_is_five_and_whatever_comes_from_a_watched_folder() -> None:
    assert settings().paced_hz == 5.0
    assert settings(watch=True).paced_hz == 0.0
    assert settings(watch=True, rate_hz=2.0).paced_hz == 2.0


@pytest.mark.parametrize(
    ("sources", "more", "words"),
    [
        (["s3://bucket/images"], {}, "is no stream"),
        ([" "], {}, "a source is empty"),
        (["images", "/dev/video0"], {}, "cannot go in one command"),
        (["rtsp://a/b"], {"watch": True}, "--watch is for folders: got rtsp://a/b"),
        (["images"], {"delete": True}, "expected --watch beside them"),
        (["images"], {"watch": True, "delete": True, "done_path": Path("done")}, "two answers"),
        (["images"], {"watch": True, "loop": True}, "for recorded images"),
        (["/dev/video0"], {"shuffle_seed": 1}, "for recorded images"),
        (["line.mp4"], {"shuffle_seed": 1}, "a video without it"),
        (["drop", "drop/left"], {"watch": True}, "share the watched folder"),
        (["/dev/video0", "/dev/video0"], {}, "stations share a camera"),
        (["rtsp://a/b"], {"size_px": (640, 480)}, "devices .* alone"),
        (["/dev/video0"], {"size_px": (0, 480)}, "is no picture"),
        (["line.mp4"], {"jpeg_quality": 101}, "expected 1 to 100"),
        (["images"], {"watch": True, "settle_s": -1.0}, "--settle-s"),
        (["images"], {"rate_hz": float("nan")}, "no number of frames"),
        (["images"], {"part_pattern": re.compile("[0-9]+")}, "has no group"),
    ],
)
def test_what_no_camera_can_do_is_refused(sources: list[str], more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings(*sources, **more)
