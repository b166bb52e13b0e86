"""From capture to verdict under Poisson arrivals: what `framegate bench stream` says of how long, not how much.

Frames are due at times fixed beforehand, and that is their capture time: a camera that falls behind hides nothing, and
neither does a consumer that holds it up. The camera is a process of its own; verdicts are read as they are committed,
here, and count when they are in hand. All clocks are this machine's monotonic one.
"""

from __future__ import annotations

import json
import operator
import signal
import statistics
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from consumer.bench_jobs import COMMAND
from consumer.children import bound_command
from consumer.errors import ChildError
from consumer.plain_stream import AnswerReader, send_on_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from consumer.plain_stream import Answer

LEAD_S = 1.0
"""At the beginning of a run: not counted."""

JOIN_S = 60.0
"""How long a contestant may take until it answers."""

QUIET_S = 2.0
"""Without a change of owners before arrivals begin."""

BEGIN_IN_S = 2.0
"""The camera's process needs a moment to start."""

BEHIND_S = 30.0
"""How long after the last arrival the last verdict may come."""

END_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run's frames and verdicts lie, and what is needed to get there.

    Attributes:
        payloads: folder of encoded frames.
        folder: for logs and reports.
    """

    bootstrap_servers: str
    client: Mapping[str, Any]
    frames: str
    verdicts: str
    partitions: int
    payloads: Path
    folder: Path


@dataclass(frozen=True, slots=True)
class Latency:
    """One run.

    Attributes:
        p50_ms, p99_ms: from the time a frame was due to its verdict in a reader's hands.
        frames: counted.
        camera_late_ms: how late the camera handed a frame over, of every hundredth the least: it is in the above.
        stages_ms: stage -> (p50, p99) as our verdicts say; `publish` is the rest, from decided to read.
    """

    p50_ms: float
    p99_ms: float
    frames: int
    camera_late_ms: float
    stages_ms: Mapping[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Rounded."""
        return {
            "p50_ms": round(self.p50_ms, 2),
            "p99_ms": round(self.p99_ms, 2),
            "frames": self.frames,
            "camera_late_p99_ms": round(self.camera_late_ms, 2),
            "stages_ms": {
                name: {"p50": round(p50, 2), "p99": round(p99, 2)} for name, (p50, p99) in self.stages_ms.items()
            },
        }


def arrivals(per_s: float, seconds: float, rng: np.random.Generator) -> list[float]:
    """Times of a Poisson process within so many seconds, from 0."""
    gaps = rng.exponential(1 / per_s, size=int(per_s * seconds * 2) + 100)
    times = np.cumsum(gaps)
    return [float(at_s) for at_s in times[times < seconds]]


def run(command: Sequence[str], place: Place, due_s: Sequence[float], workers: int) -> Latency | None:
    """One contestant, from its start to its end.

    Args:
        command: its command line.
        place: where.
        due_s: when each frame is due, from 0.
        workers: that have to have their partitions before it begins.

    Returns:
        How long it took; None: it did not keep up, and verdicts were missing still `BEHIND_S` after the last frame.

    Raises:
        ChildError: it did not begin to answer, or has ended.
    """
    log = place.folder / f"{place.verdicts}.log"
    with (
        _running(command, log) as contestant,
        AnswerReader(place.bootstrap_servers, place.verdicts, place.client) as reader,
    ):
        _wait_until_joined(contestant, reader, place, log, workers)
        report = place.folder / f"{place.verdicts}.sent"
        begin_s = time.monotonic() + BEGIN_IN_S
        job = {
            "bootstrap_servers": place.bootstrap_servers,
            "client": dict(place.client),
            "topic": place.frames,
            "partitions": place.partitions,
            "payloads": str(place.payloads),
            "report": str(report),
            "due_s": [begin_s + at_s for at_s in due_s],
        }
        order = place.folder / f"{place.verdicts}.job"
        order.write_text(json.dumps(job), encoding="utf-8")
        with _running([*COMMAND, "camera", f"@{order}"], place.folder / f"{place.verdicts}.camera") as camera:
            first = _collect(reader, len(due_s), begin_s + due_s[-1] + BEHIND_S)
            with suppress(subprocess.TimeoutExpired):  # it may be waiting for a broker that others keep busy
                camera.wait(END_S)
            status = camera.poll()
        if status:
            said = (place.folder / f"{place.verdicts}.camera").read_text(encoding="utf-8", errors="replace")[-2000:]
            msg = f"the camera of {place.verdicts} ended with status {status}; it wrote last: {said}"
            raise ChildError(msg)
        if contestant.poll() is not None:
            raise ChildError(_last_words(place, log, f"ended after {len(first)} verdicts for {len(due_s)} frames"))
    if len(first) < len(due_s):
        return None
    return latency_of(json.loads(report.read_text(encoding="utf-8")), first, begin_s + LEAD_S)


def _last_words(place: Place, log: Path, what: str) -> str:
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    return f"{place.verdicts} {what}; it wrote last: {said}"


