"""The command `framegate size`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from engine.command import PIXEL_SIZE, VERB, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer.sizing import Demand, Host, Size

_EXAMPLE = """\b
Examples:
  framegate size --stations 8 --rate 4
  framegate size --stations 12 --rate 8 --frame-px 1920x1080 --gpu L4
  framegate size --stations 400 --rate 10 --gpu A2 --images-per-s 2100 --spare 1 --json
"""


@click.command(context_settings=VERB, epilog=_EXAMPLE)
@click.option("--stations", type=int, required=True, metavar="N", help="Cameras.")
@click.option("--rate", type=float, required=True, metavar="HZ", help="Frames a second of each, at its busiest.")
@click.option("--gpu", metavar="NAME", help="GPU that infers, one in each pod: L4 or H100, or any with --images-per-s.")
@click.option(
    "--images-per-s",
    type=float,
    metavar="N",
    help="What it computes of your bundle, as `framegate bench engine --bundle BUNDLE` says there. Default: assumed.",
)
@click.option(
    "--frames-per-s-core",
    type=float,
    metavar="N",
    help="What a worker on one core does. Default: as measured, at the frame's size; see docs/sizing.md for your own.",
)
@click.option("--frame-px", default="640x480", help="Of one frame, in pixels.", **PIXEL_SIZE)
@click.option("--frame-kib", type=float, metavar="KIB", help="One encoded frame. Default: a good JPEG of its size.")
@click.option("--load", default=0.6, metavar="SHARE", help="Of what there is; the rest is for bursts and catching up.")
@click.option("--cores-per-pod", default=8, metavar="N", help="Most workers in a pod.")
@click.option("--spare", default=0, metavar="N", help="Pods beyond what is needed; 1: one may be away.")
@click.option("--growth", default=3, metavar="N", help="Partitions for so many times as many workers.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def size(
    *,
    stations: int,
    rate: float,
    gpu: str | None,
    images_per_s: float | None,
    frames_per_s_core: float | None,
    frame_px: tuple[int, int],
    frame_kib: float | None,
    load: float,
    cores_per_pod: int,
    spare: int,
    growth: int,
    as_json: bool,
) -> None:
    """How many partitions, pods, workers and GPUs so many stations need: what to write into the chart's values.yaml.

    Rates of a processor's core were measured, on one machine. Those of a GPU are assumed until you measure yours: the
    answer says from which rate on it holds.
    """
    from consumer.errors import SettingsError  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.sizing import (  # noqa: PLC0415 - the same
        ALL_ON_A_CORE,
        BESIDE_A_GPU,
        MEASURED_KIB,
        MEASURED_PX,
        Demand,
        Host,
    )
    from consumer.sizing import size as size_of  # noqa: PLC0415 - the same

    known = assumed_images_per_s()
    if images_per_s is not None and gpu is None:
        msg = "--images-per-s without a GPU: name it with --gpu"
        raise SettingsError(msg)
    if gpu is not None and images_per_s is None and gpu not in known:
        msg = (
            f"nothing is known of GPU {gpu!r}: expected {' or '.join(known)}; for another one run "
            "`framegate bench engine --bundle BUNDLE` on it and give what it says with --images-per-s"
        )
        raise SettingsError(msg)
    assumed = gpu is not None and images_per_s is None
    pixels = math.prod(frame_px)
    measured = (ALL_ON_A_CORE if gpu is None else BESIDE_A_GPU).of(pixels)
    host = Host(
        frames_per_s_core=measured if frames_per_s_core is None else frames_per_s_core,
        gpu_images_per_s=known[gpu] if assumed and gpu is not None else images_per_s,
        load=load,
        cores_per_pod=cores_per_pod,
        spare=spare,
        growth=growth,
    )
    demand = Demand(stations, rate, MEASURED_KIB * pixels / MEASURED_PX if frame_kib is None else frame_kib)
    found = size_of(demand, host)
    if as_json:
        told: dict[str, Any] = {"gpu_images_per_s": host.gpu_images_per_s, "gpu_images_per_s_is": _known(gpu, assumed)}
        print_json(
            {"frames_per_s": demand.frames_per_s, "frames_per_s_core": host.frames_per_s_core, **told, **asdict(found)}
        )
    else:
        click.echo("\n".join(_lines(demand, host, found, gpu, assumed=assumed)))


def assumed_images_per_s() -> dict[str, float]:
    """GPU -> images a second, as published of ResNet-50 in int8: not measured, and not of Framegate's network."""
    from consumer.bench_scale import ENGINES, capacity_per_s  # noqa: PLC0415 - `--help` must not wait for it

    return {name: capacity_per_s(cost) for name, cost in ENGINES.items()}


def _known(gpu: str | None, assumed: bool) -> str | None:
    """How far a GPU's rate is to be trusted."""
    return None if gpu is None else "assumed" if assumed else "given"


def _lines(demand: Demand, host: Host, found: Size, gpu: str | None, *, assumed: bool) -> Iterator[str]:
    yield (
        f"# {demand.stations} stations at {demand.rate_per_s:g} frames/s: {demand.frames_per_s:g} frames/s, "
        f"{found.kafka_mib_per_s:.1f} MiB/s into Kafka"
    )
    yield (
        f"# the busiest pod has at most {found.busiest_stations} stations (in 95 % of plants) and its cores are "
        f"{found.busiest_load:.0%} busy, at {host.frames_per_s_core:.0f} frames/s a core"
    )
    if gpu is not None and host.gpu_images_per_s is not None and found.gpu_load is not None:
        source = "ASSUMED, not measured" if assumed else "as given"
        yield f"# {gpu}: {host.gpu_images_per_s:,.0f} images/s ({source}), {found.gpu_load:.0%} busy"
        yield (
            f"# this holds while a GPU computes {found.holds_from_images_per_s:,.0f} images/s of your bundle or more: "
            "framegate bench engine --bundle BUNDLE"
        )
        if found.gpus_computing < found.gpus - host.spare:
            yield (
                f"# the images alone would need {found.gpus_computing}: the cores decide. More of them in a pod "
                "(--cores-per-pod) or GPUs shared by time-slicing need fewer"
            )
    yield f"# after a pause it takes {found.catch_up:.1f} times as long to be level again"
    yield "kafka:"
    yield f"  partitions: {found.partitions}"
    yield "consumer:"
    yield f"  device: {'cpu' if gpu is None else 'gpu'}"
    yield f"  replicas: {found.replicas}"
    yield f"  workers: {found.workers}"
    yield "keda:"
    yield f"  framesPerSecondPerReplica: {found.frames_per_s_replica:g}"
