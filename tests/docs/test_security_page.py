"""The page on securing Kafka, run as it stands there: certificate, broker, users, rights, a zip that gives verdicts.

Then what must not work: each right taken away, and a wrong password.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from consumer.bootstrap import NoAnswerError
from consumer.broker import free_port
from consumer.config import read_client_config
from consumer.errors import BrokerError, TopicError
from consumer.topics import MAX_MESSAGE_BYTES, check_topics, ensure_topics
from consumer.verdict_reader import VerdictReader
from engine.bundle import write_bundle
from tests.kafka_cluster import TOOLS_POM, KafkaUnavailable, fetch_jars, find_java
from tests.lineups import bundle_of
from tests.pages import block, commands
from tests.parts import part, parts_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PAGE = "security.md"
WAIT_S = 120.0
REFUSED_S = 15.0
FRAMES = 12

pytestmark = [pytest.mark.apache, pytest.mark.slow]


@dataclass(frozen=True)
class Plant:
    """A secured broker, and the folder with everybody's files."""

    folder: Path
    servers: str
    environment: Mapping[str, str]

    def framegate(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["framegate", *map(str, arguments), "--bootstrap-servers", self.servers],
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )

    def client(self, user: str, **changes: str) -> dict[str, object]:
        return {**read_client_config(self.folder / f"{user}.properties"), **changes}


