"""One file or a folder in a store that fsspec has a package for."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from engine.remote_words import BUNDLE, Stamp, away, changed, denied, empty, missing, too_many, uninstalled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from engine.errors import FramegateError
    from engine.remote_words import Listing, Wanted

PART_BYTES = 4 << 20
PARTS_AT_ONCE = 4
"""Of one file: one stream alone does not fill the line to an object store."""

HINT_S = 10.0
_NAMED = 3

_TELLING = ("etag", "contentmd5", "md5hash", "crc32c", "digest", "versionid", "generation", "checksum")
_DATING = ("lastmodified", "mtime", "updated", "created", "modified")
_REFUSED = frozenset({401, 403})
_REFUSALS = frozenset(
    {
        "ClientAuthenticationError",
        "CredentialRetrievalError",
        "CredentialUnavailableError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "PermissionError",
    }
)
"""Names of what the packages raise where the key is missing or wrong."""


class FsspecStore:
    """See `engine.remote_words.RemoteStore`."""

    def __init__(self, url: str, wanted: Wanted = BUNDLE) -> None:
        """Find the package.

        Raises:
            InputError: it is not installed.
        """
        self._wanted = wanted
        scheme = urlsplit(url).scheme.lower()
        try:
            import fsspec  # noqa: PLC0415 - an extra

            fsspec.get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:
            raise uninstalled(url, wanted, error) from error
        self._url_to_fs: Callable[..., tuple[Any, str]] = fsspec.core.url_to_fs
        self._opened: dict[str, tuple[Any, str]] = {}
        self._stuck: threading.Thread | None = None

    def look(self, url: str) -> Listing:
        """See `RemoteStore`."""

        def ask() -> Listing:
            files, path = self._open(url)
            files.invalidate_cache()
            info = files.info(path)
            if info["type"] != "directory":
                return {"": _stamp(info)}
            top = f"{path.rstrip('/')}/"
            found = files.find(path, detail=True).items()
            # A name that ends in a slash is how some tools make a folder where the store has none.
            return {name.removeprefix(top): _stamp(info) for name, info in found if not name.endswith("/")}

        try:
            listing: Listing = self._bounded(url, self._wanted.look_s, ask)
        except FileNotFoundError as error:
            raise missing(url, self._wanted, self._hint(url)) from error
        if not listing:
            raise empty(url, self._wanted) if self._wanted.tells_neighbours else missing(url, self._wanted)
        if len(listing) > self._wanted.most_files:
            raise too_many(url, self._wanted, len(listing))
        return listing

    def read(self, url: str, name: str, stamp: Stamp) -> Iterator[bytes]:
        """See `RemoteStore`."""
        if stamp.size_bytes is None:
            yield from self._stream(url, name)
            return
        # One more than is there, so that a file that has grown is seen.
        ends = [*range(PART_BYTES, stamp.size_bytes, PART_BYTES), stamp.size_bytes + 1]
        starts = [0, *ends[:-1]]
        if len(ends) == 1:
            yield self._part(url, name, stamp, 0, ends[0])
            return
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            under_way = deque(
                pool.submit(self._part, url, name, stamp, *at)
                for at in zip(starts[:PARTS_AT_ONCE], ends[:PARTS_AT_ONCE], strict=True)
            )
            left = iter(zip(starts[PARTS_AT_ONCE:], ends[PARTS_AT_ONCE:], strict=True))
            try:
                while under_way:
                    part = under_way.popleft().result()
                    if (following := next(left, None)) is not None:
                        under_way.append(pool.submit(self._part, url, name, stamp, *following))
                    yield part
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _part(self, url: str, name: str, stamp: Stamp, start: int, end: int) -> bytes:
        """Bytes from `start` to before `end`, or to where the file ends by its stamp."""
        if stamp.size_bytes == 0:
            return b""  # no range of an empty file is valid
        files, path = self._open(url)
        key = f"{path.rstrip('/')}/{name}" if name else path
        try:
            content: bytes = self._bounded(url, self._wanted.part_s, lambda: files.cat_file(key, start=start, end=end))
        except FileNotFoundError as error:
            raise changed(url, self._wanted, name) from error
        if len(content) != min(end, stamp.size_bytes or 0) - start:
            raise changed(url, self._wanted, name)
        return content

    def _stream(self, url: str, name: str) -> Iterator[bytes]:
        """Where the store does not say how long a file is."""

        def open_() -> Any:
            files, path = self._open(url)
            return files.open(f"{path.rstrip('/')}/{name}" if name else path, "rb", block_size=PART_BYTES)

        try:
            with contextlib.closing(self._bounded(url, self._wanted.part_s, open_)) as file:
                while part := self._bounded(url, self._wanted.part_s, lambda: file.read(PART_BYTES)):
                    yield part
        except FileNotFoundError as error:
            raise changed(url, self._wanted, name) from error

    def _open(self, url: str) -> tuple[Any, str]:
        """The file system and the path in it. Of this store alone: others may have other keys in their environment."""
        if url not in self._opened:
            self._opened[url] = self._url_to_fs(url, skip_instance_cache=True)
        return self._opened[url]

    def _hint(self, url: str) -> str:
        """What the container holds instead, where that can be told at once."""
        if not self._wanted.tells_neighbours:
            return ""

        def ask() -> str:
            files, path = self._open(url)
            container, _, key = path.strip("/").partition("/")
            try:
                names = sorted(str(entry).partition("/")[2] for entry in files.ls(container, detail=False))
            except FileNotFoundError:
                return f"; there is no {container!r} in this account"
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            listed = ", ".join(repr(name) for name in names[:_NAMED])
            return f"; {container!r} holds {listed}{more}" if key and names else f"; {container!r} is empty"

        try:
            return str(self._bounded(url, HINT_S, ask))
        except Exception:  # noqa: BLE001 - the message is as good as it gets without
            return ""

    def _bounded(self, url: str, limit_s: float, work: Callable[[], Any]) -> Any:
        """Do it on a thread of its own and wait for it only so long; while one hangs, no other is begun.

        Raises:
            FileNotFoundError: as the package does.
        """
        if self._stuck is not None and self._stuck.is_alive():
            raise away(url, self._wanted, TimeoutError("the last question is not answered yet"))
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                failure.append(error)

        thread = threading.Thread(target=run, name="remote", daemon=True)
        thread.start()
        thread.join(limit_s)
        if thread.is_alive():
            self._stuck = thread
            raise away(url, self._wanted, TimeoutError(f"no answer within {limit_s:g} s"))
        if failure:
            raise self._told(url, failure[0]) from failure[0]
        return outcome[0]

    def _told(self, url: str, error: BaseException) -> BaseException | FramegateError:
        """What fsspec and its packages raise, as ours."""
        if isinstance(error, FileNotFoundError):
            return error
        code = _refusal(error)
        return away(url, self._wanted, error) if code is None else denied(url, self._wanted, code)


def _refusal(error: BaseException | None) -> str | None:
    """What kind of refusal it is; None: it is none. Only codes: the texts quote requests, and some of them keys."""
    while error is not None:
        response = getattr(error, "response", None)
        details = response.get("Error", {}) if isinstance(response, dict) else {}
        status = getattr(error, "status_code", None)
        code = getattr(error, "error_code", None) or details.get("Code")
        code = getattr(code, "value", code)
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if status in _REFUSED or str(code) in {"401", "403"} or kinds & _REFUSALS:
            return f"{type(error).__name__}{f', {code}' if code else ''}"
        if isinstance(error, ValueError) and "connect to account" in str(error):  # adlfs, of a key that is no key
            return "the key or the connection string is missing or none"
        error = error.__cause__
    return None


def _stamp(info: Mapping[str, Any]) -> Stamp:
    """Of what fsspec tells of one file, in whatever words its package has for it."""
    told = {re.sub(r"[^a-z0-9]", "", str(key).lower()): value for key, value in info.items() if value is not None}
    # Azure's are within what it calls content settings.
    settings = told.get("contentsettings")
    marks = [str(told[key]) for key in _TELLING if key in told] + ([str(settings)] if settings else [])
    if not any(key in told for key in _TELLING):
        marks += [str(told[key]) for key in _DATING if key in told]
    size = told.get("size")
    return Stamp(size if isinstance(size, int) else None, "|".join(marks))
