"""Every name that the engine uses of TensorRT is there in the real 11.4 bindings, and what TensorRT 11 removed is not.

The bindings are imported without TensorRT's libraries, over stubs of the few functions they link to: enough to look at
their names, not to run them. The names are collected from the engine's own sources.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_tensorrt import SURFACE, FakeTensorRT

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINE = Path(__file__).resolve().parents[2] / "engine"
SOURCES = ("backend_tensorrt", "tensorrt_build", "tensorrt_log", "tensorrt_plans", "tensorrt_session")

CLASS_OF = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "optimization": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""What the engine's sources call an object of which class; they keep to these words for nothing else."""
RESULT_OF = {"get_input": "ITensor"}
REMOVED = (
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "BuilderFlag.BF16",
    "BuilderFlag.FP8",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
    "Builder.platform_has_fast_fp16",
    "Builder.platform_has_fast_int8",
    "Builder.platform_has_tf32",
    "IBuilderConfig.int8_calibrator",
    "IBuilderConfig.set_calibration_profile",
    "ICudaEngine.num_bindings",
    "ICudaEngine.device_memory_size",
    "IExecutionContext.execute_async_v2",
    "IExecutionContext.set_binding_shape",
    "IInt8Calibrator",
    "IInt8EntropyCalibrator2",
    "IAlgorithmSelector",
)
_SONAMES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_LOOK = """
import json, sys
import tensorrt_bindings as trt
public = lambda thing: [name for name in dir(thing) if not name.startswith("_")]
names = {name: public(getattr(trt, name)) for name in public(trt)}
text = lambda name, member: getattr(getattr(getattr(trt, name), member), "__doc__", "")
texts = {f"{name}.{member}": text(name, member) for name in names for member in [*names[name], "__init__"]}
json.dump({"version": trt.__version__, "names": names, "texts": texts}, sys.stdout)
"""
_START = """
import tensorrt_bindings as trt
from engine.errors import DeviceError
from engine.tensorrt_build import build_plan
from engine.tensorrt_options import TensorRTOptions
try:
    build_plan(trt, b"", (), TensorRTOptions())
except DeviceError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def on_stubs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Runs Python code with the real bindings in reach; what it writes."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("TensorRT's bindings are not installed (x86_64 only)")
    if platform.system() != "Linux" or shutil.which("gcc") is None:
        pytest.skip("needs Linux and gcc, to build the stubs that the bindings link to")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in _FUNCTIONS))
    for soname in _SONAMES:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", soname, "stub.c"]
        subprocess.run(command, cwd=folder, check=True)

    def run(code: str) -> str:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ENGINE.parent, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def surface(on_stubs: Callable[[str], str]) -> dict[str, Any]:
    """The real bindings' names, of the module and of everything in it, and what they say of themselves."""
    found: dict[str, Any] = json.loads(on_stubs(_LOOK))
    return found


def has(surface: dict[str, Any], dotted: str) -> bool:
    """Whether `Class`, `Class.name` or `Class.MEMBER.name` is there."""
    first, *rest = dotted.split(".")
    names = surface["names"]
    return first in names and (not rest or rest[0] in names[first])


