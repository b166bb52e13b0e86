"""The commands `framegate bench stream` and `framegate bench border`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from consumer.cli_options import client_config as client_config_option
from engine.choice import BACKENDS
from engine.command import VERB, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_EXAMPLE = """\b
Examples:
  framegate bench stream
  framegate bench stream --bootstrap-servers kafka-1:9092 --rounds 5 --json
"""


@click.command(context_settings=VERB, epilog=_EXAMPLE)
@click.option("--bootstrap-servers", metavar="HOST:PORT,…", help="Kafka brokers. Default: an embedded one of its own.")
@client_config_option
@click.option("--frames", default=4000, type=click.IntRange(min=200), help="Frames on the topic.")
@click.option("--rounds", default=3, type=click.IntRange(min=1), help="Runs of each contestant.")
@click.option("--workers", type=click.IntRange(min=1), help="Workers of our consumer.  [default: the cores]")
@click.option("--partitions", default=4, type=click.IntRange(min=1), help="Partitions of the topic.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Frames in our largest batch.  [default: as measured]")
@click.option(
    "--latency-s",
    default=10.0,
    type=click.FloatRange(min=0),
    help="Of arrivals in each latency run, of which there are two to five a round; 0 leaves latency out.",
)
@click.option("--backend", default="auto", type=click.Choice(BACKENDS), help="What computes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def stream(
    *, bootstrap_servers: str | None, client_config: Path | None, workers: int | None, as_json: bool, **options: Any
) -> None:
    """Verdicts a second of the whole consumer, against decoding and inference alone, and against a plain loop.

    The same frames, 640 x 480 JPEG, lie on the broker; every contestant reads them in a process of its own, all in
    turn. The plain loop has one thread: poll, decode, resize, score one frame at a time with the same engine, send
    without waiting, commit once per poll. With the broker on the same machine it takes its share of the cores.

    Then latency, from capture to a verdict that a reader of committed records has in hand, under Poisson arrivals at
    half of the plain loop's rate and at 0.8 of ours: the loop where it keeps up, ours at least once and, on Apache
    Kafka, exactly once.
    """
    from consumer.bench_stream import Plan, bench_stream  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.config import read_client_config  # noqa: PLC0415 - the same
    from engine.progress import progress_bar  # noqa: PLC0415 - the same
    from engine.streams import cores  # noqa: PLC0415 - the same

    plan = Plan(workers=workers or cores(), **options)
    client = {} if client_config is None else read_client_config(client_config)
    with progress_bar() as show:
        result = bench_stream(plan, bootstrap_servers=bootstrap_servers, client=client, tick=show)
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(_lines(result)))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} before; broker {result['broker']}"
    yield f"{result['engine']}; {result['frames']} frames, {result['workers']} workers"
    yield ""
    yield "                        frames/s   CPU us/frame   broker us/frame"
    for name, alone in result["alone"].items():
        yield f"{name + ' alone':<22}  {alone['per_s']:8.0f}   {alone['cpu_us']:12.0f}   ({alone['best']})"
    for name, run in result["runs"].items():
        broker = "" if run["broker_us"] is None else f"{run['broker_us']:.0f}"
        yield f"{name:<22}  {run['per_s']:8.0f}   {run['cpu_us']:12.0f}   {broker:>15}"
    yield ""
    for key in ("efficiency", "efficiency_by_processor_time", "vs_plain", "overhead_us"):
        yield f"{key}: " + ", ".join(f"{name} {value:g}" for name, value in result[key].items())
    exactly = result["exactly_once_throughput_ratio"]
    yield f"exactly once against at least once: {'not measured' if exactly is None else f'{exactly:g}'}"
    latency = result["latency"]
    for load in latency["loads"]:
        yield ""
        yield f"{load['load']}, {load['per_s']:g} frames/s       p50 ms    p99 ms"
        for name in ("plain", "at_least_once", "exactly_once"):
            if name in load and load[name] is None:
                yield f"{name:<40}  did not keep up"
            elif name in load:
                yield f"{name:<40}  {load[name]['p50_ms']:8.1f}  {load[name]['p99_ms']:8.1f}"
    if latency["loads"]:
        told = ", ".join(f"{name} {value}" for name, value in latency["p99_ratio"].items() if value is not None)
        yield f"p99 against the plain loop's: {told or 'not measured'}"
        if latency["exactly_once_added_ms"] is not None:
            yield f"exactly once adds {latency['exactly_once_added_ms']:g} ms"


_BORDER_EXAMPLE = """\b
Examples:
  framegate bench border
  framegate bench border --gpu-per-s 12000 --host-cores 32 --json
