"""A short walk through the faults; `make faults` is the long one."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.faults.frames import shared_data
from tests.faults.plant import Plant
from tests.faults.run import Run, start
from tests.kafka_cluster import KafkaUnavailable

if TYPE_CHECKING:
    from pathlib import Path

WALK = ("kill", "lost_commit", "broker", "stall", "clock", "third", "terminate")
RECOVERED_S = 60.0


@pytest.mark.apache
@pytest.mark.slow
@pytest.mark.usefixtures("dropped_sockets")
def test_whatever_breaks_each_frame_is_answered_once_in_order_and_rightly(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rate_hz=24.0, seed=3, shared_data=shared_data())
    with ExitStack() as stack:
        try:
            stack.enter_context(plant)
        except KafkaUnavailable as reason:
            pytest.skip(str(reason))
        run = Run(plant, random.Random(3))
        start(plant, run)
        run.drive([run.script(WALK)], lambda: False)
        report = plant.finish()
    assert report.clean, report.examples
    assert plant.died == []
    assert report.frames >= 200
    assert report.verdicts == report.frames
    assert run.done == dict.fromkeys(WALK, 1)
    assert sum(proxy.lost_commits for proxy in plant.network.proxies.values()) >= 1
    assert max(run.recovery_s) < RECOVERED_S
