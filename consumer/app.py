"""The composition root of `framegate run`: the only file that names concrete classes."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from consumer.broker import is_embedded
from consumer.clock import SystemClock
from consumer.config import EMBEDDED_FETCH_WAIT_S, MIB
from consumer.dead_letter import DeadLetterBox
from consumer.engine_judge import EngineJudge
from consumer.health import Health, HttpServer
from consumer.kafka_client import Connection
from consumer.kafka_io import FETCH_WAIT_S, KafkaDeadLetterTopic, KafkaSink, KafkaSource, checksums_are_fast
from consumer.lineup import Loader
from consumer.metrics import Metrics
from consumer.pipeline import Pipeline, Ports
from consumer.reload import Reloader
from consumer.shadow import Shadow
from consumer.topics import ClusterIdentity, check_topics
from consumer.transactions import TransactionalSink
from consumer.wire import verdict_id
from consumer.workers import ENGINE, how_many, run_workers
from engine.arenas import few_arenas
from engine.bundle_cache import BundleCache
from engine.choice import INT8_BACKENDS, open_for
from engine.shared_client import SharedBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

    from consumer.camera_health import Change, FaultKind
    from consumer.config import Settings
    from consumer.events import DeadLetter, Frame, Verdict
    from consumer.ports import Judge, Route, TenureChange
    from consumer.reload import Outcome
    from consumer.tenure import Partition
    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.prediction import Trouble

log = logging.getLogger(__name__)

FETCH_SILENT_S = 30.0
"""A thread that fetches and is silent for longer than any bounded call of it is stuck, and the process with it."""

LAST_LETTERS_S = 2.0


def own_registry() -> CollectorRegistry:
    """A registry that tells of this process, to begin with."""
    registry = CollectorRegistry()
    for collect in (ProcessCollector, PlatformCollector, GCCollector):
        collect(registry=registry)
    return registry


@dataclass(frozen=True, slots=True)
class Instruments:
    """What can be seen of a running consumer from outside."""

    registry: CollectorRegistry = field(default_factory=own_registry)
    health: Health = field(default_factory=Health)


def run_consumer(settings: Settings, instruments: Instruments | None = None) -> None:
    """Judge frames until SIGTERM, SIGINT or an idle exit. To be called on the main thread.

    The first signal answers what is in hand, commits and leaves the group; the second gives up at once.

    Args:
        settings: say also whether this process does the work, or several do that it starts.
        instruments: new ones, where the caller wants to see them too; workers have their own.

    Raises:
        BundleError: the bundle is not there or not whole.
        BrokerError, TopicError: the cluster cannot be used; nothing was committed that was not answered.
        WorkError: frames were left unanswered; they are judged again.
    """
    few_arenas()
    loader = loader_of(settings)
    workers = how_many(settings)
    if workers > 1 or settings.engine_process == "shared":
        loader.check()
        run_workers(settings, workers)
        return
    with EngineJudge(loader.load()) as judge:
        serve(settings, judge, beside=partial(_attend, settings, loader, judge), instruments=instruments)


def loader_of(settings: Settings) -> Loader:
    """What loads the bundles that these settings name, onto the backend that they name."""
    return Loader(
        opener_of(settings),
        bundle=settings.bundle,
        routing=settings.routing,
        shadow=settings.shadow,
        largest=settings.batch_size,
        must_agree=must_agree(settings.backend),
        cache=None if settings.bundle_cache is None else BundleCache(settings.bundle_cache),
    )


def opener_of(settings: Settings) -> Callable[[Bundle], Backend]:
    """What opens a bundle: an engine of our own, or the one that the workers share."""
    address = settings.engine_address
    if address is None:
        return partial(open_for, name=settings.backend, tensorrt=settings.tensorrt)

    def ask(bundle: Bundle) -> Backend:
        ahead = int(settings.max_in_flight_mib * MIB) // (bundle.image.width_px * bundle.image.height_px * 3)
        largest = settings.batch_size or settings.most_batch()
        return SharedBackend(address, bundle, largest=largest, pool=min(settings.max_in_flight, ahead))

    return ask


def must_agree(backend: str) -> bool:
    """Whether bundles share an engine only where it answers as each one's reference does.

    A backend asked for by name is taken as it is, but for int8, which is calibrated on one bundle's images.
    """
    return backend in {"auto", *INT8_BACKENDS}


@contextmanager
def _attend(
    settings: Settings, loader: Loader, judge: EngineJudge, metrics: Metrics, pipeline: Pipeline
) -> Iterator[None]:
    """Reload what is replaced, and compare with the shadow, while the block runs."""

    def told(outcome: Outcome) -> None:
        metrics.count_reload(outcome)
        _show_routes(metrics, judge)
        if judge.largest_batch is not None:
            pipeline.use(settings.policy(judge.largest_batch))

    reloader = Reloader(loader, judge, largest=settings.batch_size, most=settings.most_batch(), told=told)
    with ExitStack() as stack:
        if settings.shadow is not None:
            judge.shadow = Shadow(metrics.count_shadow, metrics.count_shadow_left_out)
            stack.callback(judge.shadow.close)
        stack.enter_context(reloader.watching(settings.watch_s))
        stack.enter_context(on_signals((signal.SIGHUP,), reloader.ask))
        yield


def _show_routes(metrics: Metrics, judge: Judge) -> None:
    """Say which models and engines judge now."""
    routes = judge.routes()
    metrics.set_engine(*(route.engine for route in routes))
    metrics.set_model(*(route.model for route in routes))


def serve(
    settings: Settings,
    judge: Judge,
    *,
    on_ready: Callable[[Pipeline, str | None], None] | None = None,
    beside: Callable[[Metrics, Pipeline], AbstractContextManager[None]] | None = None,
    instruments: Instruments | None = None,
) -> None:
    """`run_consumer` with an engine that is open already.

    Args:
        settings: its bundle and backend are not looked at.
        judge: the engine.
        on_ready: called with the pipeline and the HTTP address, if any, before frames are fetched.
        beside: entered once the engine is warm and left when the pipeline is done: what runs beside it, with metrics
            and the pipeline.
        instruments: new ones, where the caller wants to see them too.

    Raises:
        BrokerError, TopicError, WorkError: as `run_consumer`.
    """
    if not checksums_are_fast():
        log.warning("the package crc32c is missing: frames are checked in pure Python, about twenty times slower")
    clock = SystemClock()
    cluster = check_topics(settings.bootstrap_servers, settings.topics, client=settings.client)
    embedded = is_embedded(cluster.cluster_id)
    settings.delivers(embedded=embedded)  # refuse now what could not be kept later
    if embedded:
        log.warning("this is the embedded broker: memory only, for laptops and tests; production is Apache Kafka")
    instruments = instruments or Instruments()
    registry, health = instruments.registry, instruments.health
    metrics = Metrics(registry)
    metrics.set_deadline(settings.deadline_s)
    _show_routes(metrics, judge)
    with ExitStack() as stack:
        address = None
        if settings.http_port is not None:
            http = HttpServer(settings.http_host, settings.http_port, registry=registry, health=health)
            address = stack.enter_context(http).url
            log.info("metrics and health on %s", address)
        began_s = time.perf_counter()
        largest = judge.warm(settings.batch_size, settings.most_batch())
        log.info("engine warm after %.2f s, for batches of up to %d", time.perf_counter() - began_s, largest)
        ports = _kafka_ports(
            settings, judge, clock, metrics, health, cluster.identity(settings.frames_topic), embedded, stack
        )
        pipeline = Pipeline(ports, settings.pace(largest))
        if beside is not None:
            stack.enter_context(beside(metrics, pipeline))
        if on_ready is not None:
            on_ready(pipeline, address)
        log.info("judging %r as group %r with %s", settings.frames_topic, settings.group, _told(judge.routes()))
        with on_signals((signal.SIGTERM, signal.SIGINT), pipeline.stop):
            pipeline.run()
        log.info("stopped: all that was fetched is answered and committed")


def _kafka_ports(
    settings: Settings,
    judge: Judge,
    clock: SystemClock,
    metrics: Metrics,
    health: Health,
    identity: ClusterIdentity,
    embedded: bool,
    stack: ExitStack,
) -> Ports:
    """Open the cluster's side of the ports; what was opened is closed with `stack`, also where the rest fails."""
    connection = Connection(
        settings.bootstrap_servers, client_id=f"framegate-{settings.group}", security=settings.client
    )
    letters = KafkaDeadLetterTopic(connection, topic=settings.dead_topic, clock=clock)
    stack.callback(letters.close, LAST_LETTERS_S)
    watcher = MetricsWatcher(metrics, health)
    source = KafkaSource(
        connection,
        group=settings.group,
        topic=settings.frames_topic,
        clock=clock,
        session_timeout_s=settings.session_s(embedded=embedded),
        fetch_wait_s=EMBEDDED_FETCH_WAIT_S if embedded else FETCH_WAIT_S,
        embedded=embedded,
    )
    stack.callback(source.close, 1.0)
    sink: KafkaSink | TransactionalSink
    if settings.delivers(embedded=embedded) == "exactly-once":
        transactional_id = settings.transactional_id()
        log.info("delivering exactly once, as transactional id %s", transactional_id)
        sink = TransactionalSink(
            connection,
            group=settings.group,
            topic=settings.verdicts_topic,
            transactional_id=transactional_id,
            membership=source.membership,
            clock=clock,
            broken=lambda _: metrics.count_transaction_error(),
        )
    else:
        sink = KafkaSink(connection, group=settings.group, topic=settings.verdicts_topic)
        log.info("delivering at least once")
    stack.callback(sink.close, 0.0)
    return Ports(
        source=source,
        sink=sink,
        judge=judge,
        clock=clock,
        watcher=watcher,
        dead_letters=_Letters(DeadLetterBox(letters.send, group=settings.group, metrics=metrics)),
        verdict_id=partial(verdict_id, identity.cluster_id, identity.topic_id),
    )


