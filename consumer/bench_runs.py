"""What the benches of the whole consumer have in common: frames, a cluster, and one contestant's run on it."""

from __future__ import annotations

import bisect
import json
import os
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from consumer.bench_jobs import SPEC
from consumer.broker import EmbeddedBroker, is_embedded
from consumer.children import bound_command
from consumer.errors import ChildError
from consumer.plain_stream import answer_times
from consumer.topics import check_topics, ensure_topics
from engine.preprocess import preprocess
from engine.stand_in import pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WIDTH_PX, HEIGHT_PX, QUALITY, NOISE = 640, 480, 90, 5.0
"""A frame: about 70 kB, as cameras' frames are. Noise in grey values."""

DIFFERENT = 64
"""Frames that differ from each other."""

BEGIN, END = 0.2, 0.8
"""The middle of a run: the part of its verdicts that is measured."""

SETTLED = 0.6
"""A change of owners before this part of the verdicts moves the beginning; one behind it belongs to the end."""

IDLE_EXIT_S = 1.0
RUN_S = 180.0
SAMPLE_S = 0.05

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contestant: verdicts a second, and microseconds of processor time a frame.

    Attributes:
        broker_us: the broker's; None where its process is not ours to see.
    """

    per_s: float
    cpu_us: float
    broker_us: float | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the frames lie."""

    bootstrap_servers: str
    client: Mapping[str, Any]
    broker_pid: int | None
    embedded: bool


def jpegs(count: int) -> list[bytes]:
    """So many different frames."""
    rng = np.random.default_rng(2)
    encoded = []
    for picture in pictures(SPEC.width_px, count):
        large = cv2.resize(picture, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
        noisy = (large + rng.normal(0, NOISE, large.shape)).clip(0, 255).astype(np.uint8)
        encoded.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    return encoded


def decode_on(payloads: Sequence[bytes], threads: int, seconds: float) -> int:
    """Decode on so many threads for so long."""
    done: list[int] = []
    end_s = time.perf_counter() + seconds

    def work(first: int) -> None:
        count = 0
        out = np.empty((SPEC.height_px, SPEC.width_px, 3), np.uint8)
        while not count or time.perf_counter() < end_s:
            preprocess(payloads[(first + count) % len(payloads)], SPEC, out)
            count += 1
        done.append(count)

    crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return sum(done)


def run_contestant(command: Sequence[str], cluster: Cluster, verdicts: str, frames: int, folder: Path) -> Run:
    """One contestant's run, from its start to its end."""
    log = folder / f"{verdicts}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            bound_command(command), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
        )
        samples: list[tuple[float, float, float]] = []
        end_s = time.monotonic() + RUN_S
        try:
            while process.poll() is None and time.monotonic() < end_s:
                samples.append((time.time(), cpu_s(process.pid), own_cpu_s(cluster.broker_pid)))
                time.sleep(SAMPLE_S)
        finally:
            process.kill()
            process.wait()
    times = answer_times(cluster.bootstrap_servers, verdicts, frames, cluster.client)
    if len(times) < frames:
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        msg = f"{verdicts} got {len(times)} verdicts for {frames} frames; it wrote last: {said}"
        raise ChildError(msg)
    last = int(len(times) * END)
    stop_s = times[last]
    settled_at_s = settled_s(log, before_s=times[int(len(times) * SETTLED)])
    first = max(int(len(times) * BEGIN), bisect.bisect(times, settled_at_s))
    begin_s = times[first]
    answered = last - first
    at = np.array(samples)
    own_s, broker_s = (
        float(np.interp(stop_s, at[:, 0], at[:, column]) - np.interp(begin_s, at[:, 0], at[:, column]))
        for column in (1, 2)
    )
    broker_us = broker_s / answered * 1e6 if cluster.broker_pid is not None else None
    return Run(answered / (stop_s - begin_s), own_s / answered * 1e6, broker_us)


def settled_s(log: Path, *, before_s: float) -> float:
    """When a partition last had another owner, by what our consumers log; 0 where nothing is said of it before then.

    Workers do not join at the same moment, and until all have their partitions, it is not all of them that is measured.
    """
    last_s = 0.0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
            at_s, what = float(event["at"]), str(event["what"])
        except (ValueError, KeyError, TypeError):
            continue
        if what.startswith("partitions ") and at_s < before_s:
            last_s = max(last_s, at_s)
    return last_s


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and of those that it has started."""
    total = own_cpu_s(pid)
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        total += sum(cpu_s(int(child)) for child in children)
    return total


def own_cpu_s(pid: int | None) -> float:
    """Processor seconds of one process; 0 where it is not there or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def cluster_for(bootstrap_servers: str | None, client: Mapping[str, Any]) -> Iterator[Cluster]:
    """The one that is named, or an embedded broker for as long as this lasts."""
    if bootstrap_servers is not None:
        state = check_topics(bootstrap_servers, [], client=client)
        yield Cluster(bootstrap_servers, client, None, is_embedded(state.cluster_id))
        return
    with EmbeddedBroker() as broker:
        yield Cluster(broker.bootstrap_servers, {}, broker.pid, embedded=True)


def make_topics(cluster: Cluster, frames: str, verdicts: str, partitions: int) -> None:
    """A run's topics, where they are not there yet."""
    ensure_topics(
        cluster.bootstrap_servers,
        partitions=partitions,
        replication=1,
        frames=frames,
        verdicts=verdicts,
        dead=f"{frames}-dead",
        client=cluster.client,
    )
