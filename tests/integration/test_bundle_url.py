"""A bundle behind a web server, replaced under a running consumer of two workers; then the server goes away."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from kafka import KafkaProducer

from engine.bundle import open_bundle, write_bundle
from tests.line import Line
from tests.lineups import bundle_of, jpegs
from tests.web import Web

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kafka_cluster import RunningBroker

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
FRAMES = 40


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to happen."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.1)


def send(line: Line) -> None:
    producer = KafkaProducer(bootstrap_servers=line.bootstrap_servers)
    for number, payload in enumerate(jpegs(FRAMES)):
        producer.send(line.frames, payload, key=f"station {number % 6}".encode())
    producer.flush(30)
    producer.close()


def test_workers_share_what_is_fetched_and_outlive_its_server(
    embedded_broker: RunningBroker, tmp_path: Path, unique: str
) -> None:
    digests = [write_bundle(tmp_path / f"{seed}.zip", bundle_of(seed)).digest for seed in (1, 2)]
    contents = [(tmp_path / f"{seed}.zip").read_bytes() for seed in (1, 2)]
    cache = tmp_path / "cache"
    with Line(embedded_broker.bootstrap_servers, tmp_path / "line", unique) as line:
        with Web(contents[0]) as web:
            child = line.consumer(
                None,
                *("--bundle", web.url, "--bundle-cache", str(cache), "--watch-s", "0.3"),
                *("--workers", "2", "--backend", "onnxruntime", "--session-timeout-s", "6"),
            )
            send(line)
            before = line.collect(FRAMES)
            assert {verdict["model"]["digest"] for verdict in before} == {digests[0]}
            web.put(contents[1], "two")
            until(lambda: line.metrics().get("framegate_reloads_total", 0) == 2)
            assert web.asked.count("GET") == 2, "one process fetches for all"
        victim = psutil.Process(child.pid).children()[0]
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: line.metrics().get("framegate_worker_restarts_total", 0) == 1)
        until(line._ready)
        send(line)
        known = {verdict["verdict_id"] for verdict in before}
        after = [verdict for verdict in line.collect(2 * FRAMES) if verdict["verdict_id"] not in known]
        child.terminate()
        child.wait(PATIENCE_S)
    assert {verdict["model"]["digest"] for verdict in after} == {digests[1]}, "also of the worker that came back"
    assert sorted(open_bundle(path).digest for path in cache.iterdir() if not path.name.startswith(".")) == sorted(
        digests
    )
    log = (tmp_path / "line" / "consumer.log").read_text()
    assert "what was fetched from there before" in log
