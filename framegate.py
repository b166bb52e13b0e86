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
    "score": ("engine.cli", "score"),
    "verify": ("engine.cli", "verify"),
    "run": ("consumer.cli", "run"),
    "camera": ("consumer.cli_camera", "camera"),
    "broker": ("consumer.cli", "broker"),
    "topics": ("consumer.cli", "topics"),
    "demo": ("consumer.cli_demo", "demo"),
}
"""Verb -> (module, attribute). Loaded on demand: `framegate broker` must not wait for scikit-learn."""


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
    shared = {key.replace("-", "_"): value for key, value in content.items() if not isinstance(value, dict)}
    merged: dict[str, Any] = {}
    for verb in VERBS:
        own = content.get(verb, {})
        merged[verb] = {**shared, **{key.replace("-", "_"): value for key, value in own.items()}}
    return merged


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
