"""Frames of the shared memory for whoever decodes. A frame comes back by itself once nothing looks at it any more."""

from __future__ import annotations

import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from engine.shared_layout import Views


class FramePool:
    """Any thread may `take`, and let go in any thread; no lock, since letting go may happen inside of anything."""

    def __init__(self, views: Views) -> None:
        """All cells behind the slots' own are free."""
        layout = views.layout
        self._views = views
        self._free = deque(range(layout.cells - layout.pool, layout.cells))
        self._out: dict[int, tuple[int, weakref.ref[np.ndarray]]] = {}

    def take(self) -> np.ndarray | None:
        """A frame, uint8 (h, w, 3) of any content, as long as it or a view of it is held; None where all are taken."""
        try:
            cell = self._free.popleft()
        except IndexError:
            return None
        frame = self._views.cell(cell)
        key = id(frame)
        self._out[key] = cell, weakref.ref(frame, partial(self._back, key, cell))
        return frame

    def cell_of(self, frame: np.ndarray) -> int | None:
        """Where a frame of this pool lies; None for any other array."""
        found = self._out.get(id(frame))
        return None if found is None or found[1]() is not frame else found[0]

    def _back(self, key: int, cell: int, _gone: object) -> None:
        """Nothing looks at it any more."""
        self._out.pop(key, None)
        self._free.append(cell)
