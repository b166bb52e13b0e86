"""`framegate bench border`: every key is there, and processor time is told by part. Nothing asserts a speed."""

from __future__ import annotations

import json
import threading

import pytest
from click.testing import CliRunner

import framegate
from consumer.bench_border import Plan, bench_border, parts_us
from consumer.bench_jobs import USED
from consumer.thread_times import ThreadTimes


def told(seconds: dict[str, float], frames: float, *, engine: bool) -> str:
    used = json.dumps({"engine": engine, "frames": frames, "seconds": seconds})
    return json.dumps({"at": 1.0, "level": "info", "what": f"{USED}{used}"})


def test_parts_are_summed_over_processes_and_shared_out_over_frames() -> None:
    log = "\n".join(
        [
            "not JSON",
            told({"decode": 0.4, "kafka-io-framegate-x": 0.1, "Thread": 0.02}, 300, engine=False),
            told({"decode": 0.1, "MainThread": 0.05}, 200, engine=False),
            told({"featurizer": 0.01, "MainThread": 0.02, "open-featurizers": 9.0}, 500, engine=True),
        ]
    )
    assert {part: round(us) for part, us in parts_us(log).items()} == {
        "decode": 1000,
        "Kafka client's network": 200,
        "other threads": 40,
        "loop: state, verdicts, publishing": 100,
        "engine's process: batches": 20,
        "engine's process: messages": 40,
    }
    assert parts_us("nothing told") == {}


def test_a_modelled_gpu_has_the_speed_that_was_asked_for() -> None:
    cost = Plan(gpu_per_s=1000.0).cost
    assert cost["fixed_s"] + 32 * cost["per_image_s"] == pytest.approx(0.032)


def test_threads_of_one_kind_are_counted_together_from_the_beginning_on() -> None:
    times = ThreadTimes()
    enough, over = threading.Event(), threading.Event()
    resting = threading.Barrier(3)

    def work() -> None:
        while not enough.is_set():
            sum(range(20_000))
        resting.wait(10)
        over.wait(10)

    threads = [threading.Thread(target=work, name=f"busy-{number}") for number in (0, 1)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        times.sample()
        if times.seconds().get("busy", 0.0) >= 0.03:
            break
        over.wait(0.01)
    assert times.seconds()["busy"] >= 0.03
    enough.set()
    resting.wait(10)
    times.begin()
    times.sample()
    over.set()
    for thread in threads:
        thread.join()
    assert times.seconds()["busy"] < 0.03


def test_it_is_a_verb_below_bench() -> None:
    text = CliRunner().invoke(framegate.cli, ["bench", "border", "--help"]).output
    assert "--gpu-per-s" in text
    assert "modelled" in text


@pytest.mark.slow
@pytest.mark.kafka
def test_the_border_and_the_whole_are_measured() -> None:
    plan = Plan(frames=240, rounds=1, partitions=2, alone_s=0.2)
    result = bench_border(plan)
    assert set(result["crowd"]) == {"1 of each ahead", "2 of each ahead"}
    assert all(found["mean_batch"] > 8 for found in result["crowd"].values()), "workers travel together"
    assert set(result["border_us"]) == {
        *(f"{way}, batches of {size}" for way in ("in place", "copied") for size in (8, 32)),
        "one frame, there and back",
        "np.stack of 32 alone",
    }
    assert all(value > 0 for key, value in result["whole"].items() if key != "outside_decoding_us")
    assert {"decode", "fetch", "batch: to the engine, back, classify", "engine's process: batches"} <= set(
        result["parts_us"]
    )
    assert 0 < result["computed"]["feeds_per_s"] <= 8000
