"""What every room's commands share: settings from `FRAMEGATE_*`, one place for results on standard output."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from engine.errors import InputError

if TYPE_CHECKING:
    from click import Context, Parameter

VERB: dict[str, Any] = {
    "auto_envvar_prefix": "FRAMEGATE",
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "show_default": True,
}
"""`context_settings` of every verb: `--bootstrap-servers` may come as FRAMEGATE_BOOTSTRAP_SERVERS."""


def _pixel_size(_: Context, option: Parameter, value: str | None) -> tuple[int, int] | None:
    """(width, height), both at least 1. Raises InputError on anything else."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", value, re.ASCII | re.IGNORECASE)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if 0 in size:
        msg = f"{option.opts[0]} {value} is no size: expected WIDTHxHEIGHT in pixels, for example 640x480"
        raise InputError(msg)
    return size


PIXEL_SIZE: dict[str, Any] = {"callback": _pixel_size, "metavar": "WIDTHxHEIGHT"}
"""For `click.option`, where a command shall get (width, height) in pixels."""


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Write one JSON document to standard output; nothing else goes there under `--json`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    click.echo(text.encode(errors="backslashreplace"))  # of a file name that is not UTF-8: JSON's own escapes
