"""What every room's commands share: settings from `FRAMEGATE_*`, one place for results on standard output."""

from __future__ import annotations

import json
from typing import Any

import click

VERB: dict[str, Any] = {
    "auto_envvar_prefix": "FRAMEGATE",
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "show_default": True,
}
"""`context_settings` of every verb: `--bootstrap-servers` may come as FRAMEGATE_BOOTSTRAP_SERVERS."""


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Write one JSON document to standard output; nothing else goes there under `--json`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    click.echo(text.encode(errors="backslashreplace"))  # of a file name that is not UTF-8: JSON's own escapes
