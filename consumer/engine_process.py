"""The engine that all workers of a host share, in a process that `consumer.workers` starts: `python -m … FD`.

It is told what to do, reports and logs as a worker does; FD is the socket on which it listens. That socket is the
supervisor's and stays when this process dies, so workers that connect meanwhile wait for the next one. Kafka is not
here: pixels come in, numbers go out.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from consumer.health import STALE_AFTER_S
from consumer.worker import main as worker_main

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer.app import Instruments
    from consumer.config import Settings
    from consumer.health import Health
    from engine.backend import Backend
    from engine.bundle import Bundle

log = logging.getLogger(__name__)

STUCK_S = 30.0
"""A call to the backend that takes longer hangs: far above any batch. The supervisor then starts another process."""


def serve_engine(
    listener: socket.socket,
    settings: Settings,
    instruments: Instruments,
    *,
    open_backend: Callable[[Bundle], Backend] | None = None,
) -> None:
    """Compute for workers until SIGTERM. To be called on the main thread.

    Args:
        listener: where they connect.
        settings: say what computes.
        instruments: what is seen from outside.
        open_backend: opens a bundle; None: as the settings say.
    """
    # A process starts its imports after its cores are set.
    from consumer.app import must_agree, on_signals, opener_of  # noqa: PLC0415
    from consumer.metrics import EngineMetrics  # noqa: PLC0415
    from engine.shared_server import EngineServer  # noqa: PLC0415

    metrics, health = EngineMetrics(instruments.registry), instruments.health
    server = EngineServer(
        listener,
        open_backend or opener_of(settings),
        must_agree=must_agree(settings.backend),
        told=metrics.observe,
    )

    def beat() -> None:
        now_s = time.monotonic()
        metrics.featurizers.set(server.featurizers)
        tell_health(health, now_s, server.busy_for_s(now_s))

    with on_signals((signal.SIGTERM, signal.SIGINT), server.stop):
        health.set_ready(ready=True)
        log.info("computing for all workers, as %s", settings.backend)
        server.run(beat)
    log.info("stopped: no worker needs the engine any more")


def tell_health(health: Health, now_s: float, busy_s: float) -> None:
    """Say that the process lives, unless a call to its backend, which takes `busy_s` already, will never return."""
    if busy_s < STUCK_S:
        health.beat(now_s)
        return
    log.error("a batch takes %.0f s already: expected at most %g s; the process is given up", busy_s, STUCK_S)
    health.beat(now_s - 2 * STALE_AFTER_S)  # the supervisor is to kill it at once


def main(fd: int) -> int:
    """Serve on the listening socket with this descriptor. Returns the process's exit status."""
    with socket.socket(fileno=fd) as listener:
        return worker_main(partial(serve_engine, listener))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
