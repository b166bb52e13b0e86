"""That threads share few arenas afterwards, as glibc itself counts them."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTS = """
import ctypes, sys, threading
from engine.arenas import few_arenas
if sys.argv[1] == "few":
    assert few_arenas()
kept, all_there = [], threading.Barrier(8)
def work():
    kept.append(bytearray(5000))
    all_there.wait(10)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def arenas(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, how], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the arenas are glibc's")
def test_threads_share_few_arenas_once_it_is_said() -> None:
    assert arenas("few") <= 2
    assert arenas("many") > 2, "or it could not be seen"
