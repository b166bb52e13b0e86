"""What lies at a URL, told without fetching it, and its bytes.

`http(s)://` is asked with requests, which is always here; everything else (`s3://`, `az://`, `gs://`, …) through fsspec
and the package that serves the scheme. Credentials come from where those packages look for them: their environment
variables and files. Every call ends in bounded time, for a server that is silent must not keep a process for ever.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from engine.remote_fsspec import FsspecStore
from engine.remote_http import HttpStore
from engine.remote_words import BUNDLE

if TYPE_CHECKING:
    from engine.remote_words import RemoteStore, Stamp, Wanted

HTTP = frozenset({"http", "https"})


def open_store(url: str, wanted: Wanted = BUNDLE) -> RemoteStore:
    """What reads this URL; its errors are worded for what is wanted.

    Raises:
        InputError: nothing here reads such URLs; the message says what to install.
    """
    return HttpStore(wanted) if urlsplit(url).scheme.lower() in HTTP else FsspecStore(url, wanted)


def mark_of(stamp: Stamp) -> int:
    """A stamp's mark as a number below 2**63, for a `Sight`."""
    return int.from_bytes(hashlib.sha256(stamp.mark.encode()).digest()[:8], "big") >> 1