def run(script: str, folder: Path, environment: Mapping[str, str]) -> None:
    command = ["bash", "-ec", script]
    done = subprocess.run(
        command, cwd=folder, env=dict(environment), capture_output=True, text=True, check=False, timeout=WAIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """The page's blocks one after the other, up to the broker that runs and the clients' files."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by the program openssl: none on the PATH")
    try:
        find_java()
        jars = fetch_jars(TOOLS_POM)
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("plant")
    servers, controller = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    environment = {
        **commands(folder / "bin", jars),
        "FRAMEGATE_HTTP_PORT": "-1",
        "FRAMEGATE_WORKERS": "1",
        "FRAMEGATE_BACKEND": "onnxruntime",
        "FRAMEGATE_SIZE": "96x96",
    }
    run(block(PAGE, "certificates", {"DNS:kafka-1": "IP:127.0.0.1"}), folder, environment)
    run(block(PAGE, "passwords"), folder, environment)
    places = {"/etc/kafka": folder, "/var/lib/kafka": folder / "kafka"}
    ports = {"kafka-1:9093": servers, "kafka-1:9094": controller}
    (folder / "server.properties").write_text(block(PAGE, "server", {**ports, **places}))
    for user, name in (("camera", "camera"), ("judge", "judge"), ("gate", "gate"), ("admin", "admin-client")):
        text = block(PAGE, "client", {"/etc/framegate": folder, "camera.password": f"{user}.password"})
        (folder / f"{name}.properties").write_text(text.replace("sasl.username=camera", f"sasl.username={user}"))
    log = folder / "broker.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-ec", block(PAGE, "start")],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until_up(servers, read_client_config(folder / "admin-client.properties"), process, log)
        yield Plant(folder, servers, environment)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.fixture(scope="module")
def plant(broker: Plant) -> Plant:
    """The page's next blocks: one more user, and everybody's rights."""
    at = {"kafka-1:9093": broker.servers}
    run(block(PAGE, "admin"), broker.folder, broker.environment)
    run(block(PAGE, "user", at), broker.folder, broker.environment)
    run(block(PAGE, "rights", at), broker.folder, broker.environment)
    return broker


def until_up(servers: str, client: dict[str, object], process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + WAIT_S
    while True:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(BrokerError, NoAnswerError):
            check_topics(servers, [], client=client, timeout_s=2.0)
            return
        assert time.monotonic() < end_s, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def line(plant: Plant) -> Plant:
    """The page's last block: a zip becomes a bundle, and frames become verdicts, while the consumer runs."""
    parts_folder(plant.folder / "set", good=24, scratched=24, lots=4)
    with zipfile.ZipFile(plant.folder / "parts.zip", "w") as archive:
        for path in (plant.folder / "set").glob("*/*.png"):
            archive.write(path, path.relative_to(plant.folder / "set"))
    (plant.folder / "images").mkdir()
    for number in range(FRAMES):
        (plant.folder / "images" / f"{number:02}.png").write_bytes(part(500 + number, scratched=number % 2 == 1))
    script = block(PAGE, "line", {"kafka-1:9093": plant.servers})
    with (plant.folder / "line.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-ec", script],
            cwd=plant.folder,
            env=dict(plant.environment),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert process.wait(WAIT_S) == 0, (plant.folder / "line.log").read_text()
        verdicts(plant, FRAMES)
        end_in_order(process.pid)
        return plant
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def end_in_order(group: int) -> None:
    """The consumer that the block left running: it must not take the next test's frames."""
    os.killpg(group, signal.SIGTERM)
    end_s = time.monotonic() + WAIT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end_s:
            os.killpg(group, 0)
            time.sleep(0.1)


def verdicts(plant: Plant, expected: int) -> list[dict[str, Any]]:
    """Read as the gate may."""
    found: list[dict[str, Any]] = []
    end_s = time.monotonic() + WAIT_S
    with VerdictReader(plant.servers, client=plant.client("gate")) as reader:
        while len(found) < expected:
            found += reader.poll(0.5)
            assert time.monotonic() < end_s, f"{len(found)} of {expected} verdicts"
        return found + reader.poll(1.0)


def timed(plant: Plant, arguments: list[object]) -> tuple[subprocess.CompletedProcess[str], float]:
    began_s = time.monotonic()
    done = plant.framegate(*arguments)
    return done, time.monotonic() - began_s


def camera(plant: Plant, images: Path, config: Path | None = None) -> list[object]:
    config = config or plant.folder / "camera.properties"
    return ["camera", images, "--station", "a", "--rate", "0", "--client-config", config]


def consumer(plant: Plant, bundle: Path, config: Path | None = None) -> list[object]:
    config = config or plant.folder / "judge.properties"
    return ["run", "--bundle", bundle, "--idle-exit-s", "4", "--client-config", config]


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said: one line, behind those that tell how far it came."""
    *told, error = done.stderr.splitlines()
    assert error.startswith("framegate: error: "), done.stderr
    assert {json.loads(line)["level"] for line in told} <= {"info", "warning"}, done.stderr
    return error


@pytest.mark.parametrize("verb", ["camera", "run"])
def test_a_wrong_password_is_one_line_within_seconds(broker: Plant, tmp_path: Path, verb: str) -> None:
    user = "camera" if verb == "camera" else "judge"
    (tmp_path / f"{user}.password").write_text("not-it")
    config = tmp_path / "wrong.properties"
    config.write_text((broker.folder / f"{user}.properties").read_text())
    write_bundle(tmp_path / "bundle", bundle_of(1))
    (tmp_path / "1.jpg").write_bytes(b"x")
    arguments = camera(broker, tmp_path, config) if verb == "camera" else consumer(broker, tmp_path / "bundle", config)
    done, took_s = timed(broker, arguments)
    assert done.returncode == 1, done.stderr
    assert "uthentication" in the_error(done)
    assert "not-it" not in done.stdout + done.stderr
    assert took_s < REFUSED_S


def test_before_the_topics_are_made_the_camera_says_so(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    done = plant.framegate(*camera(plant, tmp_path))
    assert done.returncode == 1
    assert "no topic `frames`" in the_error(done)


def test_whoever_may_make_the_topics_makes_them(plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    """As the consumer's user, which is what the chart's Job is; then the operator's `topics create` finds them."""
    arguments = ["topics", "create", "--partitions", "4", "--client-config", plant.folder / "judge.properties"]
    refused = plant.framegate(*arguments)
    assert refused.returncode == 1
    assert "uthoriz" in the_error(refused)
    shell = block(PAGE, "rights", {"kafka-1:9093": plant.servers}).partition("\n")[0]
    run(f"{shell}\n{block(PAGE, 'create')}", plant.folder, plant.environment)
    for _ in range(2):  # made, and found
        done = plant.framegate(*arguments)
        assert done.returncode == 0, done.stderr

    def with_larger_frames() -> tuple[str, ...]:
        larger = MAX_MESSAGE_BYTES + 1
        client = plant.client("judge")
        return ensure_topics(plant.servers, partitions=4, replication=1, max_message_bytes=larger, client=client)

    with pytest.raises(TopicError, match="takes records up to"):
        with_larger_frames()
    with without(plant, right("judge", ACLOperation.DESCRIBE_CONFIGS, TOPIC, "frames")):
        assert with_larger_frames() == (), "it cannot look"
    (told,) = [record.getMessage() for record in caplog.records if record.name == "consumer.topics"]
    assert "was not seen" in told
    assert "DescribeConfigs" in told


def test_a_zip_becomes_verdicts_over_tls_with_passwords_and_no_more_rights_than_needed(line: Plant) -> None:
    found = verdicts(line, FRAMES)
    assert len(found) == FRAMES
    found.sort(key=lambda verdict: verdict["source"]["offset"])  # one station lies in one partition
    assert [verdict["decision"] for verdict in found] == ["pass", "fail"] * (FRAMES // 2)


READ, WRITE, TOPIC = ACLOperation.READ, ACLOperation.WRITE, ResourceType.TOPIC


def right(user: str, operation: ACLOperation, kind: ResourceType, name: str, *, prefix: bool = False) -> ACL:
    how = ACLResourcePatternType.PREFIXED if prefix else ACLResourcePatternType.LITERAL
    return ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name, how))


