"""Training on Spark with real executor processes: the same digest as here, also where some of them are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil
import pytest

from tests.spark_cluster import (
    EXECUTOR,
    MASTER,
    ROOT,
    START_S,
    WORKER,
    executors_started,
    kill,
    processes_below,
    spark_environment,
    wait_for_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.object_stores import ObjectStore

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

PER_CLASS = 64
FEW = 12
PARTS = 8
"""Two executors of one core, four parts each."""

LARGE_PX = (6000, 4000)
"""Of one image in each part: it takes half a second to decode, so that there is time to kill somebody meanwhile."""


@pytest.fixture(scope="module")
def images(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real images, some of them enlarged, with one file that is none."""
    folder = tmp_path_factory.mktemp("pcb")
    for label in ("fail", "good"):
        (folder / label).mkdir()
        for index, path in enumerate(sorted((shared_data / "data" / "pcb" / label).iterdir())[:PER_CLASS]):
            if index % (2 * PER_CLASS // PARTS) == 5:
                large = cv2.resize(np.asarray(cv2.imread(str(path))), LARGE_PX, interpolation=cv2.INTER_NEAREST)
                cv2.imwrite(str(folder / label / f"{path.stem}.png"), large, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            else:
                (folder / label / path.name).write_bytes(path.read_bytes())
    (folder / "good" / "broken.jpg").write_bytes(b"not an image")
    return folder


def command(images: Path | str, out: Path, *options: str) -> list[str]:
    script = "import framegate; framegate.main()"
    fixed = ["--size=96x96", "--taps=4,7", "--json"]
    return [sys.executable, "-c", script, "train", str(images), "--out", str(out), *fixed, *options]


@pytest.fixture(scope="module")
def here(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What training on this machine prints."""
    out = tmp_path_factory.mktemp("here") / "bundle"
    done = subprocess.run(command(images, out), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return spark_environment(tmp_path / "tmp")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Trainings of a test; whatever of them still runs at its end is ended, each process by its own id."""
    trainings: list[subprocess.Popen[str]] = []
    yield trainings
    for training in trainings:
        if training.poll() is None:
            below = psutil.Process(training.pid).children(recursive=True)
            training.kill()
            for process in below:
                if process.is_running():
                    process.kill()
        training.communicate()


def begin(
    images: Path | str, out: Path, environment: dict[str, str], started: list[subprocess.Popen[str]]
) -> subprocess.Popen[str]:
    told = command(images, out, "--on=spark", f"--master={MASTER}")
    training = subprocess.Popen(
        told, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started.append(training)
    return training


def summary_of(training: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = training.communicate(timeout=START_S)
    assert training.returncode == 0, stderr
    assert stderr == ""  # neither Spark nor the JVM says anything
    summary: dict[str, Any] = json.loads(stdout)
    return summary


def test_executors_that_are_killed_change_nothing(
    images: Path,
    here: dict[str, Any],
    tmp_path: Path,
    environment: dict[str, str],
    started: list[subprocess.Popen[str]],
) -> None:
    out = tmp_path / "out" / "bundle"
    training = begin(images, out, environment, started)
    shared = tmp_path / "out" / "bundle.spark"
    wait_for_parts(shared, 1)
    executor, *_ = processes_below(training.pid, EXECUTOR)
    kill(executor)
    *_, python = processes_below(training.pid, WORKER)  # the last is a worker, not the process that starts them
    kill(python)
    assert len(wait_for_parts(shared, 1)) < PARTS  # it was killed on the way
    summary = summary_of(training)
    assert executors_started(environment) > 2
    assert summary["digest"] == here["digest"]
    assert summary["skipped"] == here["skipped"]
    assert summary["held_out"] == here["held_out"]
    assert not shared.exists()


def test_a_training_that_is_killed_goes_on_with_the_parts_that_are_there(
    images: Path,
    here: dict[str, Any],
    tmp_path: Path,
    environment: dict[str, str],
    started: list[subprocess.Popen[str]],
) -> None:
    out = tmp_path / "out" / "bundle"
    training = begin(images, out, environment, started)
    shared = tmp_path / "out" / "bundle.spark"
    wait_for_parts(shared, 2)
    below = psutil.Process(training.pid).children(recursive=True)
    training.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []  # the JVMs end with the training
    parts = {path: path.stat().st_mtime_ns for path in wait_for_parts(shared, 2)}
    assert len(parts) < PARTS

    again = begin(images, out, environment, started)
    while again.poll() is None:
        kept = {path: path.stat().st_mtime_ns for path in parts if path.exists()}
        if not kept:
            break  # the bundle is written
        assert kept == parts
        time.sleep(0.1)
    assert summary_of(again)["digest"] == here["digest"]


def test_executors_read_from_an_object_store_by_its_keys_in_their_environment(
    shared_data: Path,
    object_store: ObjectStore,
    unique: str,
    tmp_path: Path,
    environment: dict[str, str],
    started: list[subprocess.Popen[str]],
) -> None:
    folder = tmp_path / "images"
    files = {
        f"{label}/{path.name}": path.read_bytes()
        for label in ("fail", "good")
        for path in sorted((shared_data / "data" / "pcb" / label).iterdir())[:FEW]
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    done = subprocess.run(command(folder, tmp_path / "here"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    url = object_store.put(unique, files)
    summary = summary_of(begin(url, tmp_path / "out" / "bundle", {**environment, **object_store.env()}, started))
    assert executors_started(environment) == 2
    assert summary["digest"] == json.loads(done.stdout)["digest"]
