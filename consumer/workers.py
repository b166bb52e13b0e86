"""`framegate run --workers N`: whole consumers side by side, since one interpreter lock bounds what one can do.

Each has its own consumer, producer and tenure. On a CPU it has its own engine too, which takes its share of the cores
without being bound to any: on a machine that others use too, two bound workers answered half as much as two unbound
ones. On a GPU all share one engine in a process of its own: only pixels and numbers cross that border. The group's
protocol shares the partitions among them as it does among hosts: a worker that dies loses them to the others until it
is back, and nothing is lost by that. An engine's process that dies is started again and computes what it had not
answered.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from consumer.broker import is_embedded
from consumer.health import Health, HttpServer
from consumer.metrics import SupervisorMetrics
from consumer.reports import WorkerMetrics
from consumer.supervision import Beside, Patience, Supervisor
from consumer.topics import check_topics
from consumer.worker import instructions
from engine.backend import CPU_BACKENDS
from engine.choice import tensorrt_is_installed
from engine.shared_wire import listen
from engine.specs import LARGEST_BATCH
from engine.streams import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer.config import Settings

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "consumer.worker")
ENGINE_COMMAND = (sys.executable, "-m", "consumer.engine_process")

ENGINE = "engine"
"""What the shared engine's process is called in metrics and log."""

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there where the driver of an NVIDIA GPU is, natively or below Windows."""

STOP_SPARE_S = 10.0
"""What a worker may take to stop beyond the time that it has to drain: it closes its producer and leaves the group."""


def how_many(settings: Settings) -> int:
    """Workers to run: as told, else what suits the machine, before it is known how many partitions there are to share.

    One per core that this process may use: on a GPU they share one engine, and what they do is decode.
    """
    return cores() if settings.workers is None else settings.workers


def shares_engine(settings: Settings) -> bool:
    """Whether the workers share one engine: as told, else where a GPU computes."""
    if settings.engine_process is not None:
        return settings.engine_process == "shared"
    if computes_on_cpu(settings.backend):
        return False
    # TensorRT may be installed where no GPU is: `auto` then takes the processor, and there each has its own.
    return settings.backend != "auto" or any(Path(device).exists() for device in _GPU_DEVICES)


def computes_on_cpu(backend: str) -> bool:
    """Whether this backend needs no GPU; `auto` takes one where TensorRT is installed."""
    if backend == "auto":
        return not tensorrt_is_installed()
    return backend in CPU_BACKENDS or backend.startswith("openvino")


def settings_of(settings: Settings, number: int, instance: str, engine_address: str | None = None) -> Settings:
    """One worker's own settings: it serves no metrics itself, and is an instance of its own, the same after a restart.

    Args:
        settings: of all.
        number: which worker.
        instance: of the whole run.
        engine_address: of the engine that all share; None: each has its own.
    """
    return replace(
        settings,
        workers=1,
        http_port=None,
        instance=f"{instance}-w{number}",
        engine_process="own",
        engine_address=engine_address,
    )


def run_workers(
    settings: Settings,
    number: int,
    *,
    on_ready: Callable[[Supervisor, str | None], None] | None = None,
    command: Sequence[str] = COMMAND,
    engine_command: Sequence[str] = ENGINE_COMMAND,
) -> None:
    """Run so many consumers until SIGTERM, SIGINT or an idle exit. To be called on the main thread.

    Args:
        settings: of each of them; the HTTP address is the supervisor's.
        number: of workers; fewer where nobody asked for so many and there are fewer partitions.
        on_ready: called with the supervisor and the HTTP address, if any, before they are started.
        command: what runs `consumer.worker.main`.
        engine_command: what runs `consumer.engine_process.main`, given the socket's descriptor as its last argument.

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
    with ExitStack() as stack:
        address, engine, beside = None, None, None
        if shares_engine(settings):
            engine, beside = _engine(settings, engine_command, stack)
            own.count_engine()
        supervisor = Supervisor(
            number,
            command,
            lambda worker: instructions(worker, number, settings_of(settings, worker, instance, engine)),
            metrics=metrics,
            health=health,
            patience=Patience(stop_s=settings.drain_s + STOP_SPARE_S),
            may_end=settings.idle_exit_s is not None,
            restarted=own.count_restart,
            beside=beside,
        )
        if settings.http_port is not None:
            http = HttpServer(settings.http_host, settings.http_port, registry=registry, health=health)
            address = stack.enter_context(http).url
            log.info("metrics and health of %d workers on %s", number, address)
        if on_ready is not None:
            on_ready(supervisor, address)
        supervisor.run()
    log.info("stopped: all workers have ended in order")


def _engine(settings: Settings, command: Sequence[str], stack: ExitStack) -> tuple[str, Beside]:
    """Where the shared engine listens, and its process. Its socket is ours, and outlives it.

    Raises:
        DeviceError: no such socket can be made here.
    """
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="framegate-engine-"))  # for our user alone
    address = f"{folder}/socket"
    listener = stack.enter_context(listen(address))
    # Of all that the settings hold it needs what computes, and no secrets.
    given = replace(settings, workers=1, http_port=None, client={}, engine_process="own")
    number = listener.fileno()
    log.info("all workers share one engine, in a process of its own")
    return address, Beside(
        "the engine's process", ENGINE, [*command, str(number)], instructions(ENGINE, 1, given), (number,)
    )
