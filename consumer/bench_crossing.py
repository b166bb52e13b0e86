"""The border to a shared engine by itself: what a frame costs to cross it, and what many workers make of one GPU."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from consumer.bench_jobs import COMMAND, SPEC
from consumer.bench_runs import own_cpu_s
from consumer.children import bound_command
from consumer.config import Settings
from consumer.errors import ChildError
from consumer.reports import Report
from consumer.worker import instructions
from engine.backend import SLOTS
from engine.heads import stack
from engine.laps import race
from engine.preprocess import preprocess
from engine.shared_client import SharedBackend
from engine.shared_wire import listen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engine.bundle import Bundle

BATCHES = (8, 32)
FREE = {"fixed_s": 0.0, "per_image_s": 0.0}
"""The cost of a GPU that takes no time."""

REPORT_S = 10.0


def border_alone(bundle: Bundle, payloads: Sequence[bytes], alone_s: float) -> dict[str, dict[str, float]]:
    """The border alone, on a GPU that takes no time: by way and size of batch, microseconds a frame.

    Args:
        bundle: what the engine has open.
        payloads: as many frames as the largest batch has.
        alone_s: of each measurement.
    """
    found = {}
    heads, full = stack([bundle.head]), max(BATCHES)
    with _engine(FREE) as engine, _client(engine, bundle, full) as client:
        images = np.stack([preprocess(payload, SPEC) for payload in payloads])
        frames = [frame for frame in (client.frame() for _ in range(2 * full)) if frame is not None]
        for index, frame in enumerate(frames):
            frame[...] = images[index % full]
        for size in BATCHES:
            ways: dict[str, Sequence[Any]] = {
                "in place": (frames[:size], frames[full : full + size]),
                "copied": (images[:size], images[:size]),
            }
            for way, pair in ways.items():
                found[f"{way}, batches of {size}"] = _crossings(client, engine.pid, pair, heads, alone_s / 2)
        one = [frames[0]]
        count, end_s = 0, time.perf_counter() + alone_s / 4
        began_s = time.perf_counter()
        while time.perf_counter() < end_s:
            client.infer(one, *heads)
            count += 1
        found["one frame, there and back"] = {"wall_us": round((time.perf_counter() - began_s) / count * 1e6, 1)}
    room = np.empty_like(images)
    list_of = list(images)
    laps = race({"stack": partial(_stacked, list_of, room)}, seconds=alone_s / 8, rounds=3)["stack"]
    found["np.stack of 32 alone"] = {"cpu_us": round(laps.cpu_ms * 1e3, 2)}
    return found


def _stacked(frames: Sequence[np.ndarray], room: np.ndarray, seconds: float) -> int:
    """Copy batches for so long."""
    count, end_s = 0, time.perf_counter() + seconds
    while not count or time.perf_counter() < end_s:
        np.stack(frames, out=room)
        count += len(frames)
    return count


def _crossings(
    client: SharedBackend, engine_pid: int, pair: Sequence[Any], heads: tuple[np.ndarray, np.ndarray], seconds: float
) -> dict[str, float]:
    """Two batches in flight for so long."""
    cpu_s, engine_s, began_s = time.process_time(), own_cpu_s(engine_pid), time.perf_counter()
    tickets = [client.submit(batch, *heads) for batch in pair]
    turn = 0
    while time.perf_counter() < began_s + seconds:
        client.collect(tickets[turn % 2])
        tickets[turn % 2] = client.submit(pair[turn % 2], *heads)
        turn += 1
    for ticket in tickets:
        client.collect(ticket)
    frames = (turn + 2) * len(pair[0])
    took_s = time.perf_counter() - began_s
    return {
        "per_s": round(frames / took_s, 1),
        "worker_cpu_us": round((time.process_time() - cpu_s) / frames * 1e6, 2),
        "engine_cpu_us": round((own_cpu_s(engine_pid) - engine_s) / frames * 1e6, 2),
    }


def crowd(
    bundle: Bundle, cost: Mapping[str, float], workers: int, batch: int, ahead: int, seconds: float
) -> dict[str, float]:
    """Many workers that always have frames, on one modelled GPU: how much of it they use, in batches of what size.

    Args:
        bundle: what the engine has open.
        cost: the GPU's.
        workers: how many; threads here, since all they do is submit.
        batch: of each worker, in frames.
        ahead: batches that each has with the engine.
        seconds: how long.
    """
    heads = stack([bundle.head])
    with _engine(cost) as engine, ExitStack() as stack_:
        clients = [stack_.enter_context(_client(engine, bundle, batch)) for _ in range(workers)]
        before, cpu_s, began_s = engine.batches(), own_cpu_s(engine.pid), time.perf_counter()
        crew = [
            threading.Thread(target=_keep_busy, args=(client, heads, batch, ahead, began_s + seconds))
            for client in clients
        ]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        took_s, used_s = time.perf_counter() - began_s, own_cpu_s(engine.pid) - cpu_s
        after = engine.batches()
    frames, batches = after[0] - before[0], after[1] - before[1]
    return {
        "per_s": round(frames / took_s, 1),
        "mean_batch": round(frames / batches, 1),
        "engine_cpu_us": round(used_s / frames * 1e6, 2),
    }


def _keep_busy(
    client: SharedBackend, heads: tuple[np.ndarray, np.ndarray], batch: int, ahead: int, until_s: float
) -> None:
    """One worker that has decoded more than it may submit."""
    frames = [[frame for frame in (client.frame() for _ in range(batch)) if frame is not None] for _ in range(ahead)]
    tickets = [client.submit(each, *heads) for each in frames]
    turn = 0
    while time.perf_counter() < until_s:
        client.collect(tickets[turn % ahead])
        tickets[turn % ahead] = client.submit(frames[turn % ahead], *heads)
        turn += 1
    for number in range(ahead):
        client.collect(tickets[(turn + number) % ahead])


@dataclass(slots=True)
class _Engine:
    """An engine's process that runs, and what it reported last."""

    address: str
    pid: int
    last: Report | None = None
    reports: int = 0

    def batches(self) -> tuple[float, float]:
        """Frames and batches that it computed, as of a report that comes after this call."""
        seen = self.reports
        end_s = time.monotonic() + REPORT_S
        while self.reports < seen + 2:  # the one under way may be older
            if time.monotonic() > end_s:
                msg = f"the engine's process reported nothing for {REPORT_S:g} s: expected a line twice a second"
                raise ChildError(msg)
            time.sleep(0.05)
        samples = {} if self.last is None else self.last.families["framegate_engine_batch_frames"].samples
        told = {name: value for (name, _), value in samples.items()}
        return told["framegate_engine_batch_frames_sum"], told["framegate_engine_batch_frames_count"]

    def listen(self, lines: IO[bytes]) -> None:
        """Take in its reports, to their end."""
        for line in lines:
            self.last = Report.from_line(line)
            self.reports += 1


@contextmanager
def _engine(cost: Mapping[str, float]) -> Iterator[_Engine]:
    """An engine's process with a modelled GPU."""
    with tempfile.TemporaryDirectory(prefix="framegate-bench-") as folder, ExitStack() as stack_:
        address = f"{folder}/socket"
        listener = stack_.enter_context(listen(address))
        number = listener.fileno()
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            bound_command([*COMMAND, "fed-engine", json.dumps(dict(cost)), str(number)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[number],
            start_new_session=True,
        )
        engine = _Engine(address, process.pid)
        with process:
            try:
                if process.stdin is not None and process.stdout is not None:
                    process.stdin.write(instructions("engine", 1, Settings(bundle="none", backend="onnxruntime")))
                    process.stdin.flush()
                    hears = threading.Thread(target=engine.listen, args=(process.stdout,), daemon=True)
                    hears.start()
                    stack_.callback(hears.join)
                yield engine
            finally:
                process.kill()


@contextmanager
def _client(engine: _Engine, bundle: Bundle, largest: int) -> Iterator[SharedBackend]:
    client = SharedBackend(engine.address, bundle, largest=largest, pool=SLOTS * largest)
    try:
        yield client
    finally:
        client.close()
