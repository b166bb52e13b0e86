"""A real Apache Kafka for the tests: one or three brokers in KRaft mode on loopback, without a container.

The jars come by Maven from `tests/integration/pom.xml`, once, into a cache outside the tree. Each broker is a Java
process of its own, controller and broker combined; the cluster's data lies in a folder that the caller gives.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from consumer.children import bound_command
from consumer.errors import BrokerError
from consumer.topics import check_topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

POM = Path(__file__).parent / "integration" / "pom.xml"
TOOLS_POM = POM.parent / "tools" / "pom.xml"
"""Kafka with its command-line tools."""

CONNECT_POM = POM.parent / "connect" / "pom.xml"
"""Kafka Connect and connectors."""

HOST = "127.0.0.1"
MESSAGE_MAX_BYTES = 32 * 1024 * 1024
"""Largest record any topic of the cluster may take."""

_OLDEST_JAVA = 17
_FETCH_TIMEOUT_S = 300.0
_FORMAT_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 150.0
_STOP_TIMEOUT_S = 20.0
_LOG_LINES = 8

# A client compiler alone starts in half the time and leaves the other core to the tests.
_JVM = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")

_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss,SSS} %-5p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


class KafkaUnavailable(Exception):  # noqa: N818 - a reason to skip, not an error
    """Apache Kafka cannot be started on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that tests may use and must not stop.

    Attributes:
        kind: `embedded` forms a group in about 3 s, honours no transactions and makes topics that are asked for.
    """

    kind: Literal["embedded", "apache"]
    bootstrap_servers: str


@dataclass(slots=True)
class _Node:
    """One broker: its id, ports and process."""

    node_id: int
    port: int
    controller_port: int
    fronted_port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


def find_java() -> Path:
    """Path of a Java 17 or newer: of JAVA_HOME, else on the PATH.

    Raises:
        KafkaUnavailable: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = Path(home) / "bin" / "java" if home else Path(shutil.which("java") or "java")
    if not java.is_file():
        msg = f"Apache Kafka needs Java {_OLDEST_JAVA} or newer: no java found"
        raise KafkaUnavailable(msg)
    text = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30).stderr
    match = re.search(r'version "(\d+)', text)
    if match is None or int(match.group(1)) < _OLDEST_JAVA:
        msg = (
            f"Apache Kafka needs Java {_OLDEST_JAVA} or newer, {java} is: {text.splitlines()[0] if text else 'unknown'}"
        )
        raise KafkaUnavailable(msg)
    return java


def fetch_jars(pom: Path = POM) -> Path:
    """Folder with the jars of a pom, Apache Kafka's; fetched by Maven on the first call, from the cache later.

    The cache is `$XDG_CACHE_HOME/framegate-tests` (default `~/.cache/framegate-tests`), one folder per content of the
    pom. It appears whole or not at all, and of several test runs only one fetches.

    Raises:
        KafkaUnavailable: Maven is missing, or it could not fetch them.
    """
    content = pom.read_bytes()
    version = re.search(rb"<kafka\.version>([^<]+)<", content)
    if version is None:
        msg = f"{pom} names no kafka.version"
        raise ValueError(msg)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "framegate-tests"
    jars = cache / f"kafka-{version.group(1).decode()}-{hashlib.sha256(content).hexdigest()[:12]}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        msg = "Apache Kafka's jars are fetched by Maven: no mvn on the PATH"
        raise KafkaUnavailable(msg)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as folder:
                _copy_dependencies(maven, pom, Path(folder) / "jars")
                (Path(folder) / "jars").rename(jars)
    return jars


