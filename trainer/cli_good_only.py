"""What `framegate train --mode good-only` prints, and which options are its alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from engine.errors import InputError
from trainer.printing import print_end, print_found
from trainer.shares import percent, percent_up

if TYPE_CHECKING:
    from collections.abc import Mapping


def refuse_good_only_options(options: Mapping[str, Any]) -> None:
    """Raises InputError where an option was given that only good-only training knows."""
    if options["max_false_reject"] is not None:
        msg = (
            "--max-false-reject was given without --mode good-only: with two classes the operating point comes from "
            "what defects show; leave it out, or train on good parts alone"
        )
        raise InputError(msg)


def print_good_only(summary: dict[str, Any]) -> None:
    """The summary of a good-only bundle, for people."""
    chosen, held, rejects = summary["chosen"], summary["held_out"], summary["false_rejects"]
    low, high = summary["review_band"]
    taps = ",".join(str(tap) for tap in chosen["taps"])
    tiles = "" if summary["tile_px"] is None else f" in tiles of {summary['tile_px'][0]} x {summary['tile_px'][1]} px"
    click.echo(f"bundle   {summary['bundle']}  (name {summary['name']}, digest {summary['digest'][:12]})")
    click.echo(f"mode     good-only: {rejects['meaning']}")
    click.echo(f"classes  pass {summary['classes']['pass']!r}, fail {summary['classes']['fail']!r}")
    click.echo(
        f"input    {summary['input_px'][0]} x {summary['input_px'][1]} px{tiles}, {chosen['backbone']}, taps {taps}"
    )
    click.echo(f"decides  fail from {summary['threshold']:.3f}, review from {low:.3f} to {high:.3f}")
    click.echo(
        f"good     {summary['images']['used']} trained on; of {rejects['held_out_good_parts']} judged by models of "
        f"other groups {rejects['false_rejects']} would fail: at most {percent_up(rejects['false_reject_at_most'])} at "
        f"{percent(rejects['confidence'])} confidence for parts such as these; other lots may differ"
    )
    goods = held["images"] - held["defects"]
    click.echo(f"held out {goods} good parts: failed {_share(held['false_reject_rate'])}; {_decisions(held)}")
    if held["defects"]:
        click.echo(
            f"         {held['defects']} defects, never trained on: AUROC {held['auroc']:.4f}, not passed "
            f"{_share(held['recall'])}"
        )
    validated = summary["cross_validated"]
    if validated["auroc"] is not None:
        mean = "-" if validated["auroc_mean_of_folds"] is None else f"{validated['auroc_mean_of_folds']:.4f}"
        click.echo(
            f"all      {validated['folds']} parts by group, each judged by good parts of the others: AUROC "
            f"{validated['auroc']:.4f} (mean of parts {mean})"
        )
    print_found(summary)
    print_end(summary)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _decisions(held: dict[str, Any]) -> str:
    return ", ".join(f"{count} {decision}" for decision, count in sorted(held["decisions"].items()))
