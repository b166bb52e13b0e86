"""A training that is killed again and again, at any moment, ends with the bundle of one that was left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import open_bundle
from trainer.rendered import render_line

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = 10
WITHIN_S = 600  # on a machine that many use; alone a training takes some seconds


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("line") / "set"
    render_line(folder, seed=1, per_station=8, defect_share=0.5, lots=2)
    return folder


def start(line: Path, out: Path, features: Path) -> subprocess.Popen[str]:
    """As the command line starts it."""
    arguments = ["train", str(line), "--out", str(out), "--features", str(features), "--size", "96x64", "--json"]
    command = [sys.executable, "-c", "import framegate; framegate.main()", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    summary: dict[str, Any] = json.loads(output)
    return summary


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_ten_times_it_ends_with_the_same_bundle(line: Path, tmp_path: Path) -> None:
    begin_s = time.perf_counter()
    alone = ended(start(line, tmp_path / "alone", tmp_path / "other-cache"))
    took_s = time.perf_counter() - begin_s
    assert alone["features"]["computed"] > alone["features"]["found"]
    out, cache = tmp_path / "bundle", tmp_path / "cache"
    killed = 0
    rng = np.random.default_rng(6)
    moments = rng.permutation((np.arange(KILLS) + rng.random(KILLS)) / KILLS)  # over the whole of it, none left out
    for moment in moments * took_s:
        process = start(line, out, cache)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate(timeout=WITHIN_S)
        if out.exists():  # whole or not there: the last moment, or one that came too late
            assert open_bundle(out).digest == alone["digest"]
            shutil.rmtree(out)
    assert killed >= KILLS // 2
    last = ended(start(line, out, cache))
    assert last["digest"] == alone["digest"]
    assert last["features"]["found"] > 0
    again = ended(start(line, tmp_path / "again", cache))
    assert again["digest"] == alone["digest"]
    assert again["features"] == {"found": sum(alone["features"].values()), "computed": 0}