class ApacheKafka:
    """A cluster of one or three brokers that may be stopped, killed and started again one by one.

    Attributes:
        kind: always `apache`.
        nodes: the ids of the brokers, counted from 1.
    """

    kind: Literal["apache"] = "apache"

    def __init__(
        self,
        brokers: Literal[1, 3],
        directory: Path,
        *,
        settings: Mapping[str, object] | None = None,
        fronts: Mapping[int, int] | None = None,
        secure: Mapping[str, str] | None = None,
    ) -> None:
        """Choose ports and folders; nothing is started yet.

        Args:
            brokers: how many.
            directory: made where it is not there.
            settings: further settings of every broker.
            fronts: for each node the port of a proxy. Brokers then have a second listener, at `fronted_port`, that
                sends its clients to those ports: whoever bootstraps through a proxy meets nothing but proxies.
            secure: further listeners for clients by name, with the protocol of each: `{"LOCKED": "SASL_SSL"}`. What
                they need besides is among the settings, as `listener.name.locked.…`.
        """
        ports = _free_ports(3 * brokers)
        self._settings = dict(settings or {})
        self._fronts = dict(fronts or {})
        self._secure = dict(secure or {})
        self._secure_ports = {
            (node_id, name): port
            for node_id in range(1, brokers + 1)
            for name, port in zip(self._secure, _free_ports(len(self._secure)), strict=True)
        }
        self._cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._directory = directory
        self._nodes = {
            node_id: _Node(node_id, ports.pop(), ports.pop(), ports.pop(), directory / f"broker-{node_id}")
            for node_id in range(1, brokers + 1)
        }
        self.nodes = tuple(self._nodes)

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of all brokers, also of those that are stopped."""
        return ",".join(f"{HOST}:{node.port}" for node in self._nodes.values())

    def secure_servers(self, name: str) -> str:
        """Addresses of all brokers' secure listeners of this name."""
        return ",".join(f"{HOST}:{self._secure_ports[node_id, name]}" for node_id in self.nodes)

    def fronted_port(self, node_id: int) -> int:
        """Where the listener behind the node's front is."""
        return self._nodes[node_id].fronted_port

    def pid(self, node_id: int) -> int | None:
        """Process id of a broker; None while it does not run."""
        process = self._nodes[node_id].process
        return None if process is None else process.pid

    def start(self) -> None:
        """Format the folders, start all brokers and wait until they serve.

        Raises:
            KafkaUnavailable: Java, Maven or the jars are missing.
            BrokerError: the brokers do not come up; the message ends with what they logged last.
        """
        java, classpath = find_java(), f"{fetch_jars()}/*"
        self._directory.mkdir(parents=True, exist_ok=True)
        logging = self._directory / "log4j2.properties"
        logging.write_text(_LOGGING)
        self._command = [str(java), *_JVM, f"-Dlog4j2.configurationFile={logging}", "-cp", classpath]
        try:
            for node in self._nodes.values():
                node.folder.mkdir()
                node.properties.write_text(self._properties(node))
            self._format()
            for node in self._nodes.values():
                self._launch(node)
            self._wait_until_up(len(self._nodes))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all brokers, the data stays. Killed, not asked: one by one they would wait for each other."""
        for node in self._nodes.values():
            if node.process is not None:
                node.process.kill()
        for node in self._nodes.values():
            if node.process is not None:
                node.process.wait(_STOP_TIMEOUT_S)
                node.process = None

    def stop_broker(self, node_id: int) -> None:
        """Shut a broker down in order: it hands its partitions over first."""
        process = self._running(node_id)
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.wait(_STOP_TIMEOUT_S)
            self._nodes[node_id].process = None

    def kill_broker(self, node_id: int) -> None:
        """Kill a broker, as a power cut would; the others see it after their session timeout of 3 s."""
        process = self._running(node_id)
        process.kill()
        process.wait(_STOP_TIMEOUT_S)
        self._nodes[node_id].process = None

    def start_broker(self, node_id: int) -> None:
        """Start a broker that was stopped or killed, with its data and ports, and wait until it is back."""
        self.launch_broker(node_id)
        self._wait_until_up(sum(node.alive for node in self._nodes.values()))

    def launch_broker(self, node_id: int) -> None:
        """As `start_broker`, without waiting."""
        node = self._nodes[node_id]
        if node.alive:
            msg = f"broker {node_id} already runs as process {self.pid(node_id)}"
            raise BrokerError(msg)
        self._launch(node)

    def __enter__(self) -> Self:
        """Start the cluster; see `start`."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the cluster; see `stop`."""
        self.stop()

    def _running(self, node_id: int) -> subprocess.Popen[bytes]:
        process = self._nodes[node_id].process
        if process is None:
            msg = f"broker {node_id} does not run"
            raise BrokerError(msg)
        return process

    def _properties(self, node: _Node) -> str:
        copies = min(3, len(self._nodes))
        front = self._fronts.get(node.node_id)
        addresses = [f"BROKER://{HOST}:{node.port}"]
        fronted = [f"FRONT://{HOST}:{node.fronted_port}"] if front is not None else []
        advertised = [f"FRONT://{HOST}:{front}"] if front is not None else []
        secure = [f"{name}://{HOST}:{self._secure_ports[node.node_id, name]}" for name in self._secure]
        protocols = {"BROKER": "PLAINTEXT", "FRONT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._secure}
        voters = ",".join(f"{other.node_id}@{HOST}:{other.controller_port}" for other in self._nodes.values())
        settings = {
            "process.roles": "broker,controller",
            "node.id": node.node_id,
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "BROKER",
            "listeners": ",".join([*addresses, *fronted, *secure, f"CONTROLLER://{HOST}:{node.controller_port}"]),
            "advertised.listeners": ",".join([*addresses, *advertised, *secure]),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "log.dirs": node.folder / "data",
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "message.max.bytes": MESSAGE_MAX_BYTES,
            "replica.fetch.max.bytes": MESSAGE_MAX_BYTES,
            # A segment must hold the largest record; indexes are laid out at full size when they are made.
            "log.segment.bytes": 2 * MESSAGE_MAX_BYTES,
            "log.index.size.max.bytes": 1024 * 1024,
            "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 5,
            "offsets.topic.segment.bytes": 4 * 1024 * 1024,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "transaction.state.log.num.partitions": 5,
            "transaction.state.log.segment.bytes": 4 * 1024 * 1024,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": max(1, copies - 1),
            "group.initial.rebalance.delay.ms": 0,
            "num.network.threads": 2,
            "num.io.threads": 4,
            # A dead broker is noticed in seconds, not in nine of them.
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 3000,
            **self._settings,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _format(self) -> None:
        """Write the cluster's id into each node's folder, as every new KRaft node needs it."""
        for node in self._nodes.values():
            self._run(
                node,
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={self._cluster_id}",
                "-c",
                str(node.properties),
            )
        for node in self._nodes.values():
            if node.process is not None and node.process.wait(_FORMAT_TIMEOUT_S):
                msg = f"the folder of broker {node.node_id} cannot be formatted: {_last_lines(node.log)}"
                raise BrokerError(msg)

    def _launch(self, node: _Node) -> None:
        """Start the node as a broker."""
        self._run(node, "kafka.Kafka", str(node.properties))

    def _run(self, node: _Node, *arguments: str) -> None:
        """Start a process for the node; it does not outlive the test run."""
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                bound_command([*self._command, *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def _wait_until_up(self, brokers: int) -> None:
        """Return when each running broker answers and sees so many brokers."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        for node in self._nodes.values():
            while node.process is not None and not _sees(node, brokers):
                if not node.alive or time.monotonic() > deadline_s:
                    what = "is not up in time" if node.alive else f"ended with status {node.process.returncode}"
                    msg = f"broker {node.node_id} {what}: {_last_lines(node.log)}"
                    raise BrokerError(msg)
                time.sleep(0.1)


def _sees(node: _Node, brokers: int) -> bool:
    """Whether this node answers and knows so many brokers that are up."""
    with contextlib.suppress(BrokerError):
        return check_topics(f"{HOST}:{node.port}", [], timeout_s=1.0).brokers >= brokers
    return False


def _copy_dependencies(maven: str, pom: Path, target: Path) -> None:
    """Let Maven put the jars of the pom into a folder."""
    command = [maven, "-B", "-q", "-Dstyle.color=never", "-f", str(pom)]
    command += ["dependency:copy-dependencies", f"-DoutputDirectory={target}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        msg = f"Apache Kafka's jars could not be fetched within {_FETCH_TIMEOUT_S:g} s"
        raise KafkaUnavailable(msg) from None
    if done.returncode or not target.is_dir():
        first = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason given")
        msg = f"Apache Kafka's jars could not be fetched: {first}"
        raise KafkaUnavailable(msg)


def _free_ports(count: int) -> list[int]:
    """So many different TCP ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for held_socket in sockets:
            held_socket.bind((HOST, 0))
        return [held_socket.getsockname()[1] for held_socket in sockets]


def _last_lines(log: Path) -> str:
    """The end of a log in one line."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


@contextlib.contextmanager
def started(cluster: ApacheKafka) -> Iterator[ApacheKafka]:
    """The cluster, started, for a test or a fixture; skips where it cannot be had on this machine."""
    import pytest  # noqa: PLC0415 - the fault run and the soak use clusters without it

    try:
        cluster.start()
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    try:
        yield cluster
    finally:
        cluster.stop()
