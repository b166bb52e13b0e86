"""Measures what docs/spark.md computes with: `python tests/bench/spark_rates.py IMAGES WIDTHxHEIGHT COUNT "what"`.

Prints one entry for docs/spark_rates.json, and on standard error how Spark compares with this machine alone on the same
images and cores. Processor time throughout: of the executors' JVMs and Python workers together, and of the driver.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import threading
import time
import tracemalloc
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from engine.backbone import FeaturizerSpec  # noqa: E402 - after the path
from engine.processor import cpu_name  # noqa: E402
from engine.specs import ImageSpec  # noqa: E402
from tests.spark_cluster import MASTER, WORKER, processes_below, spark_environment  # noqa: E402
from trainer.feature_store import FeatureCache  # noqa: E402
from trainer.features import Extraction, extract, shape_of  # noqa: E402
from trainer.featurize import Featurizer  # noqa: E402
from trainer.labels import Sample  # noqa: E402
from trainer.sources import Item, open_source  # noqa: E402
from trainer.spark import SparkFeaturizer  # noqa: E402
from trainer.spark_job import MOST_IMAGES, PART_BYTES, row_bytes  # noqa: E402
from trainer.spark_parts import PartRow, decode, encode  # noqa: E402
from trainer.spark_scale import Rates  # noqa: E402
from trainer.spark_settings import SparkSettings  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

EMPTY_TASKS = 40
PART_IMAGES = 128


def nothing(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """A task without work."""
    yield from frames


def below_cpu_s() -> float:
    """Processor time of all processes that this one has started, and these in turn."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Memory(threading.Thread):
    """The most that one Python worker holds."""

    def __init__(self) -> None:
        """Begin to look."""
        super().__init__(daemon=True)
        self.most_bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Look a few times a second."""
        while not self.ended.wait(0.3):
            for process in processes_below(os.getpid(), WORKER):
                try:
                    self.most_bytes = max(self.most_bytes, process.memory_full_info().uss)
                except psutil.NoSuchProcess:
                    continue


def driver_row_bytes(count: int = 50_000) -> float:
    """Memory that the driver takes for an image that it only knows by name, label and digest."""
    tracemalloc.start()
    items = [Item(f"good/board-{i:07d}/part-{i:07d}.jpg", 123_456 + i) for i in range(count)]
    sizes = {item.name: item.size_bytes for item in items}
    more = {item.name: item.size_bytes for item in items}
    samples = [Sample(item.name, "good", is_defect=False, group=f"board-{i}") for i, item in enumerate(items)]
    digests = tuple(f"{i:064x}" for i in range(count))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / len((items, sizes, more, samples, digests)[0])


def take_cpu_s(payloads: list[bytes], image: ImageSpec, featurizer: FeaturizerSpec) -> float:
    """Processor time of the driver for a row: out of Parquet and onto its disk."""
    names = [str(index) for index in range(len(payloads))]
    with Featurizer(image, featurizer) as running, FeatureCache() as cache:
        rows = [PartRow(name, row) for name, row in zip(names, running.stream(payloads), strict=True)]
        parts = [
            encode(rows[start : start + PART_IMAGES], image, featurizer) for start in range(0, len(rows), PART_IMAGES)
        ]
        extraction = Extraction(running, cache.open("0" * 64, shape_of(image, featurizer)))
        began_s = time.process_time()
        taken = (each.row for part in parts for each in decode(io.BytesIO(part), image, featurizer))
        extraction.take_in(names, taken, lambda _: None)
        return (time.process_time() - began_s) / len(names)


def main(location: str, size: str, count: int, what: str) -> None:
    """Measure and print."""
    width_px, height_px = map(int, size.split("x"))
    image, featurizer = ImageSpec(width_px, height_px, jpeg="scaled"), FeaturizerSpec(embedding=True)
    with tempfile.TemporaryDirectory() as folder, open_source(location) as source:
        items = source.items()[:: max(1, len(source.items()) // count)][:count]
        names = [item.name for item in items]
        with Featurizer(image, featurizer) as running:  # once without the clock: pages, caches, threads
            running.featurize([source.read(name) for name in names[:8]])
        began_cpu_s = time.process_time()
        extract(names, source.read, image, featurizer)
        here_cpu_s = time.process_time() - began_cpu_s
        os.environ.update(spark_environment(Path(folder) / "tmp"))
        settings = SparkSettings(MASTER, location, f"{folder}/job")
        memory = Memory()
        with SparkFeaturizer(source, settings) as spark, FeatureCache() as cache:
            cache.elsewhere = spark
            extract(names[:2], source.read, image, featurizer, cache=cache)
            start_cpu_s = below_cpu_s()
            session = spark._started()
            session.run(nothing, EMPTY_TASKS, "id long", lambda: None)
            before_cpu_s = below_cpu_s()
            session.run(nothing, EMPTY_TASKS, "id long", lambda: None)
            empty_cpu_s = (below_cpu_s() - before_cpu_s) / EMPTY_TASKS
            memory.start()
            before_cpu_s, began_s = below_cpu_s(), time.perf_counter()
            spark.receipts.clear()
            extract(names, source.read, image, featurizer, cache=cache)
            took_s = time.perf_counter() - began_s
            there_cpu_s = below_cpu_s() - before_cpu_s
            memory.ended.set()
            memory.join()
        receipts = spark.receipts
        row_cpu_s = take_cpu_s([source.read(name) for name in names], image, featurizer)
    done = sum(row["images"] for row in receipts)
    worker_cpu_s = sum(row["cpu_s"] for row in receipts) / done
    rates = Rates(
        what=what,
        where=f"{cpu_name()}, {MASTER}",
        measured_on=datetime.now(UTC).date().isoformat(),
        image_cpu_s=worker_cpu_s,
        task_cpu_s=empty_cpu_s,
        start_cpu_s=start_cpu_s,
        take_cpu_s=row_cpu_s,
        row_bytes=sum(row["written_bytes"] for row in receipts) / done,
        image_bytes=sum(row["read_bytes"] for row in receipts) / done,
        worker_bytes=memory.most_bytes,
        driver_row_bytes=driver_row_bytes(),
        per_part=max(1, min(MOST_IMAGES, PART_BYTES // row_bytes(image, featurizer))),
        here_cpu_s=here_cpu_s / done,
        with_jvms_cpu_s=there_cpu_s / done,
    )
    print(json.dumps(asdict(rates), indent=2))  # noqa: T201 - what it is for
    print(  # noqa: T201
        f"{done} images, {len(receipts)} parts: here {1000 * here_cpu_s / done:.1f} ms of processor time an image, in "
        f"Spark's workers {1000 * worker_cpu_s:.1f}, with the JVMs {1000 * there_cpu_s / done:.1f}, on the driver "
        f"{1000 * row_cpu_s:.2f}; {took_s:.1f} s by the wall's clock",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
