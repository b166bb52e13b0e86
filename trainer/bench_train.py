"""How fast training is and what memory it takes: from a zip to features, the fit after it, the peak at any size."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.arenas import for_training
from engine.backbone import build_training_graph
from engine.backend_onnx import OnnxGraph
from engine.errors import WorkError
from engine.featurizer import FeaturizerSpec
from engine.laps import race
from engine.preprocess import preprocess
from engine.processor import cpu_name
from engine.specs import Region
from engine.streams import cores
from trainer.bench_images import write_zip
from trainer.candidates import ladder
from trainer.classifier import Recipe, evidence_model, table
from trainer.feature_store import FeatureCache, FeatureStore
from trainer.features import Extraction, extract, shape_of
from trainer.featurize import Featurizer, Row
from trainer.settings import TrainSettings
from trainer.shards import RowShape
from trainer.sources import open_source
from trainer.train import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.specs import ImageSpec
    from trainer.classifier import Table
    from trainer.features import FeatureSet
    from trainer.sources import Source

PHOTO_PX = (500, 400)
FEW_IMAGES = 1000
_FIT_IMAGES = (1000, 2000, 4000)
_ON_THE_COMMAND_LINE = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        rounds: laps from zip to features, and of the bare engine.
        lap_images: images of one lap.
        photos: that are drawn for laps and fits.
        fit_images: numbers of images that are fitted on.
        images: numbers of images that peak memory is measured at.
        side_px: of the images for peak memory.
    """

    rounds: int = 9
    lap_images: int = 192
    photos: int = 192
    fit_images: tuple[int, ...] = _FIT_IMAGES
    images: tuple[int, ...] = (FEW_IMAGES, 25_000)
    side_px: int = 96


def bench_train(plan: Plan, show: Callable[[str, int, int], None]) -> dict[str, Any]:
    """All of it, as plain values; files lie in a temporary folder meanwhile.

    Raises:
        WorkError: a training for the peak's sake failed, or the disk has no room.
    """
    for_training()
    spec = FeaturizerSpec(embedding=True)
    image = replace(ladder(PHOTO_PX, Region()).base, jpeg="scaled")
    with tempfile.TemporaryDirectory(prefix="framegate-bench-") as name:
        folder = Path(name)
        photos = folder / "photos.zip"
        write_zip(photos, plan.photos, PHOTO_PX)
        with open_source(photos) as source:
            speed = _speed(source, image, spec, folder, plan, show)
            with FeatureCache(folder / "fit") as cache:
                names = [item.name for item in source.items()]
                features = extract(names, source.read, image, spec, cache=cache)
                fits = _fits(features, names, spec, folder / "many", plan, show)
        peaks = [_peak(folder, count, plan.side_px, show) for count in plan.images]
    return {
        **speed,
        "fit_s_per_fold_2000": next((fit["seconds"] for fit in fits if fit["images"] == 2000), None),  # noqa: PLR2004 - the key's
        **{f"peak_mib_{peak['images']}": peak["peak_mib"] for peak in peaks},
        "input_px": [image.width_px, image.height_px],
        "fits": fits,
        "peaks": peaks,
        "cpu": cpu_name(),
        "cores": cores(),
    }


