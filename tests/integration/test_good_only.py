"""From good parts alone to verdicts: the consumer's own judge and pipeline on a bundle that has seen no defect."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from consumer.budget import Limits
from consumer.clock import SystemClock
from consumer.engine_judge import EngineJudge
from consumer.events import Frame, Position
from consumer.memory_io import MemoryDeadLetters, MemoryLog, MemorySink, MemorySource, MemoryWatcher
from consumer.pipeline import Pace, Pipeline, Ports
from engine.batcher import BatchPolicy
from tests.lineups import Alone, loader
from tests.parts import part, parts_folder
from trainer.good_only import train_good_only
from trainer.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

FRAMES = 24


def test_frames_are_judged_by_a_bundle_that_has_seen_no_defect(tmp_path: Path) -> None:
    parts_folder(tmp_path / "set", good=40, scratched=0, lots=5)
    train_good_only(TrainSettings(str(tmp_path / "set"), tmp_path / "bundle", size_px=(96, 96)))
    payloads = [part(2000 + number, scratched=number % 3 == 2) for number in range(FRAMES)]
    log, clock, sink, letters = MemoryLog(), SystemClock(), MemorySink(), MemoryDeadLetters()

    def frame(number: int) -> Frame:
        now_s = clock.epoch_s()
        return Frame(Position("frames", 0, number), "press-1", str(number), payloads[number], now_s, now_s)

    for _ in range(FRAMES):
        log.append(0, frame)
    with EngineJudge(loader(bundle=str(tmp_path / "bundle")).load()) as judge:
        source = MemorySource(log, clock, wait=time.sleep)
        Pipeline(
            Ports(source, sink, judge, clock, MemoryWatcher(), letters, "{}/{}".format),
            Pace(BatchPolicy(8, 0.002, 8), Limits(64, 10**8), 2, idle_exit_s=0.5),
        ).run()
    expected = Alone().predictions(tmp_path / "bundle", payloads)
    assert [verdict.frame.position.offset for verdict in sink.verdicts] == list(range(FRAMES))
    told = [(verdict.decision, verdict.defect_probability) for verdict in sink.verdicts]
    assert told == [(each.decision, each.defect_probability) for each in expected]
    decisions = [Counter(answer.decision for answer in expected[number::3]) for number in range(3)]
    assert decisions[2]["pass"] == 0, "no scratch passed"
    assert decisions[0]["pass"] + decisions[1]["pass"] >= 2 * FRAMES // 3 - 4
    assert decisions[0]["fail"] + decisions[1]["fail"] <= 1
    assert letters.letters == []
