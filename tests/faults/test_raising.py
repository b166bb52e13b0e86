"""The judge of the fault run fails as often as it is told to, and a frame that it is to answer is answered."""

from __future__ import annotations

import numpy as np

from consumer.clock import SystemClock
from consumer.engine_thread import EngineThread
from consumer.events import Frame, Position
from consumer.judging import Slot
from consumer.memory_io import BrightnessJudge
from engine.specs import ImageSpec
from tests.faults.worker import RaisingJudge


class TwoAtATime(BrightnessJudge):
    ahead = 2


def test_what_fails_at_random_is_answered_at_its_retry_also_with_two_batches_under_way() -> None:
    whole = TwoAtATime(ImageSpec(64, 64), lambda _: np.zeros((64, 64, 3), np.uint8))
    judge = RaisingJudge(whole, 0.5, seed=1)
    judge.start()
    done: list[bool] = []
    broken: list[Exception] = []
    thread = EngineThread(judge, SystemClock(), lambda _, whole: done.append(whole), broken.append)
    slots = [
        Slot(
            Frame(Position("frames", 0, number), "a", str(number), b"", 0.0, 0.0),
            0,
            0.0,
            0,
            whole.route("a"),
            image=np.full((64, 64, 3), number, np.uint8),
        )
        for number in range(100)
    ]
    for first in range(0, 100, 4):
        thread.submit(slots[first : first + 4])
    assert thread.close(20)
    assert broken == []
    assert 5 <= done.count(False) <= 20
    assert [slot.fault for slot in slots if slot.fault is not None] == []
    assert [round(slot.prediction.defect_probability * 255) for slot in slots if slot.prediction] == list(range(100))
