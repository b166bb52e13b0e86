"""What the workers of one host tell about themselves, shown as one: metrics with a `worker` label, and health.

Each worker keeps a registry of its own and sends what is in it, so histograms stay exact and nothing lies in files.
What counts upwards goes on where it was when a worker is started again: its predecessor's last values are added to its
own, so no series steps back, and no sum over workers either. Gauges end with the process that they are about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

WORKER = "worker"
"""The label that tells the workers apart."""

_UPWARDS = frozenset({"counter", "histogram", "summary"})
_CREATED = "_created"

_Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of one worker with all its samples."""

    name: str
    help: str
    kind: str
    samples: dict[_Sample, float]

    def after(self, before: Family) -> Family:
        """With what the worker's predecessor counted added; where time began stays where it was."""
        samples = dict(before.samples)
        for key, value in self.samples.items():
            former = samples.get(key, 0.0)
            samples[key] = former if former and key[0].endswith(_CREATED) else former + value
        return Family(self.name, self.help, self.kind, samples)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself. `live` and `ready` as `consumer.health` gives them: (is it, why not).

    Attributes:
        error: why it ends, where it does so badly.
    """

    live: tuple[bool, str]
    ready: tuple[bool, str]
    families: dict[str, Family]
    error: str | None = None

    def to_line(self) -> bytes:
        """As one line of JSON."""
        families = [
            [family.name, family.help, family.kind, [[*key, value] for key, value in family.samples.items()]]
            for family in self.families.values()
        ]
        return json.dumps([self.live, self.ready, families, self.error]).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Report:
        """The opposite of `to_line`. Raises ValueError, KeyError or TypeError where it is no report."""
        live, ready, families, error = json.loads(line)
        found = [Family(name, text, kind, dict(map(_sample, samples))) for name, text, kind, samples in families]
        return cls((live[0], live[1]), (ready[0], ready[1]), {family.name: family for family in found}, error)


def families_of(registry: CollectorRegistry) -> dict[str, Family]:
    """Everything that a registry holds."""
    return {
        metric.name: Family(
            metric.name,
            metric.documentation,
            metric.type,
            {(sample.name, tuple(sample.labels.items())): sample.value for sample in metric.samples},
        )
        for metric in registry.collect()
    }


class WorkerMetrics(Collector):
    """The workers' metrics for one registry. Any thread."""

    def __init__(self) -> None:
        """Begin with no worker."""
        self._lock = Lock()
        self._now: dict[int | str, dict[str, Family]] = {}
        self._before: dict[int | str, dict[str, Family]] = {}

    def update(self, worker: int | str, families: dict[str, Family]) -> None:
        """What this worker holds now."""
        with self._lock:
            self._now[worker] = families

    def ended(self, worker: int | str) -> None:
        """Its process is gone: what it counted stays, what it measured goes."""
        with self._lock:
            counted = self._of(worker)
            self._now.pop(worker, None)
            self._before[worker] = {name: family for name, family in counted.items() if family.kind in _UPWARDS}

    def collect(self) -> Iterable[Metric]:
        """Each metric once, with the samples of all workers."""
        with self._lock:
            known = sorted(self._now.keys() | self._before.keys(), key=lambda worker: (isinstance(worker, str), worker))
            workers = {worker: self._of(worker) for worker in known}
        metrics: dict[str, Metric] = {}
        for worker, families in workers.items():
            for family in families.values():
                metric = metrics.setdefault(family.name, Metric(family.name, family.help, family.kind))
                for (name, labels), value in family.samples.items():
                    metric.add_sample(name, {**dict(labels), WORKER: str(worker)}, value)
        return metrics.values()

    def _of(self, worker: int | str) -> dict[str, Family]:
        """What a worker shows: its predecessors' counts and its own."""
        families = dict(self._before.get(worker, {}))
        for name, family in self._now.get(worker, {}).items():
            families[name] = family.after(families[name]) if name in families else family
        return families


def _sample(written: list[Any]) -> tuple[_Sample, float]:
    """A sample out of its JSON."""
    name, labels, value = written
    return (name, tuple((key, text) for key, text in labels)), float(value)
