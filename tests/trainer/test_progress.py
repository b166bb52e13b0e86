"""Steps are passed on and timed."""

from __future__ import annotations

from trainer.progress import Step, Stopwatch


def test_a_step_lasts_until_another_one_is_told_of() -> None:
    times = iter([0.0, 2.0, 5.0, 6.0, 10.0])
    told: list[Step] = []
    watch = Stopwatch(told.append, lambda: next(times))
    steps = [Step("featurize"), Step("featurize", 1, 2), Step("choose"), Step("featurize", 2, 2)]
    for step in steps:
        watch(step)
    assert told == steps
    assert watch.seconds() == {"open": 2.0, "featurize": 3.0 + 4.0, "choose": 1.0}
