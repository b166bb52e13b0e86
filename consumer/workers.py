"""`framegate run --workers N`: whole consumers side by side, since one interpreter lock bounds what one can do.

Each has its own consumer, producer, tenure and engine, which takes its share of the cores without being bound to any:
on a machine that others use too, two bound workers answered half as much as two unbound ones. The group's protocol
shares the partitions among them as it does among hosts: a worker that dies loses them to the others until it is back,
and nothing is lost by that.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from consumer.broker import is_embedded
from consumer.health import Health, HttpServer
from consumer.metrics import SupervisorMetrics
from consumer.reports import WorkerMetrics
from consumer.supervision import Patience, Supervisor
from consumer.topics import check_topics
from consumer.worker import instructions
from engine.backend import CPU_BACKENDS
from engine.choice import tensorrt_is_installed
from engine.specs import LARGEST_BATCH
from engine.streams import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer.config import Settings

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "consumer.worker")

STOP_SPARE_S = 10.0
"""What a worker may take to stop beyond the time that it has to drain: it closes its producer and leaves the group."""


def how_many(settings: Settings) -> int:
    """Workers to run: as told, else what suits the machine, before it is known how many partitions there are to share.

    On a CPU one per core that this process may use. On a GPU one: each would bring an engine of its own.
    """
    if settings.workers is not None:
        return settings.workers
    return cores() if computes_on_cpu(settings.backend) else 1


def computes_on_cpu(backend: str) -> bool:
    """Whether this backend needs no GPU; `auto` takes one where TensorRT is installed."""
    if backend == "auto":
        return not tensorrt_is_installed()
    return backend in CPU_BACKENDS or backend.startswith("openvino")


def settings_of(settings: Settings, number: int, instance: str) -> Settings:
    """One worker's own settings: it serves no metrics itself, and is an instance of its own, the same after a restart.

    Args:
        settings: of all.
        number: which worker.
        instance: of the whole run.
    """
    return replace(settings, workers=1, http_port=None, instance=f"{instance}-w{number}")


def run_workers(
    settings: Settings,
    number: int,
    *,
    on_ready: Callable[[Supervisor, str | None], None] | None = None,
    command: Sequence[str] = COMMAND,
) -> None:
    """Run so many consumers until SIGTERM, SIGINT or an idle exit. To be called on the main thread.

    Args:
        settings: of each of them; the HTTP address is the supervisor's.
        number: of workers; fewer where nobody asked for so many and there are fewer partitions.
        on_ready: called with the supervisor and the HTTP address, if any, before they are started.
        command: what runs `consumer.worker.main`.

    Raises:
        SettingsError, BrokerError, TopicError: as a single consumer, before any worker is started.
        InputError, WorkError: a worker cannot start, dies again and again, or did not stop in order.
    """
    if computes_on_cpu(settings.backend):
        settings.require_batch(LARGEST_BATCH, settings.backend)
    cluster = check_topics(settings.bootstrap_servers, settings.topics, client=settings.client)
    settings.delivers(embedded=is_embedded(cluster.cluster_id))
    partitions = cluster.topics[settings.frames_topic].partitions
    if settings.workers is None:
        number = min(number, partitions)
    if number > partitions:
        log.warning(
            "%d workers for %d partitions of %r: %d of them will have nothing to do",
            number,
            partitions,
            settings.frames_topic,
            number - partitions,
        )
    instance = settings.own_instance()
    registry, health = CollectorRegistry(), Health()
    metrics, own = WorkerMetrics(), SupervisorMetrics(registry, number)
    registry.register(metrics)
    supervisor = Supervisor(
        number,
        command,
        lambda worker: instructions(worker, number, settings_of(settings, worker, instance)),
        metrics=metrics,
        health=health,
        patience=Patience(stop_s=settings.drain_s + STOP_SPARE_S),
        may_end=settings.idle_exit_s is not None,
        restarted=own.count_restart,
    )
    with ExitStack() as stack:
        address = None
        if settings.http_port is not None:
            http = HttpServer(settings.http_host, settings.http_port, registry=registry, health=health)
            address = stack.enter_context(http).url
            log.info("metrics and health of %d workers on %s", number, address)
        if on_ready is not None:
            on_ready(supervisor, address)
        supervisor.run()
    log.info("stopped: all workers have ended in order")
