"""Yesterday and today of a line, as a Prometheus has them: the product's own metrics, counted by its own code.

Three stations on two workers are judged 40 times a minute. What happens in the hour is in `_step`: a station that fails
more than yesterday, a lens that gets dirty, a frozen camera, a reload refused by one worker.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml
from prometheus_client import CollectorRegistry

from consumer.events import EngineRef, Frame, ModelRef, Position, StageTimes, Verdict
from consumer.metrics import Metrics
from tests.deploy.live_prometheus import Server
from tests.deploy.prometheus import metric_names, promtool, rules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW_S = 1_790_000_000
"""Today's last second; the server has no other data, so any will do."""

DAY_S, SPAN_S, STEP_S = 86_400, 4_500, 15
"""The time between the days; how long is known of each; how often it was scraped."""

RULED_S = 3_700
"""How much of each day the rules have recorded: their windows look further back."""

DEADLINE_S = 2.0
STATIONS = {"press-1": "0", "mould-2": "0", "cast-3": "1"}
"""Each with the worker that judges it."""

TARGET = (("instance", "line-1:9108"), ("job", "framegate"))
"""What Prometheus adds."""

FAILS = {"yesterday": {"press-1": 10, "mould-2": 5, "cast-3": 5}, "today": {"press-1": 20, "mould-2": 5, "cast-3": 4}}
"""Every how many of 100 frames fail."""

DIGESTS = {"0": "sha256:aa11", "1": "sha256:bb22"}
"""The second worker refused the new bundle."""

PER_STEP = 10
"""Frames of a station between two scrapes."""


def history(folder: Path, named: set[str]) -> None:
    """Write the blocks of both days into `folder/data`, and what the shipped rules record of them beside them.

    Of the product's metrics, those in `named` and those that the rules name: the others would only take time.
    """
    wanted = named | metric_names(" ".join(rule["expr"] for rule in rules("record").values()))
    text = folder / "history.txt"
    text.write_text("".join(_open_metrics(wanted)), encoding="utf-8")
    _done("create-blocks-from", "openmetrics", str(text), str(folder / "data"))
    for number, group in enumerate(_rounds()):
        path = folder / f"rules-{number}.yaml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "recorded", "rules": group}]}), encoding="utf-8")
        with server(folder) as prometheus:
            for end_s in (NOW_S - DAY_S, NOW_S):
                _done(
                    *("create-blocks-from", "rules", f"--url={prometheus.url}", f"--start={end_s - RULED_S}"),
                    *(f"--end={end_s}", f"--output-dir={folder / 'data'}", "--eval-interval=60s", str(path)),
                )


def _rounds() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The shipped rules that record: those on metrics alone, and those on what these have recorded."""
    recorded = [*rules("record").values()]
    return (
        [rule for rule in recorded if "framegate:" not in rule["expr"]],
        [rule for rule in recorded if "framegate:" in rule["expr"]],
    )


def server(folder: Path) -> Server:
    """One over what lies in `folder/data`, which scrapes nothing and evaluates no rule."""
    return Server(folder, {"global": {"scrape_interval": f"{STEP_S}s"}})


def _done(*arguments: str) -> None:
    done = promtool("tsdb", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def _open_metrics(wanted: set[str]) -> Iterator[str]:
    """The text that promtool reads: each family in one piece, its samples by series and time."""
    kinds: dict[str, str] = {}
    samples: dict[str, list[str]] = {}
    for day, end_s in (("yesterday", NOW_S - DAY_S), ("today", NOW_S)):
        for at_s, worker, registry in _scrapes(day, end_s):
            for family in registry.collect():
                if not wanted & {family.name, f"{family.name}_total"}:
                    continue
                kinds[family.name] = family.type
                told = samples.setdefault(family.name, [])
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        labels = _labels((*sample.labels.items(), ("worker", worker), *TARGET))
                        told.append(f"{sample.name}{labels} {sample.value} {at_s}\n")
    kinds["ALERTS"] = "gauge"
    samples["ALERTS"] = [
        f"ALERTS{_labels(tuple(labels.items()))} 1 {at_s}\n" for labels in firing() for at_s in _times(NOW_S)
    ]
    for name, kind in kinds.items():
        yield f"# TYPE {name} {kind}\n"
        yield from samples[name]
    yield "# EOF\n"


def firing() -> list[dict[str, str]]:
    """Every shipped alert, firing, with the labels that its summary names; promtool makes none from rules."""
    told = []
    for name, alert in rules("alert").items():
        summary = alert["annotations"]["summary"]
        about = {
            "station": "press-1",
            "instance": "line-1:9108",
            "worker": "1",
            "trouble": "dark",
            "fault": "frozen",
            "cause": "undecodable",
            "reason": "full",
        }
        labels = {label: value for label, value in about.items() if f"$labels.{label}" in summary}
        told.append({**labels, "alertname": name, "alertstate": "firing", "severity": alert["labels"]["severity"]})
    return told


@cache
def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    return "{" + ",".join(f"{name}={json.dumps(value)}" for name, value in labels) + "}"


def _times(end_s: int) -> range:
    return range(end_s - SPAN_S, end_s + 1, STEP_S)


def _scrapes(day: str, end_s: int) -> Iterator[tuple[int, str, CollectorRegistry]]:
    """(epoch seconds, worker, its registry) for each scrape of a day."""
    registries = {worker: CollectorRegistry() for worker in DIGESTS}
    workers = {worker: Metrics(registry) for worker, registry in registries.items()}
    for worker, metrics in workers.items():
        metrics.set_deadline(DEADLINE_S)
        metrics.set_ready(ready=True)
        metrics.set_model(ModelRef("line", "1", DIGESTS[worker], "default"))
    workers["1"].count_reload("refused")
    for number, at_s in enumerate(_times(end_s)):
        for station, worker in STATIONS.items():
            _step(workers[worker], station, FAILS[day][station], number, float(at_s))
        for worker, metrics in workers.items():
            metrics.count_turn()
            metrics.set_oldest(0.5 + int(worker))
            yield at_s, worker, registries[worker]


def _step(metrics: Metrics, station: str, fails: int, number: int, at_s: float) -> None:
    """A station's frames between two scrapes."""
    for place in range(number * PER_STEP, (number + 1) * PER_STEP):
        frame = Frame(Position("frames", 0, place), station, str(place), b"image", at_s - 1, at_s)
        metrics.observe_frame(frame)
        kind: dict[str, Any] = {"decision": "fail" if place % 100 < fails else "pass"}
        if place % 50 == 49:
            kind = {"decision": "none", "cause": "undecodable"}
            metrics.count_dead_letter("undecodable")
        elif station == "press-1" and place % 10 == 9:
            kind = {"decision": "review", "reasons": ("camera",)}
            metrics.count_camera_trouble(station, "blurred")
        times = StageTimes(total_ms=80.0 if place % 20 else 900.0)
        metrics.observe_verdict(
            Verdict(
                *("v", frame),
                model=ModelRef("line", "1", "d", "default"),
                engine=EngineRef("onnxruntime", "cpu", "fp32"),
                decided_at_s=at_s,
                threshold=0.5,
                review_band=(0.4, 0.6),
                times=times,
                batch_size=8,
                **kind,
            )
        )
    metrics.set_camera_fault("cast-3", "frozen", faulty=True)
