"""One publication of several verdicts on its way: done when every one is acknowledged, or one of them has failed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Delivery:
    """Counts acknowledgements down. Settled once, from any thread; watched from one.

    A batch of verdicts is answered whole or not at all: where one fails the others may be stored too, and will be
    published again after a restart, under the same verdict ids.
    """

    __slots__ = ("_error", "_lock", "_missing", "_watcher")

    def __init__(self, size: int) -> None:
        """Expect `size` acknowledgements; none at all is done at once."""
        self._lock = threading.Lock()
        self._missing = size
        self._error: Exception | None = None
        self._watcher: Callable[[], None] | None = None

    @property
    def done(self) -> bool:
        """Whether it is settled, well or not."""
        return self._missing <= 0 or self._error is not None

    @property
    def error(self) -> Exception | None:
        """What went wrong first; None while under way and when all is stored."""
        return self._error

    def arrived(self) -> None:
        """One more verdict is stored."""
        with self._lock:
            was_done = self.done
            self._missing -= 1
            watcher = self._watcher if self.done and not was_done else None
        if watcher is not None:
            watcher()

    def failed(self, error: Exception) -> None:
        """One verdict could not be stored. The first error stands."""
        with self._lock:
            watcher = None if self.done else self._watcher
            if not self.done:
                self._error = error
        if watcher is not None:
            watcher()

    def when_done(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` once when settled, at once where it is already; on the thread that settles it."""
        with self._lock:
            if not self.done:
                self._watcher = watcher
                return
        watcher()
