from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from consumer.broker import CLUSTER_ID, NOTICE, EmbeddedBroker, _broker_binary, is_embedded
from consumer.children import bound_command
from consumer.errors import BrokerError, TopicError
from consumer.topics import check_topics, ensure_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]


def ended(pid: int) -> bool:
    """Whether a process is gone; one that nobody has waited for yet counts as gone."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def program(folder: Path, text: str) -> Path:
    path = folder / "tansu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts Python code in a process of its own, which is ended with the test; what it leaves goes with `tmp_path`."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.kafka
def test_it_answers_kafka_requests_until_it_is_left(tmp_path: Path) -> None:
    log = tmp_path / "broker.log"
    with EmbeddedBroker(log=log) as broker:
        assert broker.bootstrap_servers == f"127.0.0.1:{broker.port}"
        assert check_topics(broker.bootstrap_servers, []).cluster_id == CLUSTER_ID
        assert broker.alive
        assert broker.poll() is None
        pid = broker.pid
        assert pid is not None
        assert "tansu" in psutil.Process(pid).name()  # the launcher became the broker: one process, one id
        assert broker.bootstrap_servers in broker.last_lines()
    assert ended(pid)
    assert not broker.alive
    assert broker.pid is None
    assert log.read_text()


@pytest.mark.kafka
def test_it_can_be_started_again_and_remembers_nothing() -> None:
    broker = EmbeddedBroker()
    with broker:
        ensure_topics(broker.bootstrap_servers, partitions=1, replication=1)
    with broker, pytest.raises(TopicError, match="no topic `frames`"):
        check_topics(broker.bootstrap_servers, ["frames"])


@pytest.mark.kafka
def test_it_is_not_started_twice() -> None:
    with EmbeddedBroker() as broker:
        with pytest.raises(BrokerError, match=f"already runs as process {broker.pid}"):
            broker.start()
        assert broker.alive


@pytest.mark.kafka
def test_it_sees_only_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTENER_URL", "tcp://0.0.0.0:1")
    monkeypatch.setenv("CLUSTER_ID", "another")
    with EmbeddedBroker() as broker:
        environment = psutil.Process(broker.pid).environ()
        assert "LISTENER_URL" not in environment
        assert check_topics(broker.bootstrap_servers, []).cluster_id == CLUSTER_ID


@pytest.mark.kafka
def test_it_runs_without_a_home_and_leaves_nothing_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with EmbeddedBroker() as broker:
        assert broker.alive
    monkeypatch.setenv("HOME", "")
    with EmbeddedBroker() as broker:
        assert broker.alive
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kafka
def test_ctrl_c_in_the_terminal_does_not_reach_it() -> None:
    with EmbeddedBroker() as broker:
        assert broker.pid is not None
        assert os.getpgid(broker.pid) != os.getpgid(0)


@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_it_dies_with_the_process_that_started_it(child: Callable[[str], subprocess.Popen[str]]) -> None:
    owner = child(
        "import time\nfrom consumer.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker()\nbroker.start()\nprint(broker.pid, flush=True)\ntime.sleep(60)"
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert not ended(pid)
    owner.kill()
    assert within(5, lambda: ended(pid))


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BrokerError, match=rf"port {port} on 127\.0\.0\.1 cannot be used.*--port"):
            EmbeddedBroker(port=port).start()


def test_no_port_at_all_is_an_error_too() -> None:
    with pytest.raises(BrokerError, match=r"port 70000 .* not a port"):
        EmbeddedBroker(port=70_000).start()


def test_the_last_words_of_a_broker_that_ends_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, "echo no memory left >&2; exit 3")
    monkeypatch.setenv("CALF_TANSU_BIN", str(path))
    broker = EmbeddedBroker()
    with pytest.raises(BrokerError, match=r"ended at start with status 3 .*no memory left"):
        broker.start()
    assert not broker.alive


def test_a_broker_that_never_listens_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")
    monkeypatch.setenv("CALF_TANSU_BIN", str(path))
    with pytest.raises(BrokerError, match="does not listen"):
        EmbeddedBroker().start(timeout_s=1.0)
    assert ended(int(pid_file.read_text()))


def test_a_platform_without_a_broker_is_told_to_use_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/nowhere/tansu")
    with pytest.raises(BrokerError, match=r"no embedded broker for this platform.*--bootstrap-servers"):
        EmbeddedBroker().start()


def test_a_binary_that_lost_its_executable_bit_runs_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    bundled = program(tmp_path / "bin", "exit 0")
    bundled.chmod(0o644)
    monkeypatch.setattr("importlib.resources.files", lambda _package: tmp_path)
    with _broker_binary() as binary:
        assert binary != bundled
        assert os.access(binary, os.X_OK)
        assert binary.read_bytes() == bundled.read_bytes()
    assert not binary.exists()


def test_a_bound_command_is_the_process_itself_and_gets_the_environment() -> None:
    command = bound_command(["/bin/sh", "-c", "echo $$ $WORD"], {"WORD": "given"})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=10)
    assert output.split() == [str(process.pid), "given"]


def test_a_bound_command_does_not_start_for_another_parent() -> None:
    interpreter, *rest = bound_command(["/bin/echo", "started"])
    rest[rest.index(str(os.getpid()))] = "1"
    done = subprocess.run([interpreter, *rest], capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 1
    assert done.stdout == ""


RUN = """
import sys
from consumer.broker import run_broker
sys.exit(run_broker({port}, lambda text: print(text, flush=True)))
"""


def run_in(child: Callable[[str], subprocess.Popen[str]]) -> tuple[subprocess.Popen[str], str]:
    """A process in `run_broker`, and what it has said by the time it serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = child(RUN.format(port=port))
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "listening on" in line:
            break
    assert f"listening on 127.0.0.1:{port}" in said
    return process, said


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_broker_says_what_it_is_and_ends_on_a_signal(
    child: Callable[[str], subprocess.Popen[str]], number: signal.Signals
) -> None:
    process, said = run_in(child)
    assert NOTICE in said
    (broker,) = psutil.Process(process.pid).children()
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")
    assert ended(broker.pid)


@pytest.mark.kafka
def test_run_broker_fails_when_the_broker_dies(child: Callable[[str], subprocess.Popen[str]]) -> None:
    process, _ = run_in(child)
    (broker,) = psutil.Process(process.pid).children()
    broker.kill()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "BrokerError: the embedded broker ended by itself with status -9" in errors


def test_which_cluster_is_the_embedded_one() -> None:
    assert is_embedded("tansu_cluster")
    assert not is_embedded("ASTutCHCQ8Wk5Jy5_pYefw")
    assert not is_embedded(None)


def test_the_notice_says_what_production_is() -> None:
    for word in ("memory only", "at-least-once", "Apache Kafka"):
        assert word in NOTICE
