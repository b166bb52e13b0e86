"""The modelled backend's time: it goes by the cost given, on the clock given."""

from __future__ import annotations

import pytest

from engine.backbone import inputs
from engine.backend_modelled import BatchCost, ModelledBackend
from engine.errors import InputError
from engine.heads import stack
from engine.specs import BatchProfile
from tests.bundles import FEATURIZER, IMAGE, pictures, small_head

HEADS = stack([small_head()])


class VirtualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def modelled(clock: VirtualClock) -> ModelledBackend:
    cost = BatchCost(fixed_s=0.010, per_image_s=0.001)
    return ModelledBackend(
        inputs(FEATURIZER, IMAGE),
        FEATURIZER.pooled_size,
        cost,
        profile=BatchProfile(1, 8, 8),
        clock=clock,
        sleep=clock.sleep,
    )


def test_a_batch_takes_its_fixed_time_and_its_images_time() -> None:
    clock = VirtualClock()
    backend = modelled(clock)
    backend.infer(pictures(5), *HEADS)
    assert clock.now_s == pytest.approx(100.015)


def test_two_batches_queue_for_the_one_device() -> None:
    clock = VirtualClock()
    backend = modelled(clock)
    first, second = backend.submit(pictures(4), *HEADS), backend.submit(pictures(2), *HEADS)
    assert clock.now_s == 100.0  # submitting waits for nothing
    backend.collect(second)
    assert clock.now_s == pytest.approx(100.014 + 0.012)
    backend.collect(first)
    assert clock.now_s == pytest.approx(100.026)  # long done
    clock.now_s = 200.0
    backend.infer(pictures(1), *HEADS)
    assert clock.now_s == pytest.approx(200.011)  # an idle device starts at once


@pytest.mark.parametrize("cost", [(-1.0, 0.0), (0.0, float("nan"))])
def test_a_cost_that_is_no_time_is_refused(cost: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="expected 0 or more"):
        BatchCost(*cost)
