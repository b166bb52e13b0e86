"""Which requests travel together, and who gets what of it. No threads, no sockets."""

from __future__ import annotations

import numpy as np
import pytest

from engine.backend import Features
from engine.errors import InputError
from engine.shared_layout import Layout, Views
from engine.shared_queue import Gathering, Request, Together

SIZES = {"height_px": 32, "width_px": 64, "channels": 5, "pooled": 7, "rows": 4, "columns": 8, "heads": 3}


def request(frames: int, heads: int = 1, *, seed: int = 0, locations: bool = False, wanted: bool = True) -> Request:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(5, heads)).astype(np.float32)
    pixels = [np.zeros((2, 2, 3), np.uint8)] * frames
    return Request(pixels, weights, weights[0], locations, lambda _: None, lambda: wanted)


def gathering(*waiting: Request, most_heads: float = 64) -> Gathering:
    queue = Gathering(best=8, largest=16, most_heads=most_heads)
    for each in waiting:
        queue.add(each)
    return queue


def taken(batch: Together | None) -> list[int]:
    return [] if batch is None else [len(each.frames) for each in batch.requests]


def test_an_idle_engine_takes_what_is_there_and_a_busy_one_waits_until_it_is_worth_it() -> None:
    queue = gathering(request(3), request(2))
    assert queue.take(idle=False) is None
    assert taken(queue.take(idle=True)) == [3, 2]
    assert queue.take(idle=True) is None
    queue.add(request(5))
    assert queue.take(idle=False) is None
    queue.add(request(3))
    assert taken(queue.take(idle=False)) == [5, 3]


def test_the_oldest_go_first_and_nobody_is_overtaken() -> None:
    """A request that does not fit closes the batch: a smaller one behind it does not slip in."""
    queue = gathering(request(10), request(10), request(6), request(1))
    assert taken(queue.take(idle=False)) == [10]
    assert taken(queue.take(idle=False)) == [10, 6]
    assert queue.take(idle=False) is None
    assert taken(queue.take(idle=True)) == [1]
    assert len(queue) == 0


def test_equal_heads_travel_once_and_too_many_different_ones_not_together() -> None:
    queue = gathering(request(1, 2, seed=1), request(1, 2, seed=1), request(1, 2, seed=2), most_heads=3)
    batch = queue.take(idle=True)
    assert taken(batch) == [1, 1]
    assert batch is not None
    assert batch.heads()[0].shape == (5, 2)
    assert taken(queue.take(idle=True)) == [1]


def test_locations_are_computed_only_for_those_who_ask() -> None:
    queue = gathering(request(1), request(1, locations=True), request(1, locations=True))
    assert [taken(queue.take(idle=True)) for _ in range(3)] == [[1], [1, 1], []]


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    queue = gathering(request(4, wanted=False), request(2), request(3, wanted=False), request(1))
    assert taken(queue.take(idle=True)) == [2, 1]


def test_each_gets_its_own_rows_under_its_own_heads() -> None:
    batch = Together((request(2, 2, seed=1), request(1, 1, seed=2), request(3, 2, seed=1)))
    assert batch.images == 6
    weights, biases = batch.heads()
    np.testing.assert_array_equal(weights[:, :2], batch.requests[0].weights)
    np.testing.assert_array_equal(weights[:, 2:], batch.requests[1].weights)
    evidence = np.arange(18, dtype=np.float32).reshape(6, 3)
    pooled = np.arange(6, dtype=np.float32)[:, None]
    maps = evidence[:, None, None, :] + 100
    parts = batch.split(Features(evidence, pooled, maps))
    assert biases.shape == (3,)
    for part, rows, columns in zip(parts, ([0, 1], [2], [3, 4, 5]), ([0, 1], [2], [0, 1]), strict=True):
        np.testing.assert_array_equal(part.evidence, evidence[np.ix_(rows, columns)])
        np.testing.assert_array_equal(part.pooled, pooled[rows])
        assert part.locations is not None
        np.testing.assert_array_equal(part.locations[:, 0, 0], part.evidence + 100)


def test_no_two_arrays_of_the_shared_memory_lie_on_each_other() -> None:
    layout = Layout(**SIZES, largest=2, pool=3)
    assert layout.cells == 7
    memory = bytearray(layout.n_bytes)
    views = Views(layout, memoryview(memory))
    arrays = [views.cell(number) for number in range(layout.cells)]
    for slot in (0, 1):
        arrays += [
            *views.heads(slot, 3),
            views.evidence(slot, 2, 3),
            views.pooled(slot, 2),
            views.locations(slot, 2, 3),
        ]
    for number, array in enumerate(arrays):
        array[...] = number + 1
    for number, array in enumerate(arrays):
        assert (array == number + 1).all()
    np.testing.assert_array_equal(views.frames[6], views.cell(6))


@pytest.mark.parametrize("wrong", [{"largest": 0}, {"pool": -1}, {"height_px": 1.5}, {"pool": 1 << 40}])
def test_a_layout_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    assert Layout.from_json(Layout(**SIZES, largest=2, pool=0).to_json()).pool == 0
    with pytest.raises(InputError, match="cannot be: expected whole sizes"):
        Layout(**(SIZES | {"largest": 2, "pool": 0} | wrong))
