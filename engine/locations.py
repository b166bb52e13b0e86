"""Where a bundle is: a path, or a URL. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def is_url(location: str) -> bool:
    """Whether a location has to be fetched; `file://` has not."""
    return "://" in location and not location.startswith("file://")


def shown(location: str) -> str:
    """A location for messages: without a user, a password or a query, which may be a signature."""
    if "://" not in location:
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "…" if parts.query else "", ""))