def filter_of(acl: ACL) -> ACLFilter:
    pattern = acl.resource_pattern
    where = ResourcePatternFilter(pattern.resource_type, pattern.resource_name, pattern.pattern_type)
    return ACLFilter(acl.principal, acl.host, acl.operation, acl.permission_type, where)


@contextlib.contextmanager
def without(plant: Plant, acl: ACL, *, instead: ACL | None = None) -> Iterator[None]:
    """Take a right away for a moment; in its place another one."""
    admin = KafkaAdminClient(bootstrap_servers=plant.servers, **plant.client("admin-client"))
    try:
        ((_, gone, _),) = admin.delete_acls([filter_of(acl)])
        assert len(gone) == 1, "the page gave it, and once"
        admin.create_acls([] if instead is None else [instead])
        _await_acls(admin, {acl: 0} if instead is None else {acl: 0, instead: 1})
        yield
        admin.create_acls([acl])
        admin.delete_acls([] if instead is None else [filter_of(instead)])
        _await_acls(admin, {acl: 1} if instead is None else {acl: 1, instead: 0})
    finally:
        admin.close()


def _await_acls(admin: KafkaAdminClient, counts: dict[ACL, int]) -> None:
    """The controller takes a change at once; the broker's own authorizer goes by it a moment later."""
    end_s = time.monotonic() + WAIT_S
    while any(len(admin.describe_acls(filter_of(acl))[0]) != count for acl, count in counts.items()):
        assert time.monotonic() < end_s, counts
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("acl", "words"),
    [
        pytest.param(right("camera", WRITE, TOPIC, "frames"), "frames", id="camera-write-frames"),
        pytest.param(right("judge", READ, TOPIC, "frames"), "frames", id="judge-read-frames"),
        pytest.param(right("judge", READ, ResourceType.GROUP, "framegate"), "group's", id="judge-read-group"),
        pytest.param(right("judge", WRITE, TOPIC, "verdicts"), "verdicts", id="judge-write-verdicts"),
        pytest.param(
            right("judge", WRITE, ResourceType.TRANSACTIONAL_ID, "framegate-framegate-", prefix=True),
            "TransactionalIdAuthorizationFailed.*rights",
            id="judge-write-transactional-id",
        ),
    ],
)
def test_without_one_right_it_ends_with_one_line_that_says_so(line: Plant, acl: ACL, words: str) -> None:
    images, bundle = line.folder / "images", line.folder / "bundles" / "parts-1"
    with without(line, acl):
        done, took_s = timed(line, camera(line, images) if "camera" in acl.principal else consumer(line, bundle))
    assert done.returncode == 1, done.stderr
    assert re.search(words, the_error(done))
    assert took_s < REFUSED_S


