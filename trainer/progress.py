"""How far a training run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: `done` of `total` in the step of this name."""

    name: str
    done: int = 0
    total: int = 0


class Stopwatch:
    """Passes steps on, and keeps how long each of them took: from its first word to the first word of another."""

    def __init__(self, tell: Callable[[Step], None], clock: Callable[[], float]) -> None:
        """Start now, before any step."""
        self._tell, self._clock = tell, clock
        self._name = "open"
        self._since_s = clock()
        self._seconds: dict[str, float] = {}

    def __call__(self, step: Step) -> None:
        """One more step."""
        if step.name != self._name:
            now_s = self._clock()
            self._seconds = self._until(now_s)
            self._name, self._since_s = step.name, now_s
        self._tell(step)

    def seconds(self) -> dict[str, float]:
        """Name -> seconds until now, in the order in which steps were first told of."""
        return self._until(self._clock())

    def _until(self, now_s: float) -> dict[str, float]:
        return {**self._seconds, self._name: self._seconds.get(self._name, 0.0) + now_s - self._since_s}
