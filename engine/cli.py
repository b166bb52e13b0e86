"""The engine's commands: `framegate score` and `framegate verify`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.choice import BACKENDS
from engine.cli_build import take_settings, tensorrt_settings
from engine.cli_bundle import bundle_cache_option
from engine.command import VERB, print_json
from engine.errors import FrameError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from engine.prediction import Prediction
    from engine.scorer import Scorer


_SCORE_EXAMPLE = """\b
Examples:
  framegate score bundles/parts-1 frame.jpg more/*.png
  framegate score bundles/parts-1 more/ --heatmap maps/
"""


@click.command(context_settings=VERB, epilog=_SCORE_EXAMPLE)
@click.argument("bundle")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--backend", default="auto", type=click.Choice(BACKENDS), help="What computes.")
@click.option("--station", help="Decide as at this station, which may have an operating point of its own.")
@click.option(
    "--heatmap",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write each picture there with what speaks for a defect drawn over it.",
)
@bundle_cache_option
@tensorrt_settings
@click.option(
    "--json", "as_json", is_flag=True, help="Kept for symmetry: the output is always one JSON line per image."
)
def score(
    bundle: str,
    paths: tuple[Path, ...],
    backend: str,
    station: str | None,
    heatmap: Path | None,
    *,
    bundle_cache: Path,
    as_json: bool,  # noqa: ARG001 - see its help
    **values: Any,
) -> None:
    """Judge image files without Kafka: one JSON line per image, in the order given; a folder stands for its files.

    Ends with 0 once every path has its line, also where an image could not be judged (decision `none`).
    """
    from engine.scorer import open_scorer  # noqa: PLC0415 - `--help` must not wait for it

    tensorrt_settings = take_settings(values, backend)
    with open_scorer(bundle, backend, tensorrt=tensorrt_settings, cache=bundle_cache, station=station) as scorer:
        for path, name in _files(paths):
            print_json(_line(scorer, path, None if heatmap is None else heatmap / name), indent=None)


def _files(paths: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
    """Files as given, a folder's files in order of their names; each with the name of a PNG that no other one has."""
    for path in paths:
        if not path.exists():
            msg = f"image {path} is not there: expected a file or a folder"
            raise InputError(msg)
        if path.is_dir() and not any(item.is_file() for item in path.rglob("*")):
            msg = f"folder {path} holds no files: expected images"
            raise InputError(msg)
    given: Counter[str] = Counter()
    for path in paths:
        root = path if path.is_dir() else path.parent
        for item in sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]:
            name = item.relative_to(root).with_suffix("").as_posix()
            given[name] += 1
            yield item, f"{name}.png" if given[name] == 1 else f"{name}~{given[name]}.png"


def _line(scorer: Scorer, path: Path, heatmap: Path | None) -> dict[str, Any]:
    try:
        payload = path.read_bytes()
    except OSError as error:
        msg = f"image {path} cannot be read: {error.strerror}"
        raise InputError(msg) from error
    wanted: dict[str, Any] = {} if heatmap is None else {"heatmap": None}
    try:
        image = scorer.decode(payload)
    except FrameError as error:
        nothing: dict[str, Any] = {"decision": "none", "cause": error.cause, "reasons": [], "defect_probability": None}
        return {"path": str(path), **nothing, "error": str(error), **wanted}
    if heatmap is None:
        (prediction,) = scorer.score(image[None]).predictions
    else:
        prediction = _write_heatmap(scorer, payload, image, heatmap)
        wanted = {"heatmap": str(heatmap)}
    return {
        "path": str(path),
        "decision": prediction.decision,
        "cause": None,
        "reasons": list(prediction.reasons),
        "defect_probability": prediction.defect_probability,
        **wanted,
    }


def _write_heatmap(scorer: Scorer, payload: bytes, image: np.ndarray, out: Path) -> Prediction:
    """The same prediction as without; the picture goes to a new file."""
    from engine.heatmap import draw  # noqa: PLC0415 - only when asked for

    prediction, picture = draw(scorer, payload, image)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("xb") as file:
            file.write(picture)
    except FileExistsError as error:
        msg = f"{out} exists already: expected a new place, nothing is written over; give another --heatmap"
        raise InputError(msg) from error
    except OSError as error:
        msg = f"{out} cannot be written: {error.strerror}; give another --heatmap"
        raise InputError(msg) from error
    return prediction


_VERIFY_EXAMPLE = """\b
Examples:
  framegate verify bundles/parts-1 --backend onnxruntime
  framegate verify bundles/parts-1 --batches 10000
"""


@click.command(context_settings=VERB, epilog=_VERIFY_EXAMPLE)
@click.argument("bundle")
@click.option("--backend", default="auto", type=click.Choice(BACKENDS), help="What computes.")
@click.option(
    "--batches", default=1000, type=click.IntRange(min=1), help="Batches over which the memory must not grow."
)
@click.option("--seconds", default=5.0, type=click.FloatRange(min=0), help="To time the batch sizes for, all together.")
@bundle_cache_option
@tensorrt_settings
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    bundle: str,
    backend: str,
    batches: int,
    seconds: float,
    *,
    bundle_cache: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Is this machine's answer the bundle's own answer, in every batch and for long, and how fast is it?

    Compared with the bundle's reference images and, on golden pictures, with ONNX Runtime. Ends with 1 where it is not
    the reference's answer, or where memory grows.
    """
    from engine.progress import progress_bar  # noqa: PLC0415 - `--help` must not wait for it
    from engine.scorer import open_scorer  # noqa: PLC0415
    from engine.verify import Effort  # noqa: PLC0415
    from engine.verify import verify as run_verify  # noqa: PLC0415
    from engine.verify_table import lines  # noqa: PLC0415

    tensorrt = take_settings(values, backend)
    with open_scorer(bundle, backend, tensorrt=tensorrt, cache=bundle_cache) as scorer, progress_bar() as show:
        result = run_verify(scorer, Effort(seconds, batches), time.perf_counter, tick=show)
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(lines(result)))
    if result["faults"]:
        ctx.exit(1)
