"""TensorRT says in its log why a call returned nothing: kept here, so that the error can say it too."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = logging.getLogger(__name__)
_KEPT = 8
_OUT_OF_MEMORY = ("outofmemory", "out of memory", "out_of_memory", "memoryallocation", "within workspace limit")


class Complaints:
    """The last errors that TensorRT logged. Any thread may add."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._texts: deque[str] = deque(maxlen=_KEPT)

    def add(self, text: str) -> None:
        """Keep one."""
        with self._lock:
            self._texts.append(" ".join(text.split()))

    def clear(self) -> None:
        """Forget them: what comes now belongs to the next call."""
        with self._lock:
            self._texts.clear()

    def __iter__(self) -> Iterator[str]:
        """Oldest first."""
        with self._lock:
            return iter(list(self._texts))

    def text(self) -> str:
        """All in one line, or that there was none."""
        return "; ".join(dict.fromkeys(self))[:600] or "TensorRT gave no reason"

    def out_of_memory(self) -> bool:
        """Whether one of them is about memory."""
        return any(mark in text.lower() for text in self for mark in _OUT_OF_MEMORY)


@functools.cache
def tensorrt_log(trt: Any) -> tuple[Any, Complaints]:
    """The logger for a `tensorrt` module, and what it keeps. Only one: TensorRT stays with the first it is given."""
    complaints = Complaints()
    errors = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc] # the module is handed in
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in errors:
                complaints.add(msg)
            # One step quieter than TensorRT has it: what matters of an error comes back as an exception.
            notable = severity in errors or severity == trt.ILogger.WARNING
            _LOG.log(logging.INFO if notable else logging.DEBUG, "TensorRT: %s", msg.strip())

    return Logger(), complaints
