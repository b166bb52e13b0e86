"""What the border to a shared engine costs, where the rest of a frame's processor time goes, and what that feeds.

The border alone: one worker's side and the engine's process with a modelled GPU that takes no time. The whole: a
`framegate run` of several workers that share a modelled GPU of a given speed, on the frames of `bench stream`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.bench_crossing import border_alone, crowd
from consumer.bench_jobs import COMMAND, SPEC, USED
from consumer.bench_runs import (
    DIFFERENT,
    HEIGHT_PX,
    IDLE_EXIT_S,
    QUALITY,
    WIDTH_PX,
    cluster_for,
    decode_on,
    jpegs,
    make_topics,
    run_contestant,
)
from consumer.plain_stream import preload
from engine.backend import SLOTS
from engine.bundle import write_bundle
from engine.laps import race
from engine.processor import cpu_name
from engine.stand_in import stand_in
from engine.streams import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from consumer.bench_runs import Cluster, Run

FULL = 32
"""Frames in the batch at which the modelled GPU has the speed that was asked for."""

FIXED_SHARE = 0.1
"""Of such a batch's time, what it takes however many frames are in it."""

PARTS = {
    "decode": "decode",
    "fetch": "fetch",
    "kafka-io": "Kafka client's network",
    "framegate-": "Kafka producer",
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
        border = border_alone(bundle, jpegs(FULL), plan.alone_s)
        tick("sixteen workers", 0, plan.rounds)
        crowds = {
            f"{ahead} of each ahead": crowd(bundle, plan.cost, plan.host_cores, plan.batch_size, ahead, plan.alone_s)
            for ahead in (1, SLOTS)
        }
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
        return _result(plan, cluster, border, crowds, decode.cpu_ms * 1e3, runs, told, load)


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
    crowds: dict[str, dict[str, float]],
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
    # One interpreter serves all workers, so what one core gives it bounds them.
    engine_us = crowds[f"{SLOTS} of each ahead"]["engine_cpu_us"]
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
        "crowd": crowds,
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