def _speed(
    source: Source,
    image: ImageSpec,
    spec: FeaturizerSpec,
    folder: Path,
    plan: Plan,
    show: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """From zip to features, and the same graph alone in as many threads on the same images, decoded: in turn."""
    names = [item.name for item in source.items()][: plan.lap_images]
    pixels = np.stack([preprocess(source.read(name), image) for name in names])
    graph = OnnxGraph(build_training_graph(spec, image))
    with Featurizer(image, spec) as featurizer, ThreadPoolExecutor(cores()) as pool:

        def from_zip(_: float) -> int:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                store = FeatureStore(Path(place) / "lap", shape_of(image, spec))
                features = Extraction(featurizer, store).run(names, source.read, lambda _: None)
                store.close()
            return len(features.kept)

        def engine(_: float) -> int:
            outputs = pool.map(
                lambda index: graph.run(["pooled", "channels"], {"images": pixels[index : index + 1]}),
                range(len(pixels)),
            )
            return sum(1 for _ in outputs)

        laps = race(
            {"from_zip": from_zip, "engine": engine},
            seconds=0,
            rounds=plan.rounds,
            tick=lambda done, total: show("zip to features", done, total),
        )
    ours, bare = laps["from_zip"], laps["engine"]
    by_processor = [its.cpu_ms / own.cpu_ms for own, its in zip(ours.laps, bare.laps, strict=True)]
    return {
        "ratio_to_engine": ours.ratio(bare),
        "ratio_to_engine_by_processor_time": statistics.median(by_processor),
        "images_per_s": ours.images_per_s,
        "cpu_ms_per_image": ours.cpu_ms,
        "engine_images_per_s": bare.images_per_s,
        "engine_cpu_ms_per_image": bare.cpu_ms,
    }


def _fits(
    features: FeatureSet,
    names: Sequence[str],
    spec: FeaturizerSpec,
    folder: Path,
    plan: Plan,
    show: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """The patch evidence fitted on more and more images, as one fold of a training fits it, features on the disk."""
    defect = np.array([name.startswith("fail/") for name in names])
    found = []
    for number, count in enumerate(plan.fit_images):
        show("fit", number, len(plan.fit_images))
        with _many(features, defect, count, spec, folder) as data:
            begin_s, cpu_s = time.perf_counter(), time.process_time()
            model = evidence_model(data, Recipe(), np.arange(count))
            wall_s, used_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
        found.append(
            {"images": count, "seconds": wall_s, "cpu_seconds": used_s, "iterations": model.n_iter_}
            | {"cpu_us_per_image_and_iteration": used_s / count / model.n_iter_ * 1e6}
        )
    show("fit", len(plan.fit_images), len(plan.fit_images))
    return found


@contextmanager
def _many(features: FeatureSet, defect: np.ndarray, count: int, spec: FeaturizerSpec, folder: Path) -> Iterator[Table]:
    """So many images' features on the disk: those of a few, again and again, each time with another grain."""
    base = features.in_memory()
    channels, pooled = np.asarray(base.channels, np.float32), np.asarray(base.pooled)
    grain = channels.std((0, 1)) / 4
    with FeatureCache(folder) as cache:
        store = cache.open("0" * 64, RowShape(pooled.shape[1], channels.shape[1], channels.shape[2]))
        digests = [f"{number:064x}" for number in range(count)]
        rng = np.random.default_rng(0)
        glance = np.zeros((64, 64), np.uint8)
        for start in range(0, count, store.shard_rows):
            rows = []
            for number in range(start, min(start + store.shard_rows, count)):
                own = channels[number % len(channels)]
                noisy = own + grain * rng.standard_normal(own.shape, np.float32)
                rows.append(
                    Row(digests[number], pooled[number % len(pooled)], noisy.astype(np.float16), 0, 0, 0, 0, glance)
                )
            store.append(rows)
        stored = replace(features, channels=store.rows("channels", digests), pooled=store.rows("pooled", digests))
        yield table(stored, np.resize(defect, count), FeaturizerSpec(spec.backbone, spec.taps))


def _peak(folder: Path, count: int, side_px: int, show: Callable[[str, int, int], None]) -> dict[str, Any]:
    """The most memory that a process held that trained on so many images, drawn as large as its input."""
    path = folder / f"{count}.zip"
    write_zip(path, count, (side_px, side_px), lambda done, total: show(f"draw {count}", done, total))
    show(f"train on {count}", 0, 0)
    arguments = [str(path), str(folder / f"bundle-{count}"), str(folder / "features"), str(side_px)]
    command = [sys.executable, "-m", "trainer.bench_train", *arguments]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own
    if ran.returncode:
        msg = f"training on {count} images failed: {ran.stderr.strip()[-300:]}; expected it to end"
        raise WorkError(msg)
    show(f"train on {count}", 1, 1)
    return {"images": count, "side_px": side_px, **json.loads(ran.stdout)}


def _train_and_tell(source: str, out: str, features: str, side_px: str) -> None:
    """In a process of its own: train, and print what it took."""
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    size_px = int(side_px), int(side_px)
    _, summary = train(
        TrainSettings(source, Path(out), size_px=size_px, features=Path(features), features_limit_gib=1e6)
    )
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak_kib,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    stored_bytes = sum(path.stat().st_size for path in Path(features).rglob("*.rows"))
    told = {
        "peak_mib": peak_kib / 1024,
        "features_mib": stored_bytes / 2**20,
        "seconds": time.perf_counter() - begin_s,
        "cpu_seconds": time.process_time() - cpu_s,
        "auroc": summary["cross_validated"]["auroc"],
        "computed": summary["features"]["computed"],
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__" and len(sys.argv) == _ON_THE_COMMAND_LINE + 1:
    _train_and_tell(*sys.argv[1:])
