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
that is worth is known from a virtual clock, `framegate bench scale`: at 5 to 95 % of capacity no wait brought more than
0.7 % of the mean or the p99, on engines of which a batch of 64 costs 2.6 and 1.3 times a batch of 1; a wait as long as
two batches of 1 cost them up to 66 %.
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

HANDOVER_S = 0.0001
"""What a batch costs the consumer around the engine: processor time with batches of 1 less that with batches of 16."""

LEAST = 2
"""A batch of one cannot be shared: a station that floods would keep its place in the queue before all others."""

ROUNDS = 4
SPEND_S = 0.15
"""Before a size is believed to be the last one worth trying, all are timed again: so often, or until this is spent."""


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
        """The curve under what was measured: others on the machine only ever add to a time, and never take from it.

        So a batch takes no longer than a larger one was seen to take, since it could be filled up to that, and none
        longer than two of half its size, since it could be cut in two. Without noise, or with it in one direction
        alone, nothing above is lost; the mean of what is out of order, as in least squares, would keep the noise.
        """
        lowest: dict[int, float] = {}
        least = math.inf
        for size in sorted(seconds, reverse=True):
            least = min(least, seconds[size])
            lowest[size] = least
        sizes = sorted(lowest)
        for size in sizes:
            if 2 * size in lowest:
                lowest[2 * size] = min(lowest[2 * size], 2 * lowest[size])
        return cls(tuple(sizes), tuple(lowest[size] for size in sizes))

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
        fastest = max(map(self._served_per_s, self.sizes))
        least = next(size for size in self.sizes if self._served_per_s(size) * (1 + NOTABLE) >= fastest)
        return min(self.largest, max(LEAST, least))

    @property
    def levelled(self) -> bool:
        """Whether two doublings have brought nothing notable: a third is not expected to."""
        if len(self.sizes) < 3:  # noqa: PLR2004 - two doublings
            return False
        return self._served_per_s(self.sizes[-1]) < (1 + NOTABLE) * max(map(self._served_per_s, self.sizes[:-2]))

    def _served_per_s(self, images: int) -> float:
        """Images a second with what the consumer adds to each batch."""
        return images / (self.cost_s(images) + HANDOVER_S)


def measure(
    compute: Callable[[int], None],
    largest: int,
    *,
    clock: Callable[[], float],
    rest: Callable[[float], None] = lambda _s: None,
) -> CostCurve:
    """Time batches of 1, 2, 4, … images until larger ones bring nothing more.

    Each size is computed once before it is timed: a first run may take far longer than the next. The fastest run of a
    size counts, and the sizes take turns, so that what disturbs one moment does not decide on one size.

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
        seconds[size] = _timed(compute, size, clock, rest)
        if size == largest or CostCurve.from_measured(seconds).levelled:
            _time_again(seconds, compute, clock, rest)
            curve = CostCurve.from_measured(seconds)
            if size == largest or curve.levelled:
                return curve
        size = min(2 * size, largest)


def _time_again(
    seconds: dict[int, float], compute: Callable[[int], None], clock: Callable[[], float], rest: Callable[[float], None]
) -> None:
    """Give each size further runs, in turn; its fastest counts."""
    spent_s = 0.0
    for _ in range(ROUNDS):
        for size, fastest_s in seconds.items():
            took_s = _timed(compute, size, clock, rest)
            spent_s += took_s
            seconds[size] = min(fastest_s, took_s)
        if spent_s > SPEND_S:
            return


def _timed(
    compute: Callable[[int], None], size: int, clock: Callable[[], float], rest: Callable[[float], None]
) -> float:
    """Seconds of one run."""
    began_s = clock()
    compute(size)
    took_s = max(clock() - began_s, 1e-9)  # a clock may be too coarse for an engine that computes nothing
    rest(took_s)
    return took_s
