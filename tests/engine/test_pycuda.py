"""The engine on the real pycuda, wherever that is installed, without a GPU: over a stub of the driver.

pycuda comes as source and builds against CUDA's headers, so it is not among the packages that every test run has. What
runs on it runs in a process of its own.
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
from typing import TYPE_CHECKING

import pytest

from engine import cuda_memory

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(cuda_memory.__file__)
STUB = Path(__file__).with_name("stub_cuda.c")
CLASS_OF = {
    "Device": "Device",
    "device": "Device",
    "context": "Context",
    "_context": "Context",
    "device_memory": "DeviceAllocation",
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
_DEVICE = """
import threading
import numpy as np
from engine.cuda import DeviceMemoryError
from engine.cuda_memory import open_gpu

def work():
    gpu = open_gpu(0, 13_000)
    print(gpu.name, gpu.capability, gpu.cuda.rsplit(" ", 1)[0], gpu.cuda.rsplit(" ", 1)[1] >= "12")
    device, first, second = gpu.alloc(1000), gpu.alloc_pinned(1000), gpu.alloc_pinned(1000)
    stream, event = gpu.stream(), gpu.event()
    here, there = (pinned.array[:240].view(np.float32).reshape(3, 4, 5) for pinned in (first, second))
    here[...] = np.arange(60).reshape(3, 4, 5)
    gpu.copy_in(device, here, stream)
    gpu.copy_out(there, device, stream)
    event.record(stream)
    event.wait()
    print((here == there).all(), device.address % 256)
    for make in (gpu.alloc, gpu.alloc_pinned):
        try:
            make(1 << 30)
        except DeviceMemoryError as error:
            print(error)
    for resource in (device, first, second, stream, event, gpu):
        resource.close()
        resource.close()

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
_BACKEND = """
import ctypes, sys
from pathlib import Path
from typing import TYPE_CHECKING
import numpy as np
from engine.backend_onnx import OnnxBackend
from engine.backend_tensorrt import TensorRTBackend
from engine.cuda_memory import open_gpu
from engine.heads import stack
from engine.specs import BatchProfile
from engine.tensorrt_options import TensorRTOptions
from tests.bundles import graph, pictures, small_head
from tests.fake_tensorrt import FakeTensorRT

class Memory:
    def __init__(self, address): self.address = address
    def bytes(self, count): return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(self.address))
    content = property(lambda self: self.bytes(1 << 20))
    def put(self, flat): self.bytes(len(flat))[:] = flat

class AtOnce:
    queue = property(lambda self: self)
    def append(self, work): work()

class Gpu:
    def note(self, what): print(what, file=sys.stderr)
    def gone(self, what): print(what, "gone", file=sys.stderr)
    find = staticmethod(Memory)
    def find_stream(self, handle): return AtOnce()

trt = FakeTensorRT()
trt.gpu = Gpu()
options = TensorRTOptions(precision="fp32", throughput=BatchProfile(1, 8, 8), most_heads=8, plans=Path(sys.argv[1]))
backend = TensorRTBackend(graph(), options, trt=trt, open_device=open_gpu)
heads = stack([small_head(0), small_head(1)])
found, expected = (b.infer(pictures(7), *heads, locations=True) for b in (backend, OnnxBackend(graph(), streams=1)))
for name in ("evidence", "pooled", "locations"):
    print((getattr(found, name) == getattr(expected, name)).all(), flush=True)
print("--- end", file=sys.stderr, flush=True)
if sys.argv[2] == "True":
    backend.close()
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


@pytest.fixture(scope="module")
def on_stub(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code with the real pycuda over a driver that does on the host what a GPU would do."""
    spec = importlib.util.find_spec("pycuda")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pycuda is not installed: it comes with the extra [gpu]")
    if None in [shutil.which(name) for name in ("gcc", "nm")]:
        pytest.skip("needs gcc and nm, to build the stub that pycuda links to")
    (extension,) = Path(spec.submodule_search_locations[0]).glob("_driver*.so")
    listed = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    wanted = sorted(set(re.findall(r"\bU (cu[A-Z]\w*)", listed.stdout)))
    text = STUB.read_text(encoding="utf-8")
    others = [name for name in wanted if not re.search(rf"\b{name}\b", text)]
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(text + "".join(f"int {name}(void) {{ return 801; }}\n" for name in others))
    command = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", "stub.c"]
    subprocess.run(command, cwd=folder, check=True)
    # Before any driver that is installed.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(folder / "libcuda.so.1")}

    def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=SOURCE.parents[1], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    return run


def test_every_name_that_the_engine_uses_is_there(on_stub: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    surface: dict[str, list[str]] = json.loads(on_stub(_LOOK).stdout)
    missing = []
    for name in sorted(names_in_use()):
        first, *rest = name.split(".")
        if first not in surface or (rest and rest[0] not in surface[first]):
            missing.append(name)
    assert missing == []


def test_the_device_works_on_it(on_stub: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = on_stub(_DEVICE)
    name, copied, device, host = done.stdout.splitlines()
    assert name == "Stub GPU (9, 0) 13.2, headers True"
    assert copied == "True 0"
    assert device == "no memory for 1073741824 bytes on Stub GPU (cuMemAlloc failed: the stub refuses)"
    assert host.startswith("no memory for 1073741824 page-locked bytes on the host (")
    calls = done.stderr.splitlines()
    given_back = {
        "cuMemFree_v2": 1,
        "cuMemFreeHost": 2,
        "cuStreamDestroy_v2": 1,
        "cuEventDestroy_v2": 1,
        "cuDevicePrimaryCtxRelease_v2": 1,
    }
    assert {name: calls.count(name) for name in given_back} == given_back
    assert calls[-1] == "cuDevicePrimaryCtxRelease_v2"


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "forgotten"])
def test_a_whole_backend_works_on_it_and_ends_without_an_abort(
    on_stub: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, *, closed: bool
) -> None:
    """TensorRT's part is played by the recording fake; its memory is where the real pycuda says it is."""
    done = on_stub(_BACKEND, tmp_path, closed)
    assert done.stdout.splitlines() == ["True", "True", "True"]
    end = done.stderr.split("--- end\n")[1].splitlines()
    gone = [line for line in end if line.endswith("gone")]
    assert gone == ["context gone"] * 4 + ["engine gone"] * 2 + ["runtime gone"]
    assert end.index("runtime gone") < end.index("cuMemFree_v2") < end.index("cuDevicePrimaryCtxRelease_v2")
    assert "PyCUDA ERROR" not in done.stderr
