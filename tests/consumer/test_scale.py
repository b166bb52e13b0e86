"""The simulator against what queueing theory knows, and the policies in it against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from consumer.scale import Traffic, bursty, poisson, simulate
from engine.backend_modelled import BatchCost
from engine.batcher import BatchPolicy
from engine.errors import InputError

ONE_BY_ONE = BatchPolicy(1, 0.0, 1)
UNBOUNDED = 10**9


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_by_one_it_is_the_queue_of_pollaczek_and_khinchine(load: float) -> None:
    """M/D/1: the mean wait is load * service / (2 * (1 - load))."""
    service_s = 0.002
    traffic = poisson(50, load / service_s / 50, 40_000, rng())
    outcome = simulate(traffic, ONE_BY_ONE, BatchCost(0.0, service_s), room=UNBOUNDED)
    wait_s = load * service_s / (2 * (1 - load))
    assert outcome.mean_s == pytest.approx(service_s + wait_s, rel=0.06)
    assert outcome.batches == 40_000


def test_bursts_one_by_one_are_the_batch_arrival_queue() -> None:
    """M[b]/D/1: a frame waits as one of M/D/1 whose customer is a whole burst, and for those of its burst before it."""
    service_s, burst, load = 0.001, 8, 0.5
    traffic = bursty(50, load / service_s / 50, 60_000, burst, rng(1))
    outcome = simulate(traffic, ONE_BY_ONE, BatchCost(0.0, service_s), room=UNBOUNDED)
    whole_s = burst * service_s
    wait_s = load * whole_s / (2 * (1 - load)) + (burst - 1) / 2 * service_s
    assert outcome.mean_s == pytest.approx(service_s + wait_s, rel=0.06)


def test_batches_without_a_bound_that_all_take_the_same_time_cost_one_and_a_half_of_it_under_load() -> None:
    """A frame meets the middle of a batch on average, and then takes one of its own."""
    traffic = poisson(50, 1000, 100_000, rng())
    outcome = simulate(traffic, BatchPolicy(10**6, 0.0, 10**6), BatchCost(0.01, 0.0), room=UNBOUNDED)
    assert outcome.mean_s == pytest.approx(0.015, rel=0.02)
    assert outcome.mean_batch == pytest.approx(500, rel=0.05)


def test_a_lone_frame_takes_its_batch_and_the_policys_wait() -> None:
    traffic = Traffic(np.array([1.0, 2.0]), np.array([0, 0]))
    cost = BatchCost(0.003, 0.001)
    assert simulate(traffic, BatchPolicy(8, 0.0, 4), cost).latency_s == pytest.approx([0.004, 0.004])
    assert simulate(traffic, BatchPolicy(8, 0.005, 4), cost).latency_s == pytest.approx([0.009, 0.009])


def test_under_overload_the_engine_does_full_batches_and_no_frame_is_lost() -> None:
    cost = BatchCost(0.003, 0.0001)
    outcome = simulate(poisson(100, 300, 30_000, rng()), BatchPolicy(32, 0.0, 16), cost)
    assert np.all(outcome.latency_s > 0)
    assert outcome.served_per_s == pytest.approx(32 / cost.seconds(32), rel=0.01)
    assert outcome.mean_batch == pytest.approx(32, rel=0.01)


def test_frames_in_the_house_are_bounded_and_those_outside_wait_in_order() -> None:
    traffic = Traffic(np.zeros(100), np.zeros(100, np.int64))
    outcome = simulate(traffic, BatchPolicy(4, 0.0, 4), BatchCost(0.01, 0.0), room=4)
    assert outcome.latency_s == pytest.approx(np.repeat(np.arange(1, 26) * 0.01, 4))


def test_a_seed_decides_everything() -> None:
    cost, policy = BatchCost(0.003, 0.0001), BatchPolicy(32, 0.0, 16)
    one, same, other = (simulate(bursty(20, 30, 2000, 8, rng(seed)), policy, cost) for seed in (1, 1, 2))
    assert np.array_equal(one.latency_s, same.latency_s)
    assert not np.array_equal(one.latency_s, other.latency_s)


def test_the_cap_keeps_a_flood_from_the_others() -> None:
    cost = BatchCost(0.003, 0.0001)
    quiet = poisson(20, 30, 400, rng())
    flood = poisson(1, 8_000, int(quiet.times_s[-1] * 8_000), rng(1))
    both = quiet.beside(replace(flood, stations=flood.stations + 23))  # in a partition with some of them
    apart = (both.stations < 20) & (both.stations % 12 != 11)

    def p99_s(cap: int, room: int) -> float:
        outcome = simulate(both, BatchPolicy(32, 0.0, cap), cost, room=room)
        return float(np.percentile(outcome.latency_s[apart & outcome.settled], 99))

    assert p99_s(16, UNBOUNDED) < 4.1 * cost.seconds(32), "the batch at work, two ahead of it, its own"
    assert p99_s(32, UNBOUNDED) > 4 * p99_s(16, UNBOUNDED)
    # In a full house the others' frames wait outside until a quarter of it has left: that is the budget's low water.
    assert 4.1 * cost.seconds(32) < p99_s(16, 256) < (64 / 32 + 4.1) * cost.seconds(32)


def test_fairness_is_one_where_all_are_served_alike_and_less_where_they_are_not() -> None:
    cost = BatchCost(0.001, 0.0)
    assert simulate(poisson(20, 30, 4000, rng()), BatchPolicy(8, 0.0, 4), cost).jain == pytest.approx(1, abs=0.001)
    traffic = Traffic(np.array([0.0] * 50 + [0.1, 0.11]), np.array([0] * 50 + [1, 2]))
    outcome = simulate(traffic, ONE_BY_ONE, BatchCost(0.0, 0.01), partitions=1)
    assert outcome.jain == pytest.approx((10 / 50) ** 2 / (3 * (10 / 50) ** 2))


def test_what_is_no_traffic_is_refused() -> None:
    for times, stations in (([], []), ([1.0], [0, 1]), ([2.0, 1.0], [0, 0])):
        with pytest.raises(InputError, match="expected as many of both"):
            Traffic(np.array(times), np.array(stations, np.int64))
