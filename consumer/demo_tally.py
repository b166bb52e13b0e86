"""What the demo counts: frames sent against verdicts received, and how right they were. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DECISIONS = ("pass", "fail", "review", "none")
STAGES = ("transport", "fetch_wait", "decode", "batch_wait", "inference", "classify", "total")


@dataclass(frozen=True, slots=True)
class Truth:
    """What a sent frame really shows.

    Attributes:
        kind, difficulty: of the defect, where known; empty for a good part.
    """

    station: str
    is_defect: bool
    kind: str = ""
    difficulty: str = ""


@dataclass(slots=True)
class Tally:
    """Verdicts as they come, joined with the truth when all is told."""

    stations: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    latency_ms: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeated: int = 0

    def add(self, verdict: dict[str, Any]) -> None:
        """Count one verdict document; the same frame's second one only as repeated."""
        if verdict["frame_id"] in self.verdicts:
            self.repeated += 1
            return
        self.verdicts[verdict["frame_id"]] = verdict
        station = verdict["station"]
        self.stations[station][verdict["decision"]] += 1
        for stage, value in verdict["latency_ms"].items():
            if value is not None:
                self.latency_ms[station][stage].append(value)

    def missing(self, truth: Mapping[str, Truth]) -> list[str]:
        """Frames sent that have no verdict yet."""
        return [frame_id for frame_id in truth if frame_id not in self.verdicts]

    def percentiles(self, station: str | None = None) -> dict[str, dict[str, float]]:
        """p50 and p99 by stage in milliseconds, of one station or of all."""
        chosen = [self.latency_ms[station]] if station is not None else list(self.latency_ms.values())
        result = {}
        for stage in STAGES:
            values = [value for latencies in chosen for value in latencies.get(stage, ())]
            if values:
                p50, p99 = np.percentile(values, [50, 99])
                result[stage] = {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
        return result

    def summary(self, truth: Mapping[str, Truth], seconds: float) -> dict[str, Any]:
        """The demo's result as plain values. `review` and `none` count as not passed."""
        judged = [(truth[frame_id], verdict) for frame_id, verdict in self.verdicts.items() if frame_id in truth]
        decisions = Counter(verdict["decision"] for _, verdict in judged)
        correct = sum((verdict["decision"] != "pass") == real.is_defect for real, verdict in judged)
        return {
            "frames": len(truth),
            "verdicts": len(self.verdicts) + self.repeated,
            "repeated": self.repeated,
            "decisions": {decision: decisions[decision] for decision in DECISIONS},
            "accuracy": round(correct / len(judged), 4) if judged else None,
            "auroc": auroc([real.is_defect for real, _ in judged], [_probability(verdict) for _, verdict in judged]),
            "recall": _share([verdict["decision"] != "pass" for real, verdict in judged if real.is_defect]),
            "recall_by_difficulty": _recall(judged, lambda real: real.difficulty),
            "recall_by_kind": _recall(judged, lambda real: real.kind),
            "good_passed": _share([verdict["decision"] == "pass" for real, verdict in judged if not real.is_defect]),
            "latency_ms": self.percentiles(),
            "stations": {station: dict(counts) for station, counts in sorted(self.stations.items())},
            "seconds": round(seconds, 1),
        }


def auroc(defect: Iterable[bool], probability: Iterable[float]) -> float | None:
    """Area under the ROC curve; None where only one class is there."""
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - the live part must not wait for it

    labels = list(defect)
    return round(float(roc_auc_score(labels, list(probability))), 4) if len(set(labels)) == 2 else None  # noqa: PLR2004


def _probability(verdict: Mapping[str, Any]) -> float:
    """A frame that could not be judged is not passed, so it ranks as a sure defect."""
    value = verdict["defect_probability"]
    return 1.0 if value is None else float(value)


def _recall(judged: Iterable[tuple[Truth, Mapping[str, Any]]], key: Any) -> dict[str, Any]:
    """Share of defects that were not passed, by key; with how many there were."""
    caught: dict[str, list[bool]] = defaultdict(list)
    for real, verdict in judged:
        if real.is_defect and key(real):
            caught[key(real)].append(verdict["decision"] != "pass")
    return {name: {"recall": _share(values), "defects": len(values)} for name, values in sorted(caught.items())}


def _share(values: list[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
