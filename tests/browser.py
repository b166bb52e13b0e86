"""A headless Chromium that reaches nothing but files, for tests marked `browser`."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page

FLAGS = (
    "--no-sandbox",  # tests may run as root in a container
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass
class Opened:
    """A page, and what went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@contextmanager
def opened(file: Path, profile: Path, **context: Any) -> Iterator[Opened]:
    """The page of a file; every request for anything but a file is refused and complained of."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            str(profile), executable_path=chromium, headless=True, args=list(FLAGS), offline=True, **context
        )
        try:
            page = browser.new_page()
            found = Opened(page)
            page.on("console", lambda said: found.complaints.append(f"{said.type}: {said.text}"))
            page.on("pageerror", lambda error: found.complaints.append(f"error: {error}"))
            page.on("request", lambda request: _refuse_network(request.url, found))
            page.on("requestfailed", lambda request: found.complaints.append(f"failed: {request.url[:200]}"))
            page.goto(file.as_uri())
            yield found
        finally:
            browser.close()


def _refuse_network(url: str, found: Opened) -> None:
    if not url.startswith(("file:", "data:")):
        found.complaints.append(f"asked for {url}")
