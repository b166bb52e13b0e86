"""The reject gates of the page on verdicts, in three languages, run side by side on Apache Kafka: they must agree.

Each part is triggered on all of them; verdicts come as Framegate writes them, and as no gate should believe them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaProducer

from consumer.topics import ensure_topics
from tests.kafka_cluster import KafkaUnavailable, fetch_jars, find_java
from tests.pages import PAGES, ROOT, block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kafka_cluster import RunningBroker

PAGE = "verdicts.md"
STATION = "press-1"
DEADLINE_S = 8.0
WAIT_S = 90.0
NODE_MODULES = ROOT / "tests" / "node" / "node_modules"

Records = list[tuple[str, bytes | None]]

pytestmark = [pytest.mark.apache, pytest.mark.slow]


class Gate:
    """One of them, as a process; its lines are read as they come."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "-ec", f"exec {command}"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.lines: list[str] = []
        self.said: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self._process.stderr, self.said)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))  # noqa: PERF401 - seen by the test while they come

    def trigger(self, part: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{part}\n")
        self._process.stdin.flush()

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(20)
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def topic(apache_kafka: RunningBroker, unique: str) -> str:
    names = {"frames": f"f-{unique}", "verdicts": f"v-{unique}", "dead": f"d-{unique}"}
    ensure_topics(apache_kafka.bootstrap_servers, partitions=3, replication=1, **names)  # type: ignore[arg-type]
    return names["verdicts"]


@pytest.fixture
def gates(apache_kafka: RunningBroker, topic: str, tmp_path: Path) -> Iterator[dict[str, Gate]]:
    """All three, ready."""
    if shutil.which("node") is None or not (NODE_MODULES / "kafkajs").is_dir():
        pytest.skip("the gate in Node needs node and kafkajs: npm ci --prefix tests/node")
    try:
        modules = subprocess.run([find_java(), "--list-modules"], capture_output=True, text=True, check=True).stdout
        jars = fetch_jars(PAGES / "examples" / "java" / "pom.xml")
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    if "jdk.compiler" not in modules:
        pytest.skip("the gate in Java needs a JDK: this Java has no compiler")
    shutil.copytree(PAGES / "examples", tmp_path / "examples")
    (tmp_path / "examples" / "java" / "jars").symlink_to(jars)
    here = {
        "kafka-1:9092": apache_kafka.bootstrap_servers,
        " verdicts ": f" {topic} ",
        " press-1 ": f" {STATION} ",
        " 0.5": f" {DEADLINE_S}",
    }
    environment = {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",  # noqa: PTH120 - a text for the environment
        "NODE_PATH": str(NODE_MODULES),
    }
    scripts = {
        "python": block(PAGE, "python", here),
        "java": block(PAGE, "java", here),
        "node": block(PAGE, "node", here),
    }
    running = {name: Gate(script, tmp_path, environment) for name, script in scripts.items()}
    try:
        for name, gate in running.items():
            until(lambda gate=gate: "ready" in gate.said, name, gate)
        yield running
    finally:
        for gate in running.values():
            gate.stop()


def until(condition: Any, name: str, gate: Gate) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert gate.alive(), f"{name}: {gate.said}"
        assert time.monotonic() < end_s, f"{name}: {gate.lines} {gate.said}"
        time.sleep(0.02)


def verdict(part: str, decision: str, **more: object) -> bytes:
    cause = "late" if decision == "none" else None
    own = {"schema": 1, "station": STATION, "part_id": part, "decision": decision, "cause": cause}
    return json.dumps({**own, **more}).encode()


GIVEN_UP_FIRST: Records = [("A1", verdict("A1", "pass"))]
GIVEN: Records = [
    ("P", verdict("P", "pass")),
    ("F", verdict("F", "fail")),
    ("R", verdict("R", "review")),
    ("N", verdict("N", "none")),
    ("NEW", verdict("NEW", "accept")),
    ("D", verdict("D", "fail")),
    ("D", verdict("D", "pass")),
    ("S", verdict("S", "pass", schema=2)),
    ("B", verdict("B", "pass", station="press-2")),
    ("B", verdict("B", "fail")),
    ("C", verdict("C", "pass", station="press-2")),
    ("C", verdict("C", "pass", station=STATION.upper())),
    ("C", verdict("C", "pass", station=None)),
    ("C", verdict("C", "pass", station=[STATION])),
    ("E", verdict("E", "fail", station="press-2")),
    ("E", verdict("E", "pass")),
    ("W", verdict("W", "pass").replace(b'"station"', b'"where"')),
    ("U", b"no JSON"),
    ("LIST", b'["pass"]'),
    ("NULL", None),
    ("elsewhere", verdict("elsewhere", "pass")),
    ("elsewhere", verdict("elsewhere", "pass").replace(b'"elsewhere"', b"null")),
]
GIVEN_UP_LAST: Records = [("A2", verdict("A2", "pass"))]
EXPECTED = {
    "P": "open pass",
    "F": "reject fail",
    "R": "inspect review",
    "N": "reject none",
    "NEW": "reject accept",
    "D": "reject fail",
    "B": "reject fail",
    "E": "open pass",
    **dict.fromkeys(("A1", "A2", "S", "C", "W", "U", "LIST", "NULL", "MISSING", "LATE"), "reject deadline"),
}
"""Part -> what every gate must do, and why. Another station sees B, C and E too; of C its own says nothing."""


def transaction(producer: KafkaProducer, topic: str, records: Records, *, commit: bool) -> None:
    producer.begin_transaction()
    for key, value in records:
        producer.send(topic, value, key=key.encode())
    producer.flush(30)
    (producer.commit_transaction if commit else producer.abort_transaction)()


def test_three_gates_do_the_same_and_open_for_a_committed_pass_in_time_alone(
    apache_kafka: RunningBroker, topic: str, gates: dict[str, Gate]
) -> None:
    producer = KafkaProducer(bootstrap_servers=apache_kafka.bootstrap_servers, transactional_id=f"gate-{topic}")
    try:
        producer.init_transactions()
        for part in EXPECTED:
            for gate in gates.values():
                gate.trigger(part)
        transaction(producer, topic, GIVEN_UP_FIRST, commit=False)
        transaction(producer, topic, GIVEN, commit=True)
        transaction(producer, topic, GIVEN_UP_LAST, commit=False)
        for name, gate in gates.items():
            until(lambda gate=gate: len(gate.lines) >= len(EXPECTED), name, gate)
        transaction(producer, topic, [("LATE", verdict("LATE", "pass"))], commit=True)
        for gate in gates.values():
            gate.trigger("LAST")
        transaction(producer, topic, [("LAST", verdict("LAST", "pass"))], commit=True)
        for name, gate in gates.items():
            until(lambda gate=gate: any(line.startswith("LAST ") for line in gate.lines), name, gate)
    finally:
        producer.close()
    expected = sorted(f"{part} {action}" for part, action in (EXPECTED | {"LAST": "open pass"}).items())
    for name, gate in gates.items():
        assert sorted(gate.lines) == expected, name


def test_the_examples_are_short() -> None:
    for name in ("gate.py", "gate.js", "java/Gate.java"):
        lines = (PAGES / "examples" / name).read_text(encoding="utf-8").splitlines()
        code = [
            line for line in lines if line.strip() and not line.strip().startswith(("#", "//", "/*", "import ", '"""'))
        ]
        assert len(code) <= 45, f"{name}: {len(code)} lines"
