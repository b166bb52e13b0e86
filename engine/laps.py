"""Contestants on one machine that others use too: many short laps in turn, and medians of what each lap gave."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Contestant = Callable[[float], int]
    """Works for so many seconds and returns how many images are done, at least one."""


@dataclass(frozen=True, slots=True)
class Lap:
    """One contestant's turn: images a second of the wall's clock, and of the processor's time milliseconds an image.

    Under load the first says who got the cores, the second what an image costs.
    """

    images_per_s: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Laps:
    """All turns of one contestant, in order: the same index of two contestants was measured side by side."""

    laps: tuple[Lap, ...]

    @property
    def images_per_s(self) -> float:
        """The median lap's."""
        return statistics.median(lap.images_per_s for lap in self.laps)

    @property
    def cpu_ms(self) -> float:
        """Of processor time an image, the median lap's."""
        return statistics.median(lap.cpu_ms for lap in self.laps)

    def ratio(self, other: Laps) -> float:
        """How many times as fast as another: the median over pairs of laps, so that what slowed both does not count."""
        return statistics.median(
            own.images_per_s / its.images_per_s for own, its in zip(self.laps, other.laps, strict=True)
        )


def race(
    contestants: Mapping[str, Contestant],
    *,
    seconds: float,
    rounds: int,
    tick: Callable[[int, int], None] = lambda _done, _total: None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, Laps]:
    """Let each warm up once, then all in turn, each round begun by another one.

    Args:
        contestants: by name.
        seconds: one lap.
        rounds: laps of each.
        tick: told (rounds done, of how many).
        clock: monotonic seconds.
        cpu_clock: seconds of processor time that the process has used.
    """
    for contestant in contestants.values():
        contestant(0.0)
    laps: dict[str, list[Lap]] = {name: [] for name in contestants}
    names = list(contestants)
    for done in range(rounds):
        tick(done, rounds)
        first = done % len(names)
        for name in names[first:] + names[:first]:
            begin_s, cpu_s = clock(), cpu_clock()
            images = contestants[name](seconds)
            wall_s, used_s = clock() - begin_s, cpu_clock() - cpu_s
            laps[name].append(Lap(images / wall_s, used_s / images * 1e3))
    tick(rounds, rounds)
    return {name: Laps(tuple(own)) for name, own in laps.items()}