"""


@click.command(context_settings=VERB, epilog=_BORDER_EXAMPLE)
@click.option("--bootstrap-servers", metavar="HOST:PORT,…", help="Kafka brokers. Default: an embedded one of its own.")
@client_config_option
@click.option("--frames", default=4000, type=click.IntRange(min=200), help="Frames on the topic.")
@click.option("--rounds", default=3, type=click.IntRange(min=1), help="Runs of the whole.")
@click.option("--workers", type=click.IntRange(min=1), help="Workers of our consumer.  [default: the cores]")
@click.option("--partitions", default=4, type=click.IntRange(min=1), help="Partitions of the topic.")
@click.option("--batch-size", default=8, type=click.IntRange(min=1), help="Frames in a worker's largest batch.")
@click.option(
    "--gpu-per-s", default=8000.0, type=click.FloatRange(min=1.0), help="Speed of the modelled GPU, images/s."
)
@click.option("--host-cores", default=16, type=click.IntRange(min=1), help="Cores of the host to compute for.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def border(
    *, bootstrap_servers: str | None, client_config: Path | None, workers: int | None, as_json: bool, **options: Any
) -> None:
    """What sharing one engine costs a frame, where a frame's processor time goes, and how much of a GPU a host feeds.

    The GPU is modelled: it takes the time that it is told to and computes nothing, so the cores here do what they
    would do beside a real one, but for the GPU's driver. What a host of other size feeds is computed from the
    processor time a frame, as if its cores were these and the broker elsewhere.
    """
    from consumer.bench_border import Plan, bench_border  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.config import read_client_config  # noqa: PLC0415 - the same
    from engine.progress import progress_bar  # noqa: PLC0415 - the same
    from engine.streams import cores  # noqa: PLC0415 - the same

    plan = Plan(workers=workers or cores(), **options)
    client = {} if client_config is None else read_client_config(client_config)
    with progress_bar() as show:
        result = bench_border(plan, bootstrap_servers=bootstrap_servers, client=client, tick=show)
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(_border_lines(result)))


def _border_lines(result: Mapping[str, Any]) -> Iterator[str]:
    machine, whole, computed = result["machine"], result["whole"], result["computed"]
    yield f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} before; broker {result['broker']}"
    yield ""
    yield "the border alone, microseconds a frame"
    for name, found in result["border_us"].items():
        yield f"  {name:<30}" + ", ".join(f"{key} {value:g}" for key, value in found.items())
    for name, found in result["crowd"].items():
        told = ", ".join(f"{key} {value:g}" for key, value in found.items())
        yield f"{computed['cores']} workers that only submit, {name}: {told}"
    yield ""
    yield f"{result['workers']} workers on a modelled GPU of {result['gpu']['per_s']:g} images/s: " + ", ".join(
        f"{key} {value}" for key, value in whole.items()
    )
    yield f"  decoding alone {result['decode_alone_us']:g} us a frame; processor time by part:"
    for name, value in result["parts_us"].items():
        yield f"  {name:<40}{value:8.1f}"
    yield ""
    yield f"computed for {computed['cores']} cores: " + ", ".join(
        f"{key} {value:g}" for key, value in computed.items() if key != "cores"
    )
