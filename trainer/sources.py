"""Where training images come from: a zip or a folder now, object stores later.

A new kind of source is a `Store`: names with sizes, and the bytes of one name. Which of the files are images, what is
ignored and which notes the user gets is decided here, once, for all of them. Nothing is decoded and nothing is written.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, Self

from trainer.archives import Limits, SafeZip, show
from trainer.errors import MemberError, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff"})
"""Suffixes that promise an image. Other files are tried too, unless their suffix promises something else."""

NESTED_SUFFIXES = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v"})
TEXT_SUFFIXES = frozenset(
    {".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".html", ".log"}
)
CLUTTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "licence", "license"})

GROUPS_FILE = "groups.csv"

EXTRAS = {"s3": "s3", "s3a": "s3", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure"}
"""URL scheme -> the extra that will serve it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file that may be an image: posix path inside the source, and its declared size."""

    name: str
    size_bytes: int


class Store(Protocol):
    """What a kind of source must offer; everything else is built on it. Used from one thread at a time."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of every file by its posix path; no path has a `..`, a leading `/` or a backslash."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should hear about the listing."""

    def read(self, name: str) -> bytes:
        """The whole content of one path of `sizes`, in any order and more than once; never more than the limits allow.

        Raises:
            MemberError: this one cannot be read; others may.
        """

    def close(self) -> None:
        """Let go of everything; a second time does nothing."""


class Source(Protocol):
    """Images with names, from anywhere. A context manager, used from one thread at a time."""

    @property
    def origin(self) -> str:
        """What the user gave, for messages and the bundle's manifest."""

    @property
    def notes(self) -> Sequence[str]:
        """What was ignored and why, for the user."""

    def items(self) -> Sequence[Item]:
        """Every file that may be an image, sorted by name: a zip and the folder it was made of train alike.

        That an item decodes is not promised: nothing speaks against it, that is all.
        """

    def read(self, name: str) -> bytes:
        """The whole content of one item.

        Raises:
            MemberError: this one cannot be read; others may.
        """

    def groups_csv(self) -> str | None:
        """The text of a `groups.csv` at the root or in the one top folder; None where there is none."""

    def close(self) -> None:
        """Let go of everything; a second time does nothing."""

    def __enter__(self) -> Self:
        """Hand over itself."""

    def __exit__(self, *_: object) -> None:
        """Close it."""


def open_source(location: str | Path, limits: Limits | None = None) -> Source:
    """Open a zip or a folder of images, read-only.

    A zip's directory is audited here, before anything is read: see `trainer.archives`. One file at a time is in memory.

    Args:
        location: path of a zip or a folder.
        limits: how much it may hold; the defaults serve a million images.

    Raises:
        SourceError: not there, neither a zip nor a folder, empty, unsafe, or without a single image.
    """
    _refuse_url(str(location))
    limits = limits or Limits()
    path = Path(location)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        msg = f"source {path} cannot be read ({why}): expected a zip or a folder of images; check the path"
        raise SourceError(msg) from error
    if stat.S_ISDIR(mode):
        store: Store = _Folder(path, limits)
    elif stat.S_ISREG(mode):
        store = _Zip(path, limits, _is_wanted)
    else:
        msg = f"source {path} is neither a file nor a folder: expected a zip or a folder of images"
        raise SourceError(msg)
    try:
        return StoredSource(store, str(location))
    except SourceError:
        store.close()
        raise


class StoredSource:
    """A Source on a Store: what is ignored, in which order, with which notes. The one implementation of `Source`."""

    def __init__(self, store: Store, origin: str) -> None:
        """Sort the store's files into images and the rest.

        Raises:
            SourceError: there is nothing that could be an image.
        """
        self._store = store
        self.origin = origin
        names = sorted(store.sizes)
        kinds = {name: _kind(name) for name in names}
        self._items = tuple(Item(name, store.sizes[name]) for name in names if kinds[name] == "image")
        self._groups_name = _find_groups(names)
        self.notes: Sequence[str] = (*store.notes, *_notes(kinds))
        if not self._items:
            seen = f"{len(names)} other files" if names else "nothing"
            hints = "".join(f"; {note}" for note in self.notes)
            msg = f"{origin} holds no images, but {seen}: expected two class folders, such as good/ and fail/{hints}"
            raise SourceError(msg)

    def __enter__(self) -> Self:
        """Hand over itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def close(self) -> None:
        """Close the store; a second time does nothing."""
        self._store.close()

    def items(self) -> Sequence[Item]:
        """Every file that may be an image, sorted by name."""
        return self._items

    def read(self, name: str) -> bytes:
        """The content of one item.

        Raises:
            MemberError: not in the source, damaged, unreadable or over the size limit.
        """
        return self._store.read(name)

    def groups_csv(self) -> str | None:
        """The text of `groups.csv` at the source's root or in its one top folder; None where there is none.

        Raises:
            SourceError: it is there and is not UTF-8 text.
        """
        if self._groups_name is None:
            return None
        return decode_csv(self._store.read(self._groups_name), f"{self._groups_name} in {self.origin}")


def decode_csv(content: bytes, origin: str) -> str:
    """Text of a CSV file as spreadsheets save it: UTF-8, with or without a byte order mark.

    Raises:
        SourceError: the bytes are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{origin} is not UTF-8 text ({error.reason} at byte {error.start}): save it as 'CSV UTF-8'"
        raise SourceError(msg) from error


