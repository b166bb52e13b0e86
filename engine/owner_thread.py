"""One thread that makes all calls to a library that wants to be called from one thread only."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class OwnerThread:
    """Does one job after another, in the order they came.

    A daemon, unlike the threads of a ThreadPoolExecutor: those end before anything can be cleaned up at exit, and what
    is left on them then ends the process the hard way (pycuda aborts it). Whoever makes this one sees to its end.
    """

    def __init__(self, name: str) -> None:
        """Start it."""
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._ended = False
        self._thread.start()

    def submit(
        self, function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> Future[_Result]:
        """Have a call made after those that wait already; its result or exception comes in the future.

        Raises:
            RuntimeError: the thread was ended.
        """
        if self._ended:
            msg = f"thread {self._thread.name} was ended: expected no more jobs for it"
            raise RuntimeError(msg)
        future: Future[_Result] = Future()
        self._jobs.put((future, lambda: function(*arguments, **named)))
        return future

    def end(self) -> None:
        """Finish what waits, then end the thread; waits for it, except on the thread itself."""
        self._ended = True
        self._jobs.put(None)
        if not self.is_current():
            self._thread.join()

    def is_current(self) -> bool:
        """Whether this is the thread."""
        return threading.current_thread() is self._thread


def _work(jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while True:
        job = jobs.get()
        if job is None:
            return
        future, call = job
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
            future.set_exception(error)
        del job, future, call  # or the last job's objects would live as long as the thread waits for the next
