"""Every Prometheus metric of the consumer, declared once; the registry is injected, the labels are bounded."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import astuple, dataclass
from threading import Lock
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumer.events import Cause, Decision, Reason

if TYPE_CHECKING:
    from collections.abc import Collection

    from prometheus_client.metrics import MetricWrapperBase

    from consumer.camera_health import FaultKind
    from consumer.events import EngineRef, Frame, ModelRef, StageTimes, Verdict
    from engine.prediction import Trouble
    from engine.shared_featurizer import Computed

MAX_STATIONS = 256
"""Stations with a label of their own; all further ones share `other`, so that a bad key cannot fill a Prometheus."""

OTHER_STATIONS = "other"

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
FILL_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

STAGES = ("transport", "fetch_wait", "decode", "batch_wait", "inference", "classify")
CAMERA_FAULTS = ("frozen", "shifted")
DECODE_CAUSES = ("undecodable", "oversize")
RELOAD_OUTCOMES = ("loaded", "unchanged", "refused")
DEAD_LETTER_FAILURES = ("full", "send", "delivery")


@dataclass(frozen=True, slots=True)
class MetricDoc:
    """One metric for the README's table.

    Attributes:
        name: as Prometheus shows it; a counter's with `_total`.
        kind: `counter`, `gauge` or `histogram`.
        labels: label names, in order.
        help: what it means to a line engineer.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Stations:
    """Which stations have a label of their own: the first `limit` seen."""

    def __init__(self, limit: int = MAX_STATIONS) -> None:
        """Start with none."""
        self._limit = limit
        self._known: set[str] = set()
        self._lock = Lock()

    def label(self, station: str) -> str:
        """The station itself, or `other` once the limit is reached."""
        with self._lock:
            if station in self._known:
                return station
            if len(self._known) >= self._limit:
                return OTHER_STATIONS
            self._known.add(station)
            return station