class Names(ast.NodeVisitor):
    """Collects, as `Class.name`, what a source asks of TensorRT."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.calls: set[tuple[str, int]] = set()

    def visit_Call(self, node: ast.Call) -> None:
        before = self.found
        self.found = set()
        self.visit(node.func)
        called = self.found
        self.found = before | called
        if isinstance(node.func, ast.Attribute):
            self.calls |= {(name, len(node.args)) for name in called if name.split(".")[-1] == node.func.attr}
            assert not (called and node.keywords), f"{called} is called by keyword: say so by position"
        for argument in [*node.args, *node.keywords]:
            self.visit(argument)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = [node.attr]
        inner: ast.expr = node.value
        while isinstance(inner, ast.Attribute) and inner.attr != "_trt":
            chain.insert(0, inner.attr)
            inner = inner.value
        is_module = isinstance(inner, ast.Name) and inner.id in {"trt", "tensorrt"}
        if is_module or (isinstance(inner, ast.Attribute) and inner.attr == "_trt"):
            self.found.add(".".join(chain))
        elif isinstance(inner, ast.Name) and inner.id in CLASS_OF:
            self.found.add(f"{CLASS_OF[inner.id]}.{chain[0]}")
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr in RESULT_OF:
            self.found.add(f"{RESULT_OF[inner.func.attr]}.{chain[0]}")
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "trt":
                methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                self.found |= {f"{base.attr}.{name}" for name in methods if not name.startswith("_")}
        self.generic_visit(node)


def collected() -> Names:
    names = Names()
    for source in SOURCES:
        names.visit(ast.parse((ENGINE / f"{source}.py").read_text(encoding="utf-8")))
    return names


def names_in_use() -> set[str]:
    return {name for name in collected().found if "__" not in name}


def accepted(text: str, name: str) -> list[tuple[int, int]]:
    """How many arguments each overload takes, least and most, without self: read off the bindings' own signatures."""
    counts = []
    for signature in re.findall(rf"\b{name}\((self[^\n]*)\) ->", text):
        _, *arguments = re.split(r", (?=\w+: )", signature)
        counts.append((len(arguments) - sum(" = " in argument for argument in arguments), len(arguments)))
    return counts


def test_every_source_that_is_given_the_module_is_looked_at() -> None:
    others = {path.stem for path in ENGINE.glob("*.py") if "trt." in path.read_text(encoding="utf-8")}
    assert others <= set(SOURCES)


def test_the_collection_finds_what_matters() -> None:
    assert names_in_use() >= {
        "Builder",
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "IBuilderConfig.progress_monitor",
        "ICudaEngine.device_memory_size_v2",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_input_shape",
        "ILogger.log",
        "INetworkDefinition.num_inputs",
        "IProgressMonitor.step_complete",
        "ITensor.name",
        "ITimingCache.serialize",
        "OnnxParser.get_error",
        "ParserError.node_name",
        "Runtime.deserialize_cuda_engine",
    }


def test_every_name_that_the_engine_uses_is_there(surface: dict[str, Any]) -> None:
    assert surface["version"].split(".")[0] == "11"
    assert sorted(name for name in names_in_use() if not has(surface, name)) == []


def test_every_call_has_as_many_arguments_as_the_real_one_takes(surface: dict[str, Any]) -> None:
    calls = {(name, count) for name, count in collected().calls if "__" not in name}
    calls = {(name if "." in name else f"{name}.__init__", count) for name, count in calls}
    assert ("IExecutionContext.set_device_memory", 2) in calls
    assert ("OnnxParser.__init__", 2) in calls
    wrong = []
    for name, count in sorted(calls):
        overloads = accepted(surface["texts"][name] or "", name.split(".")[1])
        if not any(least <= count <= most for least, most in overloads):
            wrong.append(f"{name} is called with {count}: it takes {overloads}")
    assert wrong == []


def test_without_a_gpu_the_real_builder_ends_in_one_clear_error(on_stubs: Callable[[str], str]) -> None:
    """The stubs give null where TensorRT would: what the real bindings make of it, the engine makes an error of."""
    assert on_stubs(_START).startswith("TensorRT cannot start its builder (")


def test_what_was_removed_is_not_there_and_not_used(surface: dict[str, Any]) -> None:
    assert [name for name in REMOVED if has(surface, name)] == []
    assert names_in_use().isdisjoint(REMOVED)


def test_the_recording_fake_offers_nothing_that_the_real_one_has_not(surface: dict[str, Any]) -> None:
    own = {"fail", "reason", "gpu", "gpus", "builds", "contexts", "capacity_bytes", "scratch_bytes_per_image", "logger"}
    own |= {"open_device", "refuses", "opened"}  # how a test tells the fake what to do
    used = {name for name in vars(FakeTensorRT()) | vars(FakeTensorRT) if not name.startswith("_")} - own
    assert sorted(name for name in used if not has(surface, name)) == []
    missing = [
        f"{name}.{member}"
        for name, fake in SURFACE.items()
        for member in dir(fake)
        if not member.startswith("_") and not has(surface, f"{name}.{member}")
    ]
    assert missing == []
