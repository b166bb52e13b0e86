"""Whether a command line is one of Framegate's: read by its own front door, and not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from framegate import cli

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_command_line(arguments: Sequence[str]) -> click.Context:
    """The context of the verb that these arguments call, all its options read.

    Raises:
        click.UsageError: an option, argument or verb is unknown, missing or of another kind.
    """
    context, command, rest = cli.make_context("framegate", list(arguments)), cli, list(arguments)
    group: click.Command = command
    while isinstance(group, click.Group):
        name, found, rest = group.resolve_command(context, rest)
        if name is None or found is None:
            msg = f"no verb in {arguments}"
            raise click.UsageError(msg)
        context, group = found.make_context(name, rest, parent=context), found
    return context
