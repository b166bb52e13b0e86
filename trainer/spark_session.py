"""A session on a Spark cluster: started within bounds, quiet, and ended with all that it started.

What the JVM and Spark have to say goes into a log file, which is kept where something failed. Settings of a cluster
come from where Spark's users have them, `spark-defaults.conf` and the environment, and from `--spark-conf`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from engine.errors import InputError
from trainer.errors import SparkError
from trainer.spark_words import in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    Task = Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]

CONNECT_S = 5.0
END_S = 30.0
_LOOPBACK = ("127.", "localhost", "[::1]")


def is_here(master: str) -> bool:
    """Whether all of it runs on this machine, so that loopback is enough."""
    hosts = _hosts(master)
    return master.startswith("local") or (bool(hosts) and all(host.startswith(_LOOPBACK) for host, _ in hosts))


class Session:
    """One Spark application. A context manager; `run` may be called from one thread at a time."""

    def __init__(self, master: str, settings: Mapping[str, str], wait_s: float) -> None:
        """Start it.

        Args:
            master: Spark's own URL of a cluster.
            settings: of Spark; they go over those of `spark-defaults.conf`.
            wait_s: how long the first task may wait for an executor.

        Raises:
            SparkError: no cluster answers, Java is missing, or Spark does not start.
        """
        _refuse_silent(master)
        self._master, self._wait_s = master, wait_s
        self._logs = Path(tempfile.mkdtemp(prefix="framegate-spark-"))
        self._gateway: Any = None
        self._context: SparkContext | None = None
        try:
            with _newer_pandas():
                self._start(settings)
        except BaseException as error:
            self._end()
            if not isinstance(error, Exception) or isinstance(error, SparkError):
                raise
            raise self.told(error) from error

    def __enter__(self) -> Self:
        """Hand over itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the application and its JVM; the log stays where something failed."""
        self._end()
        if kind is None or not issubclass(kind, SparkError):
            shutil.rmtree(self._logs, ignore_errors=True)

    @property
    def slots(self) -> int:
        """How many tasks run at a time, as far as executors have come."""
        context, _ = self._started()
        return max(1, context.defaultParallelism)

    def run(self, task: Task, tasks: int, schema: str, while_running: Callable[[], None]) -> list[dict[str, Any]]:
        """Run `task` on each index below `tasks`, one a task of Spark, and collect the rows that come out of them.

        `while_running` is called again and again meanwhile, on the calling thread; what it raises ends the job.

        Raises:
            SparkError: the job failed, or no executor took its first task in time.
        """
        job = self.begin(task, tasks, schema)
        while not job.done(0.1):
            while_running()
        return job.result()

    def begin(self, task: Task, tasks: int, schema: str) -> RunningJob:
        """Begin such a job."""
        return RunningJob(self, task, tasks, schema)

    def told(self, error: Exception) -> SparkError:
        """An error of Spark as one line, with the log's place."""
        return SparkError(f"{in_words(str(error))}; Spark's own words are in {self._logs}")

    def _started(self) -> tuple[SparkContext, SparkSession]:
        if self._context is None:
            msg = "the Spark session has ended: expected one that runs; start again"
            raise SparkError(msg)
        return self._context, self._session

    def _start(self, settings: Mapping[str, str]) -> None:
        from pyspark import SparkConf, SparkContext  # noqa: PLC0415 - only where asked for
        from pyspark.java_gateway import launch_gateway  # noqa: PLC0415
        from pyspark.sql import SparkSession  # noqa: PLC0415

        conf = SparkConf(loadDefaults=False)
        for name, value in {**_own_settings(self._master, self._logs), **settings}.items():
            conf.set(name, value)
        conf.setMaster(self._master).setAppName("framegate train")
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if is_here(self._master):
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        with (self._logs / "driver.log").open("wb") as log:
            launch: Any = launch_gateway  # which has no types
            self._gateway = launch(conf, {"stdout": log, "stderr": subprocess.STDOUT})
        self._context = SparkContext(conf=conf, gateway=self._gateway)
        self._session = SparkSession(self._context)

    def _end(self) -> None:
        context, gateway = self._context, self._gateway
        self._context = self._gateway = None
        if context is not None:
            with contextlib.suppress(Exception):  # the JVM may be gone
                self._session.stop()
        if gateway is not None:
            _end_gateway(gateway)


