"""Bundles that were fetched from a URL, on this machine's disk. Bounded, private to its user, shared by its processes.

What lies here was checked whole, by the bundle's own checksums, before it got its place: it appears whole or not at
all, and of several processes one fetches while the others wait for it. While a server is away, what was fetched from it
last goes on to serve, as it would have had nothing been started again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from engine.bundle import bundle_url, open_bundle
from engine.errors import BundleError, RemoteError
from engine.locations import shown
from engine.remote import mark_of, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.bundle import Bundle
    from engine.remote_words import Listing, RemoteStore

log = logging.getLogger(__name__)

LARGEST_BYTES = 2 << 30
"""Of one bundle: a hundred times what training writes."""

KEPT = 2
"""Bundles of one URL: the one that serves and the one before."""

KEPT_BYTES = 4 << 30
"""Of all URLs; the oldest used go first."""

TRIES = 3
"""How often a bundle that changed while it was fetched is fetched again."""

UNKNOWN = (("not told yet", 0, 0, 0),)

Sight = tuple[tuple[str, int, int, int], ...]


def open_located(location: str | Path, folder: Path | None) -> Bundle:
    """Open a bundle, wherever it is; one at a URL is fetched into `folder` where it is not there yet.

    Raises:
        BundleError: as `engine.bundle.open_bundle`; without a folder for a URL, too.
        RemoteError: it cannot be fetched now, and nothing was fetched from there before.
    """
    return open_bundle(location, at=copy_of(location, folder))


def copy_of(location: str | Path, folder: Path | None) -> Path | None:
    """The copy on this machine of what lies at a URL, fetched where it is not there yet; None for a path.

    Raises:
        BundleError, RemoteError: as `open_located`.
    """
    url = bundle_url(str(location))
    return None if url is None or folder is None else BundleCache(folder).fetch(url)


class BundleCache:
    """A folder of fetched bundles. From one thread at a time; any number of processes."""

    def __init__(self, folder: Path, open_: Callable[[str], RemoteStore] = open_store) -> None:
        """Use a folder, which is made when something is fetched. `open_` finds what reads a URL."""
        self._folder = folder
        self._open = open_
        self._stores: dict[str, RemoteStore] = {}
        self._seen: dict[str, Sight] = {}
        self._away: set[str] = set()

    def look(self, url: str) -> Sight:
        """What lies at a URL, as `consumer.lineup.sight` tells it of a path; empty where nothing is there.

        While it cannot be told, what was seen last is told again, so that nothing is loaded for it; that it is away is
        logged once, and that it is back.
        """
        try:
            listing = self._listing(url)
        except BundleError:
            self._is_back(url)
            self._seen[url] = ()
        except RemoteError as error:
            if url in self._seen and url not in self._away:
                self._away.add(url)
                log.warning("%s; what was fetched from there before goes on", error)
            self._seen.setdefault(url, UNKNOWN)  # the first time `fetch` tells
        else:
            self._is_back(url)
            self._warn_of_the_unmarked(url, listing)
            self._seen[url] = tuple(
                (name, 0, -1 if stamp.size_bytes is None else stamp.size_bytes, mark_of(stamp))
                for name, stamp in sorted(listing.items())
            )
        return self._seen[url]

    def fetch(self, url: str) -> Path:
        """Where a copy of what lies at a URL now lies on this machine; fetched where none is here yet.

        Raises:
            BundleError: nothing is there, or it is no whole bundle.
            RemoteError: it cannot be fetched now, and nothing was fetched from there before.
        """
        with self._locked(url):
            try:
                return self._current(url)
            except RemoteError as error:
                copies = self._copies(url)
                if not copies:
                    raise
                self._away.add(url)
                log.warning("%s; what was fetched from there before serves", error)
                return copies[0]

    def _current(self, url: str) -> Path:
        listing = self._listing(url)
        for _ in range(TRIES):
            place = self._place(url, listing)
            if place.exists():
                os.utime(place)
                return place
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=self._folder))
            try:
                copy = self._download(url, listing, part)
                after = self._listing(url)
                if after == listing:
                    open_bundle(url, at=copy)
                    os.utime(copy)
                    copy.rename(place)
                    self._prune(place)
                    return place
                listing = after
            finally:
                shutil.rmtree(part, ignore_errors=True)
        msg = f"bundle {shown(url)} changed each of the {TRIES} times that it was fetched: expected it to stand still"
        raise RemoteError(msg)

    def _download(self, url: str, listing: Listing, part: Path) -> Path:
        """All of a listing, below `part`."""
        total = sum(stamp.size_bytes or 0 for stamp in listing.values())
        log.info("fetching bundle %s, %.1f MB", shown(url), total / 1e6)
        top, left = part / "bundle", LARGEST_BYTES
        if total > left:
            raise _too_large(url)
        store = self._store(url)
        for name, stamp in listing.items():
            if name and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
                msg = f"bundle {shown(url)} holds {name!r}: not something Framegate writes"
                raise BundleError(msg)
            path = top / name if name else top
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as file:
                    for content in store.read(url, name, stamp):
                        left -= len(content)
                        if left < 0:
                            raise _too_large(url)
                        file.write(content)
            except OSError as error:
                raise self._unwritable(error) from error
        return top

    def _listing(self, url: str) -> Listing:
        return self._store(url).look(url)

    def _store(self, url: str) -> RemoteStore:
        if url not in self._stores:
            self._stores[url] = self._open(url)
        return self._stores[url]

    def _is_back(self, url: str) -> None:
        if url in self._away:
            self._away.remove(url)
            log.info("bundle %s can be asked for again", shown(url))

    def _warn_of_the_unmarked(self, url: str, listing: Listing) -> None:
        """Once, where a server does not help."""
        if self._seen.get(url, UNKNOWN) == UNKNOWN and not all(stamp.mark for stamp in listing.values()):
            log.warning(
                "%s gives neither an ETag nor a date: of a new bundle only another size will be noticed", shown(url)
            )

    def _place(self, url: str, listing: Listing) -> Path:
        """Of this content of this URL."""
        told = sorted((name, stamp.size_bytes, stamp.mark) for name, stamp in listing.items())
        return self._folder / f"{_digest(url)}-{_digest(json.dumps(told))}"

    def _copies(self, url: str) -> list[Path]:
        """What was fetched from there, the last used first."""
        return _newest_first(self._folder.glob(f"{_digest(url)}-*"))

    @contextlib.contextmanager
    def _locked(self, url: str) -> Iterator[None]:
        """One process at a time for one URL; the lock file stays."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self._folder / f".{_digest(url)}.lock").open("w")
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _unwritable(self, error: OSError) -> RemoteError:
        return RemoteError(
            f"fetched bundles cannot be kept in {self._folder}: {error.strerror}; give a folder that can be written "
            "with --bundle-cache"
        )

    def _prune(self, keep: Path) -> None:
        """Forget what was used longest ago. A process that is just reading it has it open or fetches it again."""
        left, of_url = KEPT_BYTES, {}  # type: int, dict[str, int]
        for place in _newest_first(self._folder.glob("????????????????-*")):
            url = place.name.partition("-")[0]
            of_url[url] = of_url.get(url, 0) + 1
            left -= _bytes_of(place)
            if place != keep and (of_url[url] > KEPT or left < 0):
                _remove(place)


def _too_large(url: str) -> BundleError:
    return BundleError(f"bundle {shown(url)} is larger than {LARGEST_BYTES >> 30} GiB: not something Framegate writes")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _newest_first(places: Iterator[Path]) -> list[Path]:
    times = {}
    for place in places:
        with contextlib.suppress(OSError):  # another process has removed it
            times[place] = place.stat().st_mtime_ns
    return sorted(times, key=lambda place: times[place], reverse=True)


def _bytes_of(place: Path) -> int:
    with contextlib.suppress(OSError):
        files = place.rglob("*") if place.is_dir() else [place]
        return sum(file.stat().st_size for file in files)
    return 0


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            place.unlink()
