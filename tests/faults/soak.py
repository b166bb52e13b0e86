"""Frames at capacity for half an hour with a bundle replaced every minute: memory stays flat and nothing is lost.

    python -m tests.faults.soak --minutes 35

`framegate run --workers 2`, delivering exactly once through one Apache Kafka on this machine, with as many frames as it
can take: the cameras are always a bounded number of frames ahead. Every fourth bundle is broken, and has to be refused.
Progress goes to standard error; the last and only line on standard output is one JSON object. Ends with 1 where a bound
is broken, with one line for each.

Memory is the proportional set size of the supervisor and its workers. Its slope is the median over pairs of samples
taken while the same bundle was in place, after the first third of the run (at most ten minutes). A pause is the
longest time between two batches' decisions of one worker, from a bundle's replacement until two seconds after the
worker has counted it; beside it stands the same of stretches of eight seconds in which nothing was replaced.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from prometheus_client.parser import text_string_to_metric_families

from consumer.broker import free_port
from consumer.children import Children
from consumer.topics import ensure_topics
from tests.faults.checker import VerdictRecord, stable_ends
from tests.faults.rolling import RollingCheck
from tests.faults.soak_parts import PARTITIONS, Assortment, Bundles, Cameras, assortment
from tests.faults.trends import Gaps, Sample, quantile_ms, seasonal_slope
from tests.kafka_cluster import MESSAGE_MAX_BYTES, ApacheKafka, KafkaUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


MINUTES = 35.0
"""Ten to warm up, and the 25 by which a slope tells something."""

RELOAD_EVERY_S = 60.0
WORKERS = 2
MIB = 1024 * 1024

KEPT_BYTES = 2 * MESSAGE_MAX_BYTES
"""Of a partition, before its oldest segment goes: more than the cameras are ever ahead, so no frame goes unread."""

SLOPE_LIMIT_MIB_H = 32.0
"""What half an hour can tell from nothing: what frames in hand take makes samples swing by some 13 MiB, and the slope
through 25 minutes of them by a third of this. It is a quarter of a megabyte at each reload of each worker, where an
engine that is not closed keeps thirty and a graph thirteen, or 15 bytes a frame at 600 frames a second."""

TOLD_AFTER_S = 1500.0
"""Of samples. A shorter run tells less, by the power of 1.5, as slopes through noise do: its limit is as much wider."""

SAMPLE_EVERY_S = 0.7
LOOK_EVERY_S = 1.0
WARM_UP_S = 600.0
"""In half an hour at 626 frames/s memory rose by 15 MiB until the ninth minute, and by none in the twenty after it."""

SETTLED_S = 2.0
READY_S = 120.0
RELOAD_S = 60.0
ANSWERS_S = 60.0
END_S = 60.0
SAY_EVERY_S = 30.0


@dataclass
class Watched:
    """What was seen of the consumer on the way."""

    began_s: float = field(default_factory=time.monotonic)
    memory: list[Sample] = field(default_factory=list)
    gaps: dict[str, Gaps] = field(default_factory=dict)
    batch_s: list[float] = field(default_factory=list)
    owners: dict[int, str] = field(default_factory=dict)
    reloads: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    settle_s: dict[str, float] = field(default_factory=dict)
    restarts: int = 0

    def note_batch(self, document: Mapping[str, Any]) -> None:
        """One verdict: what it tells of its batch."""
        owner = self.owners.get(document["source"]["partition"])
        if owner is None or not self.gaps[owner].decided(_epoch_s(document["decided_at"])):
            return
        times = document["latency_ms"]
        if times["inference"] is not None:
            self.batch_s.append((times["inference"] + times["classify"]) / 1e3)

    def note_replacement(self, *, sound: bool) -> None:
        """Another bundle is in place from now on."""
        self.asked["loaded" if sound else "refused"] += 1
        self.settle_s.clear()
        for gaps in self.gaps.values():
            gaps.begin()

    def note_metrics(self, text: str, now_s: float) -> None:
        """Who owns which partition, and which reloads are done."""
        reloads: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        restarts = 0
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "framegate_lag_frames":
                    worker = sample.labels["worker"]
                    self.owners[int(sample.labels["partition"])] = worker
                    self.gaps.setdefault(worker, Gaps())
                elif sample.name == "framegate_reloads_total":
                    reloads[sample.labels["outcome"]] += int(sample.value)
                    counted[sample.labels["worker"]] += int(sample.value)
                elif sample.name == "framegate_worker_restarts_total":
                    restarts += int(sample.value)
        self.reloads, self.counted, self.restarts = reloads, counted, restarts
        for worker, gaps in self.gaps.items():
            if self.counted[worker] >= self.asked.total():
                done_s = self.settle_s.setdefault(worker, now_s)
                if now_s >= done_s + SETTLED_S:
                    gaps.end()

    @property
    def all_counted(self) -> bool:
        """Whether every worker has answered to every replacement."""
        return all(self.counted[worker] >= self.asked.total() for worker in self.gaps)

    def note_memory(self, process: psutil.Process, season: object) -> None:
        """How much the consumer's processes hold."""
        held = sum(_pss_bytes(one.pid) for one in (process, *process.children(recursive=True)))
        self.memory.append(Sample(time.monotonic() - self.began_s, held / MIB, season))


