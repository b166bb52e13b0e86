"""The line on one machine: the compose file as Docker Compose reads it, and its services' commands run.

There is no container engine here. Docker Compose's own loader reads the file and holds it to the compose specification
(`tests/deploy/go/composecheck`); the services of Framegate's own image are run in its root (`tests.image_root`),
with their own command lines, on an Apache Kafka with the compose file's settings.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from consumer.broker import free_port
from consumer.config import Settings
from consumer.supervision import KILL_S
from consumer.topics import MAX_MESSAGE_BYTES, check_topics
from consumer.verdict_reader import VerdictReader
from consumer.workers import STOP_SPARE_S
from tests.command_lines import read_command_line
from tests.go_tools import go_tool
from tests.kafka_cluster import ApacheKafka, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.image_root import BuiltImage

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FILE = DEPLOY / "compose.yaml"
OWN = ("topics", "trainer", "consumer", "consumer-gpu", "cameras")
STATIONS = ("press-1", "mould-2", "cast-3", "plate-4")
ADDRESSES = {
    "node.id",
    "process.roles",
    "controller.quorum.voters",
    "controller.listener.names",
    "listeners",
    "advertised.listeners",
    "listener.security.protocol.map",
    "inter.broker.listener.name",
    "log.dirs",
}
"""Settings of the broker that say where it is, which is elsewhere in a test."""
FRAMES_EACH = 10
PATIENCE_S = 240.0
QUICK_S = 5.0
"""Training takes longer."""

pytestmark = [pytest.mark.deploy, pytest.mark.slow]  # Docker Compose's loader is compiled once


def compose(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What Docker Compose makes of these arguments, with nothing of our own environment but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "TRAIN_"))}
    command = [go_tool("composecheck"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**inherited, **environment})


def project(*arguments: str, **environment: str) -> dict[str, Any]:
    done = compose(*arguments, FILE, **environment)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Every service, of all profiles."""
    found: dict[str, Any] = project("--profile", "*")["services"]
    return found


