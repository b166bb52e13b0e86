"""The thread that owns the source: it polls, pauses, commits and closes, and nobody else touches the source."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consumer.budget import Budget
    from consumer.ports import Clock, Fetched, Source, Watcher
    from consumer.tenure import Partition

log = logging.getLogger(__name__)

POLL_S = 0.05
"""How long one poll waits for frames: also how late a commit may be noticed."""

POLL_FRAMES = 64
"""Frames in one poll at most, so that one full partition does not keep the others from their turn."""

FULL_S = 0.02
"""How often a full consumer polls, to stay in its group, while nothing may be fetched."""

COMMIT_S = 2.0
"""How long one commit may hold fetching up, when the broker does not answer."""

LAG_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Positions to commit, and how many changes of ownership they take into account."""

    positions: Mapping[Partition, int]
    changes: int


class Fetcher:
    """Fetches as far as the budget goes and commits what it is asked to.

    What it finds goes to `post` as calls for the loop's thread to make, in the order they happened.
    """

    def __init__(
        self,
        source: Source,
        budget: Budget,
        clock: Clock,
        watcher: Watcher,
        *,
        fetched: Callable[[Fetched], None],
        committed: Callable[[Mapping[Partition, int]], None],
        halted: Callable[[], None],
        broken: Callable[[Exception], None],
    ) -> None:
        """Keep what is needed; `start` begins.

        Args:
            source: owned by this thread from `start` on, closed by it.
            budget: taken from here, given back where frames are answered.
            clock: for commits and lag.
            watcher: told how it goes.
            fetched: called on this thread, as are the three below, to be passed on to the loop's; something came.
            committed: these positions are recorded.
            halted: no frame comes any more.
            broken: the source failed for good.
        """
        self._source = source
        self._budget = budget
        self._clock = clock
        self._watcher = watcher
        self._fetched = fetched
        self._committed = committed
        self._halted = halted
        self._broken = broken
        self._wanted: _Wanted | None = None
        self._rewind = False
        self._changes = 0
        self._changed_at: dict[Partition, int] = {}
        self._paused = False
        self._ready = False
        self._lag_at_s = 0.0
        self._halting = False
        self._halt_told = False
        self._finish = threading.Event()
        self._last: _Wanted | None = None
        self._deadline_s = 0.0
        self._last_done = False
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether frames would come if there were any."""
        return self._ready

    def start(self) -> None:
        """Begin to fetch."""
        self._thread.start()

    def ask_commit(self, positions: Mapping[Partition, int], changes: int) -> None:
        """Commit these soon. A later call replaces an earlier one.

        Args:
            positions: for each partition the offset after the last answered frame.
            changes: how many changes of ownership the asker knows. Where this thread has seen more, the request is from
                before them and is dropped: the asker will ask again when it knows.
        """
        if positions:
            self._wanted = _Wanted(positions, changes)

    def ask_rewind(self) -> None:
        """Read what was given up again from the committed positions, as soon as the source can."""
        self._rewind = True

    def halt(self) -> None:
        """Fetch no more; stay in the group. `halted` follows the last `fetched`."""
        self._halting = True

    def finish(self, positions: Mapping[Partition, int], changes: int, timeout_s: float) -> bool:
        """Commit a last time, leave the group, end the thread. To be called once.

        Returns:
            Whether the positions are recorded; with none to record, True.
        """
        self._last = _Wanted(positions, changes)
        self._deadline_s = self._clock.monotonic_s() + timeout_s
        self._halting = True
        self._finish.set()
        if self._thread.ident is None:
            self._source.close(timeout_s)
            return not positions
        self._thread.join(timeout_s + POLL_S + COMMIT_S)
        if self._thread.is_alive():
            log.warning("fetching did not end within %.1f s; the partitions move when the session ends", timeout_s)
        return self._last_done or not positions

    def _run(self) -> None:
        """The thread's life."""
        try:
            try:
                while not self._finish.is_set():
                    self._turn()
                self._commit_last()
            finally:
                self._source.close(max(0.5, self._deadline_s - self._clock.monotonic_s()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the loop has to hear of it: it would wait for ever
            self._broken(error)

    def _turn(self) -> None:
        """One poll and what follows from it."""
        if self._rewind:
            self._rewind = False  # first: what is asked for meanwhile is another one
            self._rewind = not self._source.rewind(COMMIT_S) or self._rewind
        room = 0 if self._halting else self._budget.room()
        self._hold(holding=room == 0)
        if self._halting:
            found = self._source.linger()
        else:
            found = self._source.poll(POLL_S if room else 0.0, min(room, POLL_FRAMES) or 1)
        if found.frames or found.changes:
            self._count(found)
            self._budget.take(len(found.frames), sum(map(self._budget.size_of, found.frames)))
            self._watcher.fetched(found.frames)
            self._fetched(found)
        self._commit()
        self._tell()
        if self._halting:
            if not self._halt_told:
                self._halt_told = True
                self._halted()
            self._finish.wait(FULL_S)
        elif room == 0:
            self._budget.wait_for_room(FULL_S)

    def _hold(self, *, holding: bool) -> None:
        """Pause or resume the source where that changes."""
        if holding and not self._paused:
            self._source.pause()
        elif self._paused and not holding:
            self._source.resume()
        self._paused = holding

    def _commit(self) -> None:
        """Commit what was asked for, if it was asked for in knowledge of what is ours."""
        wanted, self._wanted = self._wanted, None
        if wanted is None or wanted.changes != self._changes:
            return
        done = self._source.commit(wanted.positions, COMMIT_S)
        self._watcher.committed(done=done)
        if done:
            self._committed(wanted.positions)

    def _count(self, found: Fetched) -> None:
        """Remember which partitions have come or gone, and when."""
        for change in found.changes:
            self._changes += 1
            self._changed_at.update(dict.fromkeys(change.partitions, self._changes))

    def _commit_last(self) -> None:
        """The last commit: again and again until its deadline, for nobody will ask later.

        A change of ownership in between ends it for the partitions that came or went, and for no others: when another
        member has left, what is new here is that its partitions are ours too.
        """
        wanted = self._last
        if wanted is None or not wanted.positions:
            return
        while True:
            ours = {
                partition: offset
                for partition, offset in wanted.positions.items()
                if self._changed_at.get(partition, 0) <= wanted.changes
            }
            left_s = self._deadline_s - self._clock.monotonic_s()
            done = not ours or self._source.commit(ours, min(COMMIT_S, max(0.1, left_s)))
            if ours:
                self._watcher.committed(done=done)
            self._last_done = done and len(ours) == len(wanted.positions)
            if done or left_s <= 0:
                return
            self._count(self._source.poll(POLL_S, 1))

    def _tell(self) -> None:
        """Health and lag."""
        self._watcher.beat("fetch")
        ready = self._source.ready()
        if ready != self._ready:
            self._ready = ready
            self._watcher.ready(ready=ready)
            log.info("the source is %s", "ready" if ready else "not ready: no group or no broker; trying on")
        now_s = self._clock.monotonic_s()
        if now_s - self._lag_at_s >= LAG_EVERY_S:
            self._lag_at_s = now_s
            for partition, frames in self._source.lag().items():
                self._watcher.lag(partition, frames)
