"""Every name that the engine uses of pycuda is there in the real one, wherever that is installed: it needs no driver.

pycuda comes as source and builds against CUDA's headers, so it is not among the packages that every test run has. Its
extension is loaded over a stub of the driver that has the functions it links to, in a process of its own.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import cuda_memory

SOURCE = Path(cuda_memory.__file__)
CLASS_OF = {
    "Device": "Device",
    "device": "Device",
    "context": "Context",
    "_context": "Context",
    "_allocation": "DeviceAllocation",
    "allocation": "PagelockedHostAllocation",
    "_event": "Event",
    "flags": "event_flags",
}
"""What the source calls an object of which class."""
_LOOK = """
import json, sys
import pycuda.driver as cuda
json.dump({name: dir(getattr(cuda, name)) for name in dir(cuda)}, sys.stdout)
"""


def names_in_use() -> set[str]:
    """As `name` or `Class.name`."""
    found = set()
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        word = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        if word in {"cuda", "_cuda"}:
            found.add(node.attr)
        elif word in CLASS_OF:
            found.add(f"{CLASS_OF[word]}.{node.attr}")
        elif word == "stream" and isinstance(owner, ast.Attribute):
            found.add(f"Stream.{node.attr}")
    return found


def test_the_collection_finds_what_matters() -> None:
    assert names_in_use() >= {
        "Device.retain_primary_context",
        "Context.detach",
        "Context.push",
        "DeviceAllocation.free",
        "Event.synchronize",
        "MemoryError",
        "PagelockedHostAllocation.free",
        "Stream.handle",
        "event_flags.BLOCKING_SYNC",
        "memcpy_dtoh_async",
        "pagelocked_empty",
    }


def test_every_name_that_the_engine_uses_is_there(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("pycuda")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pycuda is not installed: it comes with the extra [gpu]")
    tools = [shutil.which(name) for name in ("gcc", "nm")]
    if None in tools:
        pytest.skip("needs gcc and nm, to build the stub that pycuda links to")
    (extension,) = Path(spec.submodule_search_locations[0]).glob("_driver*.so")
    listed = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    functions = sorted(set(re.findall(r"\bU (cu[A-Z]\w*)", listed.stdout)))
    assert "cuDevicePrimaryCtxRetain_v2" in functions or "cuDevicePrimaryCtxRetain" in functions
    (tmp_path / "stub.c").write_text("\n".join(f"int {name}(void) {{ return 100; }}" for name in functions))
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", "stub.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    stub = tmp_path / "libcuda.so.1"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "LD_PRELOAD": str(stub)}
    done = subprocess.run([sys.executable, "-c", _LOOK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    surface: dict[str, list[str]] = json.loads(done.stdout)
    missing = []
    for name in sorted(names_in_use()):
        first, *rest = name.split(".")
        if first not in surface or (rest and rest[0] not in surface[first]):
            missing.append(name)
    assert missing == []
