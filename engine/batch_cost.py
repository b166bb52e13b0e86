"""What a batch costs by its size, from measurements, and which batches are worth taking.

Pure but for the clock that `measure` is handed: the curve says nothing about how it was found, and the policy follows
from the curve alone.

**How large.** Beyond some size a larger batch brings no more images a second and only makes its first image wait for
its last. On a processor that is soon: an image costs the same in any company. On a GPU a fixed part of each batch is
shared by all its images, and the end may not come before the largest batch.

**How long to wait for company: not at all.** While the engine works, frames gather by themselves, so an engine that
takes what is there whenever it is idle gets larger batches the more there is to do, and full ones when it must: its
capacity is that of full batches. Holding an idle engine back can only pay where it is neither nearly idle (nobody
comes) nor nearly busy (it is never idle): in between, a started batch makes the next frame wait for all of it. What
that is worth is known from a virtual clock, `framegate bench scale`: no wait was better than none beyond a few percent,
at any load, for any engine tried, and the wrong one costs its full length at low load.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOTABLE = 0.05
"""A gain in images a second below this part is not worth a larger batch."""

SPEND_S = 0.04
MOST_RUNS = 5
"""Timed runs of one size: as many as fit, at least one. The fastest counts: others on the machine only ever add."""


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds by size of batch: known at some sizes, by straight lines between them. Never falls.

    Attributes:
        sizes: images in a batch, rising.
        seconds: of one batch of each.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        rising = all(a < b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        falling = any(a > b for a, b in zip(self.seconds, self.seconds[1:], strict=False))
        times = all(math.isfinite(s) and s > 0 for s in self.seconds)
        if not self.sizes or len(self.sizes) != len(self.seconds) or not rising or falling or not times:
            msg = (
                f"cost curve of sizes {self.sizes} and seconds {self.seconds}: expected rising sizes with a time above "
                "0 for each that never falls"
            )
            raise InputError(msg)

    @classmethod
    def from_measured(cls, seconds: Mapping[int, float]) -> CostCurve:
        """The never falling curve nearest to what was measured, by least squares: noise alone makes a time fall."""
        sizes = tuple(sorted(seconds))
        return cls(sizes, _never_falling([seconds[size] for size in sizes]))

    @property
    def largest(self) -> int:
        """Images in the largest batch that was measured."""
        return self.sizes[-1]

    def cost_s(self, images: int) -> float:
        """Seconds of one batch, of a size from the smallest to the largest measured. Raises InputError beyond."""
        if not self.sizes[0] <= images <= self.largest:
            msg = f"a batch of {images} images was not measured: expected {self.sizes[0]} to {self.largest}"
            raise InputError(msg)
        right = bisect_left(self.sizes, images)
        if self.sizes[right] == images:
            return self.seconds[right]
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return y0 + (images - x0) * (y1 - y0) / (x1 - x0)

    def images_per_s(self, images: int) -> float:
        """Of an engine that takes one batch of this size after the other."""
        return images / self.cost_s(images)

    @property
    def worth(self) -> int:
        """The largest batch worth taking: the smallest measured that is not notably slower than the fastest."""
        fastest = max(map(self.images_per_s, self.sizes))
        return next(size for size in self.sizes if self.images_per_s(size) * (1 + NOTABLE) >= fastest)

    @property
    def levelled(self) -> bool:
        """Whether two doublings have brought nothing notable: a third is not expected to."""
        if len(self.sizes) < 3:  # noqa: PLR2004 - two doublings
            return False
        return self.images_per_s(self.sizes[-1]) < (1 + NOTABLE) * max(map(self.images_per_s, self.sizes[:-2]))


def measure(
    compute: Callable[[int], None],
    largest: int,
    *,
    clock: Callable[[], float],
    rest: Callable[[float], None] = lambda _s: None,
) -> CostCurve:
    """Time batches of 1, 2, 4, … images until larger ones bring nothing more.

    Each size is computed once before it is timed: a first run may take far longer than the next.

    Args:
        compute: computes one batch of so many images.
        largest: images in the largest batch that it takes; 1 or more.
        clock: monotonic seconds.
        rest: called after each run with what it took.
    """
    seconds: dict[int, float] = {}
    size = 1
    while True:
        _timed(compute, size, clock, rest)
        runs = [_timed(compute, size, clock, rest)]
        while sum(runs) < SPEND_S and len(runs) < MOST_RUNS:
            runs.append(_timed(compute, size, clock, rest))
        seconds[size] = max(min(runs), 1e-9)  # a clock may be too coarse for an engine that computes nothing
        curve = CostCurve.from_measured(seconds)
        if size == largest or curve.levelled:
            return curve
        size = min(2 * size, largest)


def _timed(
    compute: Callable[[int], None], size: int, clock: Callable[[], float], rest: Callable[[float], None]
) -> float:
    """Seconds of one run."""
    began_s = clock()
    compute(size)
    took_s = clock() - began_s
    rest(took_s)
    return took_s


def _never_falling(values: list[float]) -> tuple[float, ...]:
    """Isotonic least squares, by pooling neighbours that are out of order (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, its_count = pools.pop()
            mean = (before * its_count + mean * count) / (its_count + count)
            count += its_count
        pools.append((mean, count))
    return tuple(mean for mean, count in pools for _ in range(count))
