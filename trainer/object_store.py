"""Images at a URL: a zip, which is fetched whole, or loose files, which are fetched once their labels are known.

Every byte is fetched once, into a spool of this run, although training reads images several times. A store that breaks
off ends the run in one error: no image is set aside for that, for it would be missing silently in the next bundle.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.locations import shown
from engine.remote import open_store
from engine.remote_words import Wanted, changed
from trainer.archives import MIB, SafeZip, member_path, show
from trainer.errors import MemberError, SourceError
from trainer.kinds import is_image, is_zip
from trainer.progress import Step
from trainer.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from engine.remote_words import Listing, RemoteStore, Stamp
    from trainer.archives import Limits

SOURCE = Wanted(
    "source",
    "a zip or a folder of images",
    absent=SourceError,
    denied=SourceError,
    most_files=1_000_000,
    look_s=600.0,  # a million names come in a thousand pages
    part_s=60.0,  # so long Azure's own client goes on asking
    tells_neighbours=True,
)

AT_ONCE = 8
"""Loose files under way: each waits for the store, not for the line."""

_NAMED = 3


def open_remote(url: str, limits: Limits, tell: Callable[[Step], None]) -> RemoteZip | LooseFiles:
    """Look what lies at a URL. A single zip is fetched; of loose files nothing is yet.

    Loose images go first, as in a folder: a zip beside them is left alone, and a note says how it is trained from.

    Raises:
        SourceError: nothing is there, the store does not let us, several zips, unsafe names, over a limit.
        WorkError: it cannot be fetched now.
    """
    tell(Step("list"))
    store = open_store(url, replace(SOURCE, most_files=limits.max_members))
    listing = store.look(url)
    if set(listing) == {""}:
        return RemoteZip(store, url, "", listing[""], limits, tell)
    keys = _audit(listing, url)
    images = [path for path in keys if is_image(path)]
    zips = sorted(path for path in keys if is_zip(path))
    if images or not zips:
        notes: tuple[str, ...] = ()
        if zips:
            which = f"{shown(url).rstrip('/')}/{zips[0]}"
            notes = (f"loose images are trained on, not what is packed beside them: give {which} to train from it",)
        return LooseFiles(store, url, {path: (key, listing[key]) for path, key in keys.items()}, limits, notes)
    if len(zips) > 1:
        more = f" and {len(zips) - _NAMED} more" if len(zips) > _NAMED else ""
        msg = (
            f"source {shown(url)} holds {len(zips)} zips and no loose image "
            f"({', '.join(show(name) for name in zips[:_NAMED])}{more}): expected one; say which, for example "
            f"{shown(url).rstrip('/')}/{zips[0]}"
        )
        raise SourceError(msg)
    return RemoteZip(store, url, keys[zips[0]], listing[keys[zips[0]]], limits, tell)


class RemoteZip(SafeZip):
    """A zip at a URL as a Store: fetched, then audited like any other."""

    def __init__(
        self, store: RemoteStore, url: str, key: str, stamp: Stamp, limits: Limits, tell: Callable[[Step], None]
    ) -> None:
        """Fetch it.

        Raises:
            SourceError: too large, not a zip, damaged, empty or hostile.
            WorkError: it cannot be fetched now, or changed on the way.
        """
        origin = f"{shown(url).rstrip('/')}/{key}" if key else shown(url)
        self.notes: Sequence[str] = (f"trained from {show(key)}, the one zip in {shown(url)}",) if key else ()
        spool = Spool(origin)
        try:
            _spool_zip(store.read(url, key, stamp), stamp.size_bytes, origin, spool, limits, tell)
            _refuse_another(store.look(url).get(key), stamp, origin)
            super().__init__(origin, limits, is_image, spool.file)
        except BaseException:
            spool.close()
            raise

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None]) -> None:
        """All of it is here."""


class LooseFiles:
    """Loose files at a URL as a Store."""

    def __init__(
        self,
        store: RemoteStore,
        url: str,
        files: dict[str, tuple[str, Stamp]],
        limits: Limits,
        notes: Sequence[str] = (),
    ) -> None:
        """`files`: path -> name as the store spells it, and its stamp.

        Raises:
            SourceError: the images are larger than all may be together.
        """
        self.sizes = {path: stamp.size_bytes or 0 for path, (_, stamp) in files.items()}
        self.notes = tuple(notes)
        self._store = store
        self._url = url
        self._files = files
        self._limits = limits
        self._spool: Spool | None = None
        self._places: dict[str, tuple[int, int]] = {}
        total_bytes = sum(size for path, size in self.sizes.items() if is_image(path))
        if total_bytes > limits.max_total_bytes:
            msg = (
                f"source {shown(url)} holds {total_bytes:,} bytes of images: expected at most "
                f"{limits.max_total_bytes:,}; split it"
            )
            raise SourceError(msg)

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None]) -> None:
        """See `trainer.sources.Store`; several files are under way at once."""
        left = [name for name in names if name not in self._places and self._fits(name)]
        self._spooled().require(sum(self.sizes[name] for name in left))
        done, waiting = 0, iter(left)
        tell(Step("fetch", done, len(left)))
        pool = ThreadPoolExecutor(AT_ONCE, "fetch")
        under_way: deque[tuple[str, Future[tuple[int, int] | None]]] = deque()

        def begin_one() -> None:
            if (name := next(waiting, None)) is not None:
                under_way.append((name, pool.submit(self._bring, name)))

        try:
            for _ in range(2 * AT_ONCE):
                begin_one()
            while under_way:
                name, brought = under_way.popleft()
                self._keep(name, brought.result())
                begin_one()
                done += 1
                tell(Step("fetch", done, len(left)))
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            MemberError: not in the listing, or larger than an image may be.
            WorkError: it was not fetched yet, and cannot be now.
        """
        if name not in self._files:
            msg = f"{show(name)} is not in {shown(self._url)}: expected a name from its listing"
            raise MemberError(msg)
        if name not in self._places and self._fits(name):
            self._keep(name, self._bring(name))
        place = self._places.get(name)
        if place is None:
            limit_bytes = self._limits.max_member_bytes
            msg = f"{show(name)} in {shown(self._url)} is larger than {limit_bytes:,} bytes: expected one image"
            raise MemberError(msg)
        return self._spooled().read(*place)

    def close(self) -> None:
        """Give the room back; a second time does nothing."""
        if self._spool is not None:
            self._spool.close()

    def _fits(self, name: str) -> bool:
        return self.sizes[name] <= self._limits.max_member_bytes

    def _spooled(self) -> Spool:
        if self._spool is None:
            self._spool = Spool(f"source {shown(self._url)}")
        return self._spool

    def _keep(self, name: str, place: tuple[int, int] | None) -> None:
        if place is None:  # the store had not said how large it is
            self.sizes[name] = self._limits.max_member_bytes + 1
        else:
            self._places[name] = place

    def _bring(self, name: str) -> tuple[int, int] | None:
        """Where it lies in the spool and how long it is; None where it is too large."""
        key, stamp = self._files[name]
        content = bytearray()
        for part in self._store.read(self._url, key, stamp):
            content += part
            if len(content) > self._limits.max_member_bytes:
                return None
        return self._spooled().append(bytes(content)), len(content)


