"""The chart's own command line where nothing can be written but its volumes: judged frames, an orderly end.

A mount namespace stands in for the container: the root is read-only, and of the pod's mounts each is a folder of the
test's. What it cannot show is the user 10001, who may not read where this Python lies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from consumer.broker import free_port
from consumer.children import bound_command
from engine.bundle import write_bundle
from tests.chart import ROOT, render
from tests.line import Line
from tests.lineups import bundle_of, jpegs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kafka_cluster import RunningBroker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PATIENCE_S = 120.0
FRAMES = 12
CONTAINED = """
mount --make-rprivate /
for place in $PLACES; do mount --bind "$place" "$place"; done
mount -o remount,ro,bind /
for place in $LOCKED; do mount -o remount,ro,bind "$place"; done
if touch "$ELSEWHERE" 2>/dev/null; then echo "the root can be written to" >&2; exit 99; fi
exec "$@"
"""


def may_mount() -> bool:
    """Whether this process may make a mount namespace and a read-only root in it."""
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", "mount --make-rprivate /; mount -o remount,ro,bind /"],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


def test_nothing_is_written_but_into_the_pod_s_volumes(
    embedded_broker: RunningBroker, tmp_path: Path, unique: str
) -> None:
    if not may_mount():
        pytest.skip("needs a mount namespace with a read-only root: root, and unshare and mount of util-linux")
    made = render(
        "cpu-small.yaml",
        kafka__bootstrapServers=embedded_broker.bootstrap_servers.split(","),
        kafka__group=unique,
        kafka__topics={"frames": f"frames-{unique}", "verdicts": f"verdicts-{unique}", "dead": f"dead-{unique}"},
        bundle__location="/bundles/parts.zip",
        bundle__claim="models",
        consumer__workers=2,
        consumer__delivery="at-least-once",
        consumer__extraArgs=["--engine-process=shared", "--backend=onnxruntime"],  # as on a GPU: sockets and memory
    )
    mounts = {mount["mountPath"]: mount for mount in made.consumer["volumeMounts"]}
    places = {path: tmp_path / "volumes" / path.strip("/").replace("/", "-") for path in mounts}
    for place in places.values():
        place.mkdir(parents=True)
    write_bundle(places["/bundles"] / "parts.zip", bundle_of(1))

    def here(word: str) -> str:
        for path, place in places.items():
            word = word.replace(path, str(place))
        return word

    port = free_port()
    words = [here(word).replace("$(POD_NAME)", "plant-framegate-0") for word in made.consumer["args"]]
    words = [f"--http-port={port}" if word.startswith("--http-port=") else word for word in words]
    locked = [str(places[path]) for path, mount in mounts.items() if mount.get("readOnly")]
    env = {
        **{variable["name"]: here(variable["value"]) for variable in made.consumer["env"] if "value" in variable},
        "PATH": os.environ["PATH"],
        "PLACES": " ".join(map(str, places.values())),
        "LOCKED": " ".join(locked),
        "ELSEWHERE": str(tmp_path / "elsewhere"),
    }
    assert locked == [str(places["/bundles"])]
    unshare = ["/usr/bin/env", "unshare", "--mount", "sh", "-ec", CONTAINED, "sh"]
    command = bound_command([*unshare, sys.executable, "-m", "framegate", *words])
    images = tmp_path / "images"
    images.mkdir()
    for number, payload in enumerate(jpegs(FRAMES)):
        (images / f"{number:02}.jpg").write_bytes(payload)
    log = tmp_path / "log"
    with (
        Line(embedded_broker.bootstrap_servers, tmp_path / "line", unique, partitions=12) as line,
        log.open("wb") as out,
    ):
        line.port = port
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
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
    assert not (tmp_path / "elsewhere").exists()
