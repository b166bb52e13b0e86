"""Apache Spark for tests: a cluster of real executor processes on loopback, all of it below one temporary folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MASTER = "local-cluster[2,1,1024]"
"""Two executors, each a JVM of its own with one core and 1024 MiB; Spark starts another for one that ends."""

EXECUTOR = "CoarseGrainedExecutorBackend"
WORKER = "pyspark.daemon"
START_S = 280.0
_QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss1m"
"""For JVMs that live for seconds on cores that they share."""


def spark_environment(folder: Path) -> dict[str, str]:
    """An environment in which Spark writes nothing outside `folder`, and executors find this Framegate."""
    import pyspark  # noqa: PLC0415 - of the few tests that need it

    home, package = folder / "spark", Path(pyspark.__file__).parent
    home.mkdir(parents=True)
    for name in ("bin", "jars"):
        (home / name).symlink_to(package / name)
    return {
        **os.environ,
        "JDK_JAVA_OPTIONS": f"{_QUICK} -Djava.io.tmpdir={folder}",
        "PYTHONPATH": str(ROOT),
        "SPARK_HOME": str(home),  # where workers write what their executors say
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TMPDIR": str(folder),
    }


def executors_started(environment: dict[str, str]) -> int:
    """How many executors the cluster has started so far."""
    return len(list(Path(environment["SPARK_HOME"]).glob("work/*/*/stderr")))


def processes_below(parent: int, word: str) -> list[psutil.Process]:
    """The processes that a process has started, and these in turn, with a word in their command line."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        try:
            if any(word in part for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill(process: psutil.Process) -> None:
    """Without a chance to tidy up."""
    os.kill(process.pid, signal.SIGKILL)


def wait_for_parts(folder: Path, at_least: int) -> set[Path]:
    """The parts of features below a shared folder, as soon as there are so many."""
    deadline_s = time.monotonic() + START_S
    while True:
        parts = set(folder.glob("*/features/part-*.parquet"))
        if len(parts) >= at_least:
            return parts
        if time.monotonic() > deadline_s:
            msg = f"{len(parts)} parts after {START_S:.0f} s: expected {at_least}"
            raise TimeoutError(msg)
        time.sleep(0.02)
