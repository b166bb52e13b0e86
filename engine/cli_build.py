"""The command `framegate build`, and TensorRT's settings as options for every command that opens a backend."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.cli_bundle import bundle_cache_option
from engine.command import VERB, print_json
from engine.plan_cache import default_folder
from engine.progress import progress_bar
from engine.specs import BatchProfile
from engine.tensorrt_options import TensorRTOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.backend_tensorrt import TensorRTBackend
    from engine.tensorrt_build import BuildStep

_MIB = 1 << 20
_DEFAULT = TensorRTOptions()
_PRECISION = {"tensorrt": "fp16", "tensorrt-fp32": "fp32"}


def tensorrt_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add TensorRT's settings to a command; `take_settings` makes options of them."""
    for option in reversed(
        [
            click.option("--gpu", default=_DEFAULT.gpu, type=click.IntRange(min=0), help="Which GPU, counted from 0."),
            click.option(
                "--largest-batch",
                default=_DEFAULT.largest,
                type=click.IntRange(min=1),
                help="Most images in one batch; halved where the GPU's memory does not suffice.",
            ),
            click.option(
                "--most-heads", default=_DEFAULT.most_heads, type=click.IntRange(min=1), help="Most heads in one batch."
            ),
            click.option("--memory-mb", type=click.IntRange(min=1), help="Most GPU memory to take; else what is free."),
            click.option("--workspace-mb", type=click.IntRange(min=1), help="Most scratch memory of a plan."),
            click.option(
                "--exact/--no-exact",
                default=_DEFAULT.exact,
                help="Whether an image's numbers must not depend on what is beside it, down to the last bit.",
            ),
            click.option(
                "--plans",
                default=lambda: default_folder(os.environ),
                show_default="framegate/plans in the user's cache folder",
                type=click.Path(path_type=Path, file_okay=False),
                help="Folder of the plan cache.",
            ),
        ]
    ):
        command = option(command)
    return command


def take_settings(values: dict[str, Any], backend: str = "tensorrt") -> TensorRTOptions:
    """Options out of the values of a command with `tensorrt_settings`; the values are taken out of the dictionary.

    Raises:
        InputError: a value that TensorRT cannot be set to.
    """
    largest = values.pop("largest_batch")
    best = min(_DEFAULT.throughput.best, largest)
    latency = min(_DEFAULT.latency.largest, largest)
    return TensorRTOptions(
        precision=_PRECISION.get(backend, _DEFAULT.precision),
        latency=BatchProfile(1, 1, latency),
        throughput=BatchProfile(1, best, largest),
        most_heads=values.pop("most_heads"),
        exact=values.pop("exact"),
        workspace_bytes=_bytes(values.pop("workspace_mb")),
        memory_limit_bytes=_bytes(values.pop("memory_mb")),
        gpu=values.pop("gpu"),
        plans=values.pop("plans"),
    )


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * _MIB


@click.command(context_settings=VERB, epilog="\b\nExample:\n  framegate build bundles/parts-1\n")
@click.argument("bundle")
@click.option("--backend", default="tensorrt", type=click.Choice(list(_PRECISION)), help="What the plans are for.")
@bundle_cache_option
@tensorrt_settings
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build(bundle: str, backend: str, *, bundle_cache: Path, as_json: bool, **values: Any) -> None:
    """Build the TensorRT plans of BUNDLE for this machine's GPU, load them and try every size of batch.

    A plan serves every head of the bundle's featurizer, and holds until the GPU, its driver or TensorRT change. What is
    in the plan cache already is not built again.
    """
    from engine.backend_tensorrt import TensorRTBackend  # noqa: PLC0415 - `--help` must not wait for it
    from engine.bundle_cache import open_located  # noqa: PLC0415

    options = take_settings(values, backend)
    graph = open_located(bundle, bundle_cache).graph
    start_s = time.perf_counter()
    with progress_bar(width=40, hides_done=True) as show:

        def tell(step: BuildStep) -> None:
            show(step.name, step.done, step.total)

        opened = TensorRTBackend(graph, options, progress=tell)
    try:
        result = _result(opened, time.perf_counter() - start_s)
    finally:
        opened.close()
    if as_json:
        print_json(result)
    else:
        _print(result)


def _result(opened: TensorRTBackend, seconds: float) -> dict[str, Any]:
    return {
        "backend": opened.name,
        "device": opened.device,
        "precision": opened.precision,
        "largest_batch": opened.profile.largest,
        "plans": [
            {
                "path": str(plan.path),
                "bytes": plan.n_bytes,
                "largest_batches": [profile.largest for profile in plan.profiles],
                "built": plan.built,
                "seconds": plan.seconds,
            }
            for plan in opened.plans
        ],
        "warm_up_s": sum(opened.warm_up_s.values()),
        "seconds": seconds,
    }


def _print(result: dict[str, Any]) -> None:
    click.echo(f"device   {result['device']}")
    click.echo(f"computes in {result['precision']}, batches of at most {result['largest_batch']}")
    for plan in result["plans"]:
        sizes = " and ".join(f"up to {largest}" for largest in plan["largest_batches"])
        how = "built" if plan["built"] else "found"
        click.echo(f"plan     {sizes}: {plan['bytes'] / 1e6:.1f} MB, {how} in {plan['seconds']:.1f} s, {plan['path']}")
    click.echo(f"warm     every size tried in {result['warm_up_s']:.1f} s")
    click.echo(f"took     {result['seconds']:.1f} s")
