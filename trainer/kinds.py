"""What a file in a source promises to be, by its name alone. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff"})
"""Suffixes that promise an image. Other files are tried too, unless their suffix promises something else."""

NESTED_SUFFIXES = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v"})
TEXT_SUFFIXES = frozenset(
    {".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".html", ".log"}
)
CLUTTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "licence", "license"})

GROUPS_FILE = "groups.csv"

Kind = Literal["image", "nested", "video", "ignored"]


def kind_of(name: str) -> Kind:
    """What a file promises to be."""
    path = PurePosixPath(name)
    if any(part.startswith(".") or part.lower() in CLUTTER for part in path.parts):
        return "ignored"
    suffix = path.suffix.lower()
    if suffix in NESTED_SUFFIXES:
        return "nested"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "ignored" if suffix in TEXT_SUFFIXES else "image"


def is_image(name: str) -> bool:
    """Will this file be read as an image: only then its size and packing matter."""
    return kind_of(name) == "image"


def is_zip(name: str) -> bool:
    """May this be the archive that holds the images."""
    return kind_of(name) == "nested" and name.lower().endswith(".zip")


def find_groups(names: Sequence[str]) -> str | None:
    """Name of the groups file at the root, or in the one folder that holds everything else."""
    found = [name for name in names if PurePosixPath(name).name.lower() == GROUPS_FILE]
    for name in found:
        if "/" not in name:
            return name
    tops = {name.split("/")[0] for name in names if kind_of(name) == "image"}
    below_top = [name for name in found if name.count("/") == 1 and {name.split("/")[0]} == tops]
    return below_top[0] if len(below_top) == 1 else None
