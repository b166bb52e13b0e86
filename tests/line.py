"""A whole line in processes of its own, for tests: topics, a consumer, cameras, and the verdicts that came."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from consumer.broker import free_port
from consumer.children import Child, Children
from consumer.topics import ensure_topics
from consumer.verdict_reader import VerdictReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

READY_S = 60.0
VERDICTS_S = 120.0


@dataclass
class Line:
    """Topics of its own on a running broker. A context manager: leaving it ends its processes."""

    bootstrap_servers: str
    folder: Path
    unique: str
    partitions: int = 3
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        ensure_topics(
            self.bootstrap_servers,
            partitions=self.partitions,
            replication=1,
            frames=self.frames,
            verdicts=self.verdicts,
            dead=self.dead,
        )
        self.folder.mkdir(exist_ok=True)
        self.children = self._stack.enter_context(Children(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def frames(self) -> str:
        return f"frames-{self.unique}"

    @property
    def verdicts(self) -> str:
        return f"verdicts-{self.unique}"

    @property
    def dead(self) -> str:
        return f"dead-{self.unique}"

    def consumer(self, bundle: Path | None, *options: str, name: str = "consumer") -> Child:
        """Start `framegate run` and wait until it is ready; None: the options say which bundles."""
        self.port = free_port()
        topics = ["--frames-topic", self.frames, "--verdicts-topic", self.verdicts, "--dead-topic", self.dead]
        which = [] if bundle is None else ["--bundle", str(bundle)]
        basics = [*which, "--bootstrap-servers", self.bootstrap_servers, "--group", self.unique]
        child = self.children.start(name, ["run", *basics, *topics, "--http-port", str(self.port), *options])
        deadline_s = time.monotonic() + READY_S
        while not self._ready():
            child.require_running()
            if time.monotonic() > deadline_s:
                msg = f"the consumer was not ready within {READY_S} s: {(self.folder / f'{name}.log').read_text()}"
                raise TimeoutError(msg)
            time.sleep(0.1)
        return child

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=2):
            return True
        return False

    def metrics(self) -> dict[str, float]:
        """Samples without labels, and sums over labels, by name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        samples: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name.split("{")[0]] = samples.get(name.split("{")[0], 0.0) + float(value)
        return samples

    def cameras(self, stations: Mapping[str, Path], *, rate_hz: float = 0) -> list[dict[str, Any]]:
        """Send each station's folder, and wait until all is sent; what was sent, in order."""
        jobs = []
        for station, folder in stations.items():
            sent = self.folder / f"sent-{station}-{len(list(self.folder.iterdir()))}.jsonl"
            basics = ["--frames-topic", self.frames, "--bootstrap-servers", self.bootstrap_servers]
            options = ["--station", station, "--rate", str(rate_hz), "--sent", str(sent)]
            jobs.append((self.children.start(f"camera-{sent.stem}", ["camera", str(folder), *basics, *options]), sent))
        lines = []
        for job, sent in jobs:
            job.wait(VERDICTS_S)
            lines += [json.loads(line) for line in sent.read_text().splitlines()]
        return lines

    def collect(self, count: int, *, and_then_s: float = 1.0) -> list[dict[str, Any]]:
        """Verdicts until there are `count`, and whatever more comes in the second after: there must be none."""
        found: list[dict[str, Any]] = []
        deadline_s = time.monotonic() + VERDICTS_S
        with VerdictReader(self.bootstrap_servers, self.verdicts) as reader:
            while len(found) < count:
                found += reader.poll(0.2)
                if time.monotonic() > deadline_s:
                    msg = f"{len(found)} of {count} verdicts within {VERDICTS_S} s"
                    raise TimeoutError(msg)
            end_s = time.monotonic() + and_then_s
            while time.monotonic() < end_s:
                found += reader.poll(0.2)
        return found
