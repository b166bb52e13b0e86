"""Workers without processes: who gets which cores and settings, and what their reports make of registries."""

from __future__ import annotations

import io
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from consumer.app import run_consumer
from consumer.config import Settings
from consumer.errors import SettingsError
from consumer.metrics import SupervisorMetrics, supervisor_metric_docs
from consumer.reports import Report, WorkerMetrics, families_of
from consumer.supervision import Patience
from consumer.worker import REPORT_EVERY_S, instructions, rest_after
from consumer.workers import computes_on_cpu, how_many, settings_of, shares_engine
from engine import streams
from engine.streams import cores
from engine.tensorrt_options import TensorRTOptions


def test_workers_share_the_cores_and_bind_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 3, 4, 5, 6})
    monkeypatch.setattr(streams, "_sharing", 1)
    assert (streams.cores(), streams.sharing(), Settings("b").pace().decode_threads) == (5, False, 5)
    streams.share_cores(2)
    assert (streams.cores(), streams.sharing(), Settings("b").pace().decode_threads) == (2, True, 2)
    streams.share_cores(7)
    assert (streams.cores(), Settings("b").pace().decode_threads) == (1, 2)
    assert Settings("b", decode_threads=1).pace().decode_threads == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what threads are bound to")
@pytest.mark.skipif(cores() == 1, reason="on one core every thread is bound to it")
def test_engines_that_share_the_cores_do_not_all_sit_on_the_first() -> None:
    """OpenVINO may bind its threads to cores, counted from the first in each process; whether it does is up to it."""
    code = (
        "from pathlib import Path; from engine.heads import stack; "
        "from tests.bundles import graph, pictures, small_head; "
        "from engine.backend_openvino import OpenVinoBackend; from engine.streams import share_cores; "
        "share_cores(2); backend = OpenVinoBackend(graph(), precision='fp32', streams=1); "
        "backend.infer(pictures(2), *stack([small_head()])); "
        "texts = [path.read_text() for path in Path('/proc/self/task').glob('*/status')]; "
        "print(len({line for text in texts for line in text.splitlines() if line.startswith('Cpus_allowed_list')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1, "one mask for all threads"


def test_each_worker_is_an_instance_of_its_own_the_same_after_a_restart() -> None:
    settings = Settings("b", instance="line-2", http_port=9108, workers=3)
    first, again, other = (settings_of(settings, number, settings.own_instance()) for number in (0, 0, 1))
    assert first.transactional_id() == again.transactional_id() == "framegate-framegate-line-2-w0"
    assert other.transactional_id() == "framegate-framegate-line-2-w1"
    assert first.http_port is None
    assert first.workers == 1
    assert first.engine_address is None
    assert settings_of(settings, 0, "line-2", "/tmp/socket").engine_address == "/tmp/socket"  # noqa: S108 - a name only
    unnamed = Settings("b").own_instance()
    assert settings_of(settings, 1, unnamed).transactional_id().endswith(f"{unnamed}-w1")


def test_workers_are_counted_from_one() -> None:
    assert how_many(Settings("b", workers=7)) == 7
    with pytest.raises(SettingsError, match="--workers 0 is too small: expected 1 or more"):
        Settings("b", workers=0)


def test_a_gpu_is_not_shared_by_engines_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_engine(Settings("b", backend="tensorrt"))
    assert shares_engine(Settings("b", backend="tensorrt-int8"))
    assert not shares_engine(Settings("b", backend="tensorrt", engine_process="own"))
    assert not shares_engine(Settings("b", backend="openvino"))
    assert shares_engine(Settings("b", backend="openvino", engine_process="shared"))
    assert computes_on_cpu("openvino-int8")
    assert not computes_on_cpu("tensorrt-int8")
    monkeypatch.setattr("consumer.workers.tensorrt_is_installed", lambda: True)
    assert not computes_on_cpu("auto")
    monkeypatch.setattr("consumer.workers._GPU_DEVICES", ("/nowhere",))
    assert not shares_engine(Settings("b"))
    monkeypatch.setattr("consumer.workers._GPU_DEVICES", ("/nowhere", "/dev/null"))
    assert shares_engine(Settings("b"))
    monkeypatch.setattr("consumer.workers.cores", lambda: 3)
    assert how_many(Settings("b", backend="openvino")) == 3
    assert how_many(Settings("b", backend="tensorrt")) == 3, "on a GPU workers only decode"


@pytest.mark.parametrize(
    ("options", "supervised"),
    [
        ({"workers": 1}, False),
        ({"workers": 1, "engine_process": "own"}, False),
        ({"workers": 1, "engine_process": "shared"}, True),
        ({"workers": 2}, True),
        ({"workers": 1, "engine_process": "own", "engine_address": "socket"}, False),  # a worker itself
    ],
)
def test_one_worker_has_a_supervisor_only_for_an_engine_of_another_process(
    options: dict[str, Any], supervised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Nothing:
        def check(self) -> None:
            told.append("checked")

        def load(self) -> None:
            msg = "loaded here"
            raise SettingsError(msg)

    monkeypatch.setattr("consumer.app.loader_of", lambda _: Nothing())
    monkeypatch.setattr("consumer.app.run_workers", lambda _settings, number: told.append(f"{number} workers"))
    settings = Settings("b", backend="onnxruntime", **options)
    if supervised:
        run_consumer(settings)
        assert told == ["checked", f"{options['workers']} workers"]
    else:
        with pytest.raises(SettingsError, match="loaded here"):
            run_consumer(settings)
        assert told == []


def test_settings_arrive_as_they_were_with_their_secrets_off_the_command_line() -> None:
    options = TensorRTOptions(plans=Path("plans"))
    settings = Settings("b", client={"sasl_plain_password": "secret"}, tensorrt=options, deadline_s=0.5)
    stream = io.BytesIO(instructions(4, 6, settings))
    order = json.loads(stream.readline())
    assert {"worker": 4, "workers": 6}.items() <= order.items()
    assert pickle.loads(stream.read(order["bytes"])) == settings  # noqa: S301 - our own
    assert stream.read() == b""


def test_a_report_that_takes_long_does_not_silence_a_worker_until_it_is_killed_for_it() -> None:
    assert rest_after(0.0) == REPORT_EVERY_S
    assert rest_after(0.02) == pytest.approx(2.0), "a hundredth of the time"
    assert rest_after(3.0) < Patience().silent_s / 4


def test_a_report_says_exactly_what_the_registry_holds() -> None:
    registry = CollectorRegistry()
    Gauge("odd", "Odd.", registry=registry).set(math.inf)
    histogram = Histogram("took", "Took.", ["station"], buckets=(0.1, 1.0), registry=registry)
    for took_s in (0.05, 0.1, 0.2, 5.0):
        histogram.labels('a"b\n').observe(took_s)
    report = Report((True, ""), (False, "no broker"), families_of(registry), "why")
    read = Report.from_line(report.to_line())
    assert read == report
    shown = WorkerMetrics()
    shown.update(0, read.families)
    labelled = CollectorRegistry()
    labelled.register(shown)
    without = generate_latest(labelled).decode().replace(',worker="0"', "").replace('{worker="0"}', "")
    assert without == generate_latest(registry).decode()


def test_counts_go_on_after_a_restart_histograms_among_them() -> None:
    def life(*observed: float, station: str = "a") -> dict[str, object]:
        registry = CollectorRegistry()
        histogram = Histogram("took", "Took.", ["station"], buckets=(1.0,), registry=registry)
        counter = Counter("seen", "Seen.", registry=registry)
        for value in observed:
            histogram.labels(station).observe(value)
            counter.inc()
        return families_of(registry)  # type: ignore[return-value] # only handed on

    shown = WorkerMetrics()

    def samples() -> dict[str, float]:
        return {
            f"{sample.name}{sample.labels.get('station', '')}{sample.labels.get('le', '')}": sample.value
            for metric in shown.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }

    shown.update(0, life(0.5, 0.5))  # type: ignore[arg-type]
    shown.update(0, life(0.5, 0.5, 4.0))  # type: ignore[arg-type]
    shown.ended(0)
    shown.ended(0)  # died before its first report
    shown.update(0, life(2.0))  # type: ignore[arg-type]
    expected = {
        "seen_total": 4.0,
        "took_bucketa1.0": 2.0,
        "took_bucketa+Inf": 4.0,
        "took_counta": 4.0,
        "took_suma": 7.0,
    }
    assert samples() == expected
    shown.ended(0)
    shown.update(0, life(3.0, station="b"))  # type: ignore[arg-type]
    assert samples()["took_counta"] == 4.0, "a station not seen since keeps its series"
    assert samples()["took_countb"] == 1.0
    assert samples()["seen_total"] == 5.0


def test_when_a_series_was_created_stays() -> None:
    shown = WorkerMetrics()
    created = []
    for _ in range(2):
        registry = CollectorRegistry()
        Counter("seen", "Seen.", registry=registry)
        families = families_of(registry)
        created.append(families["seen"].samples["seen_created", ()])
        shown.update(0, families)
        (metric,) = shown.collect()
        assert {sample.name: sample.value for sample in metric.samples}["seen_created"] == created[0]
        shown.ended(0)
    assert created[0] < created[1]


def test_the_supervisors_own_metrics_begin_at_zero() -> None:
    registry = CollectorRegistry()
    metrics = SupervisorMetrics(registry, 2)
    assert registry.get_sample_value("framegate_worker_restarts_total", {"worker": "1"}) == 0
    metrics.count_restart(1)
    assert registry.get_sample_value("framegate_worker_restarts_total", {"worker": "1"}) == 1
    assert registry.get_sample_value("framegate_workers") == 2
    assert registry.get_sample_value("framegate_worker_restarts_total", {"worker": "engine"}) is None
    metrics.count_engine()
    assert registry.get_sample_value("framegate_worker_restarts_total", {"worker": "engine"}) == 0
    names = [doc.name for doc in supervisor_metric_docs()]
    assert names == ["framegate_worker_restarts_total", "framegate_workers"]
