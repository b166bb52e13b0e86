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


FAULTS = """
import resource, sys
from engine.arenas import keep_freed
if sys.argv[1] == "keep":
    assert keep_freed()
def work():
    for _ in range(20):
        blocks = [bytearray(1 << 20) for _ in range(16)]
        for block in blocks:
            block[::4096] = b"x" * (len(block) // 4096)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_what_was_freed_is_not_fetched_from_the_system_again() -> None:
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        faults[how] = int(done.stdout)
    assert faults["keep"] < faults["leave"] / 10
