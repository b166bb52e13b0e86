"""How fast is each backend here, against the fastest plain loop of its library on the same graph, and the classic?"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx

from engine.backbone import build_reference_graph
from engine.backend import CPU_BACKENDS, in_groups, open_backend
from engine.backend_tiled import on_whole_images
from engine.choice import open_for, tensorrt_is_installed
from engine.errors import DeviceError, PlanError
from engine.featurizer import FeaturizerSpec
from engine.golden import golden_pictures
from engine.heads import stack
from engine.laps import race
from engine.plain_loops import Loop, onnx_loops, openvino_loops
from engine.processor import cpu_fields, cpu_name
from engine.specs import ImageSpec
from engine.streams import cores
from engine.tiles import split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.laps import Laps

SIZES = (1, 8, 32)
CLASSIC_SIDE_PX = 224
_OUTPUTS = ["evidence", "pooled"]
_POOL = 64
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "bf16", "i8mm")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure: `rounds` laps of `seconds` of every contestant at every batch size."""

    seconds: float = 0.3
    rounds: int = 7


def bench_engine(
    bundle: Bundle, timing: Timing, tick: Callable[[str, int, int], None] = lambda _name, _done, _total: None
) -> dict[str, Any]:
    """Measure every backend that opens here on a bundle's graph and head; see `framegate bench engine` for the keys.

    Args:
        bundle: brings the graph, a head, and the reference images by which `auto` chooses.
        timing: how long to measure.
        tick: told (what is measured, rounds done, of how many).
    """
    default, because = _default(bundle)
    backends, unavailable = [], []
    for name in (*CPU_BACKENDS, *(["tensorrt"] if tensorrt_is_installed() else [])):
        try:
            backend = _open(name, bundle)
        except (DeviceError, PlanError) as error:
            unavailable.append({"name": name, "why": str(error)})
            continue
        try:
            backends.append(_bench_backend(name, backend, bundle, timing, tick))
        finally:
            backend.close()
    best = next(entry["batch"] for entry in backends if entry["name"] == default)
    return {
        "machine": _machine(),
        "bundle": bundle.name,
        "input_px": [bundle.image.width_px, bundle.image.height_px],
        "tile_px": None if bundle.image.tile_px is None else list(bundle.image.tile_px),
        "seconds": timing.seconds,
        "rounds": timing.rounds,
        "backends": backends,
        "unavailable": unavailable,
        "default": default,
        "default_because": because,
        "classic": _bench_classic(default, best, bundle, timing, tick),
    }


def two_in_flight(
    backend: Backend, images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], size: int
) -> Callable[[float], int]:
    """Our own loop: the next batch is submitted before the last is collected.

    Args:
        backend: computes.
        images: uint8 (n, h, w, 3) with n of at least `size`; used again and again.
        heads: weights (c, k) and biases (k,).
        size: images in a batch.
    """
    batches = _batches(images, size)

    def run(seconds: float) -> int:
        end_s = time.perf_counter() + seconds
        ticket, done = backend.submit(batches[0], *heads), 1
        while done < 2 or time.perf_counter() < end_s:  # noqa: PLR2004 - two
            following = backend.submit(batches[done % len(batches)], *heads)
            backend.collect(ticket)
            ticket, done = following, done + 1
        backend.collect(ticket)
        return done * size

    return run


def classic_graph() -> bytes:
    """The whole network to its 1280 values after global pooling, at 224 x 224: what the classic recipe computes."""
    model = onnx.load_from_string(build_reference_graph(ImageSpec(CLASSIC_SIDE_PX, CLASSIC_SIDE_PX)))
    others = {output.name for output in model.graph.output if output.name != "embedding"}
    for output in [output for output in model.graph.output if output.name in others]:
        model.graph.output.remove(output)
    for node in [node for node in model.graph.node if set(node.output) <= others]:
        model.graph.node.remove(node)
    onnx.checker.check_model(model)
    graph: bytes = model.SerializeToString()
    return graph


