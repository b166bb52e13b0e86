"""What `framegate train` prints for people at the end, whatever the mode."""

from __future__ import annotations

from typing import Any

import click

from trainer.archives import show


def print_found(summary: dict[str, Any]) -> None:
    """What training of either mode noticed of the images."""
    for check, state in summary["camera_checks"].items():
        click.echo(f"camera   {check} check {state}")
    for note in summary["notes"]:
        click.echo(f"note     {note}")
    if summary["skipped"]:
        name, why = summary["skipped"][0]
        click.echo(f"skipped  {len(summary['skipped'])} files; first: {show(name)}: {why}")


def print_end(summary: dict[str, Any]) -> None:
    """Where the acceptance report is, and what it all took."""
    if summary["report"]:
        bundle = summary["bundle"]
        page = f"framegate report {bundle}" if bundle.endswith(".zip") else f"{bundle}/{summary['report']}"
        click.echo(f"report   {page}")
    click.echo(f"took     {summary['seconds']:.1f} s")
