"""What Prometheus gets to see, read back with Prometheus' own parser."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumer.events import Cause, Decision, EngineRef, Frame, ModelRef, Position, StageTimes, Verdict
from consumer.metrics import LATENCY_BUCKETS_S, OTHER_STATIONS, Metrics, metric_docs


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, max_stations=3)


def a_frame(station: str = "press-1", **changes: Any) -> Frame:
    return Frame(Position("frames", 0, 7), station, "f", b"12345", 100.0, 100.5, **changes)


def a_verdict(decision: Any = "pass", station: str = "press-1", **changes: Any) -> Verdict:
    return Verdict(
        "v",
        a_frame(station),
        decision,
        ModelRef("m", "1", "d", "h"),
        EngineRef("onnxruntime", "cpu", "fp32"),
        101.0,
        0.5,
        (0.5, 0.5),
        StageTimes(500.0, None, 2.0, 3.0, 4.0, 0.5, 1000.0),
        8,
        **changes,
    )


def test_frames_and_skewed_clocks_are_counted_by_station(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.observe_frame(a_frame())
    metrics.observe_frame(a_frame(skewed=True))
    labels = {"station": "press-1"}
    assert registry.get_sample_value("framegate_frames_total", labels) == 2
    assert registry.get_sample_value("framegate_frame_bytes_total", labels) == 10
    assert registry.get_sample_value("framegate_clock_skew_total", labels) == 1


def test_a_verdict_is_counted_with_its_latencies(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.observe_verdict(a_verdict())
    assert registry.get_sample_value("framegate_verdicts_total", {"station": "press-1", "decision": "pass"}) == 1
    assert registry.get_sample_value("framegate_last_verdict_timestamp_seconds", {"station": "press-1"}) == 101.0
    assert registry.get_sample_value("framegate_verdict_seconds_sum", {"station": "press-1"}) == 1.0
    sums = {
        stage: registry.get_sample_value("framegate_stage_seconds_sum", {"stage": stage})
        for stage in ("transport", "fetch_wait", "decode", "batch_wait", "inference", "classify")
    }
    assert sums == pytest.approx(
        {
            "transport": 0.5,
            "fetch_wait": 0.0,
            "decode": 0.002,
            "batch_wait": 0.003,
            "inference": 0.004,
            "classify": 0.0005,
        }
    )
    counts = registry.get_sample_value("framegate_stage_seconds_count", {"stage": "fetch_wait"})
    assert counts == 0, "a stage that was not reached took no time, not zero time"


def test_a_verdict_none_and_its_cause(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.observe_verdict(a_verdict("none", cause="oversize"))
    metrics.observe_verdict(a_verdict("review", reasons=("band", "camera")))
    assert registry.get_sample_value("framegate_none_total", {"cause": "oversize"}) == 1
    assert registry.get_sample_value("framegate_none_total", {"cause": "undecodable"}) == 0, "known causes begin at 0"
    assert registry.get_sample_value("framegate_reasons_total", {"reason": "camera"}) == 1


def test_what_alerts_watch_rise_begins_at_zero_with_a_stations_first_frame(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.observe_frame(a_frame())
    station = {"station": "press-1"}
    for cause in get_args(Cause):
        assert registry.get_sample_value("framegate_station_none_total", {**station, "cause": cause}) == 0, cause
    for decision in get_args(Decision):
        assert registry.get_sample_value("framegate_verdicts_total", {**station, "decision": decision}) == 0, decision
    assert registry.get_sample_value("framegate_clock_skew_total", station) == 0
    metrics.observe_verdict(a_verdict("none", cause="late"))
    metrics.observe_frame(a_frame())
    assert registry.get_sample_value("framegate_station_none_total", {**station, "cause": "late"}) == 1


def test_a_refused_reload_stands_until_one_was_taken(registry: CollectorRegistry, metrics: Metrics) -> None:
    shown = []
    for outcome in (None, "refused", "refused", "unchanged", "refused", "loaded"):
        if outcome is not None:
            metrics.count_reload(outcome)
        shown.append(registry.get_sample_value("framegate_last_reload_successful"))
    assert shown == [1, 0, 0, 1, 0, 1]


def test_a_flood_of_stations_shares_one_label(registry: CollectorRegistry, metrics: Metrics) -> None:
    for number in range(50):
        metrics.observe_frame(a_frame(f"s{number}"))
        metrics.observe_verdict(a_verdict(station=f"s{number}"))
    metrics.observe_frame(a_frame("s0"))
    shown = {
        sample.labels["station"]
        for family in registry.collect()
        for sample in family.samples
        if "station" in sample.labels
    }
    assert shown == {"s0", "s1", "s2", OTHER_STATIONS}
    assert registry.get_sample_value("framegate_frames_total", {"station": "s0"}) == 2
    assert registry.get_sample_value("framegate_frames_total", {"station": OTHER_STATIONS}) == 47


def test_batches(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.observe_batch(8, 32, 0.004)
    assert registry.get_sample_value("framegate_batch_frames_sum") == 8
    assert registry.get_sample_value("framegate_batch_fill_ratio_sum") == 0.25
    assert registry.get_sample_value("framegate_batch_inference_seconds_sum") == 0.004


def test_lag_of_a_partition_that_left_is_not_told(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.set_assigned([("frames", 0), ("frames", 1)])
    metrics.set_lag("frames", 0, 7)
    metrics.set_lag("frames", 5, 9)  # not ours: a late report after a rebalance
    metrics.set_assigned([("frames", 1)])
    assert registry.get_sample_value("framegate_assigned_partitions") == 1
    assert registry.get_sample_value("framegate_lag_frames", {"topic": "frames", "partition": "0"}) is None
    assert registry.get_sample_value("framegate_lag_frames", {"topic": "frames", "partition": "1"}) == 0
    assert registry.get_sample_value("framegate_lag_frames", {"topic": "frames", "partition": "5"}) is None


def test_only_the_model_that_judges_is_shown(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.set_model(ModelRef("pcb", "1", "d1", "h"))
    metrics.set_model(ModelRef("pcb", "2", "d2", "h"))
    metrics.set_engine(EngineRef("onnxruntime", "cpu", "fp32"))
    old, new = ({"name": "pcb", "version": v, "digest": f"d{v}", "head": "h"} for v in "12")
    assert registry.get_sample_value("framegate_model_info", old) is None
    assert registry.get_sample_value("framegate_model_info", new) == 1
    engine = {"backend": "onnxruntime", "device": "cpu", "precision": "fp32"}
    assert registry.get_sample_value("framegate_engine_info", engine) == 1


def test_all_models_that_judge_are_shown_and_a_swap_leaves_no_gap(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    one, two, three = (ModelRef(f"m{n}", "1", "d", "h") for n in (1, 2, 3))
    metrics.set_model(one, two, one)
    metrics.set_model(two, three)
    shown = {
        sample.labels["name"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "framegate_model_info"
    }
    assert shown == {"m2", "m3"}
    metrics.set_model()
    assert (
        registry.get_sample_value("framegate_model_info", {"name": "m2", "version": "1", "digest": "d", "head": "h"})
        is None
    )


def test_a_shadows_decisions_by_station_in_bounds(registry: CollectorRegistry, metrics: Metrics) -> None:
    for number in range(9):
        metrics.count_shadow(f"s{number}", "pass", "fail")
    metrics.count_shadow_left_out(5)
    flip = {"decision": "pass", "shadow_decision": "fail"}
    assert registry.get_sample_value("framegate_shadow_decisions_total", {"station": "s0", **flip}) == 1
    assert registry.get_sample_value("framegate_shadow_decisions_total", {"station": OTHER_STATIONS, **flip}) == 6
    assert registry.get_sample_value("framegate_shadow_left_out_frames_total") == 5


def test_the_plain_counts(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.count_decode_error("oversize")
    metrics.count_dead_letter("late")
    metrics.count_dead_letter_error("full")
    metrics.count_commit()
    metrics.count_commit_error()
    metrics.count_rebalance()
    metrics.count_reload("refused")
    metrics.set_in_flight(11)
    metrics.set_queue_depth(12)
    samples: list[tuple[str, dict[str, str], float]] = [
        ("framegate_decode_errors_total", {"cause": "oversize"}, 1),
        ("framegate_dead_letters_total", {"cause": "late"}, 1),
        ("framegate_dead_letter_errors_total", {"reason": "full"}, 1),
        ("framegate_commits_total", {}, 1),
        ("framegate_commit_errors_total", {}, 1),
        ("framegate_rebalances_total", {}, 1),
        ("framegate_reloads_total", {"outcome": "refused"}, 1),
        ("framegate_reloads_total", {"outcome": "loaded"}, 0),
        ("framegate_in_flight_frames", {}, 11),
        ("framegate_queue_depth_frames", {}, 12),
    ]
    assert [(name, labels, registry.get_sample_value(name, labels)) for name, labels, _ in samples] == samples


def test_a_fault_by_station_and_cause(registry: CollectorRegistry, metrics: Metrics) -> None:
    for number in range(5):
        metrics.observe_verdict(a_verdict("none", f"s{number}", cause="camera_fault"))
    value = registry.get_sample_value
    assert value("framegate_station_none_total", {"station": "s0", "cause": "camera_fault"}) == 1
    assert value("framegate_station_none_total", {"station": OTHER_STATIONS, "cause": "camera_fault"}) == 2
    assert value("framegate_camera_fault", {"station": "s0", "fault": "frozen"}) == 0, "a gauge that is there to rise"


def test_a_camera_is_faulty_until_it_is_not_and_those_that_share_a_label_are_counted(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    def shown(station: str, fault: str = "frozen") -> float | None:
        return registry.get_sample_value("framegate_camera_fault", {"station": station, "fault": fault})

    for number in range(6):
        metrics.set_camera_fault(f"s{number}", "frozen", faulty=True)
    metrics.set_camera_fault("s5", "frozen", faulty=True)
    metrics.set_camera_fault("s0", "shifted", faulty=True)
    assert (shown("s0"), shown("s0", "shifted"), shown(OTHER_STATIONS)) == (1, 1, 3)
    metrics.set_camera_fault("s0", "frozen", faulty=False)
    metrics.set_camera_fault("s5", "frozen", faulty=False)
    metrics.set_camera_fault("s5", "frozen", faulty=False)
    assert (shown("s0"), shown("s0", "shifted"), shown(OTHER_STATIONS)) == (0, 1, 2)
    metrics.count_camera_trouble("s0", "blurred")
    labels = {"station": "s0", "trouble": "blurred"}
    assert registry.get_sample_value("framegate_camera_trouble_frames_total", labels) == 1


def test_a_stations_gauges_leave_with_its_partition(registry: CollectorRegistry, metrics: Metrics) -> None:
    def shown(name: str, station: str) -> float | None:
        return registry.get_sample_value(name, {"station": station})

    metrics.set_assigned([("frames", 0), ("frames", 1)])
    for station, partition in (("a", 0), ("b", 1)):
        position = Position("frames", partition, 5)
        metrics.observe_verdict(replace(a_verdict(station=station), frame=replace(a_frame(station), position=position)))
        metrics.set_drift(station, 1.25)
    metrics.set_assigned([("frames", 1)])
    assert shown("framegate_drift_ratio", "a") is None, "its new owner tells it"
    assert shown("framegate_last_verdict_timestamp_seconds", "a") is None
    assert shown("framegate_drift_ratio", "b") == 1.25
    assert registry.get_sample_value("framegate_verdicts_total", {"station": "a", "decision": "pass"}) == 1
    metrics.set_assigned([("frames", 0), ("frames", 1)])
    metrics.set_drift("a", 0.5)
    assert shown("framegate_drift_ratio", "a") == 0.5


def test_stations_that_share_a_label_have_no_drift(registry: CollectorRegistry, metrics: Metrics) -> None:
    for number in range(5):
        metrics.set_drift(f"s{number}", 2.0)
    assert registry.get_sample_value("framegate_drift_ratio", {"station": "s2"}) == 2.0
    assert registry.get_sample_value("framegate_drift_ratio", {"station": OTHER_STATIONS}) is None


def test_what_is_in_hand_and_how_old_it_is(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.set_in_flight(11, 4096, 2)
    metrics.set_oldest(0.25)
    metrics.count_transaction_error()
    metrics.count_engine_error()
    names = (
        "framegate_held_bytes",
        "framegate_batches_in_flight",
        "framegate_lag_seconds",
        "framegate_transaction_errors_total",
        "framegate_engine_errors_total",
        "framegate_commit_errors_total",
    )
    assert [registry.get_sample_value(name) for name in names] == [4096, 2, 0.25, 1, 1, 0]


def test_a_board_is_told_the_deadline_and_where_there_is_none(registry: CollectorRegistry, metrics: Metrics) -> None:
    shown = [registry.get_sample_value("framegate_deadline_seconds")]
    for deadline_s in (1.5, None):
        metrics.set_deadline(deadline_s)
        shown.append(registry.get_sample_value("framegate_deadline_seconds"))
    assert shown == [math.inf, 1.5, math.inf]


def test_latencies_are_told_apart_from_a_millisecond_to_ten_seconds() -> None:
    assert LATENCY_BUCKETS_S[0] <= 0.001
    assert max(LATENCY_BUCKETS_S) >= 10
    assert all(later / sooner <= 3 for sooner, later in pairwise(LATENCY_BUCKETS_S))


def test_a_hostile_station_cannot_break_the_exposition(registry: CollectorRegistry, metrics: Metrics) -> None:
    station = 'a"b\\c\nframegate_frames_total{station="x"} 99'
    metrics.observe_frame(a_frame(station))
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    counted = [sample for sample in families["framegate_frames"].samples if sample.name == "framegate_frames_total"]
    assert [(sample.labels, sample.value) for sample in counted] == [({"station": station}, 1.0)]


def test_the_docs_list_every_metric_that_is_exposed(registry: CollectorRegistry, metrics: Metrics) -> None:
    docs = {doc.name: doc for doc in metric_docs()}
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        if not family.name.endswith("_created")
    }
    assert set(docs) == exposed
    assert docs["framegate_verdicts_total"].labels == ("station", "decision")
    assert docs["framegate_stage_seconds"].kind == "histogram"
    for doc in docs.values():
        assert re.fullmatch(r"framegate_[a-z_]+", doc.name)
        assert doc.help.endswith("."), doc.name
    assert metrics.frames is not None


def test_two_containers_do_not_share_a_registry(registry: CollectorRegistry, metrics: Metrics) -> None:
    assert metrics is not None
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry)