def test_one_consumer_runs_on_the_processor_or_on_the_gpu() -> None:
    others = {"kafka", "topics", "trainer", "cameras", "prometheus", "grafana"}
    assert project()["services"].keys() == others | {"consumer"}
    assert project("--profile", "gpu")["services"].keys() == others | {"consumer-gpu"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("read_only: true", "readonly: true", "readonly false schema"),
        ("condition: service_healthy", "condition: healthy", "value must be one of"),
        ('"data:/data:ro"', '"date:/data:ro"', "undefined volume date"),
    ],
)
def test_what_the_specification_does_not_know_is_found(old: str, new: str, expected: str, tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(FILE.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    done = compose("--profile", "*", broken)
    assert done.returncode == 1
    assert expected in done.stderr


def test_images_are_named_by_exact_version(services: Mapping[str, Any]) -> None:
    root = DEPLOY.parent
    for name, service in services.items():
        if name in OWN:
            assert service["image"] == f"framegate:{service['build']['target']}"
            assert service["build"]["context"] == str(root)
        else:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
    jars = re.search(r"<kafka\.version>([^<]+)<", (root / "tests/integration/pom.xml").read_text(encoding="utf-8"))
    assert jars is not None
    assert services["kafka"]["image"] == f"apache/kafka:{jars[1]}", "not the Kafka that the tests run on"
    board = re.search(
        r"grafana-foundation-sdk==\d+!(\d+\.\d+)\.", (root / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert board is not None
    assert services["grafana"]["image"].startswith(f"grafana/grafana:{board[1]}."), "not the Grafana of the board"


def test_everything_listens_on_loopback_alone(services: Mapping[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["published"] for port in ports} == {"3000", "9090", "9108", "29092"}
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_what_stays_up_is_asked_how_it_is(services: Mapping[str, Any]) -> None:
    """The consumer's check is its image's; a camera serves nothing that could be asked."""
    for name, service in services.items():
        check = service.get("healthcheck") or {}
        if name.startswith("consumer"):
            assert not check
        elif name in OWN:
            assert check == {"disable": True}
        else:
            assert check["test"][0] == "CMD"


def test_services_wait_for_what_they_need(services: Mapping[str, Any]) -> None:
    for name, service in services.items():
        for other, need in (service.get("depends_on") or {}).items():
            ends = other in {"topics", "trainer"}
            expected = "service_completed_successfully" if ends else "service_healthy"
            assert need["condition"] == expected, f"{name} -> {other}"
            # What is on for one profile only cannot be required.
            assert need["required"] is not bool(services[other].get("profiles")), f"{name} -> {other}"
    for name in ("consumer", "consumer-gpu"):
        assert services[name]["depends_on"].keys() == {"topics", "trainer"}
    assert services["topics"]["depends_on"].keys() == {"kafka"}


def test_our_own_containers_may_do_little(services: Mapping[str, Any]) -> None:
    for name in OWN:
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["tmpfs"] == ["/tmp"], name  # noqa: S108 - the container's own
        assert "privileged" not in service, name


def test_a_stop_leaves_time_to_drain(services: Mapping[str, Any]) -> None:
    page = " ".join((DEPLOY / "README.md").read_text(encoding="utf-8").split())
    stop_s = Settings(bundle="not-looked-at").drain_s + STOP_SPARE_S
    # On a GPU the engine that workers share has the same again after them. What hangs is killed, and waited for.
    for name, longest_s, told in (
        ("consumer", stop_s, "grace of {} s,"),
        ("consumer-gpu", 2 * stop_s, "on a GPU of {} s,"),
    ):
        grace = re.fullmatch(r"(?:(\d+)m)?(\d+)s", services[name]["stop_grace_period"])
        assert grace is not None
        grace_s = 60 * int(grace[1] or 0) + int(grace[2])
        assert grace_s > longest_s + KILL_S
        assert told.format(grace_s) in page


def command_lines(service: Mapping[str, Any]) -> list[list[str]]:
    """What a service calls `framegate` with: as its entrypoint, or line by line in a shell."""
    if service.get("entrypoint"):
        lines = service["command"][0].splitlines()
        return [shlex.split(line)[1:] for line in lines if line.split()[:1] == ["framegate"]]
    return [service["command"]]


@pytest.mark.parametrize("name", OWN)
def test_every_command_line_is_one_of_framegates(services: Mapping[str, Any], name: str) -> None:
    lines = command_lines(services[name])
    assert lines
    for line in lines:
        read_command_line(line)
    with pytest.raises(click.UsageError):
        read_command_line([*lines[0], "--no-such-option"])


def test_what_a_service_mounts_is_declared_and_used_alike(services: Mapping[str, Any]) -> None:
    targets: dict[str, set[str]] = {}
    for service in services.values():
        for volume in service.get("volumes", []):
            if volume["type"] == "volume":
                targets.setdefault(volume["source"], set()).add(volume["target"])
    assert targets == {
        "kafka": {"/var/lib/kafka/data"},
        "data": {"/data"},
        "cache": {"/var/cache/framegate"},
        "cache-gpu": {"/var/cache/framegate"},
        "prometheus": {"/prometheus"},
        "grafana": {"/var/lib/grafana"},
    }


def test_every_mounted_file_is_there(services: Mapping[str, Any]) -> None:
    """Folders of this one, whole and read-only; and what the services are told to read in them."""
    mounts = {
        volume["target"]: Path(volume["source"])
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    }
    assert mounts == {"/etc/prometheus": DEPLOY / "prometheus", "/etc/framegate": DEPLOY / "grafana"}
    told = [option.partition("=")[2] for option in services["prometheus"]["command"] if "config.file" in option]
    grafana = services["grafana"]["environment"]
    told += [grafana["GF_PATHS_PROVISIONING"], grafana["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]]
    (provider,) = (DEPLOY / "grafana/provisioning/dashboards").glob("*.yaml")
    told += re.findall(r"path: (\S+)", provider.read_text(encoding="utf-8"))
    rules = re.findall(r"^ *- (\S+\.yaml)$", (DEPLOY / "prometheus/prometheus.yaml").read_text("utf-8"), re.MULTILINE)
    assert rules
    told += [f"/etc/prometheus/{name}" for name in rules]
    for inner in told:
        (outer,) = [
            Path(inner.replace(there, str(here), 1)) for there, here in mounts.items() if inner.startswith(there)
        ]
        assert outer.exists(), f"{inner} would be missing: there is no {outer}"


def test_prometheus_looks_for_the_consumers_where_they_are(services: Mapping[str, Any]) -> None:
    text = (DEPLOY / "prometheus/prometheus.yaml").read_text(encoding="utf-8")
    names = re.search(r"names: \[([^\]]+)\]", text)
    port = re.search(r"port: (\d+)", text)
    assert names is not None
    assert port is not None
    assert {name.strip() for name in names[1].split(",")} == {name for name in services if name.startswith("consumer")}
    for name in ("consumer", "consumer-gpu"):
        assert [entry["target"] for entry in services[name]["ports"]] == [int(port[1])]
        assert services[name]["command"][-2:] == ["--http-host", "0.0.0.0"]  # noqa: S104 - the container's own


def broker_settings(service: Mapping[str, Any]) -> dict[str, str]:
    """The broker's properties as the image apache/kafka makes them of its environment, without its addresses."""
    given = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in service["environment"].items()
        if name.startswith("KAFKA_")
    }
    assert given.keys() >= ADDRESSES
    return {name: value for name, value in given.items() if name not in ADDRESSES}


@pytest.fixture(scope="module")
def cluster(services: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    made = ApacheKafka(1, tmp_path_factory.mktemp("compose-kafka"), settings=broker_settings(services["kafka"]))
    with started(made):
        yield made


def described(cluster: ApacheKafka, resource: ConfigResource) -> dict[str, dict[str, Any]]:
    """All settings of a broker or a topic."""
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    try:
        answer = admin.describe_configs([resource], config_filter="all")
    finally:
        admin.close()
    (settings,) = next(iter(answer.values())).values()
    return dict(settings)


@pytest.mark.apache
def test_every_setting_is_one_of_kafkas_and_is_taken(services: Mapping[str, Any], cluster: ApacheKafka) -> None:
    taken = described(cluster, ConfigResource(ConfigResourceType.BROKER, "1", None))
    for name, value in broker_settings(services["kafka"]).items():
        assert name in taken, f"Kafka knows no {name}"
        assert taken[name]["value"] == value, name


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.apache
@pytest.mark.timeout(1800)  # makes the image where no other test has
def test_the_services_make_topics_a_bundle_and_verdicts(
    cpu_image: BuiltImage, cluster: ApacheKafka, tmp_path: Path
) -> None:
    own = project("--profile", "*", TRAIN_IMAGES="12")["services"]
    tmp_path.chmod(0o755)
    data, port = tmp_path / "data", free_port()
    data.mkdir()
    os.chown(data, 10001, 10001)  # as the volume gets it from /data of the image

    def arguments(name: str) -> list[str]:
        """The service's own command, with this test's broker."""
        there = [text.replace("kafka:9092", cluster.bootstrap_servers) for text in own[name]["command"]]
        return ["127.0.0.1" if text == "0.0.0.0" else text for text in there]  # noqa: S104 - what is not used here

    made = cpu_image.run(arguments("topics"))
    assert made.returncode == 0, made.stderr
    topics = check_topics(cluster.bootstrap_servers, ["frames", "verdicts", "frames.dead"]).topics
    assert {topic.partitions for topic in topics.values()} == {12}
    largest = described(cluster, ConfigResource(ConfigResourceType.TOPIC, "frames", None))["max.message.bytes"]
    assert largest["value"] == str(MAX_MESSAGE_BYTES)
    assert cpu_image.run(arguments("topics")).stdout.count("was there") == 3, "a second `up` changes nothing"

    mounts = {"/data": data}
    for again in (False, True):
        began_s = time.monotonic()
        trained = cpu_image.run(
            arguments("trainer"), mounts=mounts, writable=["/data"], entrypoint=own["trainer"]["entrypoint"]
        )
        assert trained.returncode == 0, trained.stderr
        assert not again or time.monotonic() - began_s < QUICK_S, "a second `up` trains again"
    assert {path.name for path in (data / "stations").iterdir()} == set(STATIONS)

    environment = [f"FRAMEGATE_HTTP_PORT={port}"]
    kind, *check = cpu_image.plan.config["Healthcheck"]["Test"]
    assert kind == "CMD"

    def healthy() -> bool:
        return cpu_image.run(check, entrypoint=[], environment=environment).returncode == 0

    assert not healthy(), "nothing runs yet"
    log = tmp_path / "consumer.log"
    command = cpu_image.command(arguments("consumer"), mounts=mounts, environment=environment)
    deadline_s = time.monotonic() + PATIENCE_S
    with running(command, log) as consumer:
        while not healthy():
            assert consumer.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.2)
        with VerdictReader(cluster.bootstrap_servers) as reader:
            sent = cpu_image.run([*arguments("cameras"), f"--count={FRAMES_EACH}"], mounts=mounts)
            assert sent.returncode == 0, sent.stderr
            verdicts: list[dict[str, Any]] = []
            while len(verdicts) < FRAMES_EACH * len(STATIONS):
                verdicts += reader.poll(0.5)
                assert time.monotonic() < deadline_s, f"{len(verdicts)} verdicts; {log.read_text()[-3000:]}"
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(45) == 0, log.read_text()[-3000:]
    counts = {station: sum(verdict["station"] == station for verdict in verdicts) for station in STATIONS}
    assert counts == dict.fromkeys(STATIONS, FRAMES_EACH)
    assert {verdict["model"]["name"] for verdict in verdicts} == {"line"}
    assert {verdict["decision"] for verdict in verdicts} <= {"pass", "fail", "review"}
