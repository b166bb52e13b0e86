"""The chart's own command lines where nothing can be written but its volumes: frames judged, a bundle promoted.

A mount namespace stands in for the container: the root is read-only, and of the pod's mounts each is a folder of the
test's. What it cannot show is the user 10001, who may not read where this Python lies.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from consumer.broker import free_port
from consumer.children import bound_command
from engine.bundle import open_bundle, write_bundle
from tests.chart import ROOT, render
from tests.line import Line
from tests.lineups import bundle_of, jpegs
from tests.pages import commands
from tests.parts import parts_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chart import Manifest
    from tests.kafka_cluster import RunningBroker

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.timeout(3600)]

PATIENCE_S = 300.0
TRAINING_S = 900.0
FRAMES = 12
CONTAINED = """
mount --make-rprivate /
for place in $PLACES; do mount --bind "$place" "$place"; done
mount -o remount,ro,bind /
for place in $LOCKED; do mount -o remount,ro,bind "$place"; done
if touch "$ELSEWHERE" 2>/dev/null; then echo "the root can be written to" >&2; exit 99; fi
exec "$@"
"""


class Volumes:
    """A folder of the test's for each path at which a container has a volume."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, container: Manifest) -> dict[str, Path]:
        """Path in the container -> folder; of the same path it is the same in every container."""
        places = {}
        for mount in container["volumeMounts"]:
            places[mount["mountPath"]] = self._root / mount["mountPath"].strip("/").replace("/", "-")
            places[mount["mountPath"]].mkdir(parents=True, exist_ok=True)
        return places

    def run(self, container: Manifest, log: Path, **changed: str) -> subprocess.Popen[bytes]:
        """Start what the container starts; `changed` has options in the place of its own, by their names."""
        places = self.of(container)

        def here(word: str) -> str:
            for path, place in places.items():
                word = re.sub(rf"(^|=){path}(?=/|$)", rf"\g<1>{place}", word)
            return word

        words = [here(word).replace("$(POD_NAME)", "plant-framegate-0") for word in container.get("args", [])]
        for name, value in changed.items():
            words = [f"--{name}={value}" if word.startswith(f"--{name}=") else word for word in words]
        locked = [places[mount["mountPath"]] for mount in container["volumeMounts"] if mount.get("readOnly")]
        env = {variable["name"]: here(variable["value"]) for variable in container["env"] if "value" in variable}
        env |= {
            "PATH": commands(self._root / "bin")["PATH"],
            "PYTHONPATH": str(ROOT),
            "PLACES": " ".join(map(str, places.values())),
            "LOCKED": " ".join(map(str, locked)),
            "ELSEWHERE": str(self._root / "elsewhere"),
        }
        unshare = ["/usr/bin/env", "unshare", "--mount", "sh", "-ec", CONTAINED, "sh"]
        program = container.get("command", [sys.executable, "-m", "framegate"])
        with log.open("wb") as out:
            return subprocess.Popen(
                bound_command([*unshare, *program, *words]),
                env=env,
                cwd=ROOT,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


@pytest.fixture
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Volumes:
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", "mount --make-rprivate /; mount -o remount,ro,bind /"],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here: util-linux brings it")
    if done.returncode != 0:
        pytest.skip(f"this process may make no read-only root: {done.stderr.decode().strip()}; root may")
    return Volumes(tmp_path_factory.mktemp("v"))  # a short path: a socket's may have 107 characters


def test_the_consumer_writes_nothing_but_into_its_volumes(
    embedded_broker: RunningBroker, volumes: Volumes, tmp_path: Path, unique: str
) -> None:
    container = render(
        "cpu-small.yaml",
        kafka__bootstrapServers=embedded_broker.bootstrap_servers.split(","),
        kafka__group=unique,
        kafka__topics={"frames": f"frames-{unique}", "verdicts": f"verdicts-{unique}", "dead": f"dead-{unique}"},
        bundle__location="/bundles/parts.zip",
        bundle__claim="models",
        consumer__workers=2,
        consumer__delivery="at-least-once",
        consumer__extraArgs=["--engine-process=shared", "--backend=onnxruntime"],  # as on a GPU: sockets and memory
    ).consumer
    write_bundle(volumes.of(container)["/bundles"] / "parts.zip", bundle_of(1))
    images, log = tmp_path / "images", tmp_path / "log"
    images.mkdir()
    for number, payload in enumerate(jpegs(FRAMES)):
        (images / f"{number:02}.jpg").write_bytes(payload)
    with Line(embedded_broker.bootstrap_servers, tmp_path / "line", unique, partitions=12) as line:
        line.port = free_port()
        process = volumes.run(container, log, **{"http-port": str(line.port)})
        try:
            end_s = time.monotonic() + PATIENCE_S
            while not line._ready():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end_s, log.read_text()
                time.sleep(0.1)
            line.cameras({"press-1": images})
            verdicts = line.collect(FRAMES)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert {verdict["decision"] for verdict in verdicts} <= {"pass", "fail", "review"}
    assert "Traceback" not in log.read_text()


def test_a_bundle_is_trained_verified_and_promoted_by_the_jobs(volumes: Volumes, tmp_path: Path) -> None:
    made = render(
        "secured-kafka.yaml",
        promote__enabled=True,
        training__source="/bundles/images",
        training__args=[
            "--size=64x64",
            "--taps=2,4",
            "--no-report",
            "--fail-class=scratched",
            "--groups=/bundles/images/groups.csv",
        ],
    )
    training, promote = made.pods["training"]["containers"][0], made.pods["promote"]
    place = volumes.of(training)["/bundles"]
    parts_folder(place / "images", good=16, scratched=16, lots=8)
    (place / "parts.zip").write_bytes(b"the one before")
    for number, container in enumerate([training, *promote["initContainers"], *promote["containers"]]):
        log = tmp_path / f"{number}.log"
        process = volumes.run(container, log)
        try:
            assert process.wait(TRAINING_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
        if container is not promote["containers"][0]:
            assert (place / "parts.zip").read_bytes() == b"the one before"
    assert open_bundle(place / "parts.zip").digest == open_bundle(place / "candidates" / "parts-1.zip").digest
    assert any((volumes.of(training)["/scratch"] / "features").iterdir()), "what an interrupted training goes on with"
