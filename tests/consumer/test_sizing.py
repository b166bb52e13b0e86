"""How large a plant's consumer is: the rates are the benchmark's, and a plan carries what it was made for."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

import framegate
from consumer.cli_size import assumed_images_per_s
from consumer.errors import SettingsError
from consumer.sizing import (
    ALL_ON_A_CORE,
    BESIDE_A_GPU,
    EXACTLY_ONCE,
    MEASURED_PX,
    PARTITIONS,
    SURE,
    WORKER_CORES,
    Demand,
    Host,
    busiest_stations,
    size,
)

BENCH = Path(__file__).parents[1] / "bench"
TOLD = (BENCH / "README.md").read_text(encoding="utf-8")


def measured(broker: str) -> dict[str, float]:
    """The newest row of the whole consumer's history on this kind of broker."""
    with (BENCH / "results_stream.csv").open(encoding="utf-8", newline="") as file:
        row = [row for row in csv.DictReader(file) if row["broker"] == broker][-1]
    return {
        key: float(row[key]) for key in ("ours_cpu", "cores", "workers", "exactly_once_throughput_ratio") if row[key]
    }


def table(line: str) -> list[float]:
    """The numbers of one line of the benchmark's tables."""
    found = re.search(rf"^\| {re.escape(line)}[^|]*\|(.*)\|$", TOLD, re.MULTILINE)
    assert found is not None, line
    return [float(cell.replace(",", "")) for cell in found[1].split("|") if re.fullmatch(r"\s*[\d,.]+\s*", cell)]


def test_a_core_that_does_all_is_the_benchmark_s() -> None:
    row = measured("apache")
    assert row["workers"] == row["cores"] == 2
    assert row["exactly_once_throughput_ratio"] == EXACTLY_ONCE
    assert ALL_ON_A_CORE.frames_per_s == pytest.approx(row["ours_cpu"] / row["cores"] * EXACTLY_ONCE)
    decode, fetch = table("decoding, two threads")[1], table("client's network thread: fetching")[1]
    assert ALL_ON_A_CORE.growing_us == decode + fetch


def test_a_core_beside_a_gpu_is_the_benchmark_s() -> None:
    assert BESIDE_A_GPU.frames_per_s == pytest.approx(table("frames/s")[-1] / 2 * EXACTLY_ONCE)
    decode, fetch = table("decode (decoding alone")[-1], table("Kafka client's network thread: fetching")[-1]
    assert BESIDE_A_GPU.growing_us == decode + fetch


def test_what_one_worker_can_use_is_the_benchmark_s() -> None:
    said = re.search(r"medians of (\d+) and \d+ verdicts/s\s+\(two workers\), (\d+) and \d+ \(one\)", TOLD)
    assert said is not None
    two, one = int(said[1]), int(said[2])
    assert pytest.approx(2 * one / two) == WORKER_CORES


def test_a_larger_frame_costs_what_its_pixels_cost() -> None:
    for rate in (ALL_ON_A_CORE, BESIDE_A_GPU):
        assert rate.of(MEASURED_PX) == pytest.approx(rate.frames_per_s)
        more_us = 1e6 / rate.of(4 * MEASURED_PX) - 1e6 / rate.frames_per_s
        assert more_us == pytest.approx(3 * rate.growing_us)


def test_the_gpus_figures_are_those_that_the_simulation_says_it_took() -> None:
    """Nobody has measured them: whoever changes that changes this test, and what the page says."""
    assert {name: round(rate) for name, rate in assumed_images_per_s().items()} == {"L4": 8099, "H100": 22517}
    assert "269 stations, 8,099/s" in TOLD


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    return Demand(draw(st.integers(1, 150)), draw(st.floats(0.1, 20)))


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    return Host(
        frames_per_s_core=draw(st.floats(60, 500)),
        gpu_images_per_s=draw(st.none() | st.floats(200, 20_000)),
        load=draw(st.floats(0.3, 0.9)),
        cores_per_pod=draw(st.integers(1, 16)),
        spare=draw(st.integers(0, 2)),
    )


@settings(deadline=None, max_examples=50)
@given(demands(), hosts())
def test_a_plan_carries_its_demand(demand: Demand, host: Host) -> None:
    try:
        plan = size(demand, host)
    except SettingsError:
        reject()  # too much for one topic, or for one worker
    pods = plan.replicas - host.spare
    assert plan.replicas * plan.workers <= plan.partitions
    assert plan.partitions in PARTITIONS
    assert plan.workers <= host.cores_per_pod
    assert plan.busiest_load <= host.load * (1 + 1e-9)
    assert pods * plan.workers * host.frames_per_s_core * host.load >= demand.frames_per_s * (1 - 1e-9)
    assert plan.busiest_stations >= math.ceil(demand.stations / pods)
    assert math.ceil(demand.frames_per_s / plan.frames_per_s_replica - 1e-9) == pods, "KEDA comes to the same"
    if host.gpu_images_per_s is None:
        assert (plan.gpus, plan.gpu_load, plan.holds_from_images_per_s) == (0, None, None)
        return
    assert plan.gpus == plan.replicas
    assert plan.gpu_load is not None
    assert plan.gpu_load <= host.load * (1 + 1e-9)
    assert plan.holds_from_images_per_s is not None
    assert plan.holds_from_images_per_s <= host.gpu_images_per_s * (1 + 1e-9)


