"""A fixed crew of daemon threads that do one kind of work.

Not an executor: that one waits for its threads when the interpreter ends, and a second signal must end the process
even while an engine call hangs.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
log = logging.getLogger(__name__)


class Crew(Generic[T]):
    """Calls `work(item)` for every item submitted, first come first served.

    `work` must not raise: what can go wrong with an item belongs into the item. If it raises all the same, `broken` is
    told, because an item that vanishes would be a frame without a verdict.
    """

    def __init__(self, name: str, size: int, work: Callable[[T], None], broken: Callable[[Exception], None]) -> None:
        """Start `size` threads."""
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._work = work
        self._broken = broken
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: T) -> None:
        """Queue one item. Never blocks."""
        self._items.put(item)

    def close(self, timeout_s: float) -> bool:
        """Let the threads end after what is queued. False: one is still at work after `timeout_s`."""
        for _ in self._threads:
            self._items.put(None)
        for thread in self._threads:
            thread.join(timeout_s / len(self._threads))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        """One thread's life."""
        while (item := self._items.get()) is not None:
            try:
                self._work(item)
            except Exception as error:
                log.exception("a worker failed")
                self._broken(error)
