"""The supervisor, over tiny workers that do what they are told: real processes, real signals, no Kafka."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumer.health import Health, HttpServer
from consumer.reports import WorkerMetrics
from consumer.supervision import Beside, Patience, Supervisor
from engine.errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FAKE = """
import json, os, signal, sys, time
name = sys.stdin.readline().strip()
def report(ready=True, live=True, error=None, count=1.0):
    families = [["done", "Done.", "counter", [["done_total", [["station", "a"]], count]]],
                ["held", "Held.", "gauge", [["held", [], count]]]]
    print(json.dumps([[live, "stuck"], [ready, "" if ready else "no broker"], families, error]), flush=True)
def stop(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
"""
"""What each fake begins with; then comes what it does."""

SERVE = "report()\nwhile True: time.sleep(0.05)\n"
FAST = Patience(rest_s=0.05, longest_rest_s=0.1, steady_s=0.0, deaths=3, start_s=5.0, silent_s=5.0, stop_s=5.0)
PATIENCE_S = 20.0


class Hall:
    """A supervisor on a thread of its own."""

    def __init__(
        self,
        body: str,
        number: int = 2,
        patience: Patience = FAST,
        *,
        may_end: bool = False,
        beside: Beside | None = None,
    ) -> None:
        self.metrics, self.health = WorkerMetrics(), Health()
        self.restarts: list[int | str] = []
        self.error: BaseException | None = None
        self.supervisor = Supervisor(
            number,
            [sys.executable, "-I", "-S", "-c", FAKE + body],
            lambda worker: f"{worker}\n".encode(),
            metrics=self.metrics,
            health=self.health,
            patience=patience,
            may_end=may_end,
            restarted=self.restarts.append,
            beside=beside,
        )
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        pids = self.supervisor.pids()
        self.supervisor.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert not [pid for pid in pids if psutil.pid_exists(pid)], "nobody is left behind"

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except BaseException as error:  # noqa: BLE001 - looked at by the tests
            self.error = error

    def ended(self) -> BaseException | None:
        """Wait until it ends by itself."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.error

    def values(self, name: str) -> dict[str, float]:
        """A metric's values by worker."""
        return {
            sample.labels["worker"]: sample.value
            for metric in self.metrics.collect()
            for sample in metric.samples
            if sample.name == name
        }


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.01)


def test_one_request_to_stop_ends_all_in_order() -> None:
    with Hall(SERVE, 3) as hall:
        until(lambda: hall.health.ready()[0])
        assert len(hall.supervisor.pids()) == 3
    assert hall.error is None
    assert not hall.health.ready()[0]
    assert hall.restarts == []


def test_a_killed_worker_is_started_again_and_its_counters_never_step_back() -> None:
    with Hall(SERVE) as hall:
        until(lambda: hall.health.ready()[0])
        victim = hall.supervisor.pids()[0]
        assert hall.values("done_total") == {"0": 1.0, "1": 1.0}
        os.kill(victim, signal.SIGKILL)
        until(lambda: not hall.health.ready()[0])
        assert hall.health.ready() == (False, "worker 0 is not running")
        assert hall.values("done_total") == {"0": 1.0, "1": 1.0}, "what it had counted stays"
        assert hall.values("held") == {"1": 1.0}, "what it held is gone with it"
        until(lambda: hall.health.ready()[0])
        assert hall.restarts == [0]
        assert hall.values("done_total") == {"0": 2.0, "1": 1.0}
        assert hall.values("held") == {"0": 1.0, "1": 1.0}
        assert victim not in hall.supervisor.pids()
    assert hall.error is None


def test_a_worker_told_to_stop_by_somebody_else_is_started_again() -> None:
    with Hall(SERVE, 1) as hall:
        until(lambda: hall.health.ready()[0])
        os.kill(hall.supervisor.pids()[0], signal.SIGTERM)
        until(lambda: hall.restarts == [0] and hall.health.ready()[0])
    assert hall.error is None


