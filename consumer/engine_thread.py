"""The engine's thread: gives it batches as they come, and takes them back in the order in which they were begun.

While one computes, the next is made ready and given to the engine too, where the judge says so (`ahead`); and as soon
as one is done, what waits is begun before its predictions are made. So the engine does not wait for either.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from consumer.judging import begin_slots, finish_batch, wait_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer.judging import Batch, Slot
    from consumer.ports import Clock, Judge

log = logging.getLogger(__name__)


class EngineThread:
    """Scores batches on one daemon thread, like a `Crew` of one, but with more than one batch on its way."""

    def __init__(
        self,
        judge: Judge,
        clock: Clock,
        scored: Callable[[list[Slot], bool], None],
        broken: Callable[[Exception], None],
    ) -> None:
        """Start it.

        Args:
            judge: scores.
            clock: for how long batches took.
            scored: called on the thread with each batch, in their order, and whether it went through whole.
            broken: told of an error that is not a batch's own: its frames would stay without a verdict.
        """
        self._judge = judge
        self._clock = clock
        self._scored = scored
        self._broken = broken
        self._waiting: SimpleQueue[list[Slot] | None] = SimpleQueue()
        self._out: deque[Batch] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-0", daemon=True)
        self._thread.start()

    def submit(self, slots: list[Slot]) -> None:
        """Queue one batch. Never blocks."""
        self._waiting.put(slots)

    def close(self, timeout_s: float) -> bool:
        """Let the thread end after what is queued. False: it is still at work after `timeout_s`."""
        self._waiting.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Its life."""
        try:
            while self._begin():
                wait_batch(self._judge, self._out[0])
                batch = self._out.popleft()
                self._begin(or_wait=False)
                whole = finish_batch(self._judge, batch, self._clock)
                self._scored(batch.slots, whole)
        except Exception as error:
            log.exception("the engine's thread failed")
            self._broken(error)

    def _begin(self, *, or_wait: bool = True) -> bool:
        """Begin what waits, as far as the engine takes it. False: nothing is on its way, and nothing will come.

        Args:
            or_wait: where nothing is on its way, wait for a batch.
        """
        while not self._closed and len(self._out) < self._judge.ahead:
            try:
                slots = self._waiting.get(block=or_wait and not self._out)
            except Empty:
                break
            if slots is None:
                self._closed = True
            else:
                self._out.append(begin_slots(self._judge, slots, self._clock))
        return bool(self._out)
