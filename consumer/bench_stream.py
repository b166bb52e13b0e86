"""How fast is the whole consumer, against decoding and inference alone, and against the loop that people write?

Every contestant reads the same preloaded frames in a process of its own, all in turn, several rounds: the machine may
be shared, and what slows one slows the others. Rates come from the verdicts' own timestamps, from the middle of each
run, so that starting, joining and ending do not count; processor time from the system, over the same span.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consumer import bench_latency
from consumer.bench_jobs import COMMAND, SPEC
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
from engine.bench import two_in_flight
from engine.bundle import write_bundle
from engine.choice import open_for
from engine.heads import stack
from engine.laps import race
from engine.preprocess import preprocess
from engine.processor import cpu_name
from engine.stand_in import stand_in
from engine.streams import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from consumer.bench_latency import Latency
    from consumer.bench_runs import Cluster, Run
    from engine.bundle import Bundle
    from engine.laps import Laps

KEEPS_UP = 0.9
"""Of the plain loop's rate: at more than that its latency says only how long the run was."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        frames: on the topic.
        rounds: runs of each contestant.
        partitions: of the topic.
        workers: of our consumer.
        batch_size: of ours; None: as it measures by itself.
        backend: what computes.
        alone_s: of each measurement of decoding and inference alone.
        latency_s: of arrivals in each latency run; 0: latency is left out.
    """

    frames: int = 4000
    rounds: int = 3
    partitions: int = 4
    workers: int = 2
    batch_size: int | None = None
    backend: str = "auto"
    alone_s: float = 1.0
    latency_s: float = 10.0


def bench_stream(
    plan: Plan,
    *,
    bootstrap_servers: str | None = None,
    client: Mapping[str, Any] | None = None,
    tick: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> dict[str, Any]:
    """Measure; see `framegate bench stream` for the keys.

    Args:
        plan: what.
        bootstrap_servers: of a cluster; None: an embedded broker of our own.
        client: TLS and SASL settings.
        tick: told (what is measured, rounds done, of how many).

    Raises:
        BrokerError, TopicError: the cluster cannot be used.
        ChildError: a contestant did not answer all frames.
    """
    with ExitStack() as stack_:
        folder = Path(stack_.enter_context(tempfile.TemporaryDirectory(prefix="framegate-bench-")))
        cluster = stack_.enter_context(cluster_for(bootstrap_servers, client or {}))
        bundle = stand_in(SPEC.width_px)
        write_bundle(folder / "bundle", bundle)
        payloads = jpegs(DIFFERENT)
        mark = uuid.uuid4().hex[:8]
        frames = f"frames-bench-{mark}"
        make_topics(cluster, frames, f"verdicts-bench-{mark}-none", plan.partitions)
        tick("preloading", 0, plan.rounds)
        preload(
            cluster.bootstrap_servers,
            frames,
            payloads,
            frames=plan.frames,
            partitions=plan.partitions,
            client=cluster.client,
        )
        alone = _Alone(bundle, payloads, plan)
        stack_.callback(alone.close)
        load = os.getloadavg()[0]
        contestants = _contestants(plan, cluster, folder)
        runs: dict[str, list[Run]] = {name: [] for name in contestants}
        lone: dict[str, list[tuple[float, float]]] = {"decode": [], "inference": []}
        for done in range(plan.rounds):
            for name, laps in alone.measure(lambda what: tick(what, done, plan.rounds)).items():  # noqa: B023 - at once
                lone[name].append((laps.images_per_s, laps.cpu_ms * 1e3))
            names = list(contestants)
            first = done % len(names)
            for name in names[first:] + names[:first]:
                tick(name, done, plan.rounds)
                verdicts = f"verdicts-bench-{mark}-{name}-{done}"
                make_topics(cluster, frames, verdicts, plan.partitions)
                runs[name].append(
                    run_contestant(contestants[name](frames, verdicts), cluster, verdicts, plan.frames, folder)
                )
        latency = _latency(plan, cluster, folder, payloads, runs, mark, tick) if plan.latency_s else []
        return _result(plan, cluster, alone, lone, runs, load) | {"latency": bench_latency.keys(latency)}


def _latency(
    plan: Plan,
    cluster: Cluster,
    folder: Path,
    payloads: Sequence[bytes],
    runs: Mapping[str, Sequence[Run]],
    mark: str,
    tick: Callable[[str, int, int], None],
) -> list[tuple[str, float, dict[str, list[Latency | None]]]]:
    """How long verdicts take, at two loads that follow from the rates found: see `bench_latency.keys`."""
    plain_per_s, ours_per_s = (statistics.median(run.per_s for run in runs[name]) for name in ("plain_cpu", "ours_cpu"))
    (folder / "payloads").mkdir()
    for number, payload in enumerate(payloads):
        (folder / "payloads" / f"{number:03}.jpg").write_bytes(payload)
    commands = _contestants(plan, cluster, folder, idle_exit_s=bench_latency.JOIN_S)
    names = {"plain": ("plain_cpu", 0), "at_least_once": ("ours_cpu", plan.workers)}
    if "ours_cpu_exactly_once" in commands:
        names["exactly_once"] = ("ours_cpu_exactly_once", plan.workers)
    rng = np.random.default_rng(3)
    loads: list[tuple[str, float, dict[str, list[Latency | None]]]] = []
    for load, per_s in (("half of the plain loop's rate", plain_per_s / 2), ("0.8 of our rate", ours_per_s * 0.8)):
        found: dict[str, list[Latency | None]] = {
            name: [] for name in names if name != "plain" or per_s < KEEPS_UP * plain_per_s
        }
        for done in range(plan.rounds):
            due_s = bench_latency.arrivals(per_s, bench_latency.LEAD_S + plan.latency_s, rng)
            order = list(found)
            first = done % len(order)
            for name in order[first:] + order[:first]:
                tick(f"latency {name}", done, plan.rounds)
                command, workers = names[name]
                frames = f"frames-latency-{mark}-{len(loads)}-{name}-{done}"
                verdicts = f"verdicts-latency-{mark}-{len(loads)}-{name}-{done}"
                make_topics(cluster, frames, verdicts, plan.partitions)
                place = bench_latency.Place(
                    cluster.bootstrap_servers,
                    cluster.client,
                    frames,
                    verdicts,
                    plan.partitions,
                    folder / "payloads",
                    folder,
                )
                found[name].append(bench_latency.run(commands[command](frames, verdicts), place, due_s, workers))
        loads.append((load, per_s, found))
    return loads


class _Alone:
    """Decoding and inference with nothing around them, each at the best of a few ways."""

    def __init__(self, bundle: Bundle, payloads: Sequence[bytes], plan: Plan) -> None:
        self._backend = open_for(bundle, plan.backend)
        self._seconds = plan.alone_s
        heads = stack([bundle.head])
        images = np.stack([preprocess(payload, SPEC) for payload in payloads])
        self._decode = {f"{n} threads": partial(decode_on, payloads, n) for n in sorted({1, cores(), cores() + 1})}
        self._infer = {
            f"batch {size}": two_in_flight(self._backend, images, heads, size)
            for size in (1, 8, 32)
            if size <= self._backend.profile.largest
        }
        self.how: dict[str, str] = {}

    @property
    def engine(self) -> str:
        return f"{self._backend.name} {self._backend.precision} on {self._backend.device}"

    def measure(self, tick: Callable[[str], None]) -> dict[str, Laps]:
        """The best of each by the clock."""
        found = {}
        for name, ways in (("decode", self._decode), ("inference", self._infer)):
            tick(f"{name} alone")
            laps = race(ways, seconds=self._seconds / 2, rounds=2)
            best = max(laps, key=lambda way: laps[way].images_per_s)
            self.how[name] = best
            found[name] = laps[best]
        return found

    def close(self) -> None:
        self._backend.close()


def _contestants(
    plan: Plan, cluster: Cluster, folder: Path, idle_exit_s: float = IDLE_EXIT_S
) -> dict[str, Callable[[str, str], list[str]]]:
    """Name -> the command line that judges one topic's frames into another's verdicts."""
    bundle = str(folder / "bundle")

    def plain(engine: str | None, frames: str, verdicts: str) -> list[str]:
        job = {
            "bundle": engine,
            "backend": plan.backend,
            "bootstrap_servers": cluster.bootstrap_servers,
            "client": dict(cluster.client),
            "group": verdicts,
            "frames": frames,
            "verdicts": verdicts,
            "idle_exit_s": idle_exit_s,
        }
        return [*COMMAND, "plain", json.dumps(job)]

    def null(workers: int, frames: str, verdicts: str) -> list[str]:
        job = {
            "bootstrap_servers": cluster.bootstrap_servers,
            "client": dict(cluster.client),
            "group": verdicts,
            "frames_topic": frames,
            "verdicts_topic": verdicts,
            "batch_size": plan.batch_size,
            "delivery": "at-least-once",
            "http_port": None,
            "idle_exit_s": idle_exit_s,
            "workers": workers,
            "log_format": "json",
        }
        return [*COMMAND, "null", json.dumps(job)]

    def whole(delivery: str, workers: int, frames: str, verdicts: str) -> list[str]:
        options = {
            "bundle": bundle,
            "backend": plan.backend,
            "bootstrap-servers": cluster.bootstrap_servers,
            "group": verdicts,
            "frames-topic": frames,
            "verdicts-topic": verdicts,
            "delivery": delivery,
            "http-port": -1,
            "idle-exit-s": idle_exit_s,
            "workers": workers,
            "log-format": "json",
        }
        if plan.batch_size is not None:
            options["batch-size"] = plan.batch_size
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        if cluster.client:
            file = folder / "client.properties"
            file.write_text("".join(f"{name}={value}\n" for name, value in cluster.client.items()), encoding="utf-8")
            file.chmod(0o600)
            arguments += ["--client-config", str(file)]
        return [sys.executable, "-m", "framegate", "run", *arguments]

    found: dict[str, Callable[[str, str], list[str]]] = {
        "plain_cpu": partial(plain, bundle),
        "ours_cpu": partial(whole, "at-least-once", plan.workers),
        "plain_null": partial(plain, None),
        "ours_null": partial(null, plan.workers),
    }
    if plan.workers > 1:
        found |= {"ours_cpu_1": partial(whole, "at-least-once", 1), "ours_null_1": partial(null, 1)}
    if not cluster.embedded:
        found["ours_cpu_exactly_once"] = partial(whole, "exactly-once", plan.workers)
    return found


def _result(
    plan: Plan,
    cluster: Cluster,
    alone: _Alone,
    lone: Mapping[str, Sequence[tuple[float, float]]],
    runs: Mapping[str, Sequence[Run]],
    load: float,
) -> dict[str, Any]:
    """The keys, all of them ratios within a round, and medians of those."""
    decode, infer = lone["decode"], lone["inference"]
    limit_cpu = [1 / (1 / d[0] + 1 / i[0]) for d, i in zip(decode, infer, strict=True)]
    limit_null = [d[0] for d in decode]
    need_cpu = [d[1] + i[1] for d, i in zip(decode, infer, strict=True)]
    need_null = [d[1] for d in decode]

    def ratio(of: Sequence[float], to: Sequence[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(of, to, strict=True)), 3)

    def rates(name: str) -> list[float]:
        return [run.per_s for run in runs[name]]

    def costs(name: str) -> list[float]:
        return [run.cpu_us for run in runs[name]]

    exactly = "ours_cpu_exactly_once"
    return {
        "machine": {"cpu": cpu_name(), "cores": cores(), "load_before": round(load, 2)},
        "broker": "embedded" if cluster.embedded else "apache",
        "engine": alone.engine,
        "frame": f"{WIDTH_PX} x {HEIGHT_PX} JPEG quality {QUALITY}, about 70 kB",
        "frames": plan.frames,
        "rounds": plan.rounds,
        "workers": plan.workers,
        "batch_size": plan.batch_size,
        "alone": {
            name: {
                "per_s": round(statistics.median(rate for rate, _ in found), 1),
                "cpu_us": round(statistics.median(cost for _, cost in found), 1),
                "best": alone.how[name],
            }
            for name, found in lone.items()
        },
        "runs": {
            name: {
                "per_s": round(statistics.median(rates(name)), 1),
                "cpu_us": round(statistics.median(costs(name)), 1),
                "broker_us": _median([run.broker_us for run in own]),
                "all_per_s": [round(rate, 1) for rate in rates(name)],
            }
            for name, own in runs.items()
        },
        "efficiency": {
            "cpu": ratio(rates("ours_cpu"), limit_cpu),
            "null": ratio(rates("ours_null"), limit_null),
        },
        "efficiency_by_processor_time": {
            "cpu": ratio(need_cpu, costs("ours_cpu")),
            "null": ratio(need_null, costs("ours_null")),
        },
        "vs_plain": {
            "cpu": ratio(rates("ours_cpu"), rates("plain_cpu")),
            "null": ratio(rates("ours_null"), rates("plain_null")),
        },
        "overhead_us": {
            "cpu": round(statistics.median(c - n for c, n in zip(costs("ours_cpu"), need_cpu, strict=True)), 1),
            "null": round(statistics.median(c - n for c, n in zip(costs("ours_null"), need_null, strict=True)), 1),
        },
        "exactly_once_throughput_ratio": ratio(rates(exactly), rates("ours_cpu")) if exactly in runs else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 1) if known else None
