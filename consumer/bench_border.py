"""What the border to a shared engine costs, where the rest of a frame's processor time goes, and what that feeds.

The border alone: one worker's side and the engine's process with a modelled GPU that takes no time. The whole: a
`framegate run` of several workers that share a modelled GPU of a given speed, on the frames of `bench stream`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consumer.bench_jobs import COMMAND, SPEC, USED
from consumer.bench_stream import DIFFERENT, HEIGHT_PX, IDLE_EXIT_S, QUALITY, WIDTH_PX, jpegs
from consumer.bench_stream import _cluster as cluster_for
from consumer.bench_stream import _decode_on as decode_on
from consumer.bench_stream import _make as make_topics
from consumer.bench_stream import _own_cpu_s as own_cpu_s
from consumer.bench_stream import _run as run_contestant
from consumer.children import bound_command
from consumer.config import Settings
from consumer.plain_stream import preload
from consumer.worker import instructions
from engine.bundle import write_bundle
from engine.heads import stack
from engine.laps import race
from engine.preprocess import preprocess
from engine.processor import cpu_name
from engine.shared_client import SharedBackend
from engine.shared_wire import listen
from engine.stand_in import stand_in
from engine.streams import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from consumer.bench_stream import Cluster, Run
    from engine.bundle import Bundle

BATCHES = (8, 32)
FULL = 32
"""Frames in the batch at which the modelled GPU has the speed that was asked for."""

FIXED_SHARE = 0.1
"""Of such a batch's time, what it takes however many frames are in it."""

PARTS = {
    "decode": "decode",
    "fetch": "fetch",
    "kafka-io": "Kafka client's network",
    "engine": "batch: to the engine, back, classify",
    "MainThread": "loop: state, verdicts, publishing",
    "transactions": "transactions",
}
"""A consumer's threads by what their names begin with, and what they do."""

ENGINE_PARTS = {"featurizer": "engine's process: batches", "MainThread": "engine's process: messages"}
"""The same of the engine's process; what its other threads do is over before the first frame."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        frames: on the topic.
        rounds: runs of the whole.
        partitions: of the topic.
        workers: of the consumer.
        batch_size: of each worker.
        gpu_per_s: images a second of the modelled GPU, in batches of 32.
        host_cores: of the host to compute for.
        alone_s: of each measurement of one part alone.
    """

    frames: int = 4000
    rounds: int = 3
    partitions: int = 4
    workers: int = 2
    batch_size: int = 8
    gpu_per_s: float = 8000.0
    host_cores: int = 16
    alone_s: float = 2.0

    @property
    def cost(self) -> dict[str, float]:
        """The modelled GPU's."""
        full_s = FULL / self.gpu_per_s
        return {"fixed_s": FIXED_SHARE * full_s, "per_image_s": (1 - FIXED_SHARE) * full_s / FULL}


