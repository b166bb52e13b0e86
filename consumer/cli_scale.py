"""The command `framegate bench scale`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.command import VERB, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_EXAMPLE = """\b
Examples:
  framegate bench scale --plot scale.svg
  framegate bench scale --delay-ms 20 --seed 7 --json
"""

_COLOURS = {"ours": "#0b6e4f", "fixed_delay": "#c0392b"}


@click.command(context_settings=VERB, epilog=_EXAMPLE)
@click.option("--frames", default=20_000, type=click.IntRange(min=500), help="Frames in each run, at least.")
@click.option(
    "--delay-ms",
    default=5.0,
    type=click.FloatRange(min=0),
    help="What the policy that ours is compared with waits for a full batch, milliseconds.",
)
@click.option("--seed", default=1, type=click.IntRange(min=0), help="Decides the arrivals: the same, the same result.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw it too, as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def scale(*, frames: int, delay_ms: float, seed: int, plot: Path | None, as_json: bool) -> None:
    """Batching for 10 to 2,000 stations of 30 frames/s on an L4 and an H100, simulated.

    The consumer's own batcher and policy, on a virtual clock, with engines modelled by published figures, against the
    policy that waits a fixed time or until a batch is full. Decoding and Kafka take no time here. Arrivals are Poisson,
    or bursts of 8 frames of one station. Then one station floods beside 100 others, and an idle engine waits for
    company at several loads. It needs no GPU, and gives the same result everywhere.
    """
    from consumer.bench_scale import ScalePlan, bench_scale  # noqa: PLC0415 - `--help` must not wait for it
    from engine.progress import progress_bar  # noqa: PLC0415 - the same

    with progress_bar() as show:
        result = bench_scale(ScalePlan(frames=frames, delay_ms=delay_ms, seed=seed), show)
    if plot is not None:
        plot.write_text(drawing(result), encoding="utf-8")
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(_lines(result)))


def drawing(result: Mapping[str, Any]) -> str:
    """The p99 over the number of stations, one panel for each engine, as SVG. Only what the engine keeps up with."""
    from consumer.svg import Line, Panel, chart  # noqa: PLC0415 - as above

    names = {"ours": "takes what is there", "fixed_delay": f"waits {result['delay_ms']:g} ms or until it is full"}
    panels = []
    for engine, about in result["engines"].items():
        lines = [
            Line(
                f"{names[policy]}, {arrivals}",
                [(row["stations"], row["p99_ms"]) for row in _rows(result, engine, arrivals, policy)],
                _COLOURS[policy],
                dashed=arrivals == "bursty",
            )
            for policy in names
            for arrivals in ("poisson", "bursty")
        ]
        most = about["capacity_per_s"] / result["per_station_s"]
        title = f"{engine}: {about['fixed_ms']:g} ms a batch + {about['image_us']:g} us an image"
        panels.append(Panel(title, lines, (most, "capacity")))
    return chart(panels, x_label=f"stations of {result['per_station_s']:g} frames/s", y_label="p99, ms")


def _rows(result: Mapping[str, Any], engine: str, arrivals: str, policy: str) -> list[Mapping[str, Any]]:
    wanted = {"engine": engine, "arrivals": arrivals, "policy": policy, "keeps_up": True}
    return [row for row in result["scale"] if wanted.items() <= row.items()]


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    for engine, about in result["engines"].items():
        yield (
            f"{engine}: {about['fixed_ms']:g} ms a batch + {about['image_us']:g} us an image, batches of up to "
            f"{about['largest_batch']}, {about['capacity_per_s']} images/s"
        )
    yield ""
    yield "engine  stations  arrivals  policy       served/s   mean ms    p99 ms   batch    jain  worst/median p99"
    for row in result["scale"]:
        mean, p99 = (f"{row[key]:8.2f}" if row["keeps_up"] else "    over" for key in ("mean_ms", "p99_ms"))
        yield (
            f"{row['engine']:<6}  {row['stations']:8}  {row['arrivals']:<8}  {row['policy']:<11}  "
            f"{row['served_per_s']:8.0f}  {mean}  {p99}  {row['mean_batch']:6.1f}  {row['jain']:6.3f}  "
            f"{row['worst_over_median_p99']:16.2f}"
        )
    yield ""
    for row in result["flood"]:
        yield (
            f"{row['engine']}: {row['stations']} stations have a p99 of {row['p99_ms_without']:g} ms, beside one that "
            f"sends {row['flood_per_s']}/s {row['p99_ms']:g} ms, without the cap {row['p99_ms_uncapped']:g} ms"
        )
    yield ""
    yield "an idle engine that waits for company, against one that does not"
    yield "engine    load   wait ms   mean   p99"
    for row in result["waiting"]:
        yield (
            f"{row['engine']:<6}  {row['load']:6.2f}  {row['wait_ms']:8.2f}  {row['mean_ratio']:5.2f}  "
            f"{row['p99_ratio']:4.2f}"
        )
