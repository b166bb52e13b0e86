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

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from consumer.broker import is_embedded
from consumer.clock import SystemClock
from consumer.dead_letter import DeadLetterBox
from consumer.events import EngineRef, ModelRef
from consumer.health import Health, HttpServer
from consumer.kafka_client import Connection
from consumer.kafka_io import KafkaDeadLetterTopic, KafkaSink, KafkaSource, checksums_are_fast
from consumer.metrics import Metrics
from consumer.pipeline import Pipeline, Ports
from consumer.topics import ClusterIdentity, check_topics
from consumer.transactions import TransactionalSink
from consumer.wire import verdict_id
from consumer.workers import how_many, run_workers
from engine.scorer import open_scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from numpy.typing import NDArray

    from consumer.config import Settings
    from consumer.events import DeadLetter, Frame, Verdict
    from consumer.ports import Judge, TenureChange
    from consumer.tenure import Partition
    from engine.prediction import OperatingPoint, ScoredBatch
    from engine.scorer import Scorer
    from engine.specs import ImageSpec

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
    workers = how_many(settings)
    if workers > 1:
        run_workers(settings, workers)
        return
    with open_scorer(settings.bundle, settings.backend, tensorrt=settings.tensorrt) as scorer:
        settings.require_batch(scorer.backend.profile.largest, scorer.backend.name)
        serve(settings, EngineJudge(scorer), instruments=instruments)


def serve(
    settings: Settings,
    judge: Judge,
    *,
    on_ready: Callable[[Pipeline, str | None], None] | None = None,
    instruments: Instruments | None = None,
) -> None:
    """`run_consumer` with an engine that is open already.

    Args:
        settings: its bundle and backend are not looked at.
        judge: the engine.
        on_ready: called with the pipeline and the HTTP address, if any, before frames are fetched.
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
    metrics.set_engine(judge.engine)
    metrics.set_model(judge.model)
    with ExitStack() as stack:
        address = None
        if settings.http_port is not None:
            http = HttpServer(settings.http_host, settings.http_port, registry=registry, health=health)
            address = stack.enter_context(http).url
            log.info("metrics and health on %s", address)
        warm(judge, settings.batch_size)
        ports = _kafka_ports(
            settings, judge, clock, metrics, health, cluster.identity(settings.frames_topic), embedded, stack
        )
        pipeline = Pipeline(ports, settings.pace())
        if on_ready is not None:
            on_ready(pipeline, address)
        log.info(
            "judging %r as group %r with model %s (%s), %s on %s",
            settings.frames_topic,
            settings.group,
            judge.model.name,
            judge.model.digest,
            judge.engine.backend,
            judge.engine.device,
        )
        with stopped_by_signals(pipeline):
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
            broken=lambda _: watcher.committed(done=False),
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


class EngineJudge:
    """A scorer as the pipeline sees it."""

    def __init__(self, scorer: Scorer) -> None:
        """Name the model and the engine once."""
        self._scorer = scorer
        bundle, backend = scorer.bundle, scorer.backend
        self.model = ModelRef(bundle.name, bundle.version, bundle.digest, bundle.head.name)
        self.engine = EngineRef(backend.name, backend.device, backend.precision)

    @property
    def image_spec(self) -> ImageSpec:
        """See `Judge`."""
        return self._scorer.image_spec

    @property
    def operating_point(self) -> OperatingPoint:
        """See `Judge`."""
        return self._scorer.operating_point

    def decode(self, payload: bytes, station: str) -> NDArray[np.uint8]:  # noqa: ARG002 - one spec for all stations yet
        """See `Judge`."""
        return self._scorer.decode(payload)

    def score(self, images: NDArray[np.uint8], stations: Sequence[str]) -> ScoredBatch:  # noqa: ARG002 - one head yet
        """See `Judge`."""
        return self._scorer.score(images)


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

    def ready(self, *, ready: bool) -> None:
        """See `Watcher`."""
        self._health.set_ready(ready, "" if ready else "not a member of the group, or the broker does not answer")

    def fetched(self, frames: Sequence[Frame]) -> None:
        """See `Watcher`."""
        for frame in frames:
            self._metrics.observe_frame(frame)

    def scored(self, size: int, largest: int, inference_ms: float, *, failed: bool) -> None:  # noqa: ARG002 - in the causes
        """See `Watcher`."""
        self._metrics.observe_batch(size, largest, inference_ms / 1000)

    def answered(self, verdict: Verdict) -> None:
        """See `Watcher`."""
        self._metrics.observe_verdict(verdict)
        if verdict.cause in {"undecodable", "oversize"}:
            self._metrics.count_decode_error(verdict.cause)

    def held(self, frames: int, held_bytes: int, waiting: int) -> None:  # noqa: ARG002 - bytes have no metric yet
        """See `Watcher`."""
        self._metrics.set_in_flight(frames)
        self._metrics.set_queue_depth(waiting)

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


def warm(judge: Judge, batch_size: int) -> None:
    """Run the engine once at every size of batch: the first of each size can take far longer than the second."""
    spec = judge.image_spec
    began_s = time.perf_counter()
    for size in range(1, batch_size + 1):
        judge.score(np.zeros((size, spec.height_px, spec.width_px, 3), np.uint8), [""] * size)
    log.info("engine warm after %.2f s", time.perf_counter() - began_s)


@contextmanager
def stopped_by_signals(pipeline: Pipeline) -> Iterator[None]:
    """Stop the pipeline on SIGTERM and SIGINT inside the block; off the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        pipeline.stop()

    former = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class JsonLines(logging.Formatter):
    """One JSON object per event."""

    def __init__(self, worker: int | None = None) -> None:
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


def log_to_stderr(log_format: Literal["text", "json"], *, worker: int | None = None) -> None:
    """Events to standard error. The Kafka client's own are left out: it repeats itself while a broker is away."""
    handler = logging.StreamHandler(sys.stderr)
    who = "" if worker is None else f"worker {worker} "
    plain = logging.Formatter(f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s")
    handler.setFormatter(JsonLines(worker) if log_format == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
