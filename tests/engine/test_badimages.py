"""Every file of the collection of odd and hostile images ends as its index says, in one process of bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FRAMEGATE_TEST_DATA", ROOT.parent / "shared")) / "badimages"
PEAK_LIMIT_MIB = 600
OUTCOMES = {
    "decode": {"decoded"},
    "reject": {"undecodable"},
    "either": {"decoded", "undecodable"},
    "reject_by_limit": {"oversize"},
}

# Linux counts VmHWM from the start of this program; ru_maxrss would include what its parent held.
SCRIPT = """
import json, sys
from pathlib import Path
from engine.errors import FrameError
from engine.preprocess import preprocess
from engine.specs import ImageSpec

def outcome(path, spec):
    try:
        image = preprocess(path.read_bytes(), spec)
    except FrameError as error:
        return error.cause
    return "decoded" if image.shape == (spec.height_px, spec.width_px, 3) else "wrong shape"

files = json.loads(sys.stdin.read())
whole, scaled = ImageSpec(224, 224), ImageSpec(64, 64, jpeg="scaled")
outcomes = {name: outcome(Path(sys.argv[1], name), whole) for name in files}
smaller = {name: outcome(Path(sys.argv[1], name), scaled) for name in files}
status = Path("/proc/self/status").read_text()
peak_kib = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"outcomes": outcomes, "smaller": smaller, "peak_mib": peak_kib / 1024}))
"""


def index() -> dict[str, str]:
    """What is expected of each file; empty where the collection is not there."""
    path = FOLDER / "index.json"
    if not path.exists():
        return {}
    return {entry["file"]: entry["expect"] for entry in json.loads(path.read_text(encoding="utf-8"))["files"]}


EXPECTED = index()

pytestmark = pytest.mark.skipif(not EXPECTED, reason=f"no test images at {FOLDER}: set FRAMEGATE_TEST_DATA")


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    """All files through one process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(FOLDER)],
        input=json.dumps(sorted(EXPECTED)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)  # also: no decoder printed to stdout
    result["stderr"] = done.stderr
    return result


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_file_ends_as_expected(judged: dict[str, Any], name: str) -> None:
    assert judged["outcomes"][name] in OUTCOMES[EXPECTED[name]]


def test_decoded_smaller_every_file_ends_the_same(judged: dict[str, Any]) -> None:
    assert judged["smaller"] == judged["outcomes"]


def test_no_file_is_forgotten() -> None:
    assert len(EXPECTED) >= 310
    assert set(EXPECTED.values()) == set(OUTCOMES)


def test_memory_stays_bounded(judged: dict[str, Any]) -> None:
    assert judged["peak_mib"] < PEAK_LIMIT_MIB


def test_opencv_keeps_its_log_to_itself(judged: dict[str, Any]) -> None:
    """What libpng and libjpeg write is left."""
    assert "ERROR:" not in judged["stderr"]
    assert "WARN:" not in judged["stderr"]
