"""`framegate build` on a machine as it is, and its report over the recording GPU."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from engine import backend_tensorrt
from engine.backend import open_backend
from engine.backend_tensorrt import TensorRTBackend
from engine.bundle import write_bundle
from engine.cli_build import build, take_settings
from engine.errors import DeviceError, InputError
from engine.specs import BatchProfile
from engine.tensorrt_options import TensorRTOptions
from tests.bundles import graph, small_bundle
from tests.fake_tensorrt import FakeTensorRT

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    write_bundle(tmp_path / "parts", small_bundle())
    return str(tmp_path / "parts")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """A machine with a GPU, as far as the command can tell."""
    fake = FakeTensorRT()
    on_fake = functools.partial(TensorRTBackend, trt=fake, open_device=fake.open_device)
    monkeypatch.setattr(backend_tensorrt, "TensorRTBackend", on_fake)
    return fake


def run(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(build, arguments, env=environment, catch_exceptions=False)


def test_it_builds_once_and_says_what_there_is(bundle: str, trt: FakeTensorRT, tmp_path: Path) -> None:
    arguments = [bundle, "--plans", str(tmp_path / "plans"), "--largest-batch", "6", "--json"]
    results: list[dict[str, Any]] = [json.loads(run(*arguments).stdout) for _ in range(2)]
    for result, built in zip(results, (True, False), strict=True):
        assert result["device"] == "Fake GPU (compute 9.0, driver 580.65.06)"
        assert result["precision"] == "fp16"
        assert result["largest_batch"] == 6
        assert [plan["largest_batches"] for plan in result["plans"]] == [[4], [6]]
        assert [plan["built"] for plan in result["plans"]] == [built, built]
        assert all(Path(plan["path"]).parent == tmp_path / "plans" for plan in result["plans"])
    assert len(trt.builds) == 2
    assert all(gpu.journal[-1] == "close device" for gpu in trt.gpus)
    text = run(*arguments[:-1]).stdout
    assert "up to 4: " in text
    assert "found in" in text


@pytest.mark.usefixtures("trt")
def test_plans_lie_in_the_users_cache_folder(bundle: str, tmp_path: Path) -> None:
    for name, value, folder in (
        ("XDG_CACHE_HOME", tmp_path / "cache", tmp_path / "cache/framegate/plans"),
        ("FRAMEGATE_PLANS", tmp_path / "own", tmp_path / "own"),
    ):
        run(bundle, "--largest-batch", "2", environment={name: str(value)})
        assert len(list(folder.glob("*.plan"))) == 1


def test_options_become_settings() -> None:
    values = {
        "gpu": 1,
        "largest_batch": 2,
        "most_heads": 8,
        "memory_mb": 3,
        "workspace_mb": None,
        "exact": False,
        "plans": Path("p"),
    }
    assert take_settings(dict(values), "tensorrt-fp32") == TensorRTOptions(
        precision="fp32",
        latency=BatchProfile(1, 1, 2),
        throughput=BatchProfile(1, 2, 2),
        most_heads=8,
        exact=False,
        memory_limit_bytes=3 << 20,
        gpu=1,
        plans=Path("p"),
    )
    assert take_settings({**values, "largest_batch": 64}).profiles == (BatchProfile(1, 1, 4), BatchProfile(1, 32, 64))
    with pytest.raises(InputError, match="most_heads 6: expected a positive multiple of 4"):
        take_settings({**values, "most_heads": 6})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bf16"}, "precision 'bf16': expected one of fp16, fp32"),
        ({"optimization_level": 6}, "optimization_level 6: expected 0 to 5"),
        ({"workspace_bytes": 0}, "expected positive numbers"),
        ({"gpu": -1}, "gpu -1: expected 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TensorRTOptions(**change)


def without_gpu() -> bool:
    return not Path("/proc/driver/nvidia/version").exists()


@pytest.mark.skipif(not without_gpu(), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-fp32"])
def test_without_a_gpu_the_backend_is_one_clear_error(name: str) -> None:
    missing = "TensorRT is not installed" if importlib.util.find_spec("tensorrt") is None else "NVIDIA|pycuda|TensorRT"
    with pytest.raises(DeviceError, match=f"{missing}.* --backend auto"):
        open_backend(name, graph())


@pytest.mark.skipif(not without_gpu(), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("verb", [["build"], ["verify", "--backend", "tensorrt"]])
def test_without_a_gpu_the_commands_end_with_one_line(verb: list[str], bundle: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "framegate", *verb, bundle],
        cwd=ROOT,
        env={**os.environ, "FRAMEGATE_PLANS": str(Path(bundle).parent / "plans")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("framegate: error: ")
    assert done.stderr.count("\n") == 1
