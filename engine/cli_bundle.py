"""Where bundles from URLs are kept, as an option for every command that opens a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.plan_cache import default_folder

if TYPE_CHECKING:
    from collections.abc import Callable


def bundle_cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--bundle-cache`: a Path, whether it was given or not."""
    option = click.option(
        "--bundle-cache",
        default=lambda: default_folder(os.environ).with_name("bundles"),
        show_default="framegate/bundles in the user's cache folder",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="FOLDER",
        help="Where bundles fetched from URLs are kept.",
    )
    decorated: Callable[..., Any] = option(command)
    return decorated
