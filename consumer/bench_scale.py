"""`framegate bench scale`: what batching does for many stations on GPUs that are not here. See `consumer.scale`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from consumer.scale import bursty, poisson, simulate
from engine.backend_modelled import BatchCost
from engine.batch_cost import CostCurve
from engine.batcher import BatchPolicy
from engine.specs import LARGEST_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consumer.scale import Outcome, Traffic

ENGINES: Mapping[str, BatchCost] = {
    "L4": BatchCost(1 / 332 - 1 / 12_882, 1 / 12_882),
    "H100": BatchCost(1 / 469 - 1 / 88_714, 1 / 88_714),
}
"""Published figures for ResNet-50. An image: MLPerf offline, INT8, images/s. One image alone in its batch: Triton on a
GPU of the same class, one generation before, T4 332/s and A100 469/s; the rest of that is what every batch takes."""

STATIONS = (10, 30, 60, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 1000, 1400, 2000)
PER_STATION_S = 30.0
BURST = 8
LEAST_FRAMES_OF_EACH = 40

FLOODED, FLOOD = 100, 2.0
"""Stations beside the one that floods, and how much it sends, in parts of what the engine can do at most."""

LOADS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
WAITS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Of an engine's capacity; and how long an idle engine waits for company, in batches of one."""


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """What to simulate.

    Attributes:
        frames: of each run, at least; more where there are many stations.
        delay_ms: of the policy that waits so long or until a batch is full.
        seed: decides the arrivals.
        stations: how many at a time.
    """

    frames: int = 20_000
    delay_ms: float = 5.0
    seed: int = 1
    stations: tuple[int, ...] = STATIONS


def policy_of(cost: BatchCost) -> BatchPolicy:
    """Ours, for an engine of this cost, as the consumer would find it by measuring."""
    sizes = [2**power for power in range(LARGEST_BATCH.bit_length())]
    largest = CostCurve.from_measured({size: cost.seconds(size) for size in sizes}).worth
    return BatchPolicy(largest, 0.0, max(1, largest // 2))


def capacity_per_s(cost: BatchCost) -> float:
    """Of full batches, one after the other."""
    size = policy_of(cost).max_size
    return size / cost.seconds(size)


def bench_scale(
    plan: ScalePlan, tick: Callable[[str, int, int], None] = lambda _name, _done, _total: None
) -> dict[str, Any]:
    """Simulate; see `framegate bench scale` for the keys. The same plan gives the same result.

    Args:
        plan: what.
        tick: told (what is simulated, runs done, of how many).
    """
    total = len(ENGINES) * len(plan.stations)
    scale: list[dict[str, Any]] = []
    for engine, cost in ENGINES.items():
        for stations in plan.stations:
            tick(f"{engine}, {stations} stations", len(scale) // 4, total)
            scale += _at(plan, engine, cost, stations)
    tick("flood and waiting", total, total)
    return {
        "seed": plan.seed,
        "per_station_s": PER_STATION_S,
        "burst": BURST,
        "delay_ms": plan.delay_ms,
        "engines": {
            name: {
                "fixed_ms": round(cost.fixed_s * 1e3, 3),
                "image_us": round(cost.per_image_s * 1e6, 2),
                "largest_batch": policy_of(cost).max_size,
                "capacity_per_s": round(capacity_per_s(cost)),
            }
            for name, cost in ENGINES.items()
        },
        "scale": scale,
        "flood": [_flood(plan, name, cost) for name, cost in ENGINES.items()],
        "waiting": [row for name, cost in ENGINES.items() for row in _waiting(plan, name, cost)],
    }


def _at(plan: ScalePlan, engine: str, cost: BatchCost, stations: int) -> list[dict[str, Any]]:
    """Both policies under both kinds of arrivals."""
    ours = policy_of(cost)
    frames = max(plan.frames, stations * LEAST_FRAMES_OF_EACH)
    rows = []
    for arrivals in ("poisson", "bursty"):
        rng = np.random.default_rng((plan.seed, stations))
        traffic = (
            poisson(stations, PER_STATION_S, frames, rng)
            if arrivals == "poisson"
            else bursty(stations, PER_STATION_S, frames, BURST, rng)
        )
        for name, policy in (("ours", ours), ("fixed_delay", replace(ours, max_age_s=plan.delay_ms / 1e3))):
            found = simulate(traffic, policy, cost)
            rows.append({"engine": engine, "stations": stations, "arrivals": arrivals, "policy": name} | _told(found))
    return rows


def _told(found: Outcome) -> dict[str, Any]:
    """A run's figures. Above capacity a latency says only how long the run was."""
    keeps_up = found.served_per_s > 0.97 * found.traffic.per_s
    return {
        "offered_per_s": round(found.traffic.per_s, 1),
        "served_per_s": round(found.served_per_s, 1),
        "keeps_up": keeps_up,
        "mean_ms": round(found.mean_s * 1e3, 3) if keeps_up else None,
        "p99_ms": round(found.p99_s * 1e3, 3) if keeps_up else None,
        "mean_batch": round(found.mean_batch, 2),
        "jain": round(found.jain, 4),
        "worst_over_median_p99": round(found.worst_over_median, 3),
    }


def _flood(plan: ScalePlan, engine: str, cost: BatchCost) -> dict[str, Any]:
    """The p99 of stations that send as always while another floods, in partitions that it is not in."""
    rng = np.random.default_rng((plan.seed, FLOODED))
    quiet = poisson(FLOODED, PER_STATION_S, plan.frames, rng)
    flood_per_s = FLOOD * capacity_per_s(cost)
    flood = poisson(1, flood_per_s, max(1, int(quiet.times_s[-1] * flood_per_s)), rng)
    partitions = 12
    where = -(-FLOODED // partitions) * partitions
    both = quiet.beside(replace(flood, stations=flood.stations + where))
    ours = policy_of(cost)

    def p99_ms(traffic: Traffic, cap: int) -> float:
        found = simulate(traffic, replace(ours, station_cap=cap), cost, partitions=partitions)
        stations = found.traffic.stations
        apart = (stations < FLOODED) & (stations % partitions != where % partitions) & found.settled
        return round(float(np.percentile(found.latency_s[apart], 99)) * 1e3, 3)

    return {
        "engine": engine,
        "stations": FLOODED,
        "flood_per_s": round(flood_per_s),
        "p99_ms_without": p99_ms(quiet, ours.station_cap),
        "p99_ms": p99_ms(both, ours.station_cap),
        "p99_ms_uncapped": p99_ms(both, ours.max_size),
    }


def _waiting(plan: ScalePlan, engine: str, cost: BatchCost) -> list[dict[str, Any]]:
    """What it brings when an idle engine waits for company: latency over that without a wait, by load."""
    ours, alone_s = policy_of(cost), cost.seconds(1)
    rows = []
    for load in LOADS:
        rng = np.random.default_rng((plan.seed, int(load * 100)))
        traffic = poisson(100, load * capacity_per_s(cost) / 100, plan.frames, rng)
        none = simulate(traffic, ours, cost)
        for wait in WAITS:
            found = simulate(traffic, replace(ours, max_age_s=wait * alone_s), cost)
            rows.append(
                {
                    "engine": engine,
                    "load": load,
                    "wait_ms": round(wait * alone_s * 1e3, 3),
                    "mean_ratio": round(found.mean_s / none.mean_s, 3),
                    "p99_ratio": round(found.p99_s / none.p99_s, 3),
                }
            )
    return rows