def test_a_worker_that_dies_again_and_again_ends_all_with_its_last_words() -> None:
    dies = "report()\nif name == '1':\n    report(error='the sky fell'); sys.exit(1)\nwhile True: time.sleep(0.05)\n"
    patience = Patience(rest_s=0.01, longest_rest_s=0.02, steady_s=60.0, deaths=3, stop_s=5.0)
    with Hall(dies, 2, patience) as hall:
        error = hall.ended()
    assert isinstance(error, WorkError)
    assert str(error) == "worker 1 died 3 times, each time within 60 s of its start: the last time the sky fell"
    assert hall.restarts == [1, 1]


def test_deaths_far_apart_do_not_add_up() -> None:
    dies = "report()\ntime.sleep(0.1)\nos.kill(os.getpid(), 9)\n"
    with Hall(dies, 1, FAST) as hall:
        until(lambda: len(hall.restarts) >= 5)
    assert hall.error is None


def test_wrong_input_is_not_tried_again() -> None:
    with Hall("report(ready=False, error='no bundle at x')\nsys.exit(2)\n") as hall:
        error = hall.ended()
    assert isinstance(error, InputError)
    assert "cannot start: no bundle at x" in str(error)
    assert hall.restarts == []


def test_workers_that_end_well_are_done_where_they_may() -> None:
    with Hall("report()\n", may_end=True) as hall:
        assert hall.ended() is None
    assert hall.restarts == []
    assert hall.values("done_total") == {"0": 1.0, "1": 1.0}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("report()\ntime.sleep(0.3)\nreport(live=False)\ntime.sleep(60)\n", "not live"),
        ("report()\ntime.sleep(60)\n", "silent"),
        ("report(ready=False)\ntime.sleep(60)\n", "never ready"),
    ],
)
def test_a_worker_that_hangs_is_killed_and_started_again(body: str, why: str) -> None:
    quick = Patience(rest_s=0.01, steady_s=0.0, start_s=1.0, silent_s=60.0 if why == "not live" else 1.0, stop_s=5.0)
    with Hall(body, 1, quick) as hall:
        until(lambda: len(hall.restarts) >= 1)
    assert hall.error is None


def test_one_that_does_not_stop_is_killed_when_its_time_is_over() -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVE
    with Hall(stubborn, 1, Patience(stop_s=0.2)) as hall:
        until(lambda: hall.health.ready()[0])
    assert isinstance(hall.error, WorkError)
    assert str(hall.error) == "worker 0 did not stop in order: killed by signal 9"


def test_a_failing_stop_is_told_and_the_others_end_all_the_same() -> None:
    sulks = "def bad(*_):\n    report(error='3 frames unanswered'); sys.exit(1)\nif name == '0':\n"
    sulks += "    signal.signal(signal.SIGTERM, bad)\n" + SERVE
    with Hall(sulks) as hall:
        until(lambda: hall.health.ready()[0])
    assert isinstance(hall.error, WorkError)
    assert str(hall.error) == "worker 0 did not stop in order: 3 frames unanswered"


def test_nonsense_in_a_report_is_passed_over() -> None:
    with Hall("print('hello', flush=True)\nprint('[1]', flush=True)\n" + SERVE, 1) as hall:
        until(lambda: hall.health.ready()[0])
    assert hall.error is None


def beside(body: str, *arguments: str) -> Beside:
    """Something that all workers need."""
    return Beside("the engine", "engine", [sys.executable, "-I", "-S", "-c", FAKE + body, *arguments], b"engine\n")


NOTE = "def note(what):\n    with open(sys.argv[1], 'a') as file: print(what, file=file)\n"