class RunningJob:
    """A job on a thread of its own, and whether executors have taken it up."""

    def __init__(self, session: Session, task: Task, tasks: int, schema: str) -> None:
        """Begin it."""
        from pyspark import InheritableThread  # noqa: PLC0415 - see above

        self._session = session
        self._context, sql = session._started()  # noqa: SLF001 - the two are one
        self._rows: list[dict[str, Any]] = []
        self._error: Exception | None = None
        self._waits_until_s: float | None = time.monotonic() + session._wait_s  # noqa: SLF001

        with _newer_pandas():
            frame = sql.range(0, tasks, 1, tasks).mapInPandas(task, schema)

        def work() -> None:
            try:
                self._rows = [row.asDict() for row in frame.collect()]
            except Exception as error:  # noqa: BLE001 - raised by `result`, whatever it is
                self._error = error

        self._thread = InheritableThread(target=work, name="spark-job", daemon=True)
        self._thread.start()

    def done(self, timeout_s: float) -> bool:
        """Whether it has ended, after waiting so long for it. Raises SparkError where no executor comes in time."""
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        if self._waits_until_s is not None:
            self._refuse_waiting()
        return False

    def result(self) -> list[dict[str, Any]]:
        """The rows of a job that has ended. Raises SparkError where it failed."""
        if self._error is not None:
            raise self._session.told(self._error) from self._error
        return self._rows

    def _refuse_waiting(self) -> None:
        tracker = self._context.statusTracker()
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        if any(stage and stage.numActiveTasks + stage.numCompletedTasks for stage in stages):
            self._waits_until_s = None
        elif self._waits_until_s is not None and time.monotonic() > self._waits_until_s:
            msg = (
                f"no executor of {self._session._master} took a task within {self._session._wait_s:.0f} s: "  # noqa: SLF001
                "expected free cores and memory; ask for less with --spark-conf (spark.executor.cores, "
                "spark.executor.memory, spark.cores.max), or wait until the cluster is free"
            )
            raise SparkError(msg)


@contextlib.contextmanager
def _newer_pandas() -> Iterator[None]:
    """Spark asks for pandas 2; one column in and a receipt out go through 3 as well, and a test holds it to that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        yield


def _own_settings(master: str, logs: Path) -> dict[str, str]:
    """What Framegate wants of any Spark; the user's settings go over it."""
    own = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "WARN",
        "spark.python.worker.reuse": "true",
    }
    if is_here(master):
        own |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.local.dir": str(logs)}
    return own


def _hosts(master: str) -> list[tuple[str, int]]:
    """(host, port) of each master of `spark://one:7077,two:7077`; none of another kind of URL."""
    if not master.startswith("spark://"):
        return []
    pairs = (entry.rpartition(":") for entry in master.removeprefix("spark://").split(","))
    return [(host, int(port)) for host, _, port in pairs if host and port.isdigit()]


def _refuse_silent(master: str) -> None:
    """Ask for an answer before a JVM is started: Spark itself gives up after minutes. Raises SparkError."""
    hosts = _hosts(master)
    if master.startswith("spark://") and not hosts:
        msg = f"--master {master} is not understood: expected spark://host:port"
        raise InputError(msg)
    failures = []
    for host, port in hosts:
        try:
            socket.create_connection((host.strip("[]"), port), CONNECT_S).close()
        except OSError as error:
            failures.append(f"{host}:{port} {error.strerror or error}")
        else:
            return
    if failures:
        msg = f"no Spark master answers ({'; '.join(failures)}): expected one that runs at {master}; start it first"
        raise SparkError(msg)


def _end_gateway(gateway: Any) -> None:
    """End the JVM that was started: it ends with its standard input."""
    from pyspark import SparkContext  # noqa: PLC0415 - see above

    process: subprocess.Popen[bytes] | None = getattr(gateway, "proc", None)
    with contextlib.suppress(Exception):  # its connections may be broken
        gateway.shutdown()
    SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001 - or a second session would take this one's JVM
    if process is None:
        return
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
