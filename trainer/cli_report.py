"""The trainer's command `framegate report`: the acceptance report out of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from engine.bundle import read_report
from engine.command import VERB
from engine.errors import BundleError

PAGE, FIGURES = "index.html", "report.json"

_EXAMPLE = """\b
Examples:
  framegate report bundles/parts-1.zip --out parts-1.html
  framegate report bundles/parts-1.zip --json
"""


@click.command(context_settings=VERB, epilog=_EXAMPLE)
@click.argument("bundle")
@click.option("--out", type=click.Path(path_type=Path), help="HTML file to write; by default NAME-report.html here.")
@click.option("--json", "as_json", is_flag=True, help="Print the report's figures as JSON instead of writing the page.")
def report(bundle: str, out: Path | None, *, as_json: bool) -> None:
    """Take the acceptance report out of BUNDLE, a folder or a zip: one page that opens in any browser, offline."""
    content = read_report(bundle, FIGURES if as_json else PAGE)
    if as_json:
        click.echo(content.decode(), nl=False)
        return
    place = out or Path(f"{Path(bundle).name.removesuffix('.zip')}-report.html")
    if place.exists():
        msg = f"{place} exists already: expected a new file, nothing is written over; give another --out"
        raise BundleError(msg)
    try:
        place.write_bytes(content)
    except OSError as error:
        msg = f"{place} cannot be written: {error.strerror}; give another --out"
        raise BundleError(msg) from error
    click.echo(f"report   {place}: open it in a browser, print it, sign it")
