"""What an executor's Python worker does: reads the images of a part, featurizes them, writes them as Parquet.

Spark starts one such process for each task that runs at a time and keeps it for the tasks that follow. So the model is
loaded once a process and kept here, with as many threads as the task has cores: with `spark.task.cpus` at the
executor's cores there is one process, and one model, on each executor.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq
from pyspark import TaskContext

from engine.streams import share_cores
from trainer.errors import MemberError, SparkError
from trainer.featurize import Featurizer, in_order
from trainer.spark_folder import SharedFolder
from trainer.spark_identity import answer, difference, identity
from trainer.spark_job import Job, part_file
from trainer.spark_parts import PartRow, encode
from trainer.spark_reading import Entry, open_reader, read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from trainer.featurize import Row

JOB_FILE = "job.json"

LOOK_SCHEMA = "host string, process long, why string"
RECEIPT_SCHEMA = (
    "part long, host string, process long, loads long, images long, set_aside long, read_bytes long, "
    "written_bytes long, wall_s double, cpu_s double"
)


class Worker:
    """One process's model and source for one job.

    Attributes:
        loads: models that this process has loaded so far.
    """

    loads = 0

    def __init__(self, root: str, names_file: str, location: str) -> None:
        """Load the model and open the source.

        Raises:
            SparkError: the job's folder is not to be seen from here, or this machine does not compute what the driver
                computes.
            SourceError: the source is not to be seen from here.
        """
        self.of = (root, names_file, location)
        self._folder = SharedFolder(root)
        self._job = Job.from_json(self._folder.read(JOB_FILE))
        with ExitStack() as opened:
            self._featurizer = opened.enter_context(Featurizer(self._job.image, self._job.featurizer, self._job.turn))
            Worker.loads += 1
            self._refuse_another_machine()
            self._names = pq.ParquetFile(opened.enter_context(self._folder.open(names_file)))
            self._reader = open_reader(location, is_loose=bool(self._entries(0)[0].key))
            opened.callback(self._reader.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let go of the model and the source."""
        self._opened.close()

    def first_unread(self) -> str | None:
        """Why the first image cannot be read from here; None where it can."""
        entry = self._entries(0)[0]
        try:
            self._reader.read(entry)
        except MemberError as error:
            return f"it cannot read {entry.name}: {error}"
        return None

    def part(self, index: int) -> dict[str, Any]:
        """Do the part of this index in the list of names; what it took, as `RECEIPT_SCHEMA` has it."""
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        entries = self._entries(index)
        self._read_bytes, self._unread = 0, set[int]()
        rows = in_order(self._begun(entries), self._featurizer.ahead)
        told = [
            PartRow(entry.name, row, unread=at in self._unread)
            for at, (entry, row) in enumerate(zip(entries, rows, strict=True))
        ]
        content = encode(told, self._job.image, self._job.featurizer)
        part = self._names.read_row_group(index, ["part"]).column("part")[0].as_py()
        self._folder.write(part_file(part), content)
        return {
            "part": part,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "loads": Worker.loads,
            "images": len(told),
            "set_aside": sum(isinstance(each.row, str) for each in told),
            "read_bytes": self._read_bytes,
            "written_bytes": len(content),
            "wall_s": time.perf_counter() - began_s,
            "cpu_s": time.process_time() - began_cpu_s,
        }

    def _entries(self, index: int) -> list[Entry]:
        columns = self._names.read_row_group(index, ["name", "key", "size_bytes", "mark"]).to_pylist()
        return [Entry(**column) for column in columns]

    def _begun(self, entries: Sequence[Entry]) -> Iterator[Future[Row | str] | str]:
        """Read while others are computed."""
        for at, payload in enumerate(read_ahead(self._reader, entries)):
            if isinstance(payload, MemberError):
                self._unread.add(at)
                yield str(payload)
            else:
                self._read_bytes += len(payload)
                yield self._featurizer.submit(payload)

    def _refuse_another_machine(self) -> None:
        job = self._job
        theirs = identity(job.image, job.featurizer)
        probe, expected = job.probe
        differs = difference(job.identity, theirs, (expected, answer(self._featurizer, probe)))
        if differs is not None:
            msg = (
                f"executor {socket.gethostname()} differs from the driver: it has {differs}: expected the same "
                "Framegate, packages and kind of processor, or the features would differ in their last bits; give all "
                "machines the same image or environment, and the driver one of their processors"
            )
            raise SparkError(msg)


def look(root: str, names_file: str, location: str, frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Say for each task why this executor cannot do the job, or null; for `mapInPandas`."""
    for frame in frames:
        try:
            worker = _worker(root, names_file, location)
            why = worker.first_unread()
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver shall say it in one line
            why = f"{error}" if isinstance(error, SparkError) else f"{type(error).__name__}: {error}"
        yield pd.DataFrame({"host": socket.gethostname(), "process": os.getpid(), "why": [why] * len(frame)})


def featurize(root: str, names_file: str, location: str, frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Do the parts whose indices come in; a receipt for each; for `mapInPandas`."""
    worker = _worker(root, names_file, location)
    for frame in frames:
        yield pd.DataFrame([worker.part(int(index)) for index in frame["id"]])


_kept: list[Worker] = []


def _worker(root: str, names_file: str, location: str) -> Worker:
    """This process's own, for this job; that of an earlier job is let go first."""
    if not _kept or _kept[0].of != (root, names_file, location):
        while _kept:
            _kept.pop().close()
        context = TaskContext.get()
        cpus = context.cpus() if context is not None else 1
        share_cores(max(1, len(os.sched_getaffinity(0)) // cpus))
        _kept.append(Worker(root, names_file, location))
    return _kept[0]