def _audit(listing: Listing, url: str) -> dict[str, str]:
    """Path -> name in the store, by the rules of zips: no name leads outside, and none is there twice."""
    keys: dict[str, str] = {}
    for key in sorted(listing):
        path = member_path(key, f"source {shown(url)}: the name", "rename it in the store")
        if path in keys:
            msg = (
                f"source {shown(url)} holds {show(path)} twice, spelled {show(keys[path])} and {show(key)}: rename one"
            )
            raise SourceError(msg)
        keys[path] = key
    return keys


def _refuse_another(now: Stamp | None, before: Stamp, origin: str) -> None:
    """Its parts were asked for one by one: it must be the same at the end."""
    if before.mark and now != before:
        raise changed(origin, SOURCE)


def _spool_zip(
    parts: Iterator[bytes],
    size_bytes: int | None,
    origin: str,
    spool: Spool,
    limits: Limits,
    tell: Callable[[Step], None],
) -> None:
    """All of it, as far as it is allowed to go."""
    total, done_bytes = (size_bytes or 0) // MIB, 0
    spool.require(min(size_bytes or 0, limits.max_total_bytes))
    if size_bytes is None or size_bytes <= limits.max_total_bytes:
        for part in parts:
            done_bytes += len(part)
            if done_bytes > limits.max_total_bytes:
                break
            spool.append(part)
            if (done_bytes - len(part)) // MIB < done_bytes // MIB:
                tell(Step("fetch MiB", done_bytes // MIB, total))
        else:
            return
    msg = f"source {origin} is larger than {limits.max_total_bytes:,} bytes: split it"
    raise SourceError(msg)