def test_one_that_may_see_the_verdicts_and_not_write_them_ends_as_well(line: Plant) -> None:
    assert line.framegate(*camera(line, line.folder / "images" / "00.png")).returncode == 0
    acl = right("judge", WRITE, TOPIC, "verdicts")
    with without(line, acl, instead=right("judge", ACLOperation.DESCRIBE, TOPIC, "verdicts")):
        done = line.framegate(*consumer(line, line.folder / "bundles" / "parts-1"))
    assert done.returncode == 1, done.stderr
    assert "grant the right to transactional id" in the_error(done)
    assert "topic 'verdicts'" in the_error(done)


def test_without_the_right_to_write_dead_letters_frames_are_answered_all_the_same(line: Plant, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"no image")
    assert line.framegate(*camera(line, tmp_path)).returncode == 0
    port = free_port()
    with without(line, right("judge", WRITE, TOPIC, "frames.dead")), (tmp_path / "log").open("w") as log:
        arguments = [*consumer(line, line.folder / "bundles" / "parts-1"), "--bootstrap-servers", line.servers]
        process = subprocess.Popen(
            ["framegate", *map(str, arguments), "--http-port", str(port), "--idle-exit-s", "60"],
            cwd=line.folder,
            env=dict(line.environment),
            stdout=log,
            stderr=log,
        )
        try:
            end_s = time.monotonic() + WAIT_S
            while lost_letters(port) < 1:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end_s, (tmp_path / "log").read_text()
                time.sleep(0.2)
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait(20)
    assert [one["cause"] for one in verdicts(line, FRAMES + 1) if one["decision"] == "none"] == ["undecodable"]


def lost_letters(port: int) -> float:
    """Of the consumer at this port, whatever the reason; none while it does not answer."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        shown = answer.read().decode()
        return sum(map(float, re.findall(r"^framegate_dead_letter_errors_total\S* (\S+)$", shown, re.MULTILINE)))
    return 0.0


def test_a_gate_without_its_right_gets_nothing_and_its_client_logs_why(
    line: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"bootstrap_servers": line.servers, "auto_offset_reset": "earliest", "group_id": None}
    with without(line, right("gate", READ, TOPIC, "verdicts")):
        reader = KafkaConsumer("verdicts", **settings, **line.client("gate"))
        end_s = time.monotonic() + WAIT_S
        try:
            while "Topic verdicts is not authorized for this client" not in caplog.text:
                assert reader.poll(timeout_ms=1_000) == {}
                assert time.monotonic() < end_s, caplog.text
            assert reader.poll(timeout_ms=1_000) == {}
        finally:
            reader.close()


def test_a_reader_of_its_own_logs_in_and_one_with_a_group_may_have_a_name_for_it(line: Plant) -> None:
    """The page's lines for kafka-python, with and without a group; with one, only by the names that were given."""
    places = {"kafka-1:9093": line.servers, "/etc/framegate": line.folder}
    reader = block(PAGE, "reader", places)

    def read(group: str | None) -> subprocess.CompletedProcess[str]:
        more = f'"verdicts", group_id={group!r}, auto_offset_reset="earliest", consumer_timeout_ms=20_000,'
        script = reader.replace('"verdicts",', more) + "\nprint(next(reader).value.decode())\n"
        return subprocess.run(
            [sys.executable, "-c", script], cwd=line.folder, capture_output=True, text=True, check=False, timeout=WAIT_S
        )

    shell = block(PAGE, "rights", {"kafka-1:9093": line.servers}).partition("\n")[0]
    run(f"{shell}\n{block(PAGE, 'groups')}", line.folder, line.environment)
    for group in (None, "connect-verdicts-to-database", "gate-1"):
        done = read(group)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["decision"] in {"pass", "fail", "review", "none"}
    other = read("dashboard")
    assert other.returncode != 0
    assert "GroupAuthorizationFailed" in other.stderr
