"""What featurizing so many images on Spark would take, from rates that were measured. Pure.

The images' processor time and what Spark adds for each task, over all cores; the driver takes parts in meanwhile, so
that the slower of the two counts. Rates are processor time, which other work on the measuring machine does not change;
the start counts as if one core did all of it. What a network or a store adds is not in it: a core that waits for images
does not compute, see `read_mbit_s`.
"""

from __future__ import annotations

from dataclasses import dataclass

_GIB, _MIB = 1 << 30, 1 << 20
_MBIT = 1_000_000 / 8


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured.

    Attributes:
        what: images, input and featurizer, in words.
        where: the machine, in words.
        measured_on: date.
        image_cpu_s: processor time of an executor for an image, from its bytes in the source to its row in Parquet.
        task_cpu_s: processor time of Spark for a task beside the work in it, on all machines together.
        start_cpu_s: processor time from the start of Spark to the first task that computes, on all machines together.
        take_cpu_s: processor time of the driver for a row, from Parquet into the features on its disk.
        row_bytes: of an image in Parquet.
        image_bytes: of an encoded image.
        worker_bytes: memory of one Python worker with its model and a part.
        driver_row_bytes: memory of the driver for an image: names, labels, digests.
        per_part: images of a task.
        here_cpu_s: processor time of the same image in a training without Spark.
        with_jvms_cpu_s: that of all of Spark's processes for an image, in a short job whose JVMs had just started.
    """

    what: str
    where: str
    measured_on: str
    image_cpu_s: float
    task_cpu_s: float
    start_cpu_s: float
    take_cpu_s: float
    row_bytes: float
    image_bytes: float
    worker_bytes: float
    driver_row_bytes: float
    per_part: int
    here_cpu_s: float
    with_jvms_cpu_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What it would take.

    Attributes:
        featurize_s: of the executors.
        take_s: of the driver, at the same time.
        total_s: until all features are on the driver's disk.
        core_hours: of the executors.
        shared_bytes: Parquet in the shared folder, until the bundle is written.
        driver_disk_bytes: the features on the driver's own disk.
        driver_bytes: the driver's memory for names, labels and digests.
        executor_bytes: memory of an executor's Python workers, beside its heap.
        read_mbit_s: what all executors together must get from the store so that no core waits.
    """

    featurize_s: float
    take_s: float
    total_s: float
    core_hours: float
    shared_bytes: float
    driver_disk_bytes: float
    driver_bytes: float
    executor_bytes: float
    read_mbit_s: float


def estimate(rates: Rates, images: int, executors: int, cores: int) -> Estimate:
    """For so many images on so many executors of so many cores, one task a core.

    Raises:
        ValueError: a number below one.
    """
    if min(images, executors, cores) < 1:
        msg = f"got {images} images, {executors} executors of {cores} cores: expected at least one of each"
        raise ValueError(msg)
    slots = executors * cores
    tasks = -(-images // rates.per_part)
    busy_s = images * rates.image_cpu_s + tasks * rates.task_cpu_s
    one_s = min(rates.per_part, images) * rates.image_cpu_s + rates.task_cpu_s
    featurize_s = max(busy_s / slots, one_s)  # a task is not shared out
    take_s = images * rates.take_cpu_s
    return Estimate(
        featurize_s=featurize_s,
        take_s=take_s,
        total_s=rates.start_cpu_s + max(featurize_s, take_s),
        core_hours=busy_s / 3600,
        shared_bytes=images * rates.row_bytes,
        driver_disk_bytes=images * rates.row_bytes,
        driver_bytes=images * rates.driver_row_bytes,
        executor_bytes=cores * rates.worker_bytes,
        read_mbit_s=images * rates.image_bytes / featurize_s / _MBIT,
    )


def table(rates: Rates, images: int, clusters: tuple[tuple[int, int], ...]) -> str:
    """Markdown: a row for each (executors, cores) of `clusters`."""
    columns = (
        "executors x cores",
        "executors compute",
        "driver takes in",
        "all",
        "core hours",
        "Parquet, shared",
        "driver's disk",
        "driver's memory",
        "executor's memory beside the heap",
        "read at",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for executors, cores in clusters:
        got = estimate(rates, images, executors, cores)
        cells = (
            f"{executors} x {cores}",
            _time(got.featurize_s),
            _time(got.take_s),
            _time(got.total_s),
            f"{got.core_hours:,.0f}",
            _size(got.shared_bytes),
            _size(got.driver_disk_bytes),
            _size(got.driver_bytes),
            _size(got.executor_bytes),
            f"{got.read_mbit_s:,.0f} Mbit/s",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told(rates: Rates) -> str:
    """Markdown: what was measured, where and when."""
    return "\n".join(
        (
            f"Measured on {rates.measured_on}, {rates.where}; {rates.what}. Times are processor time.",
            "",
            "| measured | |",
            "|---|---|",
            f"| an image on an executor's core, from the source to Parquet | {rates.image_cpu_s * 1000:.1f} ms |",
            f"| the same image in a training without Spark | {rates.here_cpu_s * 1000:.1f} ms |",
            f"| all of Spark's processes for it, in a job just started | {rates.with_jvms_cpu_s * 1000:.1f} ms |",
            f"| Spark's own, a task of {rates.per_part} images | {rates.task_cpu_s * 1000:.0f} ms |",
            f"| start of Spark, its executors, workers and their models | {rates.start_cpu_s:.0f} s |",
            f"| a row on the driver, from Parquet onto its disk | {rates.take_cpu_s * 1000:.2f} ms |",
            f"| Parquet | {rates.row_bytes / 1000:,.1f} kB an image |",
            f"| encoded image | {rates.image_bytes / 1000:,.1f} kB |",
            f"| a Python worker, model and part in it | {rates.worker_bytes / _MIB:,.0f} MiB |",
            f"| driver's memory | {rates.driver_row_bytes:,.0f} bytes an image |",
        )
    )


def _time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"  # noqa: PLR2004 - two hours


def _size(n_bytes: float) -> str:
    if n_bytes < _GIB:
        return f"{n_bytes / _MIB:,.0f} MiB"
    return f"{n_bytes / _GIB:,.1f} GiB" if n_bytes < 1024 * _GIB else f"{n_bytes / 1024 / _GIB:,.2f} TiB"
