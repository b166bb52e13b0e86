"""The cost of a batch by its size: measured on a made-up clock, smoothed, and what is worth taking by it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backend_modelled import BatchCost
from engine.batch_cost import CostCurve, measure
from engine.errors import InputError


class Engine:
    """Takes the time of a modelled one; the first run of a size takes a second more, as a first run may."""

    def __init__(self, cost: BatchCost, cores: int = 1) -> None:
        self.now_s = 5.0
        self.runs: list[int] = []
        self._cost, self._cores = cost, cores

    def compute(self, images: int) -> None:
        first = images not in self.runs
        self.runs.append(images)
        self.now_s += self._cost.seconds(-(-images // self._cores)) + first

    def measured(self, largest: int) -> CostCurve:
        return measure(self.compute, largest, clock=lambda: self.now_s)


def test_the_curve_is_the_engines_own_and_first_runs_do_not_count() -> None:
    cost = BatchCost(0.002, 0.0001)
    curve = Engine(cost).measured(32)
    assert curve.sizes == (1, 2, 4, 8, 16, 32)
    for size in (1, 3, 8, 12, 31, 32):
        assert curve.cost_s(size) == pytest.approx(cost.seconds(size))
        assert curve.images_per_s(size) == pytest.approx(size / cost.seconds(size))


def test_where_most_of_a_batch_is_shared_the_largest_is_worth_it() -> None:
    assert Engine(BatchCost(0.003, 0.00008)).measured(64).worth == 64
    assert Engine(BatchCost(0.003, 0.00008)).measured(48).worth == 48, "no power of two, and the largest"


def test_where_an_image_costs_the_same_in_any_company_two_can_share_and_large_batches_are_not_tried() -> None:
    engine = Engine(BatchCost(0.0, 0.004))
    assert engine.measured(64).worth == 2
    assert max(engine.runs) == 4
    assert Engine(BatchCost(0.0, 0.004)).measured(1).worth == 1


def test_where_images_share_cores_a_batch_for_each_core_is_worth_it() -> None:
    engine = Engine(BatchCost(0.0, 0.002), cores=4)
    assert engine.measured(64).worth == 4
    assert max(engine.runs) == 16


def test_a_gain_below_the_notable_does_not_count() -> None:
    curve = CostCurve((1, 2, 4, 8), (0.0100, 0.0100, 0.0100, 0.0196))
    assert curve.images_per_s(8) > curve.images_per_s(4)
    assert curve.worth == 4


def test_measuring_takes_a_moment_and_can_be_done_gently() -> None:
    engine = Engine(BatchCost(0.001, 0.001))
    rests: list[float] = []
    measure(engine.compute, 16, clock=lambda: engine.now_s, rest=rests.append)
    first_runs = len(set(engine.runs))
    assert engine.now_s - 5.0 - first_runs < 0.4
    assert sum(rests) == pytest.approx(engine.now_s - 5.0)


def test_the_fastest_run_counts_because_others_only_ever_add() -> None:
    slow = itertools.cycle([0.004, 0.0, 0.002, 0.009, 0.001])

    class Disturbed(Engine):
        def compute(self, images: int) -> None:
            super().compute(images)
            self.now_s += next(slow)

    cost = BatchCost(0.003, 0.0001)
    assert Disturbed(cost).measured(8).cost_s(8) == pytest.approx(cost.seconds(8))


def test_one_size_is_a_curve_too() -> None:
    curve = Engine(BatchCost(0.002, 0.001)).measured(1)
    assert (curve.worth, curve.largest) == (1, 1)
    assert curve.cost_s(1) == pytest.approx(0.003)


COSTS = st.builds(BatchCost, st.floats(1e-4, 0.01), st.floats(1e-6, 0.01))


@given(COSTS, st.lists(st.floats(0.0, 1.0), min_size=7, max_size=7))
def test_noise_moves_the_curve_less_than_what_was_measured(cost: BatchCost, noise: list[float]) -> None:
    sizes = [2**power for power in range(7)]
    measured = {size: cost.seconds(size) + added for size, added in zip(sizes, noise, strict=True)}
    curve = CostCurve.from_measured(measured)
    for size in sizes:
        assert cost.seconds(size) * (1 - 1e-9) <= curve.cost_s(size) <= measured[size]
    rates = [curve.images_per_s(size) for size in sizes]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(rates))


def test_one_disturbed_size_is_drawn_to_its_neighbours() -> None:
    assert CostCurve.from_measured({1: 0.9, 2: 0.012, 4: 0.014}).seconds == (0.012, 0.012, 0.014)
    assert CostCurve.from_measured({1: 0.010, 2: 0.9, 4: 0.9}).seconds == (0.010, 0.020, 0.040)


def test_a_disturbance_does_not_end_the_trying() -> None:
    class Disturbed(Engine):
        def compute(self, images: int) -> None:
            super().compute(images)
            self.now_s += 0.1 if len(self.runs) == 6 else 0.0  # the run that times four

    engine = Disturbed(BatchCost(0.004, 0.00001))
    assert engine.measured(32).worth == 32


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [((), ()), ((1, 2), (0.1,)), ((2, 1), (0.1, 0.2)), ((1, 2), (0.2, 0.1)), ((1,), (0.0,)), ((1,), (float("nan"),))],
)
def test_what_is_no_curve_is_refused(sizes: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected rising sizes"):
        CostCurve(sizes, seconds)


def test_beyond_what_was_measured_nothing_is_guessed() -> None:
    with pytest.raises(InputError, match="a batch of 9 images was not measured: expected 1 to 8"):
        CostCurve((1, 8), (0.1, 0.2)).cost_s(9)
