"""What a lane promises: as many batches on its backend as that takes, and to each thread its own answers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from consumer.lanes import Lane
from engine.backbone import inputs
from engine.backend import SLOTS, Features, Ticket
from engine.backend_modelled import BatchCost, ModelledBackend
from engine.errors import DeviceError, HeadError, WorkError
from tests.bundles import FEATURIZER, IMAGE, pictures, small_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer.lanes import Computing

HEADS = [small_head(0)]
PATIENCE_S = 20.0


class StrictBackend(ModelledBackend):
    """Notices who breaks the contract: two calls at once, or images that are changed while they are read.

    A batch of five images fails.
    """

    def __init__(self) -> None:
        super().__init__(inputs(FEATURIZER, IMAGE), FEATURIZER.pooled_size, BatchCost(0.0005, 0.0))
        self.calls = threading.Lock()
        self.log: list[str] = []
        self.broken: list[str] = []
        self.most_out = 0
        self.sizes: dict[int, int] = {}
        self.gate: threading.Event | None = None
        self.collecting = threading.Event()
        self.closed = 0

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        with _Alone(self, "submit"):
            ticket = super().submit(images, weights, biases, locations=locations)
            self.sizes[ticket.number] = len(images)
            self.most_out = max(self.most_out, len(self._out))
            return ticket

    def collect(self, ticket: Ticket) -> Features:
        with _Alone(self, f"collect {self.sizes[ticket.number]}"):
            self.collecting.set()
            if self.gate is not None:
                assert self.gate.wait(PATIENCE_S)
            features = super().collect(ticket)
            if self.sizes[ticket.number] == 5:
                msg = "five are too many"
                raise DeviceError(msg)
            return features

    def close(self) -> None:
        self.closed += 1


class _Alone:
    """One call at a time, or it is noted."""

    def __init__(self, backend: StrictBackend, what: str) -> None:
        self._backend, self._what = backend, what

    def __enter__(self) -> None:
        if not self._backend.calls.acquire(blocking=False):
            self._backend.broken.append(self._what)
            self._backend.calls.acquire()
        self._backend.log.append(self._what)

    def __exit__(self, *_: object) -> None:
        self._backend.calls.release()


@pytest.fixture
def backend() -> Iterator[StrictBackend]:
    made = StrictBackend()
    yield made
    assert made.broken == [], "called from two threads at once"
    assert made.most_out <= SLOTS


@pytest.fixture
def lane(backend: StrictBackend) -> Lane:
    return Lane("featurizer", backend)


def alone(images: np.ndarray) -> np.ndarray:
    return StrictBackend().infer(images, *_stacked()).evidence


def _stacked() -> tuple[np.ndarray, np.ndarray]:
    return HEADS[0].evidence_weights[:, None], np.array([HEADS[0].evidence_bias], np.float32)


def test_two_batches_are_with_the_backend_and_each_gives_its_own_answer(lane: Lane, backend: StrictBackend) -> None:
    one, two = pictures(3), pictures(2, seed=1)
    first, second = lane.submit(one, HEADS), lane.submit(two, HEADS)
    assert backend.log == ["submit", "submit"], "nothing was waited for"
    np.testing.assert_array_equal(second.features().evidence, alone(two))
    np.testing.assert_array_equal(first.features().evidence, alone(one))
    assert backend.log == ["submit", "submit", "collect 3", "collect 2"], "the oldest first, and each once"


def test_a_third_waits_for_the_oldest_whose_answer_is_kept(lane: Lane, backend: StrictBackend) -> None:
    batches = [pictures(count, seed=count) for count in (1, 2, 3, 4)]
    computing = [lane.submit(images, HEADS) for images in batches]
    assert backend.log == ["submit", "submit", "collect 1", "submit", "collect 2", "submit"]
    assert [each.over for each in computing] == [True, True, False, False]
    for images, each in zip(batches, computing, strict=True):
        np.testing.assert_array_equal(each.features().evidence, alone(images))


def test_a_batch_that_fails_costs_the_other_nothing(lane: Lane) -> None:
    good, bad, late = (lane.submit(pictures(count), HEADS) for count in (2, 5, 3))
    late.wait()
    with pytest.raises(DeviceError, match="five are too many"):
        bad.features()
    np.testing.assert_array_equal(good.features().evidence, alone(pictures(2)))
    np.testing.assert_array_equal(late.features().evidence, alone(pictures(3)))


def test_what_cannot_be_begun_takes_no_slot(lane: Lane, backend: StrictBackend) -> None:
    crooked = small_head(1)
    object.__setattr__(crooked, "evidence_weights", crooked.evidence_weights[1:])
    for _ in range(3):
        with pytest.raises(HeadError):
            lane.submit(pictures(1), [crooked])
    assert lane.infer(pictures(2), HEADS).evidence.shape == (2, 1)
    assert backend.log[-2:] == ["submit", "collect 2"]


def test_many_threads_get_each_its_own(lane: Lane) -> None:
    batches = {count: pictures(count, seed=count) for count in (1, 2, 3, 4)}
    expected = {count: alone(images) for count, images in batches.items()}
    right: list[bool] = []

    def take(count: int, computing: Computing) -> None:
        right.append(np.array_equal(computing.features().evidence, expected[count]))

    def judge() -> None:
        before = 1, lane.submit(batches[1], HEADS)
        for count in (2, 3, 4, 1) * 5:
            begun = count, lane.submit(batches[count], HEADS)
            take(*before)
            before = begun
        take(*before)

    def guest(count: int) -> None:
        for _ in range(20):
            right.append(np.array_equal(lane.infer(batches[count], HEADS).evidence, expected[count]))  # noqa: PERF401 - as they come

    threads = [threading.Thread(target=judge), *(threading.Thread(target=guest, args=(n,)) for n in (1, 2, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert right == [True] * 81
    assert lane.ahead == SLOTS


def test_while_a_guest_computes_one_batch_at_a_time_is_enough(lane: Lane, backend: StrictBackend) -> None:
    assert lane.ahead == SLOTS
    backend.gate = threading.Event()
    guest = threading.Thread(target=lane.infer, args=(pictures(2), HEADS))
    guest.start()
    assert backend.collecting.wait(PATIENCE_S)
    assert lane.ahead == 1
    backend.gate.set()
    guest.join(PATIENCE_S)
    assert lane.ahead == SLOTS


def test_closing_gives_up_what_is_under_way_and_says_so(lane: Lane, backend: StrictBackend) -> None:
    first, second = lane.submit(pictures(1), HEADS), lane.submit(pictures(2), HEADS)
    first.wait()
    lane.close()
    lane.close()
    assert backend.closed == 1
    assert first.features().evidence.shape == (1, 1), "it was over before"
    with pytest.raises(WorkError, match="is closed"):
        second.features()
    with pytest.raises(WorkError, match="is closed"):
        lane.submit(pictures(1), HEADS)
    assert lane.wait_closed(0)