class _Zip(SafeZip):
    """An audited zip as a Store."""

    notes: Sequence[str] = ()


class _Folder:
    """A folder as a Store. Links are followed only to files inside it."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._root = path.resolve()
        self._limits = limits
        self.sizes: dict[str, int] = {}
        self._unfollowed: list[str] = []
        self._walk()

    @property
    def notes(self) -> Sequence[str]:
        """One line on links that were not followed."""
        if not self._unfollowed:
            return ()
        count = len(self._unfollowed)
        first = show(self._unfollowed[0])
        return (f"{count} link{'' if count == 1 else 's'} not followed (to a folder, nothing or outside): {first}",)

    def read(self, name: str) -> bytes:
        """The content of one file, up to the size limit."""
        if name not in self.sizes:
            msg = f"{show(name)} is not in {self._root}: expected a name from its listing"
            raise MemberError(msg)
        limit_bytes = self._limits.max_member_bytes
        try:
            with (self._root / name).open("rb") as file:
                content = file.read(limit_bytes + 1)
        except OSError as error:
            msg = f"{self._root / name} cannot be read: {error.strerror}"
            raise MemberError(msg) from error
        if len(content) > limit_bytes:
            msg = f"{self._root / name} is larger than {limit_bytes:,} bytes: expected one image; take it out"
            raise MemberError(msg)
        return content

    def close(self) -> None:
        """Nothing is held open."""

    def _walk(self) -> None:
        """List every plain file below the root."""
        for folder, folders, files in os.walk(self._root, onerror=_refuse_unlisted):
            self._unfollowed += [self._name(folder, name) for name in folders if Path(folder, name).is_symlink()]
            for name in files:
                self._add(Path(folder, name), self._name(folder, name))

    def _name(self, folder: str, name: str) -> str:
        """Path inside the source."""
        return Path(folder, name).relative_to(self._root).as_posix()

    def _add(self, path: Path, name: str) -> None:
        """Note one file's size; pipes and devices are no files, a link counts where its target lies inside."""
        if path.is_symlink() and not path.resolve().is_relative_to(self._root):
            self._unfollowed.append(name)
            return
        try:
            status = path.stat()
        except OSError:  # a link to nothing, or a file deleted since it was listed
            self._unfollowed.append(name)
            return
        if stat.S_ISREG(status.st_mode):
            self.sizes[name] = status.st_size
        if len(self.sizes) > self._limits.max_members:
            msg = f"{self._root} holds more than {self._limits.max_members:,} files: split it"
            raise SourceError(msg)


def _refuse_unlisted(error: OSError) -> None:
    """A folder that cannot be listed would silently shrink a class."""
    msg = f"folder {error.filename} cannot be listed: {error.strerror}; give this user the right to read it"
    raise SourceError(msg) from error


def _refuse_url(location: str) -> None:
    """Say which extra will serve a URL. A URL that went through Path has lost one slash."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", location)
    if not match:
        return
    scheme = match[1].lower()
    extra = EXTRAS.get(scheme)
    later = f"{scheme}:// will be served by the extra framegate[{extra}]" if extra else f"{scheme}:// is not served"
    msg = (
        f"source {location} is a URL: this version reads a zip or a folder on this machine ({later}); "
        "copy the images here first"
    )
    raise SourceError(msg)


def _kind(name: str) -> str:
    """What a file promises to be: image, nested, video or ignored."""
    path = PurePosixPath(name)
    if any(part.startswith(".") or part.lower() in CLUTTER for part in path.parts):
        return "ignored"
    suffix = path.suffix.lower()
    if suffix in NESTED_SUFFIXES:
        return "nested"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "ignored" if suffix in TEXT_SUFFIXES else "image"


def _is_wanted(name: str) -> bool:
    """Will this file be read as an image: only then its size and packing matter."""
    return _kind(name) == "image"


def _notes(kinds: Mapping[str, str]) -> list[str]:
    """One line per kind of file that the user may have meant as images."""
    words = {"nested": ("archive", "unpack what should be trained on"), "video": ("video", "export single images")}
    counts = Counter(kinds.values())
    notes = []
    for kind, (word, cure) in words.items():
        if counts[kind]:
            first = next(name for name, own in kinds.items() if own == kind)
            plural = "" if counts[kind] == 1 else "s"
            notes.append(f"{counts[kind]} {word}{plural} inside the source ignored, such as {show(first)}: {cure}")
    return notes


def _find_groups(names: Sequence[str]) -> str | None:
    """Name of the groups file at the root, or in the one folder that holds everything else."""
    found = [name for name in names if PurePosixPath(name).name.lower() == GROUPS_FILE]
    for name in found:
        if "/" not in name:
            return name
    tops = {name.split("/")[0] for name in names if _kind(name) == "image"}
    below_top = [name for name in found if name.count("/") == 1 and {name.split("/")[0]} == tops]
    return below_top[0] if len(below_top) == 1 else None
