"""Break a plant for a while and see that nothing is lost, doubled, out of order or wrong.

    python -m tests.faults.run --minutes 20 --seed 1

Progress goes to standard error; the last and only line on standard output is one JSON object. Two hands break things
at the same time: one kills consumers, the other does everything else in a drawn order. Ends with 1 where the checker
found something, a consumer ended by itself, or less was broken than asked for.

Recovery time of a fault: from its moment (see `tests.faults.faults`) until every station has a committed verdict of a
frame that was sent after that moment. A fault after which that takes longer than `RECOVERY_LIMIT_S` counts with that.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults import faults
from tests.faults.frames import shared_data
from tests.faults.plant import Plant
from tests.kafka_cluster import KafkaUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from tests.faults.checker import Report
    from tests.faults.faults import Fault
    from tests.faults.plant import Worker

MINUTES = 20.0
WANTED = {"frames": 20_000, "kill": 50, "broker": 10}
"""What has to have happened in that time, at least."""

TICK_S = 0.05
RECOVERY_LIMIT_S = 90.0
NAMES = ("one", "two")
THIRD = "three"
OTHERS = ("leader", "cut", "stall", "delay", "halve", "lost_commit", "third", "dead_letters", "clock", "terminate")
"""What the second hand does, besides killing brokers: one of these in turn after each broker."""


@dataclass
class Run:
    """One run: what was done so far, and how long recovery took."""

    plant: Plant
    drawn: random.Random
    done: dict[str, int] = field(default_factory=dict)
    recovery_s: list[float] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    closing: bool = False

    @property
    def faults(self) -> int:
        """All of them."""
        return sum(self.done.values())

    def has_done(self, share: float, frames: int) -> bool:
        """Whether so large a share of what is wanted was done."""
        done = {"frames": frames, "kill": self.done.get("kill", 0), "broker": self.done.get("broker", 0)}
        return all(done[what] >= int(share * least) for what, least in WANTED.items())

    def say(self, what: str) -> None:
        """One line of progress."""
        sys.stderr.write(f"{time.monotonic() - self.began_s:7.1f} s  {what}\n")
        sys.stderr.flush()

    def break_(self, kind: str, about: str, fault: Fault) -> Generator[None, None, None]:
        """One fault, and the recovery from it."""
        self.say(f"{kind} {about}".rstrip())
        began_s = yield from fault
        self.done[kind] = self.done.get(kind, 0) + 1
        flows = yield from faults.until(lambda: self.plant.flows_since_s >= began_s, RECOVERY_LIMIT_S)
        took_s = time.monotonic() - began_s if flows else RECOVERY_LIMIT_S
        self.recovery_s.append(took_s)
        self.say(f"    after {kind}: {'flowing again' if flows else 'NOT flowing'} after {took_s:.1f} s")

    def kills(self) -> Generator[None, None, None]:
        """The first hand: one of the two consumers, again and again."""
        while not self.closing:
            worker = self._worker(self.drawn.choice(NAMES))
            yield from faults.until(lambda worker=worker: worker.up)  # type: ignore[misc]
            yield from faults.sleep(self.drawn.uniform(0.2, 3.0))
            if worker.ending or self.closing:  # the other hand has it, or it is over
                continue
            yield from self.break_("kill", worker.name, faults.kill(worker, self.drawn))

    def others(self) -> Generator[None, None, None]:
        """The second hand: brokers, and everything else in turn."""
        turns: list[str] = []
        while not self.closing:
            if not turns:
                shuffled = self.drawn.sample(OTHERS, len(OTHERS))
                turns = [kind for pair in zip(shuffled[::2], shuffled[1::2], strict=True) for kind in (*pair, "broker")]
            yield from self.one(turns.pop(0))
            yield from faults.sleep(self.drawn.uniform(0.5, 3.0))

    def one(self, kind: str) -> Generator[None, None, None]:
        """One fault by its name."""
        plant, drawn = self.plant, self.drawn
        if kind == "third":
            third = next((worker for worker in plant.workers if worker.name == THIRD), None)
            fault = faults.join(plant, THIRD) if third is None else faults.leave(plant, third)
            yield from self.break_("third", "comes" if third is None else "goes", fault)
            return
        if kind in {"clock", "terminate", "kill"}:
            worker = self._worker(drawn.choice(NAMES))
            yield from faults.until(lambda: worker.up and not worker.ending)
            simple: dict[str, Callable[[], Fault]] = {
                "clock": lambda: faults.clock(worker),
                "terminate": lambda: faults.terminate(worker),
                "kill": lambda: faults.kill(worker, drawn),
            }
            yield from self.break_(kind, worker.name, simple[kind]())
            return
        wholesale: dict[str, Callable[[], Fault]] = {
            "broker": lambda: faults.broker(plant, drawn),
            "leader": lambda: faults.leader(plant, drawn),
            "cut": lambda: faults.cut(plant, drawn),
            "stall": lambda: faults.stall(plant, drawn),
            "delay": lambda: faults.delay(plant, drawn),
            "halve": lambda: faults.halve(plant),
            "lost_commit": lambda: faults.lost_commit(plant),
            "dead_letters": lambda: faults.dead_letters(plant, drawn),
        }
        yield from self.break_(kind, "", wholesale[kind]())

    def script(self, kinds: Sequence[str]) -> Generator[None, None, None]:
        """These, one after the other."""
        for kind in kinds:
            yield from self.one(kind)

    def drive(self, hands: list[Generator[None, None, None]], over: Callable[[], bool]) -> None:
        """Let the hands work until it is over, or all have finished.

        What a hand has begun it brings to its end: no broker is left dead, no network cut.
        """
        working = list(hands)
        while working:
            self.closing = self.closing or over()
            self._step(working)

    def _step(self, working: list[Generator[None, None, None]]) -> None:
        for hand in tuple(working):
            try:
                next(hand)
            except StopIteration:
                working.remove(hand)
        self.plant.restart_the_fallen()
        time.sleep(TICK_S)

    def _worker(self, name: str) -> Worker:
        return next(worker for worker in self.plant.workers if worker.name == name)


def start(plant: Plant, run: Run) -> None:
    """The two consumers, until verdicts of all stations flow."""
    for name in NAMES:
        plant.add_worker(name)
    run.drive([flowing(plant)], lambda: False)


def flowing(plant: Plant) -> Generator[None, None, None]:
    """Until verdicts flow."""
    began_s = time.monotonic()
    if not (yield from faults.until(lambda: plant.flows_since_s >= began_s)):
        logs = "\n".join(worker.last_words() for worker in plant.workers)
        msg = f"no verdicts within {faults.PATIENCE_S:g} s of the start:\n{logs}"
        raise TimeoutError(msg)


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description="Break a plant for a while and check what became of every frame.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long things are broken")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate-hz", type=float, default=24.0, help="frames a second, all stations together")
    parser.add_argument("--keep", type=Path, help="where logs and data stay; default: a folder that is removed")
    given = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix="framegate-faults-") as temporary:
            plant = Plant(given.keep or Path(temporary), given.rate_hz, given.seed, shared_data())
            with plant:
                run, report = break_for(plant, given.minutes, random.Random(given.seed))
    except KafkaUnavailable as reason:
        sys.stderr.write(f"error: {reason}\n")
        return 2
    for line in (*report.examples, *plant.died):
        sys.stderr.write(f"{line}\n")
    enough = run.has_done(given.minutes / MINUTES, report.frames)
    if not enough:
        sys.stderr.write(f"less was done than asked for: {WANTED} in {MINUTES:g} minutes\n")
    sys.stdout.write(json.dumps(summary(run, report)) + "\n")
    return 0 if report.clean and not plant.died and enough else 1


def break_for(plant: Plant, minutes: float, drawn: random.Random) -> tuple[Run, Report]:
    """Both hands for so long, and what the checker says then."""
    run = Run(plant, drawn)
    start(plant, run)
    end_s = time.monotonic() + 60 * minutes
    run.drive([run.kills(), run.others()], lambda: time.monotonic() >= end_s)
    proxies = plant.network.proxies.values()
    lost, halved = sum(proxy.lost_commits for proxy in proxies), sum(proxy.halved for proxy in proxies)
    run.say(f"no further faults: {run.done}; {lost} commits' answers were lost, {halved} answers halved")
    return run, plant.finish()


def summary(run: Run, report: Report) -> dict[str, object]:
    """What the JSON line says."""
    return {
        "frames": report.frames,
        "faults": run.faults,
        "lost": report.lost,
        "doubled": report.doubled,
        "out_of_order": report.out_of_order,
        "wrong": report.wrong,
        "recovery_s": {
            "p50": round(statistics.median(run.recovery_s), 2),
            "max": round(max(run.recovery_s), 2),
        },
        "kills": run.done.get("kill", 0),
        "broker_restarts": run.done.get("broker", 0),
        "ended_by_themselves": len(run.plant.died),
    }


if __name__ == "__main__":
    sys.exit(main())