def test_what_all_need_is_started_first_and_ended_last(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    notes = f"sys.argv = ['', {str(journal)!r}]\n{NOTE}"
    notes += "def stop(*_):\n    time.sleep(0.1 if name == '0' else 0); note(name + ' ends'); sys.exit(0)\n"
    notes += "signal.signal(signal.SIGTERM, stop)\nnote(name + ' begins')\n" + SERVE
    with Hall(notes, 2, beside=beside(notes)) as hall:
        until(lambda: hall.health.ready()[0])
        assert len(hall.supervisor.pids()) == 3
        assert hall.values("held") == {"0": 1.0, "1": 1.0, "engine": 1.0}
    assert hall.error is None
    assert journal.read_text().splitlines()[-3:] == ["1 ends", "0 ends", "engine ends"]


def test_what_all_need_is_started_again_even_while_workers_stop(tmp_path: Path) -> None:
    """Who drains needs it still. It may not end by itself either, as workers may."""
    go = tmp_path / "go"
    drains = f"def stop(*_):\n    while not os.path.exists({str(go)!r}): time.sleep(0.01)\n    sys.exit(0)\n"
    drains += "signal.signal(signal.SIGTERM, stop)\n" + SERVE
    with Hall(drains, 1, may_end=True, beside=beside(SERVE)) as hall:
        until(lambda: hall.health.ready()[0])
        engine, worker = hall.supervisor.pids()
        hall.supervisor.stop()
        time.sleep(0.1)
        os.kill(engine, signal.SIGTERM)  # ends with 0
        until(lambda: hall.restarts == ["engine"] and len(hall.supervisor.pids()) == 2)
        assert worker in hall.supervisor.pids()
        go.touch()
    assert hall.error is None


def test_what_all_need_that_cannot_be_kept_running_ends_all() -> None:
    dies = "report(error='no device'); sys.exit(1)\n"
    patience = Patience(rest_s=0.01, longest_rest_s=0.02, steady_s=60.0, deaths=3, stop_s=5.0)
    with Hall(SERVE, 2, patience, beside=beside(dies)) as hall:
        error = hall.ended()
    assert str(error) == "the engine died 3 times, each time within 60 s of its start: the last time no device"
    assert hall.restarts == ["engine", "engine"]


def test_what_all_need_that_hangs_is_killed_and_started_again() -> None:
    quick = Patience(rest_s=0.01, steady_s=0.0, start_s=5.0, silent_s=60.0, stop_s=5.0)
    hangs = beside("report()\ntime.sleep(0.3)\nreport(live=False)\ntime.sleep(60)\n")
    with Hall(SERVE, 1, quick, beside=hangs) as hall:
        until(lambda: "engine" in hall.restarts)
        assert 0 not in hall.restarts
    assert hall.error is None


SUPERVISE = """
import sys
from consumer.health import Health
from consumer.reports import WorkerMetrics
from consumer.supervision import Supervisor
health = Health()
supervisor = Supervisor(2, [sys.executable, "-I", "-S", "-c", sys.argv[1]], lambda n: f"{n}\\n".encode(),
                        metrics=WorkerMetrics(), health=health)
beat = health.beat
def tell(now_s):
    beat(now_s)
    if health.ready()[0]: print(*supervisor.pids(), flush=True)
health.beat = tell
supervisor.run()
"""


@contextmanager
def supervised(tmp_path: Path, body: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A supervisor in a process of its own, ready, and its workers' ids."""
    command = [sys.executable, "-c", SUPERVISE, FAKE + body]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_a_supervisor_killed_outright_takes_its_workers_along(tmp_path: Path) -> None:
    with supervised(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVE) as (process, pids):
        assert len(pids) == 2
        process.kill()
        until(lambda: not any(map(psutil.pid_exists, pids)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_to_the_supervisor_reaches_all(tmp_path: Path, number: int) -> None:
    with supervised(tmp_path, SERVE) as (process, pids):
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert not any(map(psutil.pid_exists, pids))


def test_one_endpoint_shows_all_workers_and_is_read_by_prometheus() -> None:
    with Hall(SERVE) as hall:
        until(lambda: hall.health.ready()[0])
        registry = CollectorRegistry()
        registry.register(hall.metrics)
        with HttpServer(registry=registry, health=hall.health) as server:
            for path in ("live", "ready"):
                with urllib.request.urlopen(f"{server.url}/{path}", timeout=5) as answer:  # noqa: S310 - our own
                    assert answer.status == 200
        families = list(text_string_to_metric_families(generate_latest(registry).decode()))
        assert [family.name for family in families] == ["done", "held"], "each family once, all workers in it"
        assert [sample.labels for sample in families[0].samples] == [
            {"station": "a", "worker": "0"},
            {"station": "a", "worker": "1"},
        ]
