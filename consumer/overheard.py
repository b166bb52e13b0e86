"""Why kafka-python cannot reach a cluster: what it only logs, as it tries again and again until its time is over."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kafka.errors import SaslAuthenticationFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS = "kafka.net.manager"
"""The client's logger that tells of them."""

_PASSING = ("UNEXPECTED_EOF", "EOF occurred")
"""How TLS tells of a broker that goes away in the middle of a greeting, as one does that is starting."""


class Overheard(logging.Handler):
    """Keeps the reason of the last failure.

    Attributes:
        reason: in the client's words; empty where there was none.
        for_good: trying again cannot help: the password or a certificate is not taken.
    """

    def __init__(self, give_up: Callable[[], None]) -> None:
        """`give_up` is called once, on a thread of its own, as soon as it is for good."""
        super().__init__(logging.WARNING)
        self.reason = ""
        self.for_good = False
        self._give_up = give_up

    def emit(self, record: logging.LogRecord) -> None:
        """One event of the client's, on its own thread."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = next((argument for argument in arguments if isinstance(argument, Exception)), None)
        if error is None or self.for_good:
            return
        self.reason = " ".join(f"{type(error).__name__}: {error}".split())
        refused = isinstance(error, SaslAuthenticationFailedError) or "[SSL" in self.reason
        if refused and not any(word in self.reason for word in _PASSING):
            self.for_good = True
            threading.Thread(target=self._give_up, name="give-up", daemon=True).start()


_entering = threading.Lock()
_listening: list[tuple[Overheard, int, bool]] = []
"""Who listens, with the level and the propagation that the logger had before."""


@contextmanager
def overhear(give_up: Callable[[], None]) -> Iterator[Overheard]:
    """Listen inside the block; what is heard goes nowhere else. Blocks may overlap: each then hears all of them."""
    logger = logging.getLogger(CONNECTIONS)
    heard = Overheard(give_up)
    with _entering:
        before = _listening[0][1:] if _listening else (logger.level, logger.propagate)
        _listening.append((heard, *before))
        logger.addHandler(heard)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield heard
    finally:
        with _entering:
            _listening.remove((heard, *before))
            logger.removeHandler(heard)
            if not _listening:  # the last one out, who need not be the first one in
                level, logger.propagate = before
                logger.setLevel(level)