def bench_border(
    plan: Plan,
    *,
    bootstrap_servers: str | None = None,
    client: Mapping[str, Any] | None = None,
    tick: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> dict[str, Any]:
    """Measure; see `framegate bench border` for the keys.

    Args:
        plan: what.
        bootstrap_servers: of a cluster; None: an embedded broker of our own.
        client: TLS and SASL settings.
        tick: told (what is measured, rounds done, of how many).

    Raises:
        BrokerError, TopicError: the cluster cannot be used.
        ChildError: a run did not answer all frames.
    """
    load = os.getloadavg()[0]
    with ExitStack() as stack_:
        folder = Path(stack_.enter_context(tempfile.TemporaryDirectory(prefix="framegate-bench-")))
        bundle, payloads = stand_in(SPEC.width_px), jpegs(DIFFERENT)
        tick("the border alone", 0, plan.rounds)
        border = _border(bundle, plan)
        tick("decoding alone", 0, plan.rounds)
        decode = race({"decode": partial(decode_on, payloads, cores())}, seconds=plan.alone_s / 2, rounds=2)["decode"]
        write_bundle(folder / "bundle", bundle)
        cluster = stack_.enter_context(cluster_for(bootstrap_servers, client or {}))
        mark = uuid.uuid4().hex[:8]
        frames = f"frames-bench-{mark}"
        make_topics(cluster, frames, f"verdicts-bench-{mark}-none", plan.partitions)
        preload(
            cluster.bootstrap_servers,
            frames,
            payloads,
            frames=plan.frames,
            partitions=plan.partitions,
            client=cluster.client,
        )
        runs: list[Run] = []
        told: list[dict[str, float]] = []
        for done in range(plan.rounds):
            tick("the whole", done, plan.rounds)
            verdicts = f"verdicts-bench-{mark}-{done}"
            make_topics(cluster, frames, verdicts, plan.partitions)
            command = _command(plan, cluster, folder, frames, verdicts)
            runs.append(run_contestant(command, cluster, verdicts, plan.frames, folder))
            told.append(parts_us((folder / f"{verdicts}.log").read_text(encoding="utf-8", errors="replace")))
        return _result(plan, cluster, border, decode.cpu_ms * 1e3, runs, told, load)


def parts_us(log: str) -> dict[str, float]:
    """Microseconds of processor time a frame, by part, from what each process told at its end."""
    seconds: dict[str, float] = {}
    frames = 0.0
    for line in log.splitlines():
        _, mark, told = line.partition(USED)
        if not mark:
            continue
        # The line is JSON in JSON, cut at the end of the inner one.
        used = json.loads(told[: told.rindex("}}") + 2].replace('\\"', '"'))
        frames += 0.0 if used["engine"] else used["frames"]
        parts, rest = (ENGINE_PARTS, None) if used["engine"] else (PARTS, "other threads")
        for name, value in used["seconds"].items():
            part = next((what for begin, what in parts.items() if name.startswith(begin)), rest)
            if part is not None:
                seconds[part] = seconds.get(part, 0.0) + value
    return {part: value / frames * 1e6 for part, value in seconds.items()} if frames else {}


def _border(bundle: Bundle, plan: Plan) -> dict[str, dict[str, float]]:
    """The border alone: by way and size of batch, microseconds a frame."""
    found = {}
    heads = stack([bundle.head])
    with _engine(bundle) as (client, engine_pid):
        images = np.stack([preprocess(payload, SPEC) for payload in jpegs(FULL)])
        frames = [frame for frame in (client.frame() for _ in range(2 * FULL)) if frame is not None]
        for index, frame in enumerate(frames):
            frame[...] = images[index % FULL]
        for size in BATCHES:
            ways: dict[str, Sequence[Any]] = {
                "in place": (frames[:size], frames[FULL : FULL + size]),
                "copied": (images[:size], images[:size]),
            }
            for way, pair in ways.items():
                found[f"{way}, batches of {size}"] = _crossings(client, engine_pid, pair, heads, plan.alone_s / 2)
        one = [frames[0]]
        count, end_s = 0, time.perf_counter() + plan.alone_s / 4
        began_s = time.perf_counter()
        while time.perf_counter() < end_s:
            client.infer(one, *heads)
            count += 1
        found["one frame, there and back"] = {"wall_us": round((time.perf_counter() - began_s) / count * 1e6, 1)}
    room = np.empty_like(images)
    list_of = list(images)
    laps = race({"stack": partial(_stacked, list_of, room)}, seconds=plan.alone_s / 8, rounds=3)["stack"]
    found["np.stack of 32 alone"] = {"cpu_us": round(laps.cpu_ms * 1e3, 2)}
    return found


def _stacked(frames: Sequence[np.ndarray], room: np.ndarray, seconds: float) -> int:
    """Copy batches for so long."""
    count, end_s = 0, time.perf_counter() + seconds
    while not count or time.perf_counter() < end_s:
        np.stack(frames, out=room)
        count += len(frames)
    return count


def _crossings(
    client: SharedBackend, engine_pid: int, pair: Sequence[Any], heads: tuple[np.ndarray, np.ndarray], seconds: float
) -> dict[str, float]:
    """Two batches in flight for so long."""
    cpu_s, engine_s, began_s = time.process_time(), own_cpu_s(engine_pid), time.perf_counter()
    tickets = [client.submit(batch, *heads) for batch in pair]
    turn = 0
    while time.perf_counter() < began_s + seconds:
        client.collect(tickets[turn % 2])
        tickets[turn % 2] = client.submit(pair[turn % 2], *heads)
        turn += 1
    for ticket in tickets:
        client.collect(ticket)
    frames = (turn + 2) * len(pair[0])
    took_s = time.perf_counter() - began_s
    return {
        "per_s": round(frames / took_s, 1),
        "worker_cpu_us": round((time.process_time() - cpu_s) / frames * 1e6, 2),
        "engine_cpu_us": round((own_cpu_s(engine_pid) - engine_s) / frames * 1e6, 2),
    }


@contextmanager
def _engine(bundle: Bundle) -> Iterator[tuple[SharedBackend, int]]:
    """An engine's process with a GPU that takes no time, and a client of it."""
    with tempfile.TemporaryDirectory(prefix="framegate-bench-") as folder, ExitStack() as stack_:
        listener = stack_.enter_context(listen(f"{folder}/socket"))
        number = listener.fileno()
        command = [*COMMAND, "fed-engine", json.dumps({"fixed_s": 0.0, "per_image_s": 0.0}), str(number)]
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            bound_command(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[number],
            start_new_session=True,
        )
        try:
            if process.stdin is not None:
                process.stdin.write(instructions("engine", 1, Settings(bundle="none", backend="onnxruntime")))
                process.stdin.flush()
            client = SharedBackend(f"{folder}/socket", bundle, largest=FULL, pool=2 * FULL)
            try:
                yield client, process.pid
            finally:
                client.close()
        finally:
            process.kill()
            process.communicate()


def _command(plan: Plan, cluster: Cluster, folder: Path, frames: str, verdicts: str) -> list[str]:
    """The command line of the whole."""
    job = {
        "bundle": str(folder / "bundle"),
        "bootstrap_servers": cluster.bootstrap_servers,
        "client": dict(cluster.client),
        "group": verdicts,
        "frames_topic": frames,
        "verdicts_topic": verdicts,
        "batch_size": plan.batch_size,
        "delivery": "at-least-once",
        "http_port": None,
        "idle_exit_s": IDLE_EXIT_S,
        "workers": plan.workers,
        "log_format": "json",
        "cost": plan.cost,
    }
    return [*COMMAND, "fed", json.dumps(job)]


def _result(
    plan: Plan,
    cluster: Cluster,
    border: dict[str, dict[str, float]],
    decode_us: float,
    runs: Sequence[Run],
    told: Sequence[Mapping[str, float]],
    load: float,
) -> dict[str, Any]:
    """The keys: medians over the rounds."""
    rate, cost = (statistics.median(getattr(run, name) for run in runs) for name in ("per_s", "cpu_us"))
    names = list(dict.fromkeys(name for parts in told for name in parts))
    parts = {name: statistics.median(found.get(name, 0.0) for found in told) for name in names}
    by_cores = plan.host_cores * 1e6 / cost
    # One interpreter computes for all: what it does at most is what it does with nothing else to wait for.
    engine_us = border[f"in place, batches of {BATCHES[0]}"]["engine_cpu_us"]
    by_engine = 1e6 / engine_us if engine_us else float("inf")
    broker = [run.broker_us for run in runs if run.broker_us is not None]
    return {
        "machine": {"cpu": cpu_name(), "cores": cores(), "load_before": round(load, 2)},
        "broker": "embedded" if cluster.embedded else "apache",
        "frame": f"{WIDTH_PX} x {HEIGHT_PX} JPEG quality {QUALITY}, about 70 kB",
        "frames": plan.frames,
        "rounds": plan.rounds,
        "workers": plan.workers,
        "batch_size": plan.batch_size,
        "gpu": {"per_s": plan.gpu_per_s, "batch": FULL, **plan.cost},
        "border_us": border,
        "decode_alone_us": round(decode_us, 1),
        "whole": {
            "per_s": round(rate, 1),
            "cpu_us": round(cost, 1),
            "broker_us": round(statistics.median(broker), 1) if broker else None,
            "outside_decoding_us": round(cost - decode_us, 1),
            "share_of_gpu": round(rate / plan.gpu_per_s, 3),
        },
        "parts_us": {name: round(value, 1) for name, value in sorted(parts.items(), key=lambda part: -part[1])},
        "computed": {
            "cores": plan.host_cores,
            "by_cores_per_s": round(by_cores, 1),
            "by_engine_process_per_s": round(by_engine, 1),
            "feeds_per_s": round(min(by_cores, by_engine, plan.gpu_per_s), 1),
            "share_of_gpu": round(min(by_cores, by_engine, plan.gpu_per_s) / plan.gpu_per_s, 3),
            "cores_for_the_gpu": round(plan.gpu_per_s * cost / 1e6, 1),
        },
    }
