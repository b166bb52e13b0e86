"""`framegate run` with routes and a shadow, while bundles are replaced under it: whose verdict each frame gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.line import Line
from tests.lineups import Alone, bundle_of, jpegs, put

if TYPE_CHECKING:
    from tests.kafka_cluster import RunningBroker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROUTES = """
[[route]]
station = "one"
bundle = "one"
[[route]]
station = "wide-*"
bundle = "wide"
"""

FRAMES = 12
"""From each station, each time."""


def wait_for(line: Line, metric: str, least: int) -> None:
    """Wait until a metric has come so far, all its labels together."""
    deadline_s = time.monotonic() + 60
    while line.metrics().get(metric, 0.0) < least:
        assert time.monotonic() < deadline_s, line.metrics()
        time.sleep(0.1)


def test_each_station_is_judged_by_its_own_bundle_also_after_it_was_replaced(
    embedded_broker: RunningBroker, unique: str, tmp_path: Path
) -> None:
    first = put(tmp_path / "one", bundle_of(1))
    wide = put(tmp_path / "wide", bundle_of(3, wide=True))
    shadow = put(tmp_path / "shadow", bundle_of(4))
    (tmp_path / "routes.toml").write_text(ROUTES, encoding="utf-8")
    alone = Alone()
    stations = {}
    for number, station in enumerate(("one", "wide-1", "nobody")):
        stations[station] = tmp_path / "cameras" / station
        stations[station].mkdir(parents=True)
        for image, payload in enumerate(jpegs(FRAMES, seed=number)):
            (stations[station] / f"{image:02}.jpg").write_bytes(payload)
    payloads = [path.read_bytes() for folder in stations.values() for path in sorted(folder.iterdir())]
    for place in ("one", "wide", "shadow"):
        alone.predictions(tmp_path / place, payloads)

    options = ["--routing", str(tmp_path / "routes.toml"), "--shadow", str(tmp_path / "shadow"), "--watch-s", "0.2"]
    options += ["--workers", "1"]  # each worker counts its own reloads
    with Line(embedded_broker.bootstrap_servers, tmp_path / "work", unique) as line:
        consumer = line.consumer(None, *options, "--backend", "onnxruntime", "--log-format", "json")
        sent = [line.cameras(stations)]
        line.collect(len(sent[0]))
        second = put(tmp_path / "one", bundle_of(2))
        alone.predictions(tmp_path / "one", payloads)
        wait_for(line, "framegate_reloads_total", 1)
        sent.append(line.cameras(stations))
        line.collect(2 * len(sent[0]))
        (tmp_path / "one" / "featurizer.onnx").write_bytes(b"broken")
        wait_for(line, "framegate_reloads_total", 2)
        os.kill(consumer.pid, signal.SIGHUP)  # what was refused is tried again when it is asked for
        wait_for(line, "framegate_reloads_total", 3)
        sent.append(line.cameras(stations))
        verdicts = line.collect(3 * len(sent[0]))
        wait_for(line, "framegate_shadow_decisions_total", 3 * 2 * FRAMES)  # those that nobody judges have no shadow
        metrics = line.metrics()
        consumer.terminate()
        consumer.wait(30)

    assert Counter(v["frame_id"] for v in verdicts) == Counter(s["frame_id"] for part in sent for s in part)
    judged = {v["frame_id"]: v for v in verdicts}
    for part, one in zip(sent, (first, second, second), strict=True):
        for frame in part:
            verdict = judged[frame["frame_id"]]
            if frame["station"] == "nobody":
                assert (verdict["decision"], verdict["cause"]) == ("none", "unrouted")
                assert verdict["model"]["name"] == "none"
                continue
            bundle = one if frame["station"] == "one" else wide
            assert (verdict["model"]["name"], verdict["model"]["digest"]) == (bundle.name, bundle.digest)
            expected = alone.of(bundle.digest, Path(frame["path"]).read_bytes())
            assert (verdict["decision"], verdict["defect_probability"]) == (
                expected.decision,
                expected.defect_probability,
            )
    assert shadow.digest not in {v["model"]["digest"] for v in verdicts}
    assert metrics["framegate_shadow_left_out_frames_total"] == 0
    assert metrics["framegate_model_info"] == 2
    log = (tmp_path / "work" / "consumer.log").read_text()
    assert log.count("reload refused, and the models of before go on: bundle") == 2
    assert "reloaded in" in log


def test_every_worker_takes_a_new_bundle_over_when_the_supervisor_is_asked_to_look(
    embedded_broker: RunningBroker, unique: str, tmp_path: Path
) -> None:
    first = put(tmp_path / "one", bundle_of(1))
    stations = {f"station-{number}": tmp_path / "cameras" / str(number) for number in range(6)}
    for number, folder in enumerate(stations.values()):
        folder.mkdir(parents=True)
        for image, payload in enumerate(jpegs(4, seed=number)):
            (folder / f"{image}.jpg").write_bytes(payload)
    options = ["--watch-s", "0", "--workers", "2", "--backend", "onnxruntime"]
    with Line(embedded_broker.bootstrap_servers, tmp_path / "work", unique) as line:
        consumer = line.consumer(tmp_path / "one", *options)
        sent = [line.cameras(stations)]
        line.collect(len(sent[0]))
        second = put(tmp_path / "one", bundle_of(2))
        os.kill(consumer.pid, signal.SIGHUP)
        wait_for(line, "framegate_reloads_total", 2)
        sent.append(line.cameras(stations))
        judged = {v["frame_id"]: v["model"]["digest"] for v in line.collect(2 * len(sent[0]))}
        consumer.terminate()
        consumer.wait(30)
    digests = [{judged[frame["frame_id"]] for frame in part} for part in sent]
    assert digests == [{first.digest}, {second.digest}]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bad_routing_file_ends_the_start_with_one_line_and_2(tmp_path: Path, workers: str) -> None:
    file = tmp_path / "routes.toml"
    file.write_text("[[route]]\nstation = 'a'\nbundle = 'b'\nroi = [1, 0, 0, 1]\n")
    done = subprocess.run(
        [sys.executable, "-m", "framegate", "run", "--routing", str(file), "--workers", workers],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"framegate: error: routing file {file}, route 1 (station 'a'), has an unusable roi")
