"""When frames become a batch, and which: by size and by the age of the oldest, no station crowding out the others.

Pure: no threads, no clock, no input or output. Time is an argument, in monotonic seconds, so that the same code runs
behind Kafka, in a simulation with a virtual clock, and in a test without sleeping.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.errors import InputError


class Staged(Protocol):
    """What can be batched: anything that knows its station."""

    @property
    def station(self) -> str:
        """Whose frame it is."""
        ...


T = TypeVar("T", bound=Staged)


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When a batch is taken, and how a full one is shared. Frozen: the state lies in `MicroBatcher`.

    Attributes:
        max_size: frames in the largest batch; that many waiting are due at once.
        max_age_s: how long the oldest waiting frame may wait for company, in seconds; 0 takes what is there.
        station_cap: frames of one station in a batch while another station waits. Places that nobody else wants are
            filled beyond the cap: an empty place helps no one.
        early_size: an idle engine takes a batch as soon as this many wait, before any age is reached; None: only size
            and age decide.
    """

    max_size: int
    max_age_s: float
    station_cap: int
    early_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that would never or always make a batch."""
        if self.max_size < 1 or self.station_cap < 1 or (self.early_size is not None and self.early_size < 1):
            msg = (
                f"batch policy of size {self.max_size}, station cap {self.station_cap}, early size {self.early_size} "
                "makes no batch: expected 1 or more for each"
            )
            raise InputError(msg)
        if not (math.isfinite(self.max_age_s) and self.max_age_s >= 0):
            msg = f"batch age {self.max_age_s} s is not a waiting time: expected 0 or more seconds"
            raise InputError(msg)


class MicroBatcher(Generic[T]):
    """Frames that wait for the engine, in the order they were added.

    Belongs to one thread. Holds what it is given until `take` hands it out; it never drops, copies or inspects a frame
    beyond its station. How many may wait is the caller's bound, not this class's. `policy` may be replaced between two
    calls.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        """Begin empty."""
        self.policy = policy
        self._waiting: deque[tuple[float, T]] = deque()

    def __len__(self) -> int:
        """How many frames wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the largest batch could be taken now."""
        return len(self._waiting) >= self.policy.max_size

    def add(self, item: T, now_s: float) -> None:
        """Let one frame wait from `now_s` on. Times never step back from call to call: the clock is monotonic."""
        self._waiting.append((now_s, item))

    def due_s(self, *, idle: bool = False) -> float | None:
        """When the next batch is due, in monotonic seconds; None while nothing waits. In the past: due already.

        Args:
            idle: the engine has nothing to do, so the policy's `early_size` counts.
        """
        if not self._waiting:
            return None
        oldest_s = self._waiting[0][0]
        early = self.policy.early_size
        if self.full or (idle and early is not None and len(self._waiting) >= early):
            return oldest_s
        return oldest_s + self.policy.max_age_s

    def take(self, now_s: float, *, idle: bool = False, flush: bool = False) -> list[T]:
        """The next batch, oldest first; empty where none is due at `now_s`.

        Args:
            now_s: monotonic seconds.
            idle: as in `due_s`.
            flush: take what waits without regard to size and age: nothing more will come.

        Returns:
            At most `max_size` frames. One station's frames keep their order, within the batch and from batch to batch.
        """
        due_s = self.due_s(idle=idle)
        if due_s is None or (not flush and due_s > now_s):
            return []
        return [item for _, item in self._choose()]

    def _choose(self) -> list[tuple[float, T]]:
        """Oldest first under the cap; then the places left over, oldest first without it."""
        size, cap = self.policy.max_size, self.policy.station_cap
        if len(self._waiting) <= size:
            everything = list(self._waiting)
            self._waiting.clear()
            return everything
        taken: Counter[str] = Counter()
        chosen: list[tuple[float, T]] = []
        over: list[tuple[float, T]] = []
        while self._waiting and len(chosen) < size:
            entry = self._waiting.popleft()
            station = entry[1].station
            if taken[station] < cap:
                taken[station] += 1
                chosen.append(entry)
            else:
                over.append(entry)
        spare = size - len(chosen)
        chosen.extend(over[:spare])
        self._waiting.extendleft(reversed(over[spare:]))
        return chosen
