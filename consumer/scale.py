"""Many stations and one GPU that is not here: the real batcher and policy, driven by a virtual clock.

Frames arrive, wait in their partition's log until the real budget lets them in, wait in the real `MicroBatcher`, and go
to an engine that takes its modelled time. Decoding, Kafka and publishing take none here: what is seen is what batching
does. Nothing sleeps and nothing is random but the arrivals, which a seed decides.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from consumer.budget import Budget, Limits
from consumer.fetching import POLL_FRAMES
from consumer.flow import BATCHES_BEHIND
from engine.backend import SLOTS
from engine.batcher import BatchPolicy, MicroBatcher
from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from engine.backend_modelled import BatchCost

NO_LIMIT_BYTES = 2**62
"""Bytes play no part here."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Frames in the order they arrive.

    Attributes:
        times_s: float64 (n,), rising.
        stations: int64 (n,): whose.
    """

    times_s: NDArray[np.float64]
    stations: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse what is no traffic."""
        if not len(self.times_s) or self.times_s.shape != self.stations.shape or np.any(np.diff(self.times_s) < 0):
            msg = (
                f"traffic of {len(self.times_s)} times and {len(self.stations)} stations: expected as many of both, at "
                "least one, and rising times"
            )
            raise InputError(msg)

    @property
    def per_s(self) -> float:
        """Frames a second."""
        return float(len(self.times_s) / self.times_s[-1])

    def beside(self, other: Traffic) -> Traffic:
        """Both at once."""
        times = np.concatenate([self.times_s, other.times_s])
        order = np.argsort(times, kind="stable")
        return Traffic(times[order], np.concatenate([self.stations, other.stations])[order])


def poisson(stations: int, per_station_s: float, frames: int, rng: np.random.Generator) -> Traffic:
    """So many stations, each a Poisson process, until there are so many frames in all."""
    times = np.cumsum(rng.exponential(1 / (stations * per_station_s), size=frames))
    return Traffic(times, rng.integers(0, stations, size=frames))


