"""Keeps a fixed number of processes running: starts them, starts those again that die, ends all with one signal.

Knows nothing of what they do. Each is given bytes on its standard input, which stays open as long as the supervisor
lives, and reports on its standard output (`consumer.reports`). They are children by `subprocess` and not forked: a fork
of a process with threads is unsafe, and a new one has its own engine, affinity and address space from the start. On
Linux the kernel kills them with their supervisor, however it ends.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from consumer.children import bound_command
from consumer.reports import Report
from engine.errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from consumer.health import Health
    from consumer.reports import WorkerMetrics

log = logging.getLogger(__name__)

TURN_S = 0.5
"""How often the supervisor looks, at least."""

KILL_S = 5.0
"""How long a killed process may take to be gone."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor bears with its workers.

    Attributes:
        rest_s: before a worker that died is started again; doubled for each death in a row, up to `longest_rest_s`.
        longest_rest_s: the longest such rest.
        steady_s: a worker that lived so long has not died in a row.
        deaths: so many in a row, of any worker, and the supervisor gives up.
        start_s: until a worker is ready for the first time; building an engine's plan can take minutes.
        silent_s: without a report; a worker that is stuck is killed and started again.
        stop_s: from the request to stop until what is left is killed.
    """

    rest_s: float = 0.5
    longest_rest_s: float = 8.0
    steady_s: float = 30.0
    deaths: int = 5
    start_s: float = 1800.0
    silent_s: float = 60.0
    stop_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Beside:
    """A process that all workers need: started before them, and ended after them.

    Attributes:
        name: in the log; `label`: in the metrics.
        command: what runs in it.
        given: what it gets on its standard input.
        fds: descriptors that it inherits.
    """

    name: str
    label: str
    command: Sequence[str]
    given: bytes
    fds: tuple[int, ...] = ()


class _Worker:
    """One place: its process, and what is known of it."""

    def __init__(
        self, name: str, label: int | str, command: Sequence[str], given: Callable[[], bytes], fds: tuple[int, ...] = ()
    ) -> None:
        self.name = name
        self.label = label
        self.command = [*command]
        self.given = given
        self.fds = fds
        self.stopping = False
        self.process: subprocess.Popen[bytes] | None = None
        self.began_s = 0.0
        self.heard_s = 0.0
        self.report: Report | None = None
        self.was_ready = False
        self.deaths = 0
        self.again_at_s: float | None = None

    @property
    def ready(self) -> tuple[bool, str]:
        """(is it ready, why not)."""
        if self.process is None:
            return False, "is not running"
        return self.report.ready if self.report is not None else (False, "starting")

    @property
    def over(self) -> bool:
        """Whether it has ended and is not to be started again."""
        return self.process is None and self.again_at_s is None


class Supervisor:
    """Runs workers until a signal, until all have ended well by themselves, or until one cannot be kept running.

    `run` once, on a thread that lives as long as the workers shall. What it starts ends with it.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        given: Callable[[int], bytes],
        *,
        metrics: WorkerMetrics,
        health: Health,
        patience: Patience | None = None,
        may_end: bool = False,
        restarted: Callable[[int | str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        beside: Beside | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            number: of workers; they are counted from 0.
            command: what runs in each.
            given: what the worker of this number gets on its standard input.
            metrics: shown what the workers report.
            health: told that the supervisor lives, and whether all workers are ready.
            patience: with its workers.
            may_end: a worker that ends with 0 by itself is done; else it is started again.
            restarted: told of each worker that is started again.
            clock: monotonic seconds.
            beside: what all workers need; while one of them runs, it is started again whenever it dies.
        """
        self._metrics = metrics
        self._health = health
        self._patience = patience or Patience()
        self._may_end = may_end
        self._restarted = restarted
        self._clock = clock
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._workers = [_Worker(f"worker {index}", index, command, partial(given, index)) for index in range(number)]
        self._beside = (
            None
            if beside is None
            else _Worker(beside.name, beside.label, beside.command, lambda: beside.given, beside.fds)
        )
        self._all = [*([] if self._beside is None else [self._beside]), *self._workers]
        self._stopping = False
        self._kill_at_s = float("inf")
        self._failure: InputError | WorkError | None = None

    def pids(self) -> list[int]:
        """Ids of the processes that run now."""
        return [worker.process.pid for worker in self._all if worker.process is not None]

    def stop(self) -> None:
        """Pass one request to stop on. From a signal handler or any thread; a second one asks to give up at once."""
        self._events.put(self._stop)

    def look(self) -> None:
        """Have those that are at work look for a new bundle. From a signal handler or any thread."""
        self._events.put(self._look)

    def run(self) -> None:
        """Keep them running until it is over.

        Raises:
            InputError: a worker ended with status 2: what it was given is wrong, and trying again cannot help.
            WorkError: a worker died again and again, or did not end well when it was told to stop.
        """
        try:
            with _passed_on({signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.look}):
                for worker in self._all:
                    self._start(worker)
                while not all(worker.over for worker in self._workers):
                    self._turn()
                self._stop_beside()
        finally:
            self._health.set_ready(ready=False, reason="stopped")
            self._kill_all()
        if self._failure is not None:
            raise self._failure

    def _turn(self) -> None:
        """Wait for something to happen, and see to what is due."""
        with suppress(Empty):
            self._events.get(timeout=self._rest_s())()
            while True:
                self._events.get_nowait()()
        now_s = self._clock()
        for worker in self._all:
            if worker.again_at_s is not None and now_s >= worker.again_at_s:
                worker.again_at_s = None
                self._restarted(worker.label)
                self._start(worker)
            elif worker.process is not None and not worker.stopping:
                self._see_to(worker, worker.process, now_s)
        if now_s >= self._kill_at_s:
            self._kill_late()
        self._health.beat(now_s)
        not_ready = [f"{worker.name} {worker.ready[1]}" for worker in self._all if not worker.ready[0]]
        self._health.set_ready(not not_ready, "; ".join(not_ready))

    def _rest_s(self) -> float:
        """How long nothing is due."""
        due_s = [worker.again_at_s for worker in self._all if worker.again_at_s is not None]
        return max(0.0, min([TURN_S, *(at_s - self._clock() for at_s in (*due_s, self._kill_at_s))]))

    def _start(self, worker: _Worker) -> None:
        """Start its process, and a thread that listens to it."""
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            bound_command(worker.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=worker.fds,
            start_new_session=True,  # a Ctrl-C in the terminal reaches the supervisor alone, which passes it on once
        )
        worker.process, worker.report, worker.was_ready = process, None, False
        worker.began_s = worker.heard_s = self._clock()
        if process.stdin is not None:
            with suppress(BrokenPipeError):  # it is dead already; its status tells
                process.stdin.write(worker.given())
                process.stdin.flush()
        log.info("%s started as process %d", worker.name, process.pid)
        listen = threading.Thread(target=self._listen, args=(worker, process), name=worker.name)
        listen.daemon = True
        listen.start()

    def _listen(self, worker: _Worker, process: subprocess.Popen[bytes]) -> None:
        """On a thread of its own: take in what a process reports, until its end."""
        if process.stdout is not None:
            for line in process.stdout:
                try:
                    report = Report.from_line(line)
                except (ValueError, TypeError, KeyError, IndexError):
                    log.warning("%s reported nonsense: %.100r", worker.name, line)
                    continue
                self._metrics.update(worker.label, report.families)
                worker.report, worker.heard_s = report, self._clock()
        process.wait()
        self._events.put(lambda: self._ended(worker, process))

    def _see_to(self, worker: _Worker, process: subprocess.Popen[bytes], now_s: float) -> None:
        """Kill a worker that hangs: what it holds is not answered, and nobody else may take it."""
        if worker.ready[0]:
            worker.was_ready = True
        limit_s = self._patience.silent_s if worker.was_ready else self._patience.start_s
        silent_s = now_s - (worker.heard_s if worker.was_ready else worker.began_s)
        why = None
        if worker.was_ready and worker.report is not None and not worker.report.live[0]:
            why = worker.report.live[1]
        elif not worker.ready[0] and not worker.was_ready and silent_s > limit_s:
            why = f"not ready after {silent_s:.0f} s"
        elif worker.was_ready and silent_s > limit_s:
            why = f"silent for {silent_s:.0f} s"
        if why is not None:
            log.error("%s hangs and is killed: %s", worker.name, why)
            process.kill()

    def _ended(self, worker: _Worker, process: subprocess.Popen[bytes]) -> None:
        """A process is gone: start it again, or see why not."""
        status = process.returncode
        report = worker.report
        worker.process, worker.report = None, None
        self._metrics.ended(worker.label)
        _close(process)
        how = _told(status, report)
        if worker.stopping:
            # Told to stop before it had begun to listen for that, it had nothing in hand.
            if status not in {0, -signal.SIGTERM} and self._failure is None:
                self._failure = WorkError(f"{worker.name} did not stop in order: {how}")
            return
        if status == 0 and self._may_end and worker is not self._beside:
            log.info("%s is done", worker.name)
            return
        if status == InputError.exit_code:
            self._give_up(InputError(f"{worker.name} cannot start: {how}"))
            return
        now_s = self._clock()
        patience = self._patience
        worker.deaths = 1 if now_s - worker.began_s >= patience.steady_s else worker.deaths + 1
        if worker.deaths >= patience.deaths:
            self._give_up(
                WorkError(
                    f"{worker.name} died {worker.deaths} times, each time within {patience.steady_s:g} s of "
                    f"its start: the last time {how}"
                )
            )
            return
        rest_s = min(patience.longest_rest_s, patience.rest_s * 2 ** (worker.deaths - 1))
        worker.again_at_s = now_s + rest_s
        log.error("%s died: %s; it is started again in %.1f s", worker.name, how, rest_s)

    def _give_up(self, failure: InputError | WorkError) -> None:
        """End the others in order."""
        self._failure = failure
        log.error("%s", failure)
        self._stop()

    def _stop(self) -> None:
        """Pass it on; a worker that waits to be started again is not."""
        if not self._stopping:
            log.info("stopping %d workers", sum(worker.process is not None for worker in self._workers))
            self._kill_at_s = self._clock() + self._patience.stop_s
        self._stopping = True
        for worker in self._workers:
            worker.stopping, worker.again_at_s = True, None
            if worker.process is not None:
                worker.process.terminate()

    def _stop_beside(self) -> None:
        """No worker is left: what they needed ends last."""
        if self._beside is not None:
            self._kill_at_s = self._clock() + self._patience.stop_s
            self._beside.stopping, self._beside.again_at_s = True, None
            if self._beside.process is not None:
                self._beside.process.terminate()
            while not self._beside.over:
                self._turn()

    def _look(self) -> None:
        """One that is still starting reads the newest there is anyway, and would die of the signal."""
        for worker in self._workers:
            if worker.process is not None and worker.ready[0]:
                worker.process.send_signal(signal.SIGHUP)

    def _kill_late(self) -> None:
        """The time to stop in is over."""
        self._kill_at_s = float("inf")
        for worker in self._all:
            if worker.process is not None and worker.stopping:
                log.error("%s has not ended within %g s: killed", worker.name, self._patience.stop_s)
                worker.process.kill()

    def _kill_all(self) -> None:
        """Leave nobody behind, whatever ended the supervisor."""
        for worker in self._all:
            if worker.process is not None:
                worker.process.kill()
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(KILL_S)
                _close(worker.process)


def _told(status: int, report: Report | None) -> str:
    """How a process ended, in words."""
    if report is not None and report.error:
        return report.error
    return f"killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _close(process: subprocess.Popen[bytes]) -> None:
    """Give the pipes back."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


@contextmanager
def _passed_on(calls: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Call what belongs to each signal inside the block; off the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        calls[signal.Signals(number)]()

    former = {number: signal.signal(number, on_signal) for number in calls}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
