"""A short soak; `make soak` is the long one. And that each of its bounds can be broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.soak import SLOPE_LIMIT_MIB_H, WORKERS, broken_bounds, slope_limit_mib_h, soak
from tests.kafka_cluster import KafkaUnavailable

if TYPE_CHECKING:
    from pathlib import Path

SHORT_S = 10.0
EVERY_S = 2.5
WARMING_UP = "memory grows by"
"""So short a run only warms up: what it says of memory's slope is not looked at."""

SOUND: dict[str, Any] = {
    "frames": 10,
    "verdicts": 10,
    "lost": 0,
    "doubled": 0,
    "out_of_order": 0,
    "wrong": 0,
    "restarts": 0,
    "reloads": {"loaded": 6, "refused": 2, "unchanged": 0},
    "expected_reloads": {"loaded": 6, "refused": 2},
    "memory_slope_mib_per_hour": SLOPE_LIMIT_MIB_H,
    "memory_slope_limit_mib_per_hour": SLOPE_LIMIT_MIB_H,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lost": 1, "verdicts": 9}, ["1 frames are lost: expected none", "9 verdicts for 10 frames"]),
        ({"doubled": 2}, ["2 frames are doubled: expected none"]),
        ({"restarts": 1}, ["workers had to be started again 1 times"]),
        ({"reloads": {"loaded": 5, "refused": 2}}, ["'loaded': 5"]),
        ({"memory_slope_mib_per_hour": SLOPE_LIMIT_MIB_H + 1}, ["memory grows by 33 MiB an hour: expected at most 32"]),
        ({"memory_slope_mib_per_hour": float("nan")}, ["memory grows by nan"]),
    ],
)
def test_each_bound_can_break(change: dict[str, Any], words: list[str]) -> None:
    lines = list(broken_bounds(SOUND | change))
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert word in line
    assert list(broken_bounds(SOUND)) == []


def test_a_shorter_run_has_a_wider_limit() -> None:
    assert slope_limit_mib_h(1500.0) == slope_limit_mib_h(3000.0) == SLOPE_LIMIT_MIB_H
    assert slope_limit_mib_h(375.0) == pytest.approx(8 * SLOPE_LIMIT_MIB_H)


@pytest.mark.apache
@pytest.mark.slow
@pytest.mark.usefixtures("dropped_sockets")
def test_reloads_at_capacity_lose_nothing(tmp_path: Path) -> None:
    try:
        summary = soak(tmp_path, minutes=SHORT_S / 60, every_s=EVERY_S, seed=2, backend="openvino", least=4)
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    assert [line for line in broken_bounds(summary) if not line.startswith(WARMING_UP)] == []
    assert summary["workers"] == WORKERS
    assert summary["frames"] > 1000
    assert summary["reloads"]["loaded"] >= 2 * WORKERS
    assert summary["reloads"]["refused"] >= WORKERS
    assert summary["pause_ms"]["at_reload"]["max"] > 0
    assert summary["memory_mib"] > 100
