"""The command `framegate bench train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from engine.command import VERB, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_EXAMPLE = """\b
Examples:
  framegate bench train --images 2000
  framegate bench train --json
"""


@click.command(context_settings=VERB, epilog=_EXAMPLE)
@click.option("--rounds", default=9, type=click.IntRange(min=1), help="Laps from zip to features, and of the engine.")
@click.option(
    "--images",
    default=25_000,
    type=click.IntRange(min=0),
    help="Images of the larger training whose peak memory is taken, beside one of 1,000; 0 leaves memory out.",
)
@click.option("--side", default=96, type=click.IntRange(min=64), help="Sides of these images, in pixels.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(rounds: int, images: int, side: int, *, as_json: bool) -> None:
    """Images a second from a zip to features against the bare engine, the fit after it, and the peak of memory.

    The zip holds drawn photos of 500 x 400; the bare engine computes the same graph on the same images, decoded, as
    many at once. Both take turns in short laps. Then the patch evidence is fitted on 1,000, 2,000 and 4,000 images of
    that size as a fold of a training does, and two processes train on drawn images, 1,000 and 25,000 of them.
    """
    from engine.progress import progress_bar  # noqa: PLC0415 - `--help` must not wait for it
    from trainer.bench_train import FEW_IMAGES, Plan, bench_train  # noqa: PLC0415 - the same

    plan = Plan(rounds=rounds, images=(FEW_IMAGES, images) if images else (), side_px=side)
    with progress_bar() as show:
        result = bench_train(plan, show)
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(lines(result)))


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `bench_train` for people."""
    width, height = result["input_px"]
    yield f"{result['cpu']}, {result['cores']} cores; photos of 500 x 400, network's input {width} x {height} px"
    yield ""
    yield "                 images/s   CPU ms"
    yield f"zip to features  {result['images_per_s']:8.1f}   {result['cpu_ms_per_image']:6.2f}"
    yield f"bare engine      {result['engine_images_per_s']:8.1f}   {result['engine_cpu_ms_per_image']:6.2f}"
    yield (
        f"ratio            {result['ratio_to_engine']:8.2f}   {result['ratio_to_engine_by_processor_time']:6.2f}"
        "   (the second by processor time)"
    )
    yield ""
    yield "fit of one fold  images  seconds   CPU s  iterations"
    for fit in result["fits"]:
        yield (
            f"                 {fit['images']:6}  {fit['seconds']:7.1f}  {fit['cpu_seconds']:6.1f}"
            f"  {fit['iterations']:10}"
        )
    for peak in result["peaks"]:
        side, took = peak["side_px"], f"{peak['seconds']:.0f} s ({peak['cpu_seconds']:.0f} s of processor time)"
        yield ""
        yield (
            f"train on {peak['images']} images of {side} x {side}: peak {peak['peak_mib']:.0f} MiB, "
            f"{peak['features_mib']:.0f} MiB of features on the disk, {took}, AUROC {peak['auroc']:.3f}"
        )
