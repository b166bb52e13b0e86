"""TLS and SASL to a real Apache Kafka, through the commands as an operator runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from consumer.verdict_reader import VerdictReader
from engine.bundle import write_bundle
from tests.certificates import Authority
from tests.kafka_cluster import ApacheKafka, started
from tests.lineups import bundle_of, jpegs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.apache, pytest.mark.slow, pytest.mark.usefixtures("dropped_sockets")]

USER, PASSWORD = "framegate", "s3cret-of-the-line"
KEY_PASSWORD = "s3cret-of-the-key"
FRAMES = 12
REFUSED_S = 15.0


@dataclass(frozen=True)
class Plant:
    """A broker with locked doors, and the keys to them."""

    cluster: ApacheKafka
    folder: Path
    bundle: Path
    trusted: Path
    untrusted: Path
    certificate: Path
    key: Path

    def config(self, name: str, lines: dict[str, object]) -> Path:
        path = self.folder / f"{name}.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        return path

    def sasl(self, mechanism: str, **changes: object) -> dict[str, object]:
        basics = {"security.protocol": "SASL_SSL", "ssl.ca.location": self.trusted, "sasl.mechanism": mechanism}
        return {**basics, "sasl.username": USER, "sasl.password": PASSWORD, **changes}

    def mtls(self) -> dict[str, object]:
        ours = {"ssl.certificate.location": self.certificate, "ssl.key.location": self.key}
        return {"security.protocol": "SSL", "ssl.ca.location": self.trusted, **ours}


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    authority, other = Authority(folder, "authority"), Authority(folder, "other")
    certificate, key = authority.sign("broker")
    store = folder / "broker-store.pem"
    store.write_text(key.read_text() + certificate.read_text())
    jaas = "org.apache.kafka.common.security"
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": store,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority.certificate,
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.sasl.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{jaas}.scram.ScramLoginModule required;",
        "listener.name.sasl.plain.sasl.jaas.config": (
            f'{jaas}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
    }
    cluster = ApacheKafka(1, folder / "kafka", settings=settings, secure={"SASL": "SASL_SSL", "MTLS": "SSL"})
    write_bundle(folder / "bundle", bundle_of(1))
    images = folder / "images"
    images.mkdir()
    for number, payload in enumerate(jpegs(FRAMES)):
        (images / f"{number:02}.jpg").write_bytes(payload)
    client, client_key = authority.sign("line")
    locked = folder / "line-locked.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", client_key, "-out", locked, "-passout", f"pass:{KEY_PASSWORD}"],
        check=True,
        capture_output=True,
        timeout=30,
    )
    with started(cluster):
        admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        credential = UserScramCredentialUpsertion(USER, ScramMechanism.SCRAM_SHA_512, PASSWORD)
        admin.alter_user_scram_credentials([credential])
        admin.close()
        yield Plant(cluster, folder, folder / "bundle", authority.certificate, other.certificate, client, locked)


def framegate(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "framegate", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, **(env or {})},
    )


def no_secret(text: str) -> bool:
    return PASSWORD not in text and KEY_PASSWORD not in text


@pytest.mark.parametrize("way", ["scram", "plain", "mtls"])
def test_topics_camera_and_consumer_through_a_locked_door(plant: Plant, way: str, unique: str, tmp_path: Path) -> None:
    """The password comes from a variable, from a file of its own, and the key's from the client file itself."""
    env = {}
    if way == "scram":
        env = {"LINE_PASSWORD": PASSWORD}
        lines = plant.sasl("SCRAM-SHA-512", **{"sasl.password": "${LINE_PASSWORD}"})
    elif way == "plain":
        (plant.folder / "password").write_text(f"{PASSWORD}\n")
        lines = plant.sasl("PLAIN")
        del lines["sasl.password"]
        lines["sasl.password.file"] = "password"
    else:
        lines = {**plant.mtls(), "ssl.key.password": KEY_PASSWORD}
    config = plant.config(way, lines)
    servers = plant.cluster.secure_servers("MTLS" if way == "mtls" else "SASL")
    names = ["--frames-topic", f"f-{unique}", "--bootstrap-servers", servers, "--client-config", config]
    others = ["--verdicts-topic", f"v-{unique}", "--dead-topic", f"d-{unique}"]
    said = ""
    for command in (
        ["topics", "create", "--partitions", 2, *names, *others],
        ["camera", plant.folder / "images", "--station", "a", "--station", "b", "--rate", 0, *names],
        ["topics", "check", *names, *others],
    ):
        done = framegate(*command, env=env)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    ways: list[object] = ["--bundle", plant.bundle, "--workers", "2", "--http-port", "-1", "--idle-exit-s", "3"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "framegate", *map(str, ["run", *names, *others, "--group", unique, *ways])],
            stdout=log,
            stderr=log,
            env={**os.environ, **env},
        )
        shown = command_lines(process)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    said += (tmp_path / "log").read_text()
    assert verdicts(plant, f"v-{unique}") == 2 * FRAMES
    assert "judging" in said
    assert no_secret(said)
    assert len(shown) >= 3, "the workers were seen"
    assert all(map(no_secret, shown))


