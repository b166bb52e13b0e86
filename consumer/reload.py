"""Watches what a lineup was loaded from, and puts another in its place when that has changed and is sound."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal

from engine.errors import FramegateError
from engine.specs import LARGEST_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer.engine_judge import EngineJudge
    from consumer.lineup import Loader, Look

log = logging.getLogger(__name__)

Outcome = Literal["loaded", "unchanged", "refused"]

SETTLE_S = 0.2
"""What has not changed for that long is whole: nobody is copying it at the moment."""

LOOKS_UNTIL_SETTLED = 50
"""How often to wait for that before it is left to the next look."""

END_S = 2.0


class Reloader:
    """Looks again and again, on a thread of its own.

    What is refused is told once, and tried again when it has changed or when a look is asked for.
    """

    def __init__(
        self,
        loader: Loader,
        judge: EngineJudge,
        *,
        largest: int | None,
        most: int = LARGEST_BATCH,
        told: Callable[[Outcome], None],
        settle: Callable[[float], None] = time.sleep,
    ) -> None:
        """Watch what the judge's lineup was loaded from; look at nothing yet.

        Args:
            loader: loaded it.
            judge: gets the new one.
            largest: images in the largest batch: a new engine is warm up to it before it judges. None: what its own
                times tell.
            most: with None, the largest that may be wanted.
            told: called after each attempt.
            settle: waits between two looks at something that may be under way.
        """
        self._loader = loader
        self._judge = judge
        self._largest, self._most = largest, most
        self._told = told
        self._settle = settle
        self._tried = judge.lineup.look
        self._refused = False
        self._asked: SimpleQueue[Literal["look", "end"]] = SimpleQueue()

    def ask(self) -> None:
        """Look now. From any thread, and from a signal handler."""
        self._asked.put("look")

    @contextmanager
    def watching(self, every_s: float) -> Iterator[None]:
        """Look every so many seconds inside the block; 0: only when asked to."""
        thread = threading.Thread(target=self._run, args=(every_s,), name="reload", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._asked.put("end")
            thread.join(END_S)  # a bundle that is being loaded must not keep the process

    def _run(self, every_s: float) -> None:
        """The thread's life."""
        while True:
            try:
                asked = self._asked.get(timeout=every_s or None)
            except Empty:
                self.look()
                continue
            if asked == "end":
                return
            self.look(again=True)

    def look(self, *, again: bool = False) -> Outcome | None:
        """Look once, and load what has changed.

        Args:
            again: also what was refused and has not changed since.

        Returns:
            What came of it; None: nothing has changed, or it is changing still.
        """
        seen = self._loader.look()
        if seen == self._tried and not (again and self._refused):
            return None
        settled = self._settled(seen)
        if settled is None:
            return None
        outcome = self._try(settled)
        self._tried = settled
        self._refused = outcome == "refused"
        self._told(outcome)
        return outcome

    def _settled(self, seen: Look) -> Look | None:
        """What is there once it stands still."""
        for _ in range(LOOKS_UNTIL_SETTLED):
            self._settle(SETTLE_S)
            before, seen = seen, self._loader.look()
            if seen == before:
                return seen
        return None

    def _try(self, look: Look) -> Outcome:
        """Load it, warm it, put it in its place."""
        before = self._judge.lineup
        began_s = time.perf_counter()
        try:
            lineup = self._loader.load(before, look)
            try:
                largest = lineup.warm(self._largest, self._most, gently=True)
            except BaseException:
                lineup.close()
                raise
        except FramegateError as error:
            log.error("reload refused, and the models of before go on: %s", error)  # noqa: TRY400 - the line says it all
            return "refused"
        except Exception:  # an engine's library may raise anything, and what judges now must go on
            log.exception("reload failed, and the models of before go on")
            return "refused"
        unchanged = lineup.judges_as(before)
        self._judge.swap(lineup, largest)
        if unchanged:
            return "unchanged"
        models = ", ".join(
            dict.fromkeys(f"{route.model.name} ({route.model.digest})" for route in self._judge.routes())
        )
        log.info("reloaded in %.2f s; judging with %s", time.perf_counter() - began_s, models)
        return "loaded"
