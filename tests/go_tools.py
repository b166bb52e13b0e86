"""Programs in Go that tests use: BuildKit's and Docker Compose's own readers of their files, from `tests/deploy/go`.

They are built once, into a cache outside the tree, from modules that `go.sum` pins.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "deploy" / "go"
_BUILD_TIMEOUT_S = 1500.0
"""BuildKit takes a minute of processor time to compile, once."""


def go_tool(name: str) -> Path:
    """The program `tests/deploy/go/NAME`. Skips where there is no Go, or its modules cannot be fetched."""
    go = shutil.which("go")
    if go is None:
        pytest.skip(f"needs Go, to build {name}")
    sources = [SOURCES / "go.mod", SOURCES / "go.sum", *sorted((SOURCES / name).glob("*.go"))]
    content = b"".join(path.read_bytes() for path in sources)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "framegate-tests"
    program = cache / f"go-{hashlib.sha256(content).hexdigest()[:12]}" / name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock-go").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.is_file():
            _run([go, "mod", "download"], skip_for="Go's modules cannot be fetched")
            program.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as folder:
                _run([go, "build", "-o", f"{folder}/{name}", f"./{name}"])
                (Path(folder) / name).rename(program)
    return program


def _run(command: list[str], skip_for: str | None = None) -> None:
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False, timeout=_BUILD_TIMEOUT_S)
    if done.returncode and skip_for is not None:
        pytest.skip(f"{skip_for}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
