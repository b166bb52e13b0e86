"""What `framegate train` prints: short, and never a rate alone."""

from __future__ import annotations

import numpy as np

from engine.prediction import Prediction
from trainer.cli import _worst_group
from trainer.evaluate import evaluate


def test_the_group_that_most_defects_passed_in_is_named_with_its_interval() -> None:
    decided = [Prediction("pass" if number in {3, 7} else "fail", 0.5) for number in range(14)]
    groups = ["a"] * 3 + ["b"] * 4 + ["c"] * 3 + ["d"] * 4
    defect = np.arange(14) < 10
    by_group = evaluate(decided, defect, {"group": groups})["by"]["group"]
    assert _worst_group(by_group) == [
        "the worst of them, c: of 3 defects 1 passed, 0.8 to 90.6 % of its defects at 95 % confidence"
    ]
    assert _worst_group({"d": by_group["d"]}) == []
    assert _worst_group({}) == []