@pytest.mark.parametrize(("stations", "rate"), [(12, 8), (40, 15), (100, 10)])
def test_a_plan_holds_as_long_as_it_says_and_no_longer(stations: int, rate: float) -> None:
    host = Host(BESIDE_A_GPU.frames_per_s, assumed_images_per_s()["L4"])
    demand = Demand(stations, rate)
    plan = size(demand, host)
    assert plan.holds_from_images_per_s is not None
    just = size(demand, replace(host, gpu_images_per_s=plan.holds_from_images_per_s * 1.000001))
    assert (just.gpus, just.workers, just.partitions) == (plan.gpus, plan.workers, plan.partitions)
    assert size(demand, replace(host, gpu_images_per_s=plan.holds_from_images_per_s * 0.999)).gpus > plan.gpus


def test_more_stations_need_no_less() -> None:
    host = Host(ALL_ON_A_CORE.frames_per_s, cores_per_pod=4)
    cores = [size(Demand(stations, 10), host).replicas for stations in range(5, 400, 5)]
    assert cores == sorted(cores)
    assert cores[0] < cores[-1]


@pytest.mark.parametrize(("stations", "workers", "partitions"), [(12, 3, 12), (40, 6, 24), (200, 8, 96), (7, 12, 12)])
def test_real_keys_seldom_crowd_a_worker_more(stations: int, workers: int, partitions: int) -> None:
    """As Kafka's own clients place keys, and the group shares partitions evenly."""
    most = busiest_stations(stations, workers, partitions)
    rng = random.Random(7)
    over = 0
    for _ in range(400):
        keys = [f"hall-{rng.randrange(10**6)}/press-{number}".encode() for number in range(stations)]
        shuffled = rng.sample(range(partitions), partitions)
        loads = [0] * workers
        for key in keys:
            loads[shuffled[(murmur2(key) & 0x7FFFFFFF) % partitions] % workers] += 1
        over += max(loads) > most
    assert over <= 400 * (1 - SURE) * 1.5
    assert most < stations


def test_one_worker_has_all() -> None:
    assert busiest_stations(12, 1, 12) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stations", "0", "--rate", "1"], "--stations 0 is too small"),
        (["--stations", "1", "--rate", "0"], "--rate 0 is too small"),
        (["--stations", "1", "--rate", "1", "--load", "1"], "--load 1 is no share"),
        (["--stations", "1", "--rate", "1", "--spare", "-1"], "--spare -1 is too small"),
        (["--stations", "1", "--rate", "1", "--images-per-s", "9"], "--images-per-s without a GPU"),
        (["--stations", "1", "--rate", "1", "--gpu", "A2"], "nothing is known of GPU 'A2': expected L4 or H100; for"),
        (["--stations", "1", "--rate", "1", "--gpu", "A2", "--images-per-s", "0"], "--images-per-s 0 is too small"),
        (["--stations", "1", "--rate", "900"], "900 frames/s of one station are more than one worker is to carry"),
        (["--stations", "5000", "--rate", "30"], "need more workers than the 768 partitions of the largest topic"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    done = CliRunner().invoke(framegate.cli, ["size", *words])
    assert isinstance(done.exception, SettingsError)
    assert message in str(done.exception)


def told(*words: str) -> str:
    done = CliRunner().invoke(framegate.cli, ["size", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_an_assumption_is_called_one() -> None:
    words = ("--stations", "12", "--rate", "8", "--gpu", "L4")
    assert "ASSUMED, not measured" in told(*words)
    assert "framegate bench engine --bundle BUNDLE" in told(*words)
    assert json.loads(told(*words, "--json"))["gpu_images_per_s_is"] == "assumed"
    given_ = told(*words, "--images-per-s", "2000")
    assert "ASSUMED" not in given_
    assert "2,000 images/s (as given)" in given_
    assert json.loads(told(*words, "--images-per-s", "2000", "--json"))["gpu_images_per_s_is"] == "given"


def test_what_it_prints_is_values() -> None:
    words = ("--stations", "40", "--rate", "15", "--gpu", "L4")
    values: dict[str, Any] = yaml.safe_load(told(*words))
    plan = json.loads(told(*words, "--json"))
    assert values["kafka"] == {"partitions": plan["partitions"]}
    assert values["consumer"] == {"device": "gpu", "replicas": plan["replicas"], "workers": plan["workers"]}
