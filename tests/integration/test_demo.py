"""The demo, small: it ends by itself with one verdict per frame, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.parts import parts_folder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

SMALL = ["--train-images", "20", "--frames", "12", "--rate", "20"]


def demo(*options: str, temp: Path) -> subprocess.Popen[str]:
    temp.mkdir(exist_ok=True)
    # A test run in the background of a shell ignores Ctrl-C, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "framegate", "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temp)},
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a demo that trains in a moment, for what has nothing to do with its images: a frame a minute and station."""
    parts = parts_folder(tmp_path_factory.mktemp("parts"), good=24, scratched=24, lots=4)
    return ["--data", str(parts), "--rate", str(1 / 60)]


def test_ends_by_itself_with_a_summary(tmp_path: Path) -> None:
    with demo(*SMALL, "--json", "--seed", "1", temp=tmp_path / "temp") as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert {"frames", "verdicts", "decisions", "accuracy", "auroc", "latency_ms", "seconds"} <= set(summary)
    assert summary["frames"] == summary["verdicts"] == 48
    assert sum(summary["decisions"].values()) == 48
    assert set(summary["latency_ms"]["total"]) == {"p50", "p99"}
    assert len(summary["stations"]) == 4
    assert "judging frames" in err
    assert list((tmp_path / "temp").iterdir()) == []


def test_runs_on_the_users_own_zip(tmp_path: Path, shared_data: Path) -> None:
    archive = tmp_path / "animals.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for label in ("good", "fail"):
            for path in sorted((shared_data / "data" / "catdog" / label).iterdir())[:40]:
                file.write(path, path.name)  # flat: cat.N.jpg and dog.N.jpg
    keep = tmp_path / "kept"
    with demo("--data", str(archive), "--json", "--rate", "20", "--keep", str(keep), temp=tmp_path / "temp") as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["frames"] == summary["verdicts"] == 20  # the quarter that was held out
    assert summary["auroc"] > 0.9
    assert (keep / "bundle" / "manifest.json").is_file()
    shutil.rmtree(keep)


def _tree(process: subprocess.Popen[str], name: str, timeout_s: float = 120) -> list[psutil.Process]:
    """All processes below the demo, once a camera, the broker or whatever `name` says is among them."""
    deadline_s = time.monotonic() + timeout_s
    root = psutil.Process(process.pid)
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            msg = f"the demo ended before there was a {name}: {process.communicate()}"
            raise AssertionError(msg)
        below: list[psutil.Process] = root.children(recursive=True)
        for child in below:
            try:
                line = child.cmdline()
            except psutil.NoSuchProcess:
                continue
            if name in line and (name != "broker" or "tansu" in line[0]):
                return below
        time.sleep(0.1)
    msg = f"no {name} within {timeout_s} s"
    raise TimeoutError(msg)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_leaves_nothing_behind_when_it_is_ended(tmp_path: Path, quick: list[str], number: signal.Signals) -> None:
    with demo(*quick, temp=tmp_path / "temp") as process:
        below = _tree(process, "camera")
        os.kill(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 1)
    _, alive = psutil.wait_procs(below, timeout=30)
    assert alive == []
    if number != signal.SIGKILL:
        assert list((tmp_path / "temp").iterdir()) == []


@pytest.mark.parametrize("part", ["run", "camera", "broker"])
def test_a_part_that_dies_ends_it_with_a_word(tmp_path: Path, quick: list[str], part: str) -> None:
    with demo(*quick, temp=tmp_path / "temp") as process:
        below = _tree(process, "camera")
        victim = next(
            child for child in below if part in child.cmdline() and (part != "broker" or "tansu" in child.cmdline()[0])
        )
        victim.kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "framegate: error: " in err
    assert {"run": "consumer", "camera": "camera", "broker": "broker"}[part] in err
    _, alive = psutil.wait_procs(below, timeout=30)
    assert alive == []