class Metrics:
    """The consumer's metrics. Every method may be called from any thread and none raises on odd values."""

    def __init__(self, registry: CollectorRegistry, *, max_stations: int = MAX_STATIONS) -> None:
        """Declare everything in `registry`; each registry takes one container."""
        self._stations = Stations(max_stations)
        self._assigned: set[tuple[str, int]] = set()
        self._engines: set[tuple[str, ...]] = set()
        self._models: set[tuple[str, ...]] = set()
        self._homes: dict[str, tuple[str, int]] = {}
        self._faulty: dict[tuple[str, str], set[str]] = {}
        self._begun: set[str] = set()
        self._declare_frames(registry)
        self._declare_cameras(registry)
        self._declare_verdicts(registry)
        self._declare_engine(registry)
        self._declare_models(registry)
        self._declare_kafka(registry)
        self._show_zeros()

    def observe_frame(self, frame: Frame) -> None:
        """Count one frame fetched, its bytes, and its camera's clock where that was not believed."""
        station = self._stations.label(frame.station)
        self._begin(station)
        self.frames.labels(station).inc()
        self.frame_bytes.labels(station).inc(len(frame.payload))
        if frame.skewed:
            self.clock_skew.labels(station).inc()

    def observe_verdict(self, verdict: Verdict) -> None:
        """Count one verdict the broker has taken, with its cause, its reasons and its latencies."""
        station = self._stations.label(verdict.frame.station)
        self.verdicts.labels(station, verdict.decision).inc()
        self.last_verdict.labels(station).set(verdict.decided_at_s)
        if station not in self._homes:
            for kind in CAMERA_FAULTS:
                self.camera_fault.labels(station, kind)
        self._homes[station] = (verdict.frame.position.topic, verdict.frame.position.partition)
        if verdict.cause is not None:
            self.none.labels(verdict.cause).inc()
            self.station_none.labels(station, verdict.cause).inc()
        for reason in verdict.reasons:
            self.reasons.labels(reason).inc()
        for stage, took_ms in _stages(verdict.times):
            if took_ms is not None:
                self.stage_seconds.labels(stage).observe(took_ms / 1000)
        if verdict.times.total_ms is not None:
            self.verdict_seconds.labels(station).observe(verdict.times.total_ms / 1000)

    def observe_batch(self, size: int, capacity: int, inference_s: float) -> None:
        """Count one batch: its frames, how full it was, and the seconds the network took for all of it."""
        self.batch_frames.observe(size)
        self.batch_fill.observe(size / capacity if capacity > 0 else 0.0)
        self.batch_inference_seconds.observe(inference_s)

    def count_decode_error(self, cause: str) -> None:
        """Count one frame that could not become the network's input: `undecodable` or `oversize`."""
        self.decode_errors.labels(cause).inc()

    def count_dead_letter(self, cause: str) -> None:
        """Count one dead letter that the broker has taken, by the cause of its `none`."""
        self.dead_letters.labels(cause).inc()

    def count_dead_letter_error(self, reason: str) -> None:
        """Count one dead letter that was lost: `full` (too many under way), `send` or `delivery`."""
        self.dead_letter_errors.labels(reason).inc()

    def count_commit(self) -> None:
        """Count one commit of positions that the broker has taken."""
        self.commits.inc()

    def count_commit_error(self) -> None:
        """Count one commit of positions that failed."""
        self.commit_errors.inc()

    def count_transaction_error(self) -> None:
        """Count one transaction that was given up; its frames are judged again."""
        self.transaction_errors.inc()

    def count_engine_error(self) -> None:
        """Count one batch that the engine failed on; its frames are tried one by one."""
        self.engine_errors.inc()

    def count_camera_trouble(self, station: str, trouble: Trouble | FaultKind) -> None:
        """Count one frame that shows that something is wrong with its camera."""
        self.camera_trouble.labels(self._stations.label(station), trouble).inc()

    def set_camera_fault(self, station: str, kind: FaultKind, *, faulty: bool) -> None:
        """Say that a station's stream is, or is no longer, frozen or shifted."""
        label = self._stations.label(station)
        stations = self._faulty.setdefault((label, kind), set())
        (stations.add if faulty else stations.discard)(station)
        self.camera_fault.labels(label, kind).set(len(stations))

    def set_drift(self, station: str, ratio: float) -> None:
        """How far a station is from its training set; of those that share a label, nothing: they have no one value."""
        label = self._stations.label(station)
        if label != OTHER_STATIONS:
            self.drift.labels(label).set(ratio)

    def set_deadline(self, deadline_s: float | None) -> None:
        """How old a frame may be when it is judged, in seconds; None: any age."""
        self.deadline.set(math.inf if deadline_s is None else deadline_s)

    def set_oldest(self, age_s: float) -> None:
        """Age of the oldest frame in hand that is not published."""
        self.lag_seconds.set(age_s)

    def count_turn(self) -> None:
        """Count one round of the loop, while the thread that fetches comes round too."""
        self.loop_turns.inc()

    def set_ready(self, *, ready: bool) -> None:
        """Say whether frames would be answered: a member of the group, and a broker that answers."""
        self.ready.set(ready)

    def count_rebalance(self) -> None:
        """Count one change of the partitions this consumer owns."""
        self.rebalances.inc()

    def set_in_flight(self, frames: int, held_bytes: int = 0, batches: int = 0) -> None:
        """Frames fetched and not yet answered, what they hold, and the batches with the engine."""
        self.in_flight.set(frames)
        self.held_bytes.set(held_bytes)
        self.batches_in_flight.set(batches)

    def set_queue_depth(self, frames: int) -> None:
        """Decoded frames that wait for a batch."""
        self.queue_depth.set(frames)

    def set_assigned(self, partitions: Collection[tuple[str, int]]) -> None:
        """Say which (topic, partition) are ours; what was told of all others leaves, for it is not ours to tell.

        That is their lag, and what their stations were last seen to be: their new owner tells that.
        """
        now = set(partitions)
        for topic, partition in self._assigned - now:
            self.lag.remove(topic, str(partition))
        for topic, partition in now - self._assigned:
            self.lag.labels(topic, str(partition))
        self._assigned = now
        self.assigned_partitions.set(len(now))
        for station in [station for station, home in self._homes.items() if home not in now]:
            del self._homes[station]
            for gauge in (self.last_verdict, self.drift):
                with suppress(KeyError):
                    gauge.remove(station)

    def set_lag(self, topic: str, partition: int, frames: int) -> None:
        """Frames of one partition that wait at the broker; of a partition that is not ours, nothing."""
        if (topic, partition) in self._assigned:
            self.lag.labels(topic, str(partition)).set(frames)

    def count_reload(self, outcome: str) -> None:
        """Count one attempt to load what has changed: `loaded`, `unchanged` or `refused`."""
        self.reloads.labels(outcome).inc()
        self.last_reload_successful.set(outcome != "refused")

    def count_shadow(self, station: str, decision: str, shadow_decision: str) -> None:
        """Count one frame that the candidate was asked about too."""
        self.shadow_decisions.labels(self._stations.label(station), decision, shadow_decision).inc()

    def count_shadow_left_out(self, frames: int) -> None:
        """Count frames that the candidate was not asked about."""
        self.shadow_left_out.inc(frames)

    def set_engine(self, *engines: EngineRef) -> None:
        """Say what computes the numbers; the engines before leave."""
        self._engines = _show_only(self.engine_info, self._engines, {astuple(engine) for engine in engines})

    def set_model(self, *models: ModelRef) -> None:
        """Say which models judge; the models before leave."""
        self._models = _show_only(self.model_info, self._models, {astuple(model) for model in models})

    def _declare_frames(self, registry: CollectorRegistry) -> None:
        """What comes in."""
        self.frames = Counter(
            "framegate_frames", "Frames fetched from the topic, by station.", ["station"], registry=registry
        )
        self.frame_bytes = Counter(
            "framegate_frame_bytes", "Bytes of encoded images fetched, by station.", ["station"], registry=registry
        )
        self.clock_skew = Counter(
            "framegate_clock_skew",
            "Frames whose capture time was not believed: in the future, or far from the record's timestamp. "
            "Set that camera's clock.",
            ["station"],
            registry=registry,
        )
        self.decode_errors = Counter(
            "framegate_decode_errors",
            "Frames that could not become an input: undecodable (empty, broken or no image) or oversize (over a pixel "
            "or byte limit).",
            ["cause"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "framegate_in_flight_frames", "Frames fetched and not yet answered and committed.", registry=registry
        )
        self.held_bytes = Gauge(
            "framegate_held_bytes", "Bytes of encoded and decoded images among them.", registry=registry
        )
        self.queue_depth = Gauge(
            "framegate_queue_depth_frames", "Decoded frames that wait for a batch.", registry=registry
        )

    def _declare_cameras(self, registry: CollectorRegistry) -> None:
        """Whether the cameras see what they were trained to see."""
        self.camera_trouble = Counter(
            "framegate_camera_trouble_frames",
            "Frames that show that something is wrong with their camera, by station: dark, bright, blank or blurred "
            "(review), frozen or shifted (none, camera_fault).",
            ["station", "trouble"],
            registry=registry,
        )
        self.camera_fault = Gauge(
            "framegate_camera_fault",
            "1 while the station's stream is frozen (the same picture again and again) or shifted (the scene is not "
            "where it was in training). See to that camera.",
            ["station", "fault"],
            registry=registry,
        )
        self.drift = Gauge(
            "framegate_drift_ratio",
            "Mean distance of the station's last few hundred images from the training set, over the most that "
            "held-back training images had. Above 1 the line has changed: train again.",
            ["station"],
            registry=registry,
        )

    def _declare_verdicts(self, registry: CollectorRegistry) -> None:
        """What goes out."""
        self.verdicts = Counter(
            "framegate_verdicts",
            "Verdicts published, by station and decision. review and none count as not passed.",
            ["station", "decision"],
            registry=registry,
        )
        self.none = Counter(
            "framegate_none",
            "Frames that could not be judged, by cause. Each is not passed.",
            ["cause"],
            registry=registry,
        )
        self.station_none = Counter(
            "framegate_station_none",
            "The same by station and cause.",
            ["station", "cause"],
            registry=registry,
        )
        self.reasons = Counter(
            "framegate_reasons",
            "Why a verdict was not a plain pass or fail: band (too close to call), out_of_distribution (unlike the "
            "training images), camera (dark, bright, blank or blurred).",
            ["reason"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "framegate_stage_seconds",
            "Where a frame's time went: transport (capture until fetched), fetch_wait, decode, batch_wait, inference, "
            "classify.",
            ["stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.verdict_seconds = Histogram(
            "framegate_verdict_seconds",
            "Capture until the decision: what the reject gate waits for, by station.",
            ["station"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.deadline = Gauge(
            "framegate_deadline_seconds",
            "How old a frame may be when it is judged (--deadline-s); an older one is none, late. +Inf: any age.",
            registry=registry,
        )
        self.set_deadline(None)
        self.last_verdict = Gauge(
            "framegate_last_verdict_timestamp_seconds",
            "When the station's last verdict was decided, epoch seconds. Where it stands still, so does a camera or a "
            "partition.",
            ["station"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "framegate_dead_letters", "Records on the dead letter topic, by cause.", ["cause"], registry=registry
        )
        self.dead_letter_errors = Counter(
            "framegate_dead_letter_errors",
            "Dead letters lost: full (too many under way), send or delivery. The verdict none is published all the "
            "same.",
            ["reason"],
            registry=registry,
        )

    def _declare_engine(self, registry: CollectorRegistry) -> None:
        """What judges."""
        self.batch_frames = Histogram(
            "framegate_batch_frames", "Frames in a batch.", buckets=BATCH_SIZE_BUCKETS, registry=registry
        )
        self.batch_fill = Histogram(
            "framegate_batch_fill_ratio",
            "Share of the batch's places that were taken. Always 1 with growing lag: the engine is the bottleneck.",
            buckets=FILL_BUCKETS,
            registry=registry,
        )
        self.batch_inference_seconds = Histogram(
            "framegate_batch_inference_seconds",
            "Seconds from giving a batch to the engine until it was done. Where two are there at a time they overlap.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.batches_in_flight = Gauge(
            "framegate_batches_in_flight", "Batches with the engine; 2 under load.", registry=registry
        )
        self.engine_errors = Counter(
            "framegate_engine_errors",
            "Batches that the engine failed on. Their frames were tried one by one; the log says why.",
            registry=registry,
        )
        self.engine_info = Gauge(
            "framegate_engine_info",
            "1, for each engine that computes the numbers, with its name in the labels.",
            ["backend", "device", "precision"],
            registry=registry,
        )

    def _declare_models(self, registry: CollectorRegistry) -> None:
        """Which models judge, and which might."""
        self.model_info = Gauge(
            "framegate_model_info",
            "1, for each model that judges, with its name in the labels.",
            ["name", "version", "digest", "head"],
            registry=registry,
        )
        self.reloads = Counter(
            "framegate_reloads",
            "Attempts to load a bundle or a routing file that had changed: loaded, unchanged (the same in another "
            "place) or refused. After refused the models of before go on; the log says why.",
            ["outcome"],
            registry=registry,
        )
        self.last_reload_successful = Gauge(
            "framegate_last_reload_successful",
            "0 while what lies in the place of a bundle or of the routing file was refused and the models of before go "
            "on, else 1.",
            registry=registry,
        )
        self.last_reload_successful.set(1)
        self.shadow_decisions = Counter(
            "framegate_shadow_decisions",
            "Frames that the shadow bundle was asked about too, by station, the decision published and the shadow's "
            "own. Where the two differ, the shadow would have flipped the verdict.",
            ["station", "decision", "shadow_decision"],
            registry=registry,
        )
        self.shadow_left_out = Counter(
            "framegate_shadow_left_out_frames",
            "Frames that the shadow bundle was not asked about, because it could not keep up or failed.",
            registry=registry,
        )

    def _declare_kafka(self, registry: CollectorRegistry) -> None:
        """How we stand with the broker."""
        self.ready = Gauge(
            "framegate_ready",
            "1 while it has a place in its group and the broker answers, as `/ready` says, else 0.",
            registry=registry,
        )
        self.loop_turns = Counter(
            "framegate_loop_turns",
            "Rounds of the loop, two a second or more also where nothing is to do. Stands still: it hangs, and `/live` "
            "will fail.",
            registry=registry,
        )
        self.commits = Counter(
            "framegate_commits", "Commits of answered positions that the broker took.", registry=registry
        )
        self.commit_errors = Counter(
            "framegate_commit_errors",
            "Commits that failed. The frames since the last good one are judged again after a restart.",
            registry=registry,
        )
        self.transaction_errors = Counter(
            "framegate_transaction_errors",
            "Transactions that were given up. Their frames are judged again at once.",
            registry=registry,
        )
        self.rebalances = Counter(
            "framegate_rebalances", "Changes of the partitions this consumer owns.", registry=registry
        )
        self.assigned_partitions = Gauge(
            "framegate_assigned_partitions", "Partitions this consumer owns.", registry=registry
        )
        self.lag_seconds = Gauge(
            "framegate_lag_seconds",
            "Age, since its capture, of the oldest frame in hand that has no verdict yet; 0 where none is in hand.",
            registry=registry,
        )
        self.lag = Gauge(
            "framegate_lag_frames",
            "Frames that wait at the broker, by partition. Growing: the consumer is slower than the cameras.",
            ["topic", "partition"],
            registry=registry,
        )

    def _begin(self, station: str) -> None:
        """Begin a station's series at 0 where alerts look at how they rise: what is born at 40 has not risen."""
        if station in self._begun:
            return
        self._begun.add(station)
        self.clock_skew.labels(station)
        for decision in get_args(Decision):
            self.verdicts.labels(station, decision)
        for cause in get_args(Cause):
            self.station_none.labels(station, cause)

    def _show_zeros(self) -> None:
        """Begin the series whose labels are known at 0: an alert on a rate misses a series that is born at 1."""
        for cause in get_args(Cause):
            self.none.labels(cause)
            self.dead_letters.labels(cause)
        for cause in DECODE_CAUSES:
            self.decode_errors.labels(cause)
        for reason in get_args(Reason):
            self.reasons.labels(reason)
        for failure in DEAD_LETTER_FAILURES:
            self.dead_letter_errors.labels(failure)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for outcome in RELOAD_OUTCOMES:
            self.reloads.labels(outcome)


class SupervisorMetrics:
    """What the supervisor of several workers tells beside their own metrics, which it shows with a `worker` label."""

    def __init__(self, registry: CollectorRegistry, workers: int) -> None:
        """Declare everything in `registry`, and begin each worker's series at 0."""
        self.workers = Gauge("framegate_workers", "Workers that this run is to have.", registry=registry)
        self.restarts = Counter(
            "framegate_worker_restarts",
            "Workers that died and were started again. Their partitions had other owners meanwhile.",
            ["worker"],
            registry=registry,
        )
        self.workers.set(workers)
        for number in range(workers):
            self.restarts.labels(str(number))

    def count_engine(self) -> None:
        """There is a shared engine too: begin its series at 0."""
        self.restarts.labels("engine")

    def count_restart(self, worker: int | str) -> None:
        """Count one worker that is started again."""
        self.restarts.labels(str(worker)).inc()


class EngineMetrics:
    """What an engine that several workers share tells of its own batches, in which theirs travel together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare everything in `registry`."""
        self.frames = Histogram(
            "framegate_engine_batch_frames",
            "Frames in a batch of the shared engine.",
            buckets=BATCH_SIZE_BUCKETS,
            registry=registry,
        )
        self.fill = Histogram(
            "framegate_engine_batch_fill_ratio",
            "Share of the largest batch's places that were taken.",
            buckets=FILL_BUCKETS,
            registry=registry,
        )
        self.requests = Histogram(
            "framegate_engine_batch_requests",
            "Workers' batches that travelled in one of the shared engine's.",
            buckets=BATCH_SIZE_BUCKETS,
            registry=registry,
        )
        self.seconds = Histogram(
            "framegate_engine_batch_seconds",
            "Seconds from handing a batch to the device until its numbers were there.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.failures = Counter(
            "framegate_engine_batch_failures",
            "Batches of the shared engine that failed; the requests in them were tried alone.",
            registry=registry,
        )
        self.featurizers = Gauge(
            "framegate_engine_featurizers",
            "Featurizers that workers have open in the shared engine.",
            registry=registry,
        )

    def observe(self, computed: Computed) -> None:
        """Count one batch."""
        if computed.failed:
            self.failures.inc()
            return
        self.frames.observe(computed.images)
        self.fill.observe(computed.images / computed.largest)
        self.requests.observe(computed.requests)
        self.seconds.observe(computed.seconds)


def metric_docs() -> list[MetricDoc]:
    """Every metric as Prometheus shows it, sorted by name: what the README's table is checked against."""
    return _docs(Metrics(CollectorRegistry()))


def supervisor_metric_docs() -> list[MetricDoc]:
    """The same of what is there only where there are several workers."""
    return _docs(SupervisorMetrics(CollectorRegistry(), 1))


def engine_metric_docs() -> list[MetricDoc]:
    """The same of what is there only where workers share an engine, with `worker="engine"`."""
    return _docs(EngineMetrics(CollectorRegistry()))


def _docs(container: Metrics | SupervisorMetrics | EngineMetrics) -> list[MetricDoc]:
    """What a container declares."""
    declared: list[MetricWrapperBase] = [
        value for value in vars(container).values() if isinstance(value, (Counter, Gauge, Histogram))
    ]
    docs = []
    for metric in declared:
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        docs.append(MetricDoc(name, family.type, tuple(metric._labelnames), family.documentation))  # noqa: SLF001 - no public way
    return sorted(docs, key=lambda doc: doc.name)


def _show_only(gauge: Gauge, shown: set[tuple[str, ...]], wanted: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Have a 1 for each of the wanted labels and nothing else; what stays is at no moment not there."""
    for labels in wanted:
        gauge.labels(*labels).set(1)
    for labels in shown - wanted:
        gauge.remove(*labels)
    return wanted


def _stages(times: StageTimes) -> tuple[tuple[str, float | None], ...]:
    """(stage, milliseconds) in the order a frame walks through them."""
    return (
        ("transport", times.transport_ms),
        ("fetch_wait", times.fetch_wait_ms),
        ("decode", times.decode_ms),
        ("batch_wait", times.batch_wait_ms),
        ("inference", times.inference_ms),
        ("classify", times.classify_ms),
    )
