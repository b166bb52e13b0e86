"""The command `framegate bench engine`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from engine.cli_bundle import bundle_cache_option
from engine.command import VERB, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_EXAMPLE = """\b
Examples:
  framegate bench engine
  framegate bench engine --bundle bundles/parts-1 --json
"""


@click.group(context_settings=VERB)
def bench() -> None:
    """Measure Framegate on this machine."""


@bench.command(context_settings=VERB, epilog=_EXAMPLE)
@click.option("--bundle", help="Bundle whose graph is measured.  [default: the featurizer at 160 x 160]")
@bundle_cache_option
@click.option(
    "--seconds",
    default=0.3,
    type=click.FloatRange(min=0),
    help="One lap of one contestant; short ones in turn are fair.",
)
@click.option("--rounds", default=7, type=click.IntRange(min=1), help="Laps of each.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def engine(bundle: str | None, seconds: float, rounds: int, *, bundle_cache: Path, as_json: bool) -> None:
    """Images a second of each backend here, against the fastest plain loop of its own library on the same graph.

    All take turns in many short laps, and medians are told. Other programs on the machine slow some more than others
    all the same: have a quiet one where the figures matter, or go by the milliseconds of processor time.
    """
    from engine.bench import Timing, bench_engine  # noqa: PLC0415 - `--help` must not wait for it
    from engine.bundle_cache import open_located  # noqa: PLC0415
    from engine.progress import progress_bar  # noqa: PLC0415
    from engine.stand_in import stand_in  # noqa: PLC0415

    opened = stand_in() if bundle is None else open_located(bundle, bundle_cache)
    with progress_bar() as show:
        result = bench_engine(opened, Timing(seconds, rounds), show)
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(_lines(result)))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    machine, classic = result["machine"], result["classic"]
    width, height = result["input_px"]
    tiles = "" if result["tile_px"] is None else " in tiles of {} x {} px".format(*result["tile_px"])
    yield f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['flags'])}; {width} x {height} px{tiles}"
    yield ""
    yield "backend         batch  images/s   plain   ratio   CPU ms   plain  fastest plain loop of the same library"
    for backend in result["backends"]:
        for size in backend["sizes"]:
            yield (
                f"{backend['name']:<15} {size['batch']:5}  {size['images_per_s']:8.0f}"
                f"  {size['plain_images_per_s']:6.0f}  {size['ratio']:6.2f}  {size['cpu_ms_per_image']:7.2f}"
                f"  {size['plain_cpu_ms_per_image']:6.2f}  {size['plain']}"
            )
    for missing in result["unavailable"]:
        yield f"{missing['name']:<15} not here: {missing['why']}"
    yield ""
    yield f"default         {result['default']}: {result['default_because']}"
    yield (
        f"classic         {classic['images_per_s']:.0f} images/s ({classic['loop']}, 224 x 224, uncut, ONNX Runtime): "
        f"the default is {classic['ratio_of_default']:.2f} times as fast"
    )
