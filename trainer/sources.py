"""Where training images come from: a zip or a folder, here or at a URL.

A kind of source is a `Store`: names with sizes, and the bytes of one name. Which of the files are images, what is
ignored and which notes the user gets is decided here, once, for all of them. Nothing is decoded.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import unquote, urlsplit

from engine.locations import is_url, shown
from trainer.archives import Limits, SafeZip, show
from trainer.csv_rows import decode_csv
from trainer.errors import SourceError
from trainer.folder import Folder
from trainer.kinds import find_groups, is_image, kind_of
from trainer.object_store import open_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trainer.kinds import Kind
    from trainer.progress import Step


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

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None]) -> None:
        """Bring these paths of `sizes` to this machine where they are not, each once however often it is read.

        What was not brought is brought when it is read.

        Raises:
            WorkError: the store is away, breaks off, or there is no room. Nothing is set aside for that.
        """

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
        """What the user gave, for messages and the bundle's manifest; without secrets."""

    @property
    def notes(self) -> Sequence[str]:
        """What was ignored and why, for the user."""

    def items(self) -> Sequence[Item]:
        """Every file that may be an image, sorted by name: a zip and the folder it was made of train alike.

        That an item decodes is not promised: nothing speaks against it, that is all.
        """

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None] = lambda _: None) -> None:
        """Bring these items to this machine where they are elsewhere: each once, however often it is read.

        Raises:
            WorkError: they cannot be had now.
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


def open_source(
    location: str | Path, limits: Limits | None = None, tell: Callable[[Step], None] = lambda _: None
) -> Source:
    """Open a zip or a folder of images, here or at a URL, read-only.

    A zip's directory is audited here, before anything is read: see `trainer.archives`. One file at a time is in memory.
    A zip at a URL is fetched here, once, into a file of this run; of a folder at a URL only the names are, see `fetch`.

    Args:
        location: path or URL of a zip or a folder; of a URL's keys its package knows, see `engine.remote`.
        limits: how much it may hold; the defaults serve a million images.
        tell: told how far fetching is.

    Raises:
        SourceError: not there, neither a zip nor a folder, empty, unsafe, or without a single image; or the store does
            not let us.
        WorkError: it cannot be fetched now.
    """
    limits = limits or Limits()
    text = str(location)
    if is_url(text):
        store: Store = open_remote(text, limits, tell)
    else:
        _refuse_half_urls(text)
        store = _open_path(Path(unquote(urlsplit(text).path)) if text.startswith("file://") else Path(text), limits)
    try:
        return StoredSource(store, shown(text))
    except BaseException:
        store.close()
        raise


def _open_path(path: Path, limits: Limits) -> Store:
    """A zip or a folder here."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        msg = f"source {path} cannot be read ({why}): expected a zip or a folder of images; check the path"
        raise SourceError(msg) from error
    if stat.S_ISDIR(mode):
        return Folder(path, limits)
    if stat.S_ISREG(mode):
        return _Zip(path, limits, is_image)
    msg = f"source {path} is neither a file nor a folder: expected a zip or a folder of images"
    raise SourceError(msg)


def _refuse_half_urls(text: str) -> None:
    """A URL that went through a path has lost one slash."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", text)
    if match:
        msg = f"source {shown(text)} is neither a path nor a URL: expected {match[1]}:// with two slashes"
        raise SourceError(msg)


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
        kinds = {name: kind_of(name) for name in names}
        self._items = tuple(Item(name, store.sizes[name]) for name in names if kinds[name] == "image")
        self._groups_name = find_groups(names)
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

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None] = lambda _: None) -> None:
        """Bring these items here where they are elsewhere.

        Raises:
            WorkError: they cannot be had now.
        """
        self._store.fetch(names, tell)

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


class _Zip(SafeZip):
    """An audited zip as a Store."""

    notes: Sequence[str] = ()

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None]) -> None:
        """All of it is here."""


def _notes(kinds: Mapping[str, Kind]) -> list[str]:
    """One line per kind of file that the user may have meant as images."""
    words: Mapping[Kind, tuple[str, str]] = {
        "nested": ("archive", "unpack what should be trained on"),
        "video": ("video", "export single images"),
    }
    counts = Counter(kinds.values())
    notes = []
    for kind, (word, cure) in words.items():
        if counts[kind]:
            first = next(name for name, own in kinds.items() if own == kind)
            plural = "" if counts[kind] == 1 else "s"
            notes.append(f"{counts[kind]} {word}{plural} inside the source ignored, such as {show(first)}: {cure}")
    return notes
