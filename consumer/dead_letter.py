"""What is recorded of a frame that cannot be judged: bounded, best effort, counted.

The verdict `none` is the record that counts, and it is delivered with all care. A dead letter is for the person who
looks for the cause later, so a topic that is missing or slow costs dead letters, never verdicts.
"""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from consumer.wire import WireRecord, dead_letter_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer.events import DeadLetter, Position
    from consumer.metrics import Metrics

log = logging.getLogger(__name__)

LIMIT_OUTSTANDING = 64
"""Dead letters under way at once. They are small: this bounds what a stuck topic can pile up."""


class Delivery(Protocol):
    """The fate of one record: kafka-python's futures fit as they are.

    Exactly one of the two is called, once, on any thread; at once where the fate is known already.
    """

    def add_callback(self, f: Callable[[Any], Any], /) -> Any:
        """Call `f` with whatever the client gives when the record is delivered."""

    def add_errback(self, f: Callable[[BaseException], Any], /) -> Any:
        """Call `f` with the error when it is lost."""


class DeadLetterBox:
    """Takes dead letters and never troubles the one who brings them."""

    def __init__(
        self,
        send: Callable[[WireRecord], Delivery | None],
        *,
        group: str,
        metrics: Metrics,
        limit_outstanding: int = LIMIT_OUTSTANDING,
    ) -> None:
        """Keep the way out.

        Args:
            send: publishes one record to the dead letter topic without waiting for it (a client that blocks on a
                missing topic would hold the frames up); None says that it was delivered at once.
            group: the consumer group, which names the source of the event.
            metrics: where delivered and lost letters are counted.
            limit_outstanding: letters under way at once; further ones are lost and counted.
        """
        self._send = send
        self._group = group
        self._metrics = metrics
        self._limit = limit_outstanding
        self._outstanding = 0
        self._loss_level = logging.WARNING
        self._lock = Lock()

    @property
    def outstanding(self) -> int:
        """Letters under way."""
        with self._lock:
            return self._outstanding

    def put(self, letter: DeadLetter) -> bool:
        """Send one letter; never raises.

        Returns:
            Whether it is under way or delivered. False: it was lost, and counted as such.
        """
        with self._lock:
            if self._outstanding >= self._limit:
                self._metrics.count_dead_letter_error("full")
                return False
            self._outstanding += 1
        # Only these two go into the callbacks: a letter holds its frame, and 64 frames may be a gigabyte.
        position, cause = letter.frame.position, letter.cause
        try:
            delivery = self._send(dead_letter_record(letter, group=self._group))
        except Exception as error:  # noqa: BLE001 - whatever a client or a letter brings up, the frame's verdict must go out
            self._lost(position, "send", error)
            return False
        if delivery is None:
            self._delivered(cause)
        else:
            delivery.add_callback(lambda _metadata: self._delivered(cause))
            delivery.add_errback(lambda error: self._lost(position, "delivery", error))
        return True

    def _delivered(self, cause: str) -> None:
        """The broker has it."""
        self._settle()
        self._metrics.count_dead_letter(cause)

    def _lost(self, position: Position, reason: str, error: BaseException) -> None:
        """The broker has it not. The first is news; of a missing topic every further one would be the same."""
        self._settle()
        self._metrics.count_dead_letter_error(reason)
        level, self._loss_level = self._loss_level, logging.DEBUG
        text = "dead letter of %s lost (%s): %s; see that its topic is there; further losses are only counted"
        log.log(level, text, position, reason, error)

    def _settle(self) -> None:
        """One letter fewer under way."""
        with self._lock:
            self._outstanding -= 1