def verdicts(plant: Plant, topic: str) -> int:
    """How many there are, read through the open door."""
    found = 0
    with VerdictReader(plant.cluster.bootstrap_servers, topic) as reader:
        while more := len(reader.poll(2.0)):
            found += more
    return found


def refusals(plant: Plant) -> dict[str, tuple[str, dict[str, object], str]]:
    """By name: the listener, the client's settings, and what is to be said of it."""
    wrong = {"sasl.password": "not-it"}
    doubtful = {"ssl.ca.location": plant.untrusted}
    return {
        "wrong SCRAM password": ("SASL", plant.sasl("SCRAM-SHA-512", **wrong), "uthentication"),
        "wrong PLAIN password": ("SASL", plant.sasl("PLAIN", **wrong), "uthentication"),
        "untrusted broker": ("SASL", plant.sasl("PLAIN", **doubtful), "CERTIFICATE_VERIFY_FAILED"),
        "no certificate": ("MTLS", {"security.protocol": "SSL", "ssl.ca.location": plant.trusted}, "certificate"),
        "wrong key password": ("MTLS", {**plant.mtls(), "ssl.key.password": "not-it"}, "the key with its password"),
        "no TLS": ("SASL", {"security.protocol": "PLAINTEXT"}, "security settings"),
    }


@pytest.mark.parametrize(
    ("what", "commands"),
    [
        ("wrong SCRAM password", ("check", "camera", "run")),
        ("wrong PLAIN password", ("run",)),
        ("untrusted broker", ("check", "camera", "run")),
        ("no certificate", ("check", "run")),
        ("wrong key password", ("run",)),
        ("no TLS", ("check",)),
    ],
)
def test_a_door_that_stays_shut_is_one_line_and_soon(plant: Plant, what: str, commands: tuple[str, ...]) -> None:
    listener, lines, words = refusals(plant)[what]
    client = ["--bootstrap-servers", plant.cluster.secure_servers(listener)]
    client += ["--client-config", str(plant.config("refused", lines))]
    verbs: dict[str, list[object]] = {
        "check": ["topics", "check"],
        "camera": ["camera", plant.folder / "images", "--station", "a"],
        "run": ["run", "--bundle", plant.bundle, "--workers", "2", "--http-port", "-1"],
    }
    for command in commands:
        began_s = time.monotonic()
        done = framegate(*verbs[command], *client)
        took_s = time.monotonic() - began_s
        assert done.returncode == 1, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(errors) == 1, done.stderr
        assert "error: " in errors[0]
        assert words in errors[0], command
        assert no_secret(done.stdout + done.stderr)
        assert "not-it" not in done.stderr
        assert took_s < REFUSED_S, command


def command_lines(process: subprocess.Popen[bytes]) -> set[str]:
    """What `ps` shows of the consumer and its workers while they run."""
    shown = set()
    end_s = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end_s:
        try:
            parent = psutil.Process(process.pid)
            shown |= {f"{one.pid} {' '.join(one.cmdline())}" for one in (parent, *parent.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.2)
    return shown
