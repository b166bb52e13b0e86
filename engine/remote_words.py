"""What a store of remote files offers, what is looked for there, and what is said where it fails.

No word of a store's own error is shown where it may hold a secret: of a refusal only its code, of anything else the
text without queries, users and keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from engine.errors import BundleError, RemoteError
from engine.locations import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.errors import FramegateError, InputError

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
}
"""URL scheme -> the extra of ours that serves it."""

_AZURE = (
    "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN), or "
    "AZURE_STORAGE_CONNECTION_STRING"
)
_AMAZON = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL for another store than "
    "Amazon's"
)
_KEYS = {"azure": _AZURE, "s3": _AMAZON}
"""Extra -> where its package finds the keys."""

_SECRETS = re.compile(
    r"(?<=\?)[^\s'\")]+"  # a URL's query, which may be a signature
    r"|(?<=//)[^\s/@]+(?=@)"  # its user, with a password
    r"|(?i:(?<=key=)|(?<=signature=)|(?<=sig=)|(?<=secret=)|(?<=token=)|(?<=password=))[^\s;&,'\")]+"
)
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for at a URL.

    Attributes:
        noun: what it is called in messages.
        expected: what it should be.
        absent: raised where it is not there, or where no package serves the URL.
        denied: raised where the store does not let us.
        most_files: of a folder.
        look_s: how long a store may take to tell what it has.
        part_s: how long it may take for one part of a file.
        tells_neighbours: whether a missing file's container is looked into, for a better message.
    """

    noun: str
    expected: str
    absent: type[InputError]
    denied: type[FramegateError]
    most_files: int
    look_s: float
    part_s: float
    tells_neighbours: bool = False


BUNDLE = Wanted(
    "bundle",
    "a zip or a folder that `framegate train` wrote",
    BundleError,
    RemoteError,  # a consumer goes on with what it has until the store lets it in again
    most_files=1000,
    look_s=30.0,
    part_s=30.0,
)


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
"""What lies at a URL: a folder's files by their path below it, as the store spells it, or one file under no name."""


class RemoteStore(Protocol):
    """Reads one kind of URL. From several threads."""

    def look(self, url: str) -> Listing:
        """What is there now; nothing is fetched.

        Raises:
            InputError: nothing is there, or more than is expected (`Wanted.absent`).
            RemoteError: it cannot be told now: away or silent. Where we are not allowed: `Wanted.denied`.
        """
        ...

    def read(self, url: str, name: str, stamp: Stamp) -> Iterator[bytes]:
        """The bytes of one file of a listing, in parts; each byte is asked for once.

        A file that breaks off is continued where the store allows it, and otherwise an error: what ends without one is
        as long as the stamp says. Raises as `look`, on the way too.
        """
        ...


def missing(url: str, wanted: Wanted, hint: str = "") -> InputError:
    """Nothing lies there."""
    return wanted.absent(f"{wanted.noun} {shown(url)} is not there: expected {wanted.expected}{hint}")


def empty(url: str, wanted: Wanted) -> InputError:
    """A folder or container without a file."""
    return wanted.absent(f"{wanted.noun} {shown(url)} is empty: expected {wanted.expected}")


def denied(url: str, wanted: Wanted, code: str) -> FramegateError:
    """The store does not let us: no key, a wrong one, or one without the right to read."""
    keys = _KEYS.get(EXTRAS.get(urlsplit(url).scheme.lower(), ""), "give its package a key that may read")
    return wanted.denied(f"{wanted.noun} {shown(url)} may not be read: the store refuses ({code}); {keys}")


def away(url: str, wanted: Wanted, error: BaseException) -> RemoteError:
    """It cannot be told or fetched now."""
    reason = " ".join(_SECRETS.sub("…", str(error)).split())[:_LONGEST_REASON]
    return RemoteError(
        f"{wanted.noun} {shown(url)} cannot be fetched: {type(error).__name__}: {reason}; see that the server runs, "
        "that this machine reaches it and that it is allowed to read"
    )


def changed(url: str, wanted: Wanted, name: str = "") -> RemoteError:
    """It is not what the listing said any more."""
    file = f"{name!r} in it" if name else "it"
    return RemoteError(
        f"{wanted.noun} {shown(url)} cannot be fetched: {file} changed or broke off on the way; let it stand still and "
        "start again"
    )


def too_many(url: str, wanted: Wanted, count: int) -> InputError:
    """A folder that is none of ours."""
    return wanted.absent(
        f"{wanted.noun} {shown(url)} is a folder of {count} files: expected {wanted.expected}, of at most "
        f"{wanted.most_files} files"
    )


def uninstalled(url: str, wanted: Wanted, error: Exception) -> InputError:
    """Nothing here reads such URLs."""
    scheme = urlsplit(url).scheme.lower()
    extra = EXTRAS.get(scheme)
    cure = (
        f"pip install 'framegate[{extra}]'"
        if extra
        else f"install fsspec and the package that it names for {scheme}://"
    )
    return wanted.absent(
        f"{wanted.noun} {shown(url)} cannot be fetched: {scheme}:// is not served here ({error}); expected a folder, a "
        f"zip or an https:// URL without further packages; {cure}"
    )