def bursty(stations: int, per_station_s: float, frames: int, burst: int, rng: np.random.Generator) -> Traffic:
    """As `poisson`, but a station sends so many frames at once, and so many times less often."""
    bursts = -(-frames // burst)
    times = np.cumsum(rng.exponential(burst / (stations * per_station_s), size=bursts))
    return Traffic(np.repeat(times, burst), np.repeat(rng.integers(0, stations, size=bursts), burst))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the frames.

    Attributes:
        traffic: what came.
        latency_s: float64 (n,): from arrival to the end of its batch.
        batches: how many there were.
    """

    traffic: Traffic
    latency_s: NDArray[np.float64]
    batches: int

    @property
    def settled(self) -> NDArray[np.bool_]:
        """Frames that count: not those of the first tenth of the time, which met an empty house."""
        begin_s = float(self.traffic.times_s[-1]) * 0.1
        counts: NDArray[np.bool_] = self.traffic.times_s >= begin_s
        return counts

    @property
    def mean_s(self) -> float:
        """Mean latency."""
        return float(self.latency_s[self.settled].mean())

    @property
    def p99_s(self) -> float:
        """Of every hundred frames the last but one takes so long."""
        return float(np.percentile(self.latency_s[self.settled], 99))

    @property
    def served_per_s(self) -> float:
        """Frames a second, by the time that the last one was done."""
        return float(len(self.latency_s) / (self.traffic.times_s + self.latency_s).max())

    @property
    def mean_batch(self) -> float:
        """Frames in a batch."""
        return len(self.latency_s) / self.batches

    def station_p99_s(self) -> dict[int, float]:
        """Of each station."""
        kept = self.settled
        stations, latency = self.traffic.stations[kept], self.latency_s[kept]
        return {int(station): float(np.percentile(latency[stations == station], 99)) for station in np.unique(stations)}

    @property
    def worst_over_median(self) -> float:
        """The worst station's p99 over the median station's."""
        found = list(self.station_p99_s().values())
        return max(found) / float(np.median(found))

    @property
    def jain(self) -> float:
        """Jain's index, over stations, of the share of their frames that was done when the last one arrived.

        (sum x)^2 / (n sum x^2): 1 where all were served alike, 1 / n where one station was served alone.
        """
        done = self.traffic.times_s + self.latency_s <= self.traffic.times_s[-1]
        came = np.bincount(self.traffic.stations)
        served = np.bincount(self.traffic.stations, weights=done, minlength=len(came))
        shares = served[came > 0] / came[came > 0]
        return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())) if shares.any() else math.nan


@dataclass(frozen=True, slots=True)
class _Frame:
    """As the batcher sees it."""

    station: str
    number: int


class _House:
    """What is between arrival and the end of a batch."""

    def __init__(self, policy: BatchPolicy, cost: BatchCost, room: int, partitions: int) -> None:
        self.batcher: MicroBatcher[_Frame] = MicroBatcher(policy)
        self.engine: deque[tuple[float, list[_Frame]]] = deque()
        self.batches = 0
        self._cost = cost
        self._budget = Budget(Limits(room, NO_LIMIT_BYTES))
        self._logs: list[deque[_Frame]] = [deque() for _ in range(partitions)]
        self._behind = 0
        self._turn = 0

    def arrive(self, frame: _Frame, partition: int) -> None:
        self._logs[partition].append(frame)
        self._behind += 1

    def fetch(self, now_s: float) -> None:
        """Poll as long as the budget has room, the partitions in turn."""
        while self._behind and (room := self._budget.room()):
            brought = min(room, POLL_FRAMES, self._behind)
            for _ in range(brought):
                while not self._logs[self._turn]:
                    self._turn = (self._turn + 1) % len(self._logs)
                self.batcher.add(self._logs[self._turn].popleft(), now_s)
                self._turn = (self._turn + 1) % len(self._logs)
            self._behind -= brought
            self._budget.take(brought, 0)

    def engage(self, now_s: float) -> None:
        """As `Flow.advance`: an idle engine takes what is due, a busy one full batches ahead."""
        while len(self.engine) < SLOTS + BATCHES_BEHIND:
            idle = not self.engine
            if not idle and not self.batcher.full:
                return
            frames = self.batcher.take(now_s, idle=idle)
            if not frames:
                return
            begins_s = now_s if idle else self.engine[-1][0]
            self.engine.append((begins_s + self._cost.seconds(len(frames)), frames))
            self.batches += 1

    def finish(self) -> list[_Frame]:
        """The batch at work is done."""
        _, frames = self.engine.popleft()
        self._budget.give(len(frames), 0)
        return frames


def simulate(
    traffic: Traffic, policy: BatchPolicy, cost: BatchCost, *, room: int = 256, partitions: int = 12
) -> Outcome:
    """Let the traffic come, until every frame is done.

    Args:
        traffic: what comes.
        policy: when a batch is taken.
        cost: what it takes.
        room: frames between fetching and the end of their batch, at most; the others wait in their partition's log.
        partitions: a station's frames are all in one of them.
    """
    house = _House(policy, cost, room, partitions)
    times: Sequence[float] = traffic.times_s.tolist()
    stations: Sequence[int] = traffic.stations.tolist()
    names = [str(station) for station in range(max(stations) + 1)]
    latency_s = np.zeros(len(times))
    came = done = 0
    now_s = 0.0
    while done < len(times):
        arrives_s = times[came] if came < len(times) else math.inf
        ends_s = house.engine[0][0] if house.engine else math.inf
        due_s = None if house.engine else house.batcher.due_s(idle=True)
        now_s = max(now_s, min(arrives_s, ends_s, math.inf if due_s is None else due_s))
        if ends_s <= now_s:
            for frame in house.finish():
                latency_s[frame.number] = now_s - times[frame.number]
                done += 1
        while came < len(times) and times[came] <= now_s:
            house.arrive(_Frame(names[stations[came]], came), stations[came] % partitions)
            came += 1
        house.fetch(now_s)
        house.engage(now_s)
    return Outcome(traffic, latency_s, house.batches)