def _bench_backend(
    name: str, backend: Backend, bundle: Bundle, timing: Timing, tick: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """One backend at its sizes against its library, all in one race, so that any two can be compared."""
    images = golden_pictures(_POOL, bundle.image.height_px, bundle.image.width_px)
    heads = stack([bundle.head])
    sizes = [size for size in sorted({*SIZES, backend.profile.best}) if size <= backend.profile.largest]
    loops = _plain(name, backend, bundle, {size: _batches(images, size) for size in sizes}, heads)
    contestants: dict[str, Callable[[float], int]] = {}
    for size in sizes:
        contestants[str(size)] = two_in_flight(backend, images, heads, size)
        contestants |= {f"{size} {loop.name}": loop.run for loop in loops[size]}
    laps = race(
        contestants, seconds=timing.seconds, rounds=timing.rounds, tick=lambda done, total: tick(name, done, total)
    )
    entries = [_entry(size, loops[size], laps) for size in sizes]
    best = max(entries, key=lambda entry: float(entry["images_per_s"]))
    plain = max(entries, key=lambda entry: float(entry["plain_images_per_s"]))
    return {
        "name": name,
        "device": backend.device,
        "precision": backend.precision,
        "streams": getattr(backend, "streams", None),
        "batch": best["batch"],
        "images_per_s": best["images_per_s"],
        "cpu_ms_per_image": best["cpu_ms_per_image"],
        "plain": f"{plain['plain']}, batch {plain['batch']}",
        "plain_images_per_s": plain["plain_images_per_s"],
        "plain_cpu_ms_per_image": plain["plain_cpu_ms_per_image"],
        "ratio": laps[str(best["batch"])].ratio(laps[f"{plain['batch']} {plain['plain']}"]),
        **{
            key: max(entry[key] for entry in entries)
            for key in ("plain_fixed_images_per_s", "plain_unmarked_images_per_s")
            if key in entries[0]
        },
        "sizes": entries,
    }


def _entry(size: int, loops: list[Loop], laps: dict[str, Laps]) -> dict[str, Any]:
    own = laps[str(size)]
    plain = max((loop for loop in loops if loop.same_graph), key=lambda loop: laps[f"{size} {loop.name}"].images_per_s)
    its = laps[f"{size} {plain.name}"]
    fixed = [loop for loop in loops if not loop.same_graph and not loop.unmarked]
    others = {"fixed": fixed, "unmarked": [loop for loop in loops if loop.unmarked]}
    return {
        "batch": size,
        "images_per_s": own.images_per_s,
        "cpu_ms_per_image": own.cpu_ms,
        "plain": plain.name,
        "plain_images_per_s": its.images_per_s,
        "plain_cpu_ms_per_image": its.cpu_ms,
        "ratio": own.ratio(its),
        **{
            f"plain_{kind}_images_per_s": max(laps[f"{size} {loop.name}"].images_per_s for loop in some)
            for kind, some in others.items()
            if some
        },
        "loops": [
            {
                "name": loop.name,
                "same_graph": loop.same_graph,
                "images_per_s": laps[f"{size} {loop.name}"].images_per_s,
                "cpu_ms_per_image": laps[f"{size} {loop.name}"].cpu_ms,
                "ratio": own.ratio(laps[f"{size} {loop.name}"]),
            }
            for loop in loops
        ],
    }


def _bench_classic(
    default: str, size: int, bundle: Bundle, timing: Timing, tick: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """ONNX Runtime on the classic graph at its best, and the default at its best, side by side."""
    graph = classic_graph()
    pictures = golden_pictures(max(SIZES), CLASSIC_SIDE_PX, CLASSIC_SIDE_PX)
    feeds = {size: [{"images": batch} for batch in _batches(pictures, size)] for size in SIZES}
    loops = {
        f"{loop.name}, batch {batch}": loop.run
        for batch, own_loops in onnx_loops(graph, ["embedding"], feeds).items()
        for loop in own_loops
    }
    backend = _open(default, bundle)
    try:
        images = golden_pictures(_POOL, bundle.image.height_px, bundle.image.width_px)
        own = two_in_flight(backend, images, stack([bundle.head]), size)
        laps = race(
            {"": own, **loops},
            seconds=timing.seconds,
            rounds=timing.rounds,
            tick=lambda done, total: tick("classic", done, total),
        )
    finally:
        backend.close()
    best = max(loops, key=lambda name: laps[name].images_per_s)
    return {
        "input_px": [CLASSIC_SIDE_PX, CLASSIC_SIDE_PX],
        "loop": best,
        "images_per_s": laps[best].images_per_s,
        "cpu_ms_per_image": laps[best].cpu_ms,
        "default_images_per_s": laps[""].images_per_s,
        "default_cpu_ms_per_image": laps[""].cpu_ms,
        "ratio_of_default": laps[""].ratio(laps[best]),
    }


def _plain(
    name: str,
    backend: Backend,
    bundle: Bundle,
    batches: dict[int, list[np.ndarray]],
    heads: tuple[np.ndarray, np.ndarray],
) -> dict[int, list[Loop]]:
    """The plain loops of a backend's library; of one that has none here, one batch at a time on the backend itself.

    Where the graph takes tiles, a library's loop gets a batch's tiles, cut already, and leaves them as they are.
    """
    weights, biases = in_groups(*heads)
    rows, columns = bundle.image.tiles
    tiles = rows * columns
    feeds = {
        size * tiles: [
            {"images": split(batch, bundle.image), "head_weights": weights, "head_biases": biases} for batch in own
        ]
        for size, own in batches.items()
    }
    if name == "onnxruntime":
        return _per_image(onnx_loops(bundle.graph, _OUTPUTS, feeds), tiles)
    if name.startswith("openvino"):
        return _per_image(openvino_loops(bundle.graph, backend.precision, _OUTPUTS, feeds), tiles)
    return {size: [Loop("one batch at a time", _one_at_a_time(backend, own, heads))] for size, own in batches.items()}


def _per_image(loops: dict[int, list[Loop]], tiles: int) -> dict[int, list[Loop]]:
    """Loops over tiles as loops over images of so many tiles."""

    def counted(loop: Loop) -> Loop:
        return replace(loop, run=lambda seconds: loop.run(seconds) // tiles)

    return {size // tiles: [counted(loop) for loop in own] for size, own in loops.items()}


def _open(name: str, bundle: Bundle) -> Backend:
    backend = open_backend(name, bundle.graph)
    return on_whole_images(backend, bundle.image, FeaturizerSpec.from_json(bundle.featurizer))


def _one_at_a_time(
    backend: Backend, batches: list[np.ndarray], heads: tuple[np.ndarray, np.ndarray]
) -> Callable[[float], int]:
    def run(seconds: float) -> int:
        end_s, done = time.perf_counter() + seconds, 0
        while not done or time.perf_counter() < end_s:
            backend.infer(batches[done % len(batches)], *heads)
            done += 1
        return done * len(batches[0])

    return run


def _batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[begin : begin + size] for begin in range(0, len(images) - size + 1, size)]


def _default(bundle: Bundle) -> tuple[str, str]:
    """What `auto` takes for the bundle, and what it said about it."""
    with _heard("engine.choice") as said:
        backend = open_for(bundle)
    backend.close()
    names = [name for name in CPU_BACKENDS if name in {backend.name, f"{backend.name}-{backend.precision}"}]
    return (names or [backend.name])[-1 if backend.precision != "fp32" else 0], "; ".join(said)


@contextmanager
def _heard(name: str) -> Iterator[list[str]]:
    """What a logger says meanwhile, from information upwards."""
    logger, said = logging.getLogger(name), list[str]()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear, level = Ear(logging.INFO), logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.removeHandler(ear)


def _machine() -> dict[str, Any]:
    fields = cpu_fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "openvino")},
    }
