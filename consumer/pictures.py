"""Pictures before they are frames, and folders of them that are read once or round by round."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consumer.errors import SettingsError
from consumer.wire import frame_record
from engine.errors import WorkError

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator
    from pathlib import Path

    from consumer.camera_report import SentFrame
    from consumer.wire import WireRecord

CONTENT_TYPES = {
    ".bmp": "image/bmp",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}
"""What a folder's files are taken for; files with other suffixes are left out of a folder."""

UNKNOWN_CONTENT_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded image, before it is a frame.

    Attributes:
        path: where it came from; None for a live stream.
        part_id: the part in the picture, where the source knows it.
        captured_at_s: epoch seconds; None where the time of sending is the time of capture.
        frame_id: unique per station, where the source can say the same one again after a restart; None: a new one.
    """

    payload: bytes = field(repr=False)
    content_type: str = UNKNOWN_CONTENT_TYPE
    path: Path | None = None
    part_id: str | None = None
    captured_at_s: float | None = None
    frame_id: str | None = None


def record_of(frame: SentFrame, picture: Picture) -> WireRecord:
    """A picture on the wire, as the frame that it became."""
    return frame_record(
        station=frame.station,
        payload=picture.payload,
        frame_id=frame.frame_id,
        captured_at_s=frame.captured_at_s,
        part_id=picture.part_id,
        content_type=picture.content_type,
    )


def content_type_of(path: Path) -> str:
    """By the file's suffix."""
    return CONTENT_TYPES.get(path.suffix.lower(), UNKNOWN_CONTENT_TYPE)


def part_of(path: Path, pattern: re.Pattern[str] | None) -> str | None:
    """The part's id in a file's name: the pattern's first group, None where the name has none."""
    found = None if pattern is None else pattern.search(path.name)
    return None if found is None else found[1]


def image_files(source: Path) -> list[Path]:
    """The images of a folder and its subfolders in the order of their names, or the one file that `source` is.

    Raises:
        SettingsError: nothing is there, or no image.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        msg = f"{source} is not there: expected a folder of images or one image"
        raise SettingsError(msg)
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in CONTENT_TYPES and path.is_file())
    if not files:
        msg = f"{source} has no images: expected files that end in {', '.join(sorted(CONTENT_TYPES))}"
        raise SettingsError(msg)
    return files


def folder_pictures(
    source: Path,
    *,
    loop: bool = False,
    shuffle_seed: int | None = None,
    part_pattern: re.Pattern[str] | None = None,
) -> Iterator[Picture]:
    """Pictures of a folder, read one by one as they are asked for.

    Args:
        source: a folder of images, or one file, whatever its suffix.
        loop: begin again at the end.
        shuffle_seed: as in `CameraSettings`.
        part_pattern: as in `CameraSettings`.

    Raises:
        SettingsError: at once, where there is no image.
        WorkError: later, where a file has gone.
    """
    return _read_rounds(image_files(source), loop, shuffle_seed, part_pattern)


def _read_rounds(
    files: list[Path], loop: bool, shuffle_seed: int | None, part_pattern: re.Pattern[str] | None
) -> Iterator[Picture]:
    """Read the files round by round."""
    order = None if shuffle_seed is None else random.Random(shuffle_seed)  # noqa: S311 - an order, not a secret
    while True:
        for path in files if order is None else order.sample(files, len(files)):
            try:
                payload = path.read_bytes()
            except OSError as error:
                msg = f"image {path} cannot be read any more: {error.strerror}; leave the folder alone meanwhile"
                raise WorkError(msg) from error
            yield Picture(payload, content_type_of(path), path, part_of(path, part_pattern))
        if not loop:
            return
