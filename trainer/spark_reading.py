"""How an executor reads single images: by what the driver's listing says of each, listing nothing itself.

A folder of ten million images takes minutes to list, and an object store as many; each worker would do it again.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from engine.locations import is_url
from engine.remote import open_store
from engine.remote_words import Stamp, Wanted
from trainer.archives import Limits, member_path, show
from trainer.errors import MemberError, SourceError
from trainer.folder import read_file
from trainer.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.remote_words import RemoteStore
    from trainer.sources import Source

LIMITS = Limits(max_members=20_000_000, max_total_bytes=64 << 40)
"""Of a source that is featurized by a cluster."""

AT_ONCE = 8
"""Reads from an object store under way in one worker: each waits for the store, not for the line."""

SOURCE = Wanted(
    "source",
    "a folder of images",
    absent=SourceError,
    denied=SourceError,
    most_files=LIMITS.max_members,
    look_s=3600.0,  # a store tells a thousand names at a time
    part_s=60.0,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as the driver's listing tells it.

    Attributes:
        name: path inside the source.
        key: the same as the store spells it; empty where the image lies in a zip.
        size_bytes: None where the store does not say.
        mark: changes with the content, as far as the store tells; empty where it does not.
    """

    name: str
    key: str
    size_bytes: int | None
    mark: str


class Reader(Protocol):
    """Reads what a listing told of.

    Attributes:
        at_once: how many reads may be under way.
    """

    at_once: int

    def read(self, entry: Entry) -> bytes:
        """The whole content.

        Raises:
            MemberError: this one cannot be read; others may.
            WorkError: the store is away, or the image is another one than when it was listed.
        """

    def close(self) -> None:
        """Let go of everything."""


def listed(source: Source, location: str, names: Sequence[str]) -> list[Entry]:
    """What there is to say of the images that a source lists, for those who do not list it.

    Raises:
        SourceError: an image is gone since it was listed.
        WorkError: the store is away.
    """
    if not is_url(location):
        sizes = {item.name: item.size_bytes for item in source.items()}
        is_loose = _path(location).is_dir()
        return [Entry(name, name if is_loose else "", sizes[name], "") for name in names]
    listing = open_store(location, SOURCE).look(location)
    keys = {member_path(key): key for key in listing if key}
    if not keys.keys() & set(names):
        return [Entry(name, "", None, "") for name in names]  # a zip, which is fetched whole
    gone = next((name for name in names if name not in keys), None)
    if gone is not None:
        msg = f"{show(gone)} is gone from {source.origin} since it was listed: expected it to stay; start again"
        raise SourceError(msg)
    return [Entry(name, keys[name], listing[keys[name]].size_bytes, listing[keys[name]].mark) for name in names]


def open_reader(location: str, *, is_loose: bool) -> Reader:
    """A reader of loose files, here or at a URL, or of a zip.

    Raises:
        SourceError: there is no such zip, or it is not safe.
    """
    if not is_loose:
        return _Zipped(open_source(location, LIMITS))
    return _Remote(location) if is_url(location) else _Folder(_path(location))


def read_ahead(reader: Reader, entries: Sequence[Entry]) -> Iterator[bytes | MemberError]:
    """Contents, or why one cannot be read, in order; as many reads are under way as the reader allows."""

    def read(entry: Entry) -> bytes | MemberError:
        try:
            return reader.read(entry)
        except MemberError as error:
            return error

    if reader.at_once == 1:
        yield from map(read, entries)
        return
    with ThreadPoolExecutor(reader.at_once, "read") as pool:
        waiting = deque(pool.submit(read, entry) for entry in entries[: 2 * reader.at_once])
        try:
            for entry in entries[2 * reader.at_once :]:
                yield waiting.popleft().result()
                waiting.append(pool.submit(read, entry))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Remote:
    """Loose files of an object store."""

    at_once = AT_ONCE

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: RemoteStore = open_store(url, SOURCE)

    def read(self, entry: Entry) -> bytes:
        """See `Reader`."""
        content = bytearray()
        limit_bytes = LIMITS.max_member_bytes
        for part in self._store.read(self._url, entry.key, Stamp(entry.size_bytes, entry.mark)):
            content += part
            if len(content) > limit_bytes:
                msg = f"{show(entry.name)} is larger than {limit_bytes:,} bytes: expected one image"
                raise MemberError(msg)
        return bytes(content)

    def close(self) -> None:
        """Nothing is held open."""


class _Folder:
    """Loose files below a folder."""

    at_once = 1

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def read(self, entry: Entry) -> bytes:
        """See `Reader`."""
        path = self._root / entry.key
        if not path.resolve().is_relative_to(self._root):
            msg = f"{show(entry.name)} leads out of {self._root}: expected a file in it"
            raise MemberError(msg)
        return read_file(path, LIMITS.max_member_bytes)

    def close(self) -> None:
        """Nothing is held open."""


class _Zipped:
    """Members of a zip, which has its own listing."""

    at_once = 1

    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self, entry: Entry) -> bytes:
        """See `Reader`."""
        return self._source.read(entry.name)

    def close(self) -> None:
        """Close it."""
        self._source.close()


def _path(location: str) -> Path:
    return Path(unquote(urlsplit(location).path)) if location.startswith("file://") else Path(location)
