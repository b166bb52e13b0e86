"""A worker whose engine is another process: the same verdicts, reloads, and what happens when that process is away."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from consumer.budget import Limits
from consumer.clock import SystemClock
from consumer.engine_judge import EngineJudge
from consumer.engine_process import STUCK_S, tell_health
from consumer.events import Frame, Position
from consumer.health import Health
from consumer.lineup import Loader
from consumer.memory_io import MemoryDeadLetters, MemoryLog, MemorySink, MemorySource, MemoryWatcher
from consumer.metrics import EngineMetrics, engine_metric_docs
from consumer.pipeline import Pace, Pipeline, Ports
from consumer.ports import Decoded
from consumer.reload import Reloader
from engine.batcher import BatchPolicy
from engine.choice import open_for
from engine.errors import EngineGoneError, GraphError
from engine.heads import stack
from engine.shared_client import SharedBackend, Waits
from engine.shared_featurizer import Computed
from tests.lineups import Alone, bundle_of, jpegs, put
from tests.shared_engine import Engine, EngineProcess, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.backend import Backend, Features, Ticket
    from engine.bundle import Bundle


def loader_on(address: str, place: Path, *, waits: Waits | None = None) -> Loader:
    """For batches of up to 8 on the engine at an address."""
    return Loader(
        lambda bundle: SharedBackend(address, bundle, largest=8, pool=16, waits=waits),
        bundle=str(place),
        largest=8,
        must_agree=False,
    )


@contextmanager
def judging(address: str, place: Path) -> Iterator[tuple[EngineJudge, Loader]]:
    loader = loader_on(address, place)
    with EngineJudge(loader.load()) as judge:
        yield judge, loader


def judged(judge: EngineJudge, payloads: list[bytes]) -> list[tuple[str, float]]:
    frames = []
    for payload in payloads:
        route = judge.route("a")
        assert route is not None
        frames.append(Decoded("a", route, judge.decode(payload, route), payload))
    scored = judge.score(frames)
    for frame in frames:
        judge.release(frame.route)
    return [(prediction.decision, prediction.defect_probability) for prediction in scored.predictions]


def alone(place: Path, payloads: list[bytes]) -> list[tuple[str, float]]:
    return [(p.decision, p.defect_probability) for p in Alone().predictions(place, payloads)]


def test_two_workers_on_one_engine_decide_as_each_would_alone(tmp_path: Path) -> None:
    for seed in (1, 2):
        put(tmp_path / f"b{seed}", bundle_of(seed))
    payloads = jpegs(16)
    found: dict[int, list[tuple[str, float]]] = {}
    with Engine(lambda bundle: open_for(bundle, "onnxruntime")) as engine:

        def work(seed: int) -> None:
            with judging(engine.address, tmp_path / f"b{seed}") as (judge, _):
                found[seed] = judged(judge, payloads[:8]) + judged(judge, payloads[8:])

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: engine.server.featurizers == 0)
    for seed in (1, 2):
        assert found[seed] == alone(tmp_path / f"b{seed}", payloads)
    assert found[1] != found[2]


def test_frames_are_decoded_where_the_engine_reads_them(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    with (
        Engine(lambda bundle: open_for(bundle, "onnxruntime")) as engine,
        judging(engine.address, tmp_path / "b") as (judge, _),
    ):
        lane = judge.lineup.lanes[0]
        route = judge.route("a")
        assert route is not None
        image = judge.decode(jpegs(1)[0], route)
        client = lane._backend
        assert isinstance(client, SharedBackend)
        assert client._pool.cell_of(image) is not None
        assert np.shares_memory(image, client._views.frames)
        judge.release(route)


def test_a_bad_bundle_is_refused_as_without_a_border_and_good_ones_leave_nothing_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing_3(bundle: Bundle) -> Backend:
        if bundle.name == "seed-3":
            msg = "the graph cannot be loaded: expected another; train the bundle again"
            raise GraphError(msg)
        return open_for(bundle, "onnxruntime")

    place, outcomes = tmp_path / "b", list[str]()
    put(place, bundle_of(1))
    with Engine(refusing_3) as engine, judging(engine.address, place) as (judge, loader):
        reloader = Reloader(loader, judge, largest=8, told=outcomes.append, settle=lambda _: None)
        put(place, bundle_of(3, wide=True))
        assert reloader.look() == "refused"
        assert "reload refused, and the models of before go on: the graph cannot be loaded: expected" in caplog.text
        payloads = jpegs(4)
        for turn in range(6):
            put(place, bundle_of(turn % 2 + 1, wide=turn % 2 == 0))
            assert reloader.look() == "loaded"
            assert judged(judge, payloads) == alone(place, payloads)
            until(lambda: engine.server.featurizers == engine.server.workers == 1)
    assert outcomes == ["refused", *["loaded"] * 6]


def test_an_engine_whose_batch_never_ends_says_that_it_does_not_live(caplog: pytest.LogCaptureFixture) -> None:
    health = Health()
    tell_health(health, 1000.0, STUCK_S - 1)
    assert health.live(1000.5) == (True, "")
    tell_health(health, 1001.0, STUCK_S + 4)
    assert not health.live(1001.0)[0], "at once"
    assert "a batch takes 34 s already: expected at most 30 s" in caplog.text


def test_a_backend_that_hangs_is_seen_from_outside() -> None:
    gate = threading.Event()

    def hanging(bundle: Bundle) -> Backend:
        backend = open_for(bundle, "onnxruntime")
        collect = backend.collect

        def wait(ticket: Ticket) -> Features:
            assert gate.wait(20)
            return collect(ticket)

        backend.collect = wait  # type: ignore[method-assign] # from the second batch on
        backend.infer = lambda *batch, **wanted: collect(backend.submit(*batch, **wanted))  # type: ignore[method-assign]
        return backend

    with Engine(hanging) as engine:
        client = SharedBackend(engine.address, bundle_of(1), pool=0)
        assert engine.server.busy_for_s(time.monotonic()) == 0
        ticket = client.submit(np.zeros((1, 64, 64, 3), np.uint8), *stack([bundle_of(1).head]))
        until(lambda: engine.server.busy_for_s(time.monotonic()) > 0.05)
        gate.set()
        client.collect(ticket)
        until(lambda: engine.server.busy_for_s(time.monotonic()) == 0)
        client.close()


def test_batches_of_the_shared_engine_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    metrics.observe(Computed(48, 64, 6, 0.004, failed=False))
    metrics.observe(Computed(8, 64, 2, 0.0, failed=True))
    assert registry.get_sample_value("framegate_engine_batch_frames_sum") == 48
    assert registry.get_sample_value("framegate_engine_batch_fill_ratio_sum") == 0.75
    assert registry.get_sample_value("framegate_engine_batch_requests_sum") == 6
    assert registry.get_sample_value("framegate_engine_batch_seconds_count") == 1
    assert registry.get_sample_value("framegate_engine_batch_failures_total") == 1
    assert [doc.name for doc in engine_metric_docs()] == [
        "framegate_engine_batch_failures_total",
        "framegate_engine_batch_fill_ratio",
        "framegate_engine_batch_frames",
        "framegate_engine_batch_requests",
        "framegate_engine_batch_seconds",
        "framegate_engine_featurizers",
    ]


def run_pipeline(judge: EngineJudge, payloads: list[bytes], sink: MemorySink) -> None:
    clock = SystemClock()
    memory = MemoryLog(partitions=1)
    for number, payload in enumerate(payloads):

        def make(offset: int, payload: bytes = payload, number: int = number) -> Frame:
            now_s = clock.epoch_s()
            return Frame(Position("frames", 0, offset), "a", f"a-{number}", payload, now_s, now_s)

        memory.append(0, make)
    ports = Ports(
        source=MemorySource(memory, clock),
        sink=sink,
        judge=judge,
        clock=clock,
        watcher=MemoryWatcher(),
        dead_letters=MemoryDeadLetters(),
        verdict_id=lambda partition, offset: f"{partition}/{offset}",
    )
    pace = Pace(BatchPolicy(8, 0.005, 8), Limits(64, 10**9), idle_exit_s=0.1, drain_s=2.0)
    Pipeline(ports, pace).run()


@pytest.mark.slow
def test_an_engine_that_stays_away_ends_the_worker_and_answers_no_frame_for_it(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    with EngineProcess("onnxruntime") as engine:
        loader = loader_on(engine.address, tmp_path / "b", waits=Waits(answer_s=0.3))
        with EngineJudge(loader.load()) as judge:
            before, after = MemorySink(), MemorySink()
            run_pipeline(judge, jpegs(4), before)
            assert len(before.verdicts) == 4
            engine.kill()
            with pytest.raises(EngineGoneError, match="expected it to be started again by its supervisor"):
                run_pipeline(judge, jpegs(4), after)
            assert after.verdicts == []


@pytest.mark.slow
def test_an_engine_comes_back_with_what_judged_whatever_lies_at_the_bundles_place_now(tmp_path: Path) -> None:
    place, payloads = tmp_path / "b", jpegs(8)
    put(place, bundle_of(1))
    expected = alone(place, payloads)
    with EngineProcess("onnxruntime") as engine, judging(engine.address, place) as (judge, _):
        (place / "featurizer.onnx").write_bytes(b"half of")
        engine.kill()
        engine.start()
        assert judged(judge, payloads) == expected
