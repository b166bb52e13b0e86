"""What lies where in the memory that a worker and the engine's process share: frames first, then each slot's numbers.

Pure arithmetic, the same on both sides. Pages that nobody has written to take no memory, so room that is seldom used
(locations, large batches) costs nothing until it is.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from engine.backend import SLOTS
from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_HEADS = 64
"""Heads in one batch of one worker, at most."""

MAX_BYTES = 1 << 38
"""Of address space. Nobody means more."""

_PAGE_BYTES = 4096
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes that both sides agree on.

    A cell holds one frame. The first `SLOTS * largest` cells belong to the slots, for frames that come from elsewhere;
    the `pool` behind them is for frames that are decoded where the engine reads them.

    Attributes:
        height_px, width_px: of a frame, which is uint8 (h, w, 3).
        channels: of each location, c.
        pooled: size of the pooled vector, d.
        rows, columns: of locations.
        heads: most in a batch.
        largest: frames in the largest batch.
        pool: cells beside the slots' own.
    """

    height_px: int
    width_px: int
    channels: int
    pooled: int
    rows: int
    columns: int
    heads: int
    largest: int
    pool: int

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be, whoever sent them."""
        sizes = asdict(self)
        whole = all(isinstance(size, int) and size >= (name == "pool" and -1) + 1 for name, size in sizes.items())
        if not whole or self.n_bytes > MAX_BYTES:
            msg = f"layout {sizes} cannot be: expected whole sizes above 0, and at most {MAX_BYTES} bytes in all"
            raise InputError(msg)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The opposite of `to_json`. Raises InputError, KeyError or TypeError where it is no layout."""
        return cls(**{field.name: document[field.name] for field in fields(cls)})

    def to_json(self) -> dict[str, int]:
        """Plain numbers."""
        return asdict(self)

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return self.height_px * self.width_px * 3

    @property
    def cells(self) -> int:
        """All cells, the slots' own first."""
        return SLOTS * self.largest + self.pool

    @property
    def numbers(self) -> dict[str, tuple[int, ...]]:
        """Arrays of float32 that each slot has, by name, at their largest, in their order."""
        return {
            "weights": (self.channels, self.heads),
            "biases": (self.heads,),
            "evidence": (self.largest, self.heads),
            "pooled": (self.largest, self.pooled),
            "locations": (self.largest, self.rows, self.columns, self.heads),
        }

    @property
    def slot_bytes(self) -> int:
        """What each slot's numbers take."""
        return sum(_pages(math.prod(shape) * _FLOAT_BYTES) for shape in self.numbers.values())

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return _pages(self.cells * self.frame_bytes) + SLOTS * self.slot_bytes


class Views:
    """The memory as arrays, each at the size that a batch needs."""

    def __init__(self, layout: Layout, memory: memoryview) -> None:
        """Look at memory of `layout.n_bytes`."""
        self.layout = layout
        self._memory = memory
        shape = (layout.cells, layout.height_px, layout.width_px, 3)
        self.frames: np.ndarray = np.ndarray(shape, np.uint8, buffer=memory)  # (cells, h, w, 3)
        self._at: list[dict[str, int]] = []
        start = _pages(layout.cells * layout.frame_bytes)
        for _ in range(SLOTS):
            at = {}
            for name, largest in layout.numbers.items():
                at[name] = start
                start += _pages(math.prod(largest) * _FLOAT_BYTES)
            self._at.append(at)

    def cell(self, number: int) -> np.ndarray:
        """One frame's cell, (h, w, 3): an array of its own, whose views keep it alive and not the whole memory."""
        begin = number * self.layout.frame_bytes
        shape = (self.layout.height_px, self.layout.width_px, 3)
        return np.ndarray(shape, np.uint8, buffer=self._memory[begin : begin + self.layout.frame_bytes])

    def heads(self, slot: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights (c, count) and biases (count,)."""
        return self._array(slot, "weights", self.layout.channels, count), self._array(slot, "biases", count)

    def evidence(self, slot: int, images: int, heads: int) -> np.ndarray:
        """(images, heads)."""
        return self._array(slot, "evidence", images, heads)

    def pooled(self, slot: int, images: int) -> np.ndarray:
        """(images, d)."""
        return self._array(slot, "pooled", images, self.layout.pooled)

    def locations(self, slot: int, images: int, heads: int) -> np.ndarray:
        """(images, rows, columns, heads)."""
        return self._array(slot, "locations", images, self.layout.rows, self.layout.columns, heads)

    def _array(self, slot: int, name: str, *shape: int) -> np.ndarray:
        return np.ndarray(shape, np.float32, buffer=self._memory, offset=self._at[slot][name])


def _pages(n_bytes: int) -> int:
    """Up to whole pages."""
    return -(-n_bytes // _PAGE_BYTES) * _PAGE_BYTES
