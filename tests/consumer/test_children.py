"""Children end when they are told to, when their parent ends, and tell how they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from consumer.children import Children
from consumer.errors import ChildError

if TYPE_CHECKING:
    from pathlib import Path

PARENT = """
import sys, time
from pathlib import Path
from consumer.children import Children
with Children(Path(sys.argv[1])) as children:
    child = children.start("broker", ["broker", "--port", "0"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_good_end_and_its_output(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("version", ["--version"], tmp_path / "out")
        child.wait(30)
        assert child.check()
        with pytest.raises(ChildError, match="ended with status 0"):
            child.require_running()
    assert b"framegate" in (tmp_path / "out").read_bytes()


def test_a_bad_end_brings_its_last_words(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("score", ["score", str(tmp_path / "none"), str(tmp_path)])
        with pytest.raises(ChildError, match=r"score ended with status 2; it wrote last:\n.*is not there"):
            child.wait(30)
        with pytest.raises(ChildError):
            child.check()


def test_leaving_ends_what_still_runs(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("camera", ["broker", "--port", "0"])
        with pytest.raises(ChildError, match="has not ended within"):
            child.wait(0.2)
        pid = child.pid
    assert not psutil.pid_exists(pid)


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_does_not_outlive_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.5)
        below = child.children(recursive=True)
        os.kill(parent.pid, number)
        parent.wait(10)
    _, alive = psutil.wait_procs([child, *below], timeout=20)
    assert alive == []