def latency_of(
    sent: Sequence[tuple[int, int, float, float]], first: Mapping[tuple[int, int], Answer], from_s: float
) -> Latency:
    """Pair frames with their first verdicts.

    Args:
        sent: as `send_on_time` tells it.
        first: (partition, offset) of a frame -> its first verdict.
        from_s: frames due before are left out.
    """
    totals, late = [], []
    stages: dict[str, list[float]] = {}
    for partition, offset, due_s, handed_s in sent:
        if due_s < from_s:
            continue
        answer = first[partition, offset]
        totals.append((answer.at_s - due_s) * 1e3)
        late.append((handed_s - due_s) * 1e3)
        for name, took_ms in answer.stages_ms.items():
            if took_ms is not None and name != "total":
                stages.setdefault(name, []).append(took_ms)
        decided_ms = answer.stages_ms.get("total")
        if decided_ms is not None:
            stages.setdefault("publish", []).append(totals[-1] - decided_ms)
    parts = {name: (_at(took, 50), _at(took, 99)) for name, took in stages.items()}
    return Latency(_at(totals, 50), _at(totals, 99), len(totals), _at(late, 99), parts)


def _at(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))


def _wait_until_joined(
    contestant: subprocess.Popen[bytes], reader: AnswerReader, place: Place, log: Path, workers: int
) -> None:
    """Send a frame to each partition now and then, until all are answered and their owners have settled."""
    end_s = time.monotonic() + JOIN_S
    payload = next(iter(sorted(place.payloads.iterdir()))).read_bytes()
    answered: set[int] = set()
    while len(answered) < place.partitions or not _settled(log, workers):
        if contestant.poll() is not None or time.monotonic() > end_s:
            what = "did not answer all partitions" if contestant.poll() is None else "ended before it had answered"
            raise ChildError(_last_words(place, log, f"{what} within {JOIN_S:g} s"))
        now = [time.monotonic()] * place.partitions
        send_on_time(
            place.bootstrap_servers, place.frames, [payload], now, partitions=place.partitions, client=place.client
        )
        for _ in range(10):
            answered.update(answer.partition for answer in reader.poll(0.1))
    _drain(reader)


def _drain(reader: AnswerReader) -> None:
    """Take what was sent to try it."""
    quiet = 0
    while quiet < 3:  # noqa: PLR2004 - three times nothing
        quiet = 0 if reader.poll(0.2) else quiet + 1


def _settled(log: Path, workers: int) -> bool:
    """Whether so many workers have said that they have partitions, and nothing has changed for a while.

    The plain loop, of which `workers` is 0, says nothing of it.
    """
    have: set[object] = set()
    last_s = 0.0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
            at_s, what = float(event["at"]), str(event["what"])
        except (ValueError, KeyError, TypeError):
            continue
        if what.startswith("partitions "):
            last_s = max(last_s, at_s)
            if what.startswith("partitions assigned"):
                have.add(event.get("worker"))
    return len(have) >= workers and time.time() - last_s >= QUIET_S


def _collect(reader: AnswerReader, count: int, end_s: float) -> dict[tuple[int, int], Answer]:
    """The first verdict of each frame, until so many frames have theirs or it is too late."""
    first: dict[tuple[int, int], Answer] = {}
    while len(first) < count and time.monotonic() < end_s:
        for answer in reader.poll(0.1):
            first.setdefault((answer.partition, answer.offset), answer)
    return first


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is told to end, and then made to."""
    with log.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            bound_command(command), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def keys(loads: Sequence[tuple[str, float, Mapping[str, Sequence[Latency | None]]]]) -> dict[str, Any]:
    """The bench's keys: ratios within a round, medians of those, from the first load. Null where one did not keep up.

    Args:
        loads: (name, frames a second, contestant -> its runs, one a round): half of the plain loop's capacity first.
    """
    runs = loads[0][2] if loads else {}

    def middle(name: str, other: str, how: Callable[[float, float], float]) -> float | None:
        pairs = list(zip(runs.get(name, ()), runs.get(other, ()), strict=False))
        found = [how(own.p99_ms, its.p99_ms) for own, its in pairs if own is not None and its is not None]
        return round(statistics.median(found), 3) if found and len(found) == len(pairs) else None

    return {
        "p99_ratio": {
            "at_least_once": middle("at_least_once", "plain", operator.truediv),
            "exactly_once": middle("exactly_once", "plain", operator.truediv),
        },
        "exactly_once_added_ms": middle("exactly_once", "at_least_once", operator.sub),
        "loads": [
            {
                "load": name,
                "per_s": round(per_s, 1),
                **{who: _middle(own) for who, own in found.items()},
                "all_p99_ms": {
                    who: [None if one is None else round(one.p99_ms, 2) for one in own] for who, own in found.items()
                },
            }
            for name, per_s, found in loads
        ],
    }


def _middle(runs: Sequence[Latency | None]) -> dict[str, Any] | None:
    """The run whose p99 is the median, of an even number the better one; None where one did not keep up."""
    kept_up = [one for one in runs if one is not None]
    if len(kept_up) < len(runs):
        return None
    return sorted(kept_up, key=lambda one: one.p99_ms)[(len(runs) - 1) // 2].to_json()
