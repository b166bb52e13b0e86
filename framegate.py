"""The front door: one command, `framegate`, that opens the rooms' own commands.

Options come from flags, then `FRAMEGATE_*`, then a TOML file (`framegate --config FILE`, or `FRAMEGATE_CONFIG`):
click does the layering, so nothing else in Framegate reads the environment for a setting.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from engine.errors import FramegateError, InputError

VERBS = {
    "train": ("trainer.cli", "train"),
    "data": ("trainer.cli", "data"),
    "report": ("trainer.cli_report", "report"),
    "score": ("engine.cli", "score"),
    "verify": ("engine.cli", "verify"),
    "build": ("engine.cli_build", "build"),
    "bench": ("engine.cli_bench", "bench"),
    "size": ("consumer.cli_size", "size"),
    "run": ("consumer.cli", "run"),
    "camera": ("consumer.cli_camera", "camera"),
    "broker": ("consumer.cli", "broker"),
    "topics": ("consumer.cli", "topics"),
    "demo": ("consumer.cli_demo", "demo"),
}
"""Verb -> (module, attribute). Loaded on demand: `framegate broker` must not wait for scikit-learn."""

ADDED = {
    "bench": {
        "stream": ("consumer.cli_bench", "stream"),
        "border": ("consumer.cli_bench", "border"),
        "scale": ("consumer.cli_scale", "scale"),
        "train": ("trainer.cli_bench", "train"),
    }
}
"""Verbs below a verb that come from another room than it does."""


OWN = "the verb's own settings"
"""Key beside a verb's settings, no setting itself: which of them came from its own table."""


class FrontDoor(click.Group):
    """A group whose commands load when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Verbs in the order a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the verb's room and hand its command over."""
        if cmd_name not in VERBS:
            return None
        module, attribute = VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        for name, (its_module, its_attribute) in ADDED.get(cmd_name, {}).items():
            if isinstance(command, click.Group):
                command.add_command(getattr(importlib.import_module(its_module), its_attribute), name)
        return command


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML file: top-level keys serve every verb, a table `[run]` only its own.

    Raises:
        InputError: the file is not there or is not TOML.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"config file {path} cannot be read: {error.strerror}; expected a TOML file"
        raise InputError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"config file {path} is not TOML: {error}"
        raise InputError(msg) from error
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    shared = {key.replace("-", "_"): value for key, value in content.items() if key not in tables}
    odd = sorted((set(tables) - set(VERBS)) | (set(shared) & set(VERBS)))
    if odd:
        msg = f"config file {path} has {odd[0]!r}: expected settings, and a table such as [run] for a verb's own ones"
        raise InputError(msg)
    own = {verb: {key.replace("-", "_"): value for key, value in tables.get(verb, {}).items()} for verb in VERBS}
    return {verb: {**shared, **own[verb], OWN: sorted(own[verb])} for verb in VERBS}


def refuse_unknown(ctx: click.Context, command: click.Command) -> None:
    """Refuse a setting in the verb's own table that the verb does not have: a typo must not go unnoticed.

    Top-level settings serve every verb, so one that this verb does not have is another's.
    """
    settings = (ctx.default_map or {}).get(command.name or "", {})
    odd = sorted(set(settings.get(OWN, [])) - {parameter.name for parameter in command.params})
    if odd and not isinstance(command, click.Group):
        known = ", ".join(sorted(parameter.name or "" for parameter in command.params))
        msg = f"the config file has the unknown setting {odd[0]!r} in [{command.name}]: expected some of {known}"
        raise InputError(msg)


@click.group(cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--config", type=click.Path(path_type=Path), envvar="FRAMEGATE_CONFIG", help="TOML file with settings.")
@click.version_option(package_name="framegate", prog_name="framegate")
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Judge parts from camera frames: train on images, score frames from Kafka, publish one verdict per frame.

    \b
    Begin with:  framegate demo
    """  # noqa: D301 - \b is click's mark for "do not rewrap"
    if config is not None:
        ctx.default_map = read_config(config)
        command = cli.get_command(ctx, ctx.invoked_subcommand or "")
        if command is not None:
            refuse_unknown(ctx, command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; every error raised on purpose becomes one line and its exit code."""
    try:
        status = cli.main(args=arguments, prog_name="framegate", standalone_mode=False)
    except FramegateError as error:
        click.echo(f"framegate: error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("framegate: interrupted", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