class MetricsWatcher:
    """What the pipeline tells, as metrics and health. See `Watcher`."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        """Begin not ready."""
        self._metrics = metrics
        self._health = health
        self._fetch_s = time.monotonic()
        self._held: set[Partition] = set()

    def beat(self, part: Literal["loop", "fetch"]) -> None:
        """The process lives while both its threads do."""
        now_s = time.monotonic()
        if part == "fetch":
            self._fetch_s = now_s
        elif now_s - self._fetch_s < FETCH_SILENT_S:
            self._health.beat(now_s)
            self._metrics.count_turn()

    def ready(self, *, ready: bool) -> None:
        """See `Watcher`."""
        self._metrics.set_ready(ready=ready)
        self._health.set_ready(ready, "" if ready else "not a member of the group, or the broker does not answer")

    def fetched(self, frames: Sequence[Frame]) -> None:
        """See `Watcher`."""
        for frame in frames:
            self._metrics.observe_frame(frame)

    def scored(self, size: int, largest: int, inference_ms: float, *, failed: bool) -> None:
        """See `Watcher`."""
        if failed:
            self._metrics.count_engine_error()
        self._metrics.observe_batch(size, largest, inference_ms / 1000)

    def answered(self, verdict: Verdict) -> None:
        """See `Watcher`."""
        self._metrics.observe_verdict(verdict)
        if verdict.cause in {"undecodable", "oversize"}:
            self._metrics.count_decode_error(verdict.cause)

    def held(self, frames: int, held_bytes: int, waiting: int, batches: int) -> None:
        """See `Watcher`."""
        self._metrics.set_in_flight(frames, held_bytes, batches)
        self._metrics.set_queue_depth(waiting)

    def oldest(self, age_s: float) -> None:
        """See `Watcher`."""
        self._metrics.set_oldest(age_s)

    def camera_trouble(self, station: str, trouble: Trouble | FaultKind) -> None:
        """See `Watcher`."""
        self._metrics.count_camera_trouble(station, trouble)

    def camera_changed(self, change: Change) -> None:
        """See `Watcher`."""
        self._metrics.set_camera_fault(change.station, change.kind, faulty=change.faulty)

    def drift(self, station: str, ratio: float) -> None:
        """See `Watcher`."""
        self._metrics.set_drift(station, ratio)

    def lag(self, partition: Partition, frames: int) -> None:
        """See `Watcher`."""
        self._metrics.set_lag(partition.topic, partition.number, frames)

    def committed(self, *, done: bool) -> None:
        """See `Watcher`."""
        if done:
            self._metrics.count_commit()
        else:
            self._metrics.count_commit_error()

    def rebalanced(self, change: TenureChange) -> None:
        """See `Watcher`."""
        if change.kind == "assigned":
            self._held.update(change.partitions)
        else:
            self._held.difference_update(change.partitions)
        self._metrics.count_rebalance()
        self._metrics.set_assigned(self._held)


class _Letters:
    """A box as the pipeline sees it: it does not care whether a letter was taken."""

    def __init__(self, box: DeadLetterBox) -> None:
        self._box = box

    def put(self, letter: DeadLetter) -> None:
        """See `DeadLetters`."""
        self._box.put(letter)


def _told(routes: Sequence[Route]) -> str:
    """Who judges, in words."""
    told = {
        f"model {route.model.name} ({route.model.digest}), {route.engine.backend} on {route.engine.device}": None
        for route in routes
    }
    return "; ".join(told) or "no model"


@contextmanager
def on_signals(numbers: Sequence[signal.Signals], call: Callable[[], None]) -> Iterator[None]:
    """Call on these signals inside the block; off the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        call()

    former = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class JsonLines(logging.Formatter):
    """One JSON object per event."""

    def __init__(self, worker: int | str | None = None) -> None:
        """Name the worker in each, where there are several."""
        super().__init__()
        self._always: dict[str, Any] = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """`at`, `level`, `worker` where there are several, `where`, `what`, and `trace` where there is one."""
        line = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            **self._always,
            "where": record.name,
            "what": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(log_format: Literal["auto", "text", "json"], *, worker: int | str | None = None) -> None:
    """Events to standard error: as text where that is a terminal, else as JSON, unless told.

    The Kafka client's own are left out: it repeats itself while a broker is away.
    """
    handler = logging.StreamHandler(sys.stderr)
    who = "" if worker is None else f"{worker} " if worker == ENGINE else f"worker {worker} "
    plain = logging.Formatter(f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s")
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler.setFormatter(plain if as_text else JsonLines(worker))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
