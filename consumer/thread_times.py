"""Where a process's processor time goes, by the names of its threads: for measurements, not for production."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE_S = 0.1
"""A thread that ends loses what it used since the last sample, at most."""


_OWN = "thread-times"


class ThreadTimes:
    """Processor seconds by thread, since `begin`. Linux tells them in nanoseconds."""

    def __init__(self) -> None:
        """Count from now on."""
        self._began: dict[int, float] = {}
        self._used: dict[int, tuple[str, float]] = {}
        self.begin()

    def begin(self) -> None:
        """Count from here on instead."""
        self._began = {thread: used_s for thread, (_, used_s) in _threads().items()}
        self._used = {}

    def sample(self) -> None:
        """Look at every thread that lives."""
        self._used |= _threads()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Look again and again inside the block."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(SAMPLE_S):
                self.sample()

        thread = threading.Thread(target=run, name=_OWN, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.sample()

    def seconds(self) -> dict[str, float]:
        """By name, without the numbers of threads of one kind; `other` for those that Python did not start.

        The thread that looks is left out: without it nobody would pay for that.
        """
        found: defaultdict[str, float] = defaultdict(float)
        for thread, (name, used_s) in self._used.items():
            if name != _OWN:
                found[name.rstrip("-_0123456789")] += used_s - self._began.get(thread, 0.0)
        return dict(found)


def _threads() -> dict[int, tuple[str, float]]:
    """Each thread's name and the processor seconds it used in its life."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            used_ns = int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):  # it has ended, or the system does not tell
            continue
        number = int(task.name)
        found[number] = names.get(number, "other"), used_ns / 1e9
    return found
