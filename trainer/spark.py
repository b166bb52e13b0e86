"""Featurization on Apache Spark: executors read and featurize, this machine takes their Parquet in, in order.

What comes out is what `trainer.features` computes here, row by row and bit by bit; so all that follows is the same, and
so is the bundle's digest. Every featurization goes to Spark, the small ones of the choice among sizes too: the session
and the workers are warm then, the images lie where the executors are, and there is one path to hold equal.

A job's folder holds `job.json`, the list of names, and a file of features a part. A part that is there is done: a job
that broke off goes on from there, with the same or another cluster.
"""

from __future__ import annotations

import functools
import io
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import MemberError, SparkError
from trainer.featurize import Featurizer
from trainer.progress import Step
from trainer.spark_folder import SharedFolder
from trainer.spark_identity import answer, identity, probe_image
from trainer.spark_job import Job, images_per_part, part_file, parts_of
from trainer.spark_parts import decode
from trainer.spark_reading import listed
from trainer.spark_session import Session
from trainer.spark_worker import JOB_FILE, LOOK_SCHEMA, RECEIPT_SCHEMA, featurize, look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec
    from trainer.featurize import Row
    from trainer.sources import Source
    from trainer.spark_parts import PartRow
    from trainer.spark_reading import Entry
    from trainer.spark_session import RunningJob
    from trainer.spark_settings import SparkSettings

POLL_S = 0.2


class SparkFeaturizer:
    """Rows of features of a source's images, computed by a cluster. A context manager.

    Attributes:
        receipts: what each part took, as `trainer.spark_worker.RECEIPT_SCHEMA` has it, of all jobs so far.
    """

    def __init__(self, source: Source, settings: SparkSettings, tell: Callable[[Step], None] = lambda _: None) -> None:
        """Take the source; Spark starts with the first images, and `tell` hears of it."""
        self._source, self._settings, self._tell = source, settings, tell
        self._session: Session | None = None
        self._done: list[SharedFolder] = []
        self._probe = probe_image()
        self.receipts: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        """Hand over itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *told: object) -> None:
        """End Spark; what it wrote stays, so that a training that is killed later on does not need it again."""
        if self._session is not None:
            self._session.__exit__(kind, *told)
            self._session = None

    def forget(self) -> None:
        """Delete what the jobs wrote. Raises SparkError where that cannot be."""
        for folder in self._done:
            folder.remove()
        SharedFolder(self._settings.folder).remove_empty()

    def rows(
        self, names: Sequence[str], image: ImageSpec, featurizer: FeaturizerSpec, turn: int = 0
    ) -> Iterator[Row | str]:
        """Rows of the images, or why one is set aside, in their order, as soon as they are there.

        Raises:
            SparkError: the cluster cannot be used, or did not do it. What is done stays for the next try.
        """
        if not names:
            return
        slots = self._started().slots
        job = self._job(image, featurizer, turn, images_per_part(len(names), slots, image, featurizer))
        entries = listed(self._source, self._settings.location, names)
        folder = SharedFolder(f"{self._settings.folder}/{job.key(entries)}")
        job = _begun_before(folder) or job
        self._done.append(folder)
        parts = parts_of(entries, job.per_part)
        ready = folder.names("features")
        missing = [number for number in range(len(parts)) if part_file(number) not in ready]
        running = self._begin(folder, job, parts, missing) if missing else None
        for number, part in enumerate(parts):
            _wait_for(folder, number, running)
            for entry, each in zip(part, _read(folder, job, number), strict=True):
                self._refuse_unread(entry.name, each, folder)
                yield each.row
        if running is not None:
            while not running.done(POLL_S):
                pass
            self.receipts += running.result()

    def _started(self) -> Session:
        if self._session is None:
            self._tell(Step("start Spark"))
            self._session = Session(self._settings.master, self._settings.conf, self._settings.wait_s)
        return self._session

    def _job(self, image: ImageSpec, featurizer: FeaturizerSpec, turn: int, per_part: int) -> Job:
        with Featurizer(image, featurizer, turn) as running:
            expected = answer(running, self._probe)
        us = identity(image, featurizer)
        return Job(self._source.origin, image, featurizer, turn, per_part, us, (self._probe, expected))

    def _begin(
        self, folder: SharedFolder, job: Job, parts: Sequence[Sequence[Entry]], missing: Sequence[int]
    ) -> RunningJob:
        """Write down what is missing, ask an executor whether it can do it, and begin."""
        session, names_file = self._started(), f"names-{uuid.uuid4().hex}.parquet"
        folder.write(JOB_FILE, job.to_json().encode())
        folder.write(names_file, names_table(parts, missing))
        where = (folder.root, names_file, self._settings.location)
        looked = session.run(functools.partial(look, *where), 1, LOOK_SCHEMA, lambda: None)
        for row in looked:
            if row["why"] is not None:
                msg = f"executor {row['host']} cannot do the job: {row['why']}"
                raise SparkError(msg)
        return session.begin(functools.partial(featurize, *where), len(missing), RECEIPT_SCHEMA)

    def _refuse_unread(self, name: str, each: PartRow, folder: SharedFolder) -> None:
        """What an executor cannot read is set aside only where this machine cannot read it either."""
        if each.name != name:
            msg = f"{folder.root} holds the features of {each.name} in place of {name}: delete the folder, start again"
            raise SparkError(msg)
        if not each.unread:
            return
        try:
            self._source.read(name)
        except MemberError:
            return
        folder.remove()
        msg = (
            f"an executor could not read {name} ({each.row}), which this machine can: expected every executor to see "
            "the whole source; check its mounts, then start again"
        )
        raise SparkError(msg)


def _begun_before(folder: SharedFolder) -> Job | None:
    """The job as it was cut into parts by an earlier try."""
    return Job.from_json(folder.read(JOB_FILE)) if folder.exists(JOB_FILE) else None


def names_table(parts: Sequence[Sequence[Entry]], missing: Sequence[int]) -> bytes:
    """Parquet with a group of rows a part that is missing, so that a task reads no more than its own."""
    text = ("name", "key", "mark")
    schema = pa.schema([("part", pa.int64()), ("size_bytes", pa.int64()), *((name, pa.string()) for name in text)])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema) as writer:
        for number in missing:
            rows = [{"part": number, **asdict(entry)} for entry in parts[number]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=len(rows))
    return buffer.getvalue()


def _wait_for(folder: SharedFolder, number: int, running: RunningJob | None) -> None:
    """Until the part is there. Raises SparkError where the job ends without it."""
    while not folder.exists(part_file(number)):
        if running is None or running.done(POLL_S):
            if running is not None:
                running.result()
            if folder.exists(part_file(number)):
                return
            msg = (
                f"{part_file(number)} did not come to {folder.root}, though its task ended: expected a folder that "
                "this machine and every executor share; give another --spark-folder"
            )
            raise SparkError(msg)


def _read(folder: SharedFolder, job: Job, number: int) -> Iterator[PartRow]:
    try:
        with folder.open(part_file(number)) as file:
            yield from decode(file, job.image, job.featurizer)
    except (ValueError, pa.ArrowException) as error:
        msg = f"{part_file(number)} in {folder.root} cannot be read ({error}): delete it and start again"
        raise SparkError(msg) from error
