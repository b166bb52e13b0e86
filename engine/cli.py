"""The engine's commands: `framegate score` and `framegate verify`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.choice import BACKENDS
from engine.command import VERB, print_json
from engine.errors import FrameError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.scorer import Scorer


@click.command(context_settings=VERB, epilog="\b\nExample:\n  framegate score bundles/parts-1 frame.jpg more/*.png\n")
@click.argument("bundle")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--backend", default="auto", type=click.Choice(BACKENDS), help="What computes.")
@click.option(
    "--json", "as_json", is_flag=True, help="Kept for symmetry: the output is always one JSON line per image."
)
def score(bundle: str, paths: tuple[Path, ...], backend: str, *, as_json: bool) -> None:  # noqa: ARG001 - see its help
    """Judge image files without Kafka: one JSON line per image, in the order given; a folder stands for its files.

    Ends with 0 once every path has its line, also where an image could not be judged (decision `none`).
    """
    from engine.scorer import open_scorer  # noqa: PLC0415 - `--help` must not wait for it

    with open_scorer(bundle, backend) as scorer:
        for path in _files(paths):
            print_json(_line(scorer, path), indent=None)


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    """Files as given; a folder's files in order of their names."""
    for path in paths:
        if not path.exists():
            msg = f"image {path} is not there: expected a file or a folder"
            raise InputError(msg)
        if path.is_dir() and not any(item.is_file() for item in path.rglob("*")):
            msg = f"folder {path} holds no files: expected images"
            raise InputError(msg)
    for path in paths:
        if path.is_dir():
            yield from sorted(item for item in path.rglob("*") if item.is_file())
        else:
            yield path


def _line(scorer: Scorer, path: Path) -> dict[str, Any]:
    try:
        payload = path.read_bytes()
    except OSError as error:
        msg = f"image {path} cannot be read: {error.strerror}"
        raise InputError(msg) from error
    try:
        image = scorer.decode(payload)
    except FrameError as error:
        nothing: dict[str, Any] = {"decision": "none", "cause": error.cause, "reasons": [], "defect_probability": None}
        return {"path": str(path), **nothing, "error": str(error)}
    (prediction,) = scorer.score(image[None]).predictions
    return {
        "path": str(path),
        "decision": prediction.decision,
        "cause": None,
        "reasons": list(prediction.reasons),
        "defect_probability": prediction.defect_probability,
    }


@click.command(context_settings=VERB, epilog="\b\nExample:\n  framegate verify bundles/parts-1 --backend onnxruntime\n")
@click.argument("bundle")
@click.option("--backend", default="auto", type=click.Choice(BACKENDS), help="What computes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def verify(ctx: click.Context, bundle: str, backend: str, *, as_json: bool) -> None:
    """Is this machine's answer the bundle's own answer on its reference images, and how fast? Ends with 1 where not."""
    from engine.scorer import open_scorer  # noqa: PLC0415 - `--help` must not wait for it
    from engine.verify import verify_scorer  # noqa: PLC0415

    with open_scorer(bundle, backend) as scorer:
        result = verify_scorer(scorer, time.perf_counter)
    if as_json:
        print_json(result)
    else:
        for key, value in result.items():
            click.echo(f"{key:<26} {value}")
    if not result["agrees"]:
        ctx.exit(1)
