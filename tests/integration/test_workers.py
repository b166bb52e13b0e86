"""Workers on real brokers: whole consumers in processes, one killed in the middle, all ended by one signal."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from consumer.broker import is_embedded
from consumer.topics import check_topics, producer_limits
from consumer.verdict_reader import VerdictReader
from engine.bundle import write_bundle
from tests.bundles import small_bundle
from tests.line import Line
from tests.lineups import Alone, bundle_of, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kafka_cluster import RunningBroker

pytestmark = pytest.mark.slow

STATIONS = tuple(f"station {number}" for number in range(12))
PATIENCE_S = 90.0


def jpeg(number: int) -> bytes:
    """A picture that differs from the others."""
    picture = np.random.default_rng(number % 50).integers(0, 255, (12, 16, 3), np.uint8)
    encoded, data = cv2.imencode(".jpg", cv2.resize(picture, (160, 120), interpolation=cv2.INTER_NEAREST))
    assert encoded
    return data.tobytes()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to happen."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.05)


class Camera:
    """Sends frames of all stations to a line."""

    def __init__(self, line: Line) -> None:
        self._topic = line.frames
        self._producer = KafkaProducer(bootstrap_servers=line.bootstrap_servers, **producer_limits())
        self.sent = 0

    def send(self, frames: int) -> None:
        """So many more, the stations in turn."""
        for number in range(self.sent, self.sent + frames):
            self._producer.send(self._topic, jpeg(number), key=STATIONS[number % len(STATIONS)].encode())
        self.sent += frames
        self._producer.flush(30)

    def close(self) -> None:
        self._producer.close(timeout=5)


def test_a_worker_killed_in_the_middle_loses_nothing(broker: RunningBroker, tmp_path: Path, unique: str) -> None:
    write_bundle(tmp_path / "bundle", small_bundle())
    with Line(broker.bootstrap_servers, tmp_path / "line", unique) as line:
        camera = Camera(line)
        try:
            child = line.consumer(
                tmp_path / "bundle", "--workers", "2", "--backend", "onnxruntime", "--session-timeout-s", "6"
            )
            workers = psutil.Process(child.pid).children()
            assert len(workers) == 2
            camera.send(600)
            until(lambda: line.metrics().get("framegate_verdicts_total", 0) >= 50)
            camera.send(600)
            os.kill(workers[0].pid, signal.SIGKILL)
            until(lambda: line.metrics().get("framegate_worker_restarts_total", 0) == 1)
            camera.send(600)
            verdicts = collect(line, camera.sent)
            times = Counter(verdict["verdict_id"] for verdict in verdicts)
            assert len({(v["source"]["partition"], v["source"]["offset"]) for v in verdicts}) == camera.sent == 1800
            assert len(times) == camera.sent
            if not is_embedded(check_topics(broker.bootstrap_servers, [line.frames]).cluster_id):
                assert max(times.values()) == 1, "exactly once"
            text = metrics_text(line)
            assert 'worker="0"' in text
            assert 'worker="1"' in text
            pids = [process.pid for process in psutil.Process(child.pid).children()]
            child.terminate()
            child.wait(PATIENCE_S)
            assert not any(map(psutil.pid_exists, pids))
        finally:
            camera.close()


def test_workers_that_stop_apart_end_in_order_and_the_next_start_goes_on(
    broker: RunningBroker, tmp_path: Path, unique: str
) -> None:
    """One is seconds behind when the other leaves, once each: both commit, and each time the group forms again."""
    write_bundle(tmp_path / "bundle", small_bundle())
    with Line(broker.bootstrap_servers, tmp_path / "line", unique) as line:
        camera = Camera(line)
        try:
            for turn in range(2):
                options = ("--workers", "2", "--backend", "onnxruntime", "--session-timeout-s", "12")
                child = line.consumer(tmp_path / "bundle", *options, name=f"consumer-{turn}")
                camera.send(300)
                until(lambda: line.metrics().get("framegate_verdicts_total", 0) >= 50)
                late = psutil.Process(child.pid).children()[turn % 2]
                late.suspend()
                try:
                    child.terminate()
                    log = tmp_path / "line" / f"consumer-{turn}.log"
                    until(lambda: "all that was fetched is answered and committed" in log.read_text())  # noqa: B023 - at once
                    time.sleep(2.5)  # more than between two heartbeats: the late one hears of the other's end at once
                finally:
                    late.resume()
                child.wait(PATIENCE_S)
            verdicts = collect_all(line, camera.sent, tmp_path / "bundle")
            assert len(verdicts) == camera.sent == 600, "each stop committed all that it had answered"
        finally:
            camera.close()


def collect_all(line: Line, frames: int, bundle: Path) -> list[dict[str, Any]]:
    """All verdicts, once what the last stop has left is judged too."""
    child = line.consumer(bundle, "--workers", "1", "--backend", "onnxruntime", name="consumer-last")
    verdicts = collect(line, frames)
    child.terminate()
    child.wait(PATIENCE_S)
    return verdicts


def metrics_text(line: Line) -> str:
    """The metrics as Prometheus reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{line.port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def collect(line: Line, frames: int) -> list[dict[str, Any]]:
    """Verdicts until so many frames have one, and what else comes in the two seconds after."""
    found: list[dict[str, Any]] = []
    end_s = time.monotonic() + PATIENCE_S
    enough_s = None
    with VerdictReader(line.bootstrap_servers, line.verdicts) as reader:
        while enough_s is None or time.monotonic() < enough_s:
            found += reader.poll(0.2)
            if enough_s is None and len({verdict["verdict_id"] for verdict in found}) >= frames:
                enough_s = time.monotonic() + 2.0
            assert time.monotonic() < end_s, f"{len(found)} verdicts of {frames} frames"
    return found


def test_an_engine_killed_twice_under_load_costs_no_frame(broker: RunningBroker, tmp_path: Path, unique: str) -> None:
    """One engine for both workers; it dies in the middle, twice. Each frame is judged once, and as it is offline."""
    put(tmp_path / "bundle", bundle_of(4))
    with Line(broker.bootstrap_servers, tmp_path / "line", unique) as line:
        camera = Camera(line)
        try:
            options = ("--workers", "2", "--backend", "onnxruntime", "--session-timeout-s", "6")
            child = line.consumer(tmp_path / "bundle", *options, "--engine-process", "shared")
            for turn in (1, 2):
                camera.send(600)
                until(lambda: line.metrics().get("framegate_verdicts_total", 0) >= 600 * turn - 500)  # noqa: B023 - at once
                os.kill(engine_of(child.pid), signal.SIGKILL)
                until(lambda: restarts(line, "engine") == turn)  # noqa: B023 - the same
            camera.send(600)
            verdicts = collect(line, camera.sent)
            assert len({verdict["verdict_id"] for verdict in verdicts}) == camera.sent == 1800
            assert len(verdicts) == camera.sent, "no worker died, so nothing is judged twice"
            expected = Alone().predictions(tmp_path / "bundle", [jpeg(number) for number in range(50)])
            frames = frames_by_place(line, camera.sent)
            for verdict in verdicts:
                alone = expected[frames[verdict["source"]["partition"], verdict["source"]["offset"]]]
                assert (verdict["decision"], verdict["defect_probability"]) == (
                    alone.decision,
                    alone.defect_probability,
                )
            assert {verdict["decision"] for verdict in verdicts} >= {"pass", "fail"}
            assert restarts(line, "0") == restarts(line, "1") == 0
            text = metrics_text(line)
            assert 'framegate_engine_batch_frames_count{worker="engine"}' in text
            assert line.metrics()["framegate_engine_featurizers"] == 1
            pids = [process.pid for process in psutil.Process(child.pid).children()]
            assert len(pids) == 3
            child.terminate()
            child.wait(PATIENCE_S)
            assert not any(map(psutil.pid_exists, pids))
        finally:
            camera.close()


def engine_of(pid: int) -> int:
    """The engine's process among a supervisor's children."""
    (engine,) = [child.pid for child in psutil.Process(pid).children() if "consumer.engine_process" in child.cmdline()]
    return int(engine)


def restarts(line: Line, who: str) -> float:
    """How often it was started again."""
    mark = f'framegate_worker_restarts_total{{worker="{who}"}} '
    (value,) = [text.removeprefix(mark) for text in metrics_text(line).splitlines() if text.startswith(mark)]
    return float(value)


def frames_by_place(line: Line, count: int) -> dict[tuple[int, int], int]:
    """Which of the fifty pictures lies at each partition and offset."""
    number_of = {jpeg(number): number for number in range(50)}
    consumer = KafkaConsumer(
        bootstrap_servers=line.bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    try:
        consumer.assign([TopicPartition(line.frames, number) for number in range(line.partitions)])
        found: dict[tuple[int, int], int] = {}
        end_s = time.monotonic() + PATIENCE_S
        while len(found) < count:
            assert time.monotonic() < end_s, f"{len(found)} of {count} frames"
            for records in consumer.poll(timeout_ms=500).values():
                found |= {(record.partition, record.offset): number_of[record.value] for record in records}
        return found
    finally:
        consumer.close()