def _pss_bytes(pid: int) -> int:
    """A process's memory, of what it shares with others its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    msg = f"process {pid} shows no Pss: expected Linux 4.14 or newer"
    raise OSError(msg)


def _epoch_s(text: str) -> float:
    """Seconds of the day of an RFC 3339 time in UTC, as verdicts have it: a difference is all that is needed."""
    hours, minutes, seconds = text[11:-1].split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


class Soak:
    """One run."""

    def __init__(
        self, folder: Path, *, minutes: float, every_s: float, seed: int, backend: str, least: int = 0
    ) -> None:
        """Keep the parts; nothing is started yet. It goes on until at least so many bundles were replaced."""
        self._least = least
        self.folder = folder
        self.watched = Watched()
        self._minutes = minutes
        self._every_s = every_s
        self._seed = seed
        self._backend = backend
        self._port = free_port()

    def run(self, cluster: ApacheKafka) -> dict[str, Any]:
        """All of it on a running broker. Returns what the JSON line says."""
        self._servers = cluster.bootstrap_servers
        make_topics(self._servers)
        self.bundles = Bundles(self.folder)
        frames = assortment(self.bundles)
        self.check = RollingCheck(frames.expected, "frames")
        with ExitStack() as stack:
            children = stack.enter_context(Children(self.folder))
            self._consumer = children.start("consumer", self._options())
            self._wait_until_ready()
            self._process = psutil.Process(self._consumer.pid)
            self._reader = stack.enter_context(_closing(_reader(self._servers)))
            self.cameras = stack.enter_context(Cameras(self._servers, "frames", frames, self._seed))
            return self._soak(frames)

    def _options(self) -> list[str]:
        basics = ["run", "--bundle", str(self.bundles.place), "--bootstrap-servers", self._servers, "--group", "soak"]
        ways = ["--workers", str(WORKERS), "--delivery", "exactly-once", "--backend", self._backend]
        return [*basics, *ways, "--watch-s", "1", "--http-port", str(self._port)]

    def _soak(self, frames: Assortment) -> dict[str, Any]:
        watched = self.watched
        watched.began_s = began_s = time.monotonic()
        end_s = began_s + 60 * self._minutes
        jobs: list[tuple[float, Callable[[], None]]] = [
            (LOOK_EVERY_S, self._look),
            (SAMPLE_EVERY_S, lambda: watched.note_memory(self._process, self.bundles.digests[self.bundles.there])),
            (self._every_s, self._replace),
            (SAY_EVERY_S, self._say),
        ]
        due_s = [began_s + every_s for every_s, _ in jobs]
        self._look()
        while (now_s := time.monotonic()) < end_s or watched.asked.total() < self._least:
            self._read(0.05)
            for number, (every_s, job) in enumerate(jobs):
                # Of two replacements at one look only the later one is seen, and the counts would not fit.
                early = job == self._replace and not watched.all_counted and now_s < due_s[number] + RELOAD_S
                if now_s >= due_s[number] and not early:
                    due_s[number] += every_s
                    job()
        answered, took_s = self.check.report.verdicts, time.monotonic() - began_s
        self._see_reloads_done()
        self._finish()
        return self._summary(answered / took_s, len(frames.good))

    def _read(self, timeout_s: float) -> None:
        """Frames that were acknowledged, and verdicts that have come."""
        if self.cameras.failed:
            raise RuntimeError(str(self.cameras.failed[0])) from self.cameras.failed[0]
        for records in self._reader.poll(timeout_ms=int(1e3 * timeout_s), max_records=1000).values():
            for record in records:
                document = json.loads(record.value)
                self.check.verdict(VerdictRecord(record.partition, record.offset, record.key.decode(), document))
                self.watched.note_batch(document)
                self.cameras.answered(document["source"]["partition"])
        while not self.cameras.acknowledged.empty():
            self.check.frame(self.cameras.acknowledged.get())

    def _look(self) -> None:
        self._consumer.require_running()
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
            self.watched.note_metrics(answer.read().decode(), time.monotonic())

    def _replace(self) -> None:
        self.watched.note_replacement(sound=self.bundles.replace())

    def _say(self) -> None:
        report, memory = self.check.report, self.watched.memory[-1]
        said = f"{report.frames} frames, {report.verdicts} verdicts, {memory.held:.1f} MiB"
        sys.stderr.write(f"{memory.at_s:7.1f} s  {said}, reloads {dict(self.watched.reloads)}\n")
        sys.stderr.flush()

    def _see_reloads_done(self) -> None:
        """The last bundle may have been put in place a moment ago; a reload that never comes is told by the summary."""
        end_s = time.monotonic() + RELOAD_S
        while not self.watched.all_counted and time.monotonic() < end_s:
            self._read(0.5)
            self._look()

    def _finish(self) -> None:
        """Send no more, see everything answered, end the consumer in order."""
        self.cameras.stop()
        end_s = time.monotonic() + ANSWERS_S
        while self.check.report.verdicts < self.cameras.sent and time.monotonic() < end_s:
            self._read(0.2)
        self._look()
        self._consumer.terminate()
        self._consumer.wait(END_S)
        ends = stable_ends(self._servers, "verdicts", END_S)  # whatever came after what was expected
        while any(self._reader.position(partition) < end for partition, end in ends.items()):
            self._read(0.2)
        self.check.finish()

    def _wait_until_ready(self) -> None:
        end_s = time.monotonic() + READY_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/ready", timeout=2):
                    return
            except OSError:
                self._consumer.require_running()
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.2)

    def _summary(self, rate_hz: float, pictures: int) -> dict[str, Any]:
        watched, report = self.watched, self.check.report
        warm_s = min(WARM_UP_S, 20 * self._minutes)
        steady = [sample for sample in watched.memory if sample.at_s >= warm_s]
        around = [gap_s for gaps in watched.gaps.values() for gap_s in gaps.around_s]
        usual = [gap_s for gaps in watched.gaps.values() for gap_s in gaps.usual_s]
        return {
            "minutes": self._minutes,
            "frames": report.frames,
            "verdicts": report.verdicts,
            "lost": report.lost,
            "doubled": report.doubled,
            "out_of_order": report.out_of_order,
            "wrong": report.wrong,
            "restarts": watched.restarts,
            "rate_hz": round(rate_hz, 1),
            "reloads": dict(sorted(watched.reloads.items())),
            "expected_reloads": {kind: WORKERS * count for kind, count in sorted(watched.asked.items())},
            "memory_mib": round(max(sample.held for sample in steady), 1),
            "memory_slope_mib_per_hour": round(3600 * seasonal_slope(steady), 2),
            "memory_slope_limit_mib_per_hour": round(slope_limit_mib_h(60 * self._minutes - warm_s), 1),
            "pause_ms": {
                "at_reload": {"p50": quantile_ms(around, 0.5), "max": quantile_ms(around, 1.0)},
                "otherwise": {"p50": quantile_ms(usual, 0.5), "max": quantile_ms(usual, 1.0)},
                "batch": {"p50": quantile_ms(watched.batch_s, 0.5), "max": quantile_ms(watched.batch_s, 1.0)},
            },
            "workers": len(watched.gaps),
            "pictures": pictures,
            "backend": self._backend,
        }


def slope_limit_mib_h(sampled_s: float) -> float:
    """What memory may grow by as far as samples of so many seconds can tell."""
    wider: float = max(1.0, TOLD_AFTER_S / sampled_s) ** 1.5
    return SLOPE_LIMIT_MIB_H * wider


def broken_bounds(summary: Mapping[str, Any]) -> Iterator[str]:
    """One line for each bound that does not hold."""
    for kind in ("lost", "doubled", "out_of_order", "wrong"):
        if summary[kind]:
            yield f"{summary[kind]} frames are {kind}: expected none"
    if summary["restarts"]:
        yield f"workers had to be started again {summary['restarts']} times: expected none to die"
    if summary["verdicts"] != summary["frames"]:
        yield f"{summary['verdicts']} verdicts for {summary['frames']} frames: expected as many"
    if summary["reloads"] | summary["expected_reloads"] != summary["reloads"]:
        yield f"reloads {summary['reloads']}: expected {summary['expected_reloads']}"
    slope, limit = summary["memory_slope_mib_per_hour"], summary["memory_slope_limit_mib_per_hour"]
    if not slope <= limit:
        yield f"memory grows by {slope:g} MiB an hour: expected at most {limit:g}"


def make_topics(bootstrap_servers: str) -> None:
    """As `framegate topics create` makes them, and with a bound on the disk."""
    ensure_topics(bootstrap_servers, partitions=PARTITIONS, replication=1)
    bounds = {"retention.bytes": KEPT_BYTES, "segment.bytes": MESSAGE_MAX_BYTES, "file.delete.delay.ms": 1000}
    given = {name: str(value) for name, value in bounds.items()}
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers.split(","))
    try:
        admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topic, given) for topic in ("frames", "verdicts", "frames.dead")]
        )
    finally:
        admin.close()


def _reader(bootstrap_servers: str) -> KafkaConsumer:
    """A reader of committed verdicts from the first one on, without a group."""
    reader = KafkaConsumer(
        bootstrap_servers=bootstrap_servers.split(","),
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="none",
        metrics_enabled=False,
        fetch_max_wait_ms=50,
    )
    partitions = [TopicPartition("verdicts", number) for number in range(PARTITIONS)]
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    return reader


class _closing:  # noqa: N801 - as contextlib.closing, which mypy takes no untyped client for
    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __enter__(self) -> Any:
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def soak(folder: Path, *, minutes: float, every_s: float, seed: int, backend: str, least: int = 0) -> dict[str, Any]:
    """Start a broker, run, end everything. Raises KafkaUnavailable where there can be none."""
    settings = {"log.retention.check.interval.ms": 5000}
    with ApacheKafka(1, folder / "kafka", settings=settings) as cluster:
        run = Soak(folder, minutes=minutes, every_s=every_s, seed=seed, backend=backend, least=least)
        try:
            return run.run(cluster)
        finally:
            for example in run.check.report.examples if hasattr(run, "check") else ():
                sys.stderr.write(f"{example}\n")


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description="Frames at capacity with bundles replaced on the way.")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--every-s", type=float, default=RELOAD_EVERY_S, help="seconds between two replacements")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="openvino", help="in fp32, so that offline scoring says the same")
    parser.add_argument("--keep", type=Path, help="where logs and data stay; default: a folder that is removed")
    given = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix="framegate-soak-") as temporary:
            folder = given.keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            summary = soak(folder, minutes=given.minutes, every_s=given.every_s, seed=given.seed, backend=given.backend)
    except KafkaUnavailable as reason:
        sys.stderr.write(f"error: {reason}\n")
        return 2
    broken = list(broken_bounds(summary))
    for line in broken:
        sys.stderr.write(f"error: {line}\n")
    sys.stdout.write(json.dumps(summary) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
