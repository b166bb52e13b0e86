"""What the pipeline tells, as metrics and health."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from consumer.app import FETCH_SILENT_S, MetricsWatcher
from consumer.health import Health
from consumer.metrics import Metrics

if TYPE_CHECKING:
    import pytest


def test_the_loop_turns_only_while_fetching_does(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    watcher = MetricsWatcher(Metrics(registry), Health())

    def turns() -> float | None:
        return registry.get_sample_value("framegate_loop_turns_total")

    assert turns() == 0
    for _ in range(3):
        watcher.beat("loop")
    assert turns() == 3
    began_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began_s + 2 * FETCH_SILENT_S)
    watcher.beat("loop")
    assert turns() == 3, "the thread that fetches is silent: the process is stuck, whatever the loop does"
    watcher.beat("fetch")
    watcher.beat("loop")
    assert turns() == 4


def test_ready_is_a_metric_too() -> None:
    registry = CollectorRegistry()
    watcher = MetricsWatcher(Metrics(registry), Health())
    shown = [registry.get_sample_value("framegate_ready")]
    for ready in (True, False):
        watcher.ready(ready=ready)
        shown.append(registry.get_sample_value("framegate_ready"))
    assert shown == [0, 1, 0]
