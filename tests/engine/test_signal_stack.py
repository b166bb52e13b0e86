"""A signal reaches its handler whatever the inference libraries did; in processes of their own, which may crash."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_SIGNALS = """
import faulthandler, os, signal, sys
from engine.backend import open_backend
from engine.signal_stack import signal_stack
if "stack" in sys.argv:
    faulthandler.enable()  # gives the main thread a signal stack, as pytest does
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
graph = open(sys.argv[1], "rb").read()
before = signal_stack()
def look():
    assert signal_stack() == before, (signal_stack(), before)
    os.kill(os.getpid(), signal.SIGTERM)
first = open_backend("openvino", graph)
look()
second = open_backend("openvino", graph)
first.close()
del first
look()
second.close()
del second
look()
print(len(caught))
"""
"""Two engines that live side by side and go in the order in which they came: as a reload has it."""


@pytest.mark.parametrize("stack", ["stack", "none"])
def test_a_signal_is_handled_before_between_and_after_engines(stack: str, tmp_path: Path) -> None:
    from tests.bundles import graph  # noqa: PLC0415 - loads the runtimes, which the other test does without

    path = tmp_path / "graph.onnx"
    path.write_bytes(graph())
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALS, path, stack], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr[-2000:]


_CHANGED = """
import ctypes, sys
from engine.signal_stack import _LIBC, _Stack, signal_stack, signal_stack_kept
before = signal_stack()
memory = ctypes.create_string_buffer(1 << 16)
with signal_stack_kept():
    _LIBC.sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, len(memory))), None)
    assert signal_stack() == (ctypes.addressof(memory), len(memory))
assert signal_stack() == before, (signal_stack(), before)
"""


def test_what_was_there_before_is_put_back() -> None:
    subprocess.run([sys.executable, "-c", _CHANGED], check=True, timeout=60)
