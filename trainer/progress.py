"""How far a training run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: `done` of `total` in the step of this name."""

    name: str
    done: int = 0
    total: int = 0
