"""The engine's process for tests: on a thread, where its backend is to be seen; in a process, where it is to be killed.

As a program, `python -m tests.shared_engine FD BACKEND`, it serves on the listening socket with that descriptor.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from engine.backend_modelled import BatchCost, ModelledBackend
from engine.choice import open_for
from engine.featurizer import FeaturizerSpec, inputs
from engine.shared_client import SharedBackend
from engine.shared_server import EngineServer
from engine.shared_wire import listen
from tests.bundles import small_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from engine.backend import Backend, Features
    from engine.bundle import Bundle
    from engine.shared_featurizer import Computed

PATIENCE_S = 30.0
ROOT = Path(__file__).resolve().parent.parent


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.005)


class Engine:
    """A server on a thread of this process, with the batches that it computed."""

    def __init__(self, open_backend: Callable[[Bundle], Backend], *, must_agree: bool = False) -> None:
        self._folder = tempfile.mkdtemp(prefix="framegate-test-")
        self.address = f"{self._folder}/socket"
        self._listener = listen(self.address)
        self.computed: list[Computed] = []
        self.server = EngineServer(self._listener, open_backend, must_agree=must_agree, told=self.computed.append)
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.stop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as knock:
            knock.connect(self.address)  # so that it looks at once
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._listener.close()
        shutil.rmtree(self._folder)


class _WithItsEngine(SharedBackend):
    """A client that ends its engine when it is closed."""

    engine: Engine

    def close(self) -> None:
        super().close()
        if hasattr(self, "engine"):
            engine = self.engine
            del self.engine
            until(lambda: not engine.server.workers)
            engine.stop()


def shared_backend(open_backend: Callable[[], Backend]) -> SharedBackend:
    """A client of an engine of its own."""
    engine = Engine(lambda _bundle: open_backend()).__enter__()
    client = _WithItsEngine(engine.address, small_bundle(with_reference=False), pool=4)
    client.engine = engine
    return client


class EngineProcess:
    """An engine in a process that can be killed and started again. A context manager."""

    def __init__(self, backend: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="framegate-test-")
        self.address = f"{self._folder}/socket"
        self._listener = listen(self.address)
        self._backend = backend
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._listener.close()
        shutil.rmtree(self._folder)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        number = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.shared_engine", str(number), self._backend], pass_fds=[number], cwd=ROOT
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def memory_bytes(self) -> int:
        return memory_bytes(self.pid)


def memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Slow:
    """A backend that takes its time over each batch, or hangs where an image is wholly 255."""

    def __init__(self, inner: Backend, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds
        self.name, self.device, self.precision = inner.name, inner.device, inner.precision
        self.profile, self.inputs = inner.profile, inner.inputs

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> object:
        return self._inner.submit(images, weights, biases, locations=locations)

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        return self._inner.infer(images, weights, biases, locations=locations)

    def collect(self, ticket: object) -> Features:
        time.sleep(self._seconds)
        return self._inner.collect(ticket)  # type: ignore[arg-type] # handed through

    def close(self) -> None:
        self._inner.close()


def opener(name: str) -> Callable[[Bundle], Backend]:
    """`modelled`, `slow`, `dies` (of any bundle), `hangs` (behind its first batch), or a backend's name."""

    def open_backend(bundle: Bundle) -> Backend:
        if name == "dies":
            os._exit(3)
        if name == "modelled":
            spec = FeaturizerSpec.from_json(bundle.featurizer)
            return ModelledBackend(inputs(spec, bundle.image), spec.pooled_size, BatchCost(0.002, 0.0001))
        if name in {"slow", "hangs"}:
            seconds = 0.3 if name == "slow" else 3600.0
            return Slow(open_for(bundle, "onnxruntime"), seconds)  # type: ignore[return-value] # but for its ticket's type
        return open_for(bundle, name)

    return open_backend


if __name__ == "__main__":
    listener = socket.socket(fileno=int(sys.argv[1]))
    EngineServer(listener, opener(sys.argv[2]), must_agree=False).run()
