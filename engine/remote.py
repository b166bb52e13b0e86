"""Bundles at a URL: what lies there now, told without fetching it, and its bytes.

`http(s)://` is asked with requests, which is always here; everything else (`s3://`, `az://`, `gs://`, …) through fsspec
and the package that serves the scheme. Credentials come from where those packages look for them: their environment
variables and files. Every call ends in bounded time, for a server that is silent must not keep a process for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from engine.errors import BundleError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONNECT_S, READ_S = 5.0, 20.0
LOOK_S = 30.0
"""How long a store may take to tell what it has, and how long it may take for one part of a file."""

PART_BYTES = 4 << 20
MOST_FILES = 1000
HTTP = frozenset({"http", "https"})
EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
}
"""URL scheme -> the extra of ours that serves it."""

_HEAD_IS_NOT_FOR_ALL = frozenset({403, 405, 501})
_SECRETS = re.compile(r"(?<=\?)[^\s'\")]+|(?<=//)[^\s/@]+(?=@)")
"""In a URL within a message: its query, which may be a signature, and its user with a password."""

_GONE = frozenset({404, 410})
_TELLING = ("etag", "contentmd5", "md5hash", "crc32c", "digest", "versionid", "generation", "checksum")
_DATING = ("lastmodified", "mtime", "updated", "created", "modified")


@dataclass(frozen=True, slots=True)
class Stamp:
    """One file as a look tells it.

    Attributes:
        size_bytes: None where the store does not say.
        mark: changes with the content as far as the store tells: from an ETag or checksum, else from the time of
            change; empty where it gives neither.
    """

    size_bytes: int | None
    mark: str


Listing = dict[str, Stamp]
"""What lies at a URL: relative posix paths of a folder, or one file under the empty name."""


class RemoteStore(Protocol):
    """Reads one kind of URL. From several threads."""

    def look(self, url: str) -> Listing:
        """What is there now; nothing is fetched.

        Raises:
            BundleError: nothing is there, or more than a bundle has.
            RemoteError: it cannot be told now: away, silent, not allowed.
        """
        ...

    def read(self, url: str, name: str) -> Iterator[bytes]:
        """The bytes of one file of a listing, in parts. Raises as `look`, on the way too."""
        ...


def is_url(location: str) -> bool:
    """Whether a location has to be fetched; `file://` has not."""
    return "://" in location and not location.startswith("file://")


def shown(location: str) -> str:
    """A location for messages: without a user, a password or a query, which may be a signature."""
    if "://" not in location:
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "…" if parts.query else "", ""))


def open_store(url: str) -> RemoteStore:
    """What reads this URL.

    Raises:
        BundleError: nothing here reads such URLs; the message says what to install.
    """
    return HttpStore() if urlsplit(url).scheme.lower() in HTTP else FsspecStore(url)


class HttpStore:
    """One file behind a web server: a zip."""

    def look(self, url: str) -> Listing:
        """See `RemoteStore`."""
        with self._ask("HEAD", url) as answer:
            if answer.status_code not in _HEAD_IS_NOT_FOR_ALL:
                return {"": _stamp_of(answer, url)}
        with self._ask("GET", url) as answer:  # a signed URL is for one method; what it sends is not read
            return {"": _stamp_of(answer, url)}

    def read(self, url: str, name: str) -> Iterator[bytes]:  # noqa: ARG002 - there is one
        """See `RemoteStore`."""
        from requests.exceptions import RequestException  # noqa: PLC0415 - as below

        with self._ask("GET", url) as answer:
            _require_good(answer, url)
            try:
                yield from answer.iter_content(PART_BYTES)
            except (RequestException, OSError) as error:
                raise _away(url, error) from error

    @contextlib.contextmanager
    def _ask(self, method: str, url: str) -> Iterator[Any]:
        import requests  # noqa: PLC0415 - only where a bundle comes from the web

        try:
            answer = requests.request(
                method,
                url,
                stream=True,
                allow_redirects=True,
                timeout=(CONNECT_S, READ_S),
                headers={"Accept-Encoding": "identity", "Cache-Control": "no-cache"},
            )
        except (requests.exceptions.RequestException, OSError, ValueError) as error:
            raise _away(url, error) from error
        with contextlib.closing(answer):
            yield answer


def _stamp_of(answer: Any, url: str) -> Stamp:
    _require_good(answer, url)
    headers = answer.headers
    size = headers.get("Content-Length")
    mark = headers.get("ETag") or headers.get("Content-MD5") or headers.get("Last-Modified") or ""
    return Stamp(int(size) if size and size.isdigit() else None, mark)


def _require_good(answer: Any, url: str) -> None:
    if answer.status_code in _GONE:
        raise _missing(url)
    if not answer.ok:
        msg = (
            f"bundle {shown(url)} cannot be fetched: the server answers {answer.status_code} {answer.reason}; expected "
            "200; see its log and what it allows this machine"
        )
        raise RemoteError(msg)


class FsspecStore:
    """Anything that fsspec has a package for: one zip, or a folder."""

    def __init__(self, url: str) -> None:
        """Find the package.

        Raises:
            BundleError: it is not installed.
        """
        scheme = urlsplit(url).scheme.lower()
        try:
            import fsspec  # noqa: PLC0415 - an extra

            fsspec.get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:
            raise _uninstalled(scheme, url, error) from error
        self._url_to_fs: Callable[..., tuple[Any, str]] = fsspec.core.url_to_fs
        self._stuck: threading.Thread | None = None

    def look(self, url: str) -> Listing:
        """See `RemoteStore`."""

        def ask() -> Listing:
            files, path = self._url_to_fs(url)
            files.invalidate_cache()
            info = files.info(path)
            if info["type"] != "directory":
                return {"": _stamp(info)}
            found = files.find(path, detail=True)
            root = PurePosixPath(path)
            return {str(PurePosixPath(name).relative_to(root)): _stamp(entry) for name, entry in found.items()}

        listing: Listing = self._bounded(url, ask)
        if not listing:
            raise _missing(url)
        if len(listing) > MOST_FILES:
            msg = f"bundle {shown(url)} is a folder of {len(listing)} files: expected one that `framegate train` wrote"
            raise BundleError(msg)
        return listing

    def read(self, url: str, name: str) -> Iterator[bytes]:
        """See `RemoteStore`."""

        def open_() -> Any:
            files, path = self._url_to_fs(url)
            return files.open(f"{path.rstrip('/')}/{name}" if name else path, "rb", block_size=PART_BYTES)

        with contextlib.closing(self._bounded(url, open_)) as file:
            while part := self._bounded(url, lambda: file.read(PART_BYTES)):
                yield part

    def _bounded(self, url: str, work: Callable[[], Any]) -> Any:
        """Do it on a thread of its own and wait for it no longer than `LOOK_S`; while one hangs, no other is begun."""
        if self._stuck is not None and self._stuck.is_alive():
            raise _away(url, TimeoutError("the last question is not answered yet"))
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                failure.append(error)

        thread = threading.Thread(target=run, name="remote", daemon=True)
        thread.start()
        thread.join(LOOK_S)
        if thread.is_alive():
            self._stuck = thread
            raise _away(url, TimeoutError(f"no answer within {LOOK_S:g} s"))
        if failure:
            raise _told(url, failure[0]) from failure[0]
        return outcome[0]


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


def mark_of(stamp: Stamp) -> int:
    """A stamp's mark as a number below 2**63, for a `Sight`."""
    return int.from_bytes(hashlib.sha256(stamp.mark.encode()).digest()[:8], "big") >> 1


def _missing(url: str) -> BundleError:
    return BundleError(f"bundle {shown(url)} is not there: expected a zip or a folder that `framegate train` wrote")


def _told(url: str, error: BaseException) -> BundleError | RemoteError:
    """What fsspec and its packages raise, as ours."""
    return _missing(url) if isinstance(error, FileNotFoundError) else _away(url, error)


def _away(url: str, error: BaseException) -> RemoteError:
    reason = " ".join(_SECRETS.sub("…", str(error)).split())[:200]
    return RemoteError(
        f"bundle {shown(url)} cannot be fetched: {type(error).__name__}: {reason}; see that the server runs, that this "
        "machine reaches it and that it is allowed to read"
    )


def _uninstalled(scheme: str, url: str, error: Exception) -> BundleError:
    extra = EXTRAS.get(scheme)
    cure = (
        f"pip install 'framegate[{extra}]'"
        if extra
        else f"install fsspec and the package that it names for {scheme}://"
    )
    return BundleError(
        f"bundle {shown(url)} cannot be fetched: {scheme}:// is not served here ({error}); expected a folder, a zip or "
        f"an https:// URL without further packages; {cure}"
    )
