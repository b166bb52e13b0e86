"""One file behind a web server, which is a zip."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from engine.errors import RemoteError
from engine.locations import shown
from engine.remote_words import BUNDLE, Stamp, away, changed, denied, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.remote_words import Listing, Wanted

CONNECT_S, READ_S = 5.0, 20.0
PART_BYTES = 1 << 16
"""What was read of a part that breaks off is lost: small ones."""

PAUSES_S = (1.0, 3.0, 10.0)
"""Before a file that broke off is continued; as many times without a byte of it, then it is an error."""

_GONE = frozenset({404, 410})
_REFUSED = frozenset({401, 403, 407})
_HEAD_IS_NOT_FOR_ALL = frozenset({401, 403, 405, 501})
_HICCUPS = frozenset({429, 500, 502, 503, 504})
_PARTIAL = 206


class HttpStore:
    """See `engine.remote_words.RemoteStore`."""

    def __init__(self, wanted: Wanted = BUNDLE) -> None:
        """For what is wanted."""
        self._wanted = wanted

    def look(self, url: str) -> Listing:
        """See `RemoteStore`."""
        from requests.exceptions import RequestException  # noqa: PLC0415 - only where something comes from the web

        try:
            with _ask("HEAD", url) as answer:
                if answer.status_code not in _HEAD_IS_NOT_FOR_ALL:
                    return {"": self._stamp_of(answer, url)}
            with _ask("GET", url) as answer:  # a signed URL is for one method; what it sends is not read
                return {"": self._stamp_of(answer, url)}
        except (RequestException, OSError, ValueError) as error:
            raise away(url, self._wanted, error) from error

    def read(self, url: str, name: str, stamp: Stamp) -> Iterator[bytes]:  # noqa: ARG002 - there is one
        """See `RemoteStore`. It is continued where the server gives an ETag, which says that it is still the same."""
        done, pauses = 0, iter(PAUSES_S)
        while True:
            try:
                for part in self._from(url, done, stamp):
                    done += len(part)
                    pauses = iter(PAUSES_S)
                    yield part
            except _BrokenOffError as error:
                pause_s = next(pauses, None)
                if pause_s is None or (done and not stamp.mark):
                    raise away(url, self._wanted, error.reason) from error.reason
                time.sleep(pause_s)
            else:
                if stamp.size_bytes not in {None, done}:
                    raise changed(url, self._wanted)
                return

    def _from(self, url: str, start: int, stamp: Stamp) -> Iterator[bytes]:
        """The rest from one byte on. Raises _BrokenOffError where another try may help."""
        from requests.exceptions import RequestException  # noqa: PLC0415 - as above

        headers = {"Range": f"bytes={start}-", "If-Range": stamp.mark} if start else {}
        try:
            with _ask("GET", url, headers) as answer:
                if answer.status_code in _HICCUPS:
                    raise _BrokenOffError(self._refusal(answer, url))
                self._require_good(answer, url)
                if start and answer.status_code != _PARTIAL:  # another file now, or a server that cannot do it
                    raise changed(url, self._wanted)
                yield from answer.iter_content(PART_BYTES)
        except (RequestException, OSError) as error:
            raise _BrokenOffError(error) from error

    def _stamp_of(self, answer: Any, url: str) -> Stamp:
        self._require_good(answer, url)
        headers = answer.headers
        size = headers.get("Content-Length")
        mark = headers.get("ETag") or headers.get("Content-MD5") or headers.get("Last-Modified") or ""
        return Stamp(int(size) if size and size.isdigit() else None, mark)

    def _require_good(self, answer: Any, url: str) -> None:
        if answer.status_code in _GONE:
            raise missing(url, self._wanted)
        if answer.status_code in _REFUSED:
            raise denied(url, self._wanted, f"{answer.status_code} {answer.reason}")
        if not answer.ok:
            raise self._refusal(answer, url)

    def _refusal(self, answer: Any, url: str) -> RemoteError:
        return RemoteError(
            f"{self._wanted.noun} {shown(url)} cannot be fetched: the server answers {answer.status_code} "
            f"{answer.reason}; expected 200; see its log and what it allows this machine"
        )


class _BrokenOffError(Exception):
    """What was under way did not come to its end."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextlib.contextmanager
def _ask(method: str, url: str, headers: dict[str, str] | None = None) -> Iterator[Any]:
    import requests  # noqa: PLC0415 - as above

    answer = requests.request(
        method,
        url,
        stream=True,
        allow_redirects=True,
        timeout=(CONNECT_S, READ_S),
        headers={"Accept-Encoding": "identity", "Cache-Control": "no-cache", **(headers or {})},
    )
    with contextlib.closing(answer):
        yield answer
