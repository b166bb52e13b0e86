"""`framegate bench stream`: all contestants answer all frames, and every key is there. Nothing asserts a speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import framegate
from consumer.bench_jobs import NullJudge
from consumer.bench_runs import HEIGHT_PX, WIDTH_PX, cpu_s, jpegs, settled_s
from consumer.bench_stream import Plan, bench_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_frames_are_what_the_bench_says_they_are() -> None:
    one, other = jpegs(2)
    assert one != other
    image = cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert 60_000 < len(one) < 80_000


def test_the_engine_that_costs_nothing_answers_all_the_same() -> None:
    scored = NullJudge().score_one(np.full((1, 160, 160, 3), 255, np.uint8))
    assert [prediction.decision for prediction in scored.predictions] == ["fail"]


@pytest.fixture
def busy_child() -> Iterator[int]:
    """A process whose own child is busy."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        yield process.pid
        os.killpg(process.pid, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="processor times of others are read as Linux tells them")
def test_processor_time_counts_what_children_use(busy_child: int) -> None:
    while cpu_s(busy_child) < 0.2:  # the parent alone would never use so much
        pass


def test_it_is_a_verb_below_bench_with_the_engines_own() -> None:
    result = CliRunner().invoke(framegate.cli, ["bench", "--help"])
    assert "stream" in result.output
    assert "engine" in result.output
    text = CliRunner().invoke(framegate.cli, ["bench", "stream", "--help"]).output
    assert "--bootstrap-servers" in text
    assert "--latency-s" in text


def test_the_middle_of_a_run_begins_when_all_workers_have_their_partitions(tmp_path: Path) -> None:
    log = tmp_path / "log"
    events = [
        (5.0, "partitions assigned: f-0, f-1"),
        (7.5, "partitions revoked: f-1"),
        (8.0, "partitions assigned: f-1"),
    ]
    events += [(9.0, "the source is ready"), (20.0, "partitions assigned: f-0")]
    lines = [json.dumps({"at": at_s, "what": what}) for at_s, what in events]
    log.write_text("\n".join(["not JSON", "[1]", *lines]))
    assert settled_s(log, before_s=15.0) == 8.0, "the last belongs to the end"
    assert settled_s(log, before_s=1.0) == 0.0


@pytest.mark.slow
@pytest.mark.kafka
def test_every_contestant_answers_every_frame() -> None:
    told: list[str] = []
    plan = Plan(frames=240, rounds=1, partitions=2, workers=2, backend="onnxruntime", alone_s=0.1, latency_s=0)
    result = bench_stream(plan, tick=lambda name, _done, _total: told.append(name))
    ours = {"plain_cpu", "ours_cpu", "plain_null", "ours_null", "ours_cpu_1", "ours_null_1"}
    assert set(result["runs"]) == ours
    assert ours <= set(told)
    assert all(run["per_s"] > 0 and run["cpu_us"] > 0 for run in result["runs"].values())
    assert result["broker"] == "embedded"
    assert result["exactly_once_throughput_ratio"] is None, "not on a broker that keeps no transactions"
    for key in ("efficiency", "vs_plain", "overhead_us"):
        assert set(result[key]) == {"cpu", "null"}
    assert result["latency"]["p99_ratio"]["at_least_once"] is None, "left out"
    assert result["alone"]["decode"]["per_s"] > 0
