"""Which partitions are ours, since which assignment, and how far each is answered. Pure: no threads, no Kafka.

A commit of offset n+1 says that n and all before it are answered, so a position moves only over an unbroken run of
answered frames. A result that belongs to an earlier tenure of its partition is worth nothing: the frame is the new
owner's, even where the new owner is this process again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from consumer.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from consumer.events import Position


class Partition(NamedTuple):
    """One partition of one topic: the unit of ownership, of order and of commits."""

    topic: str
    number: int


@dataclass(slots=True)
class _Holding:
    """One partition in one tenure: what was admitted and not yet passed by the position, in offset order."""

    epoch: int
    open: deque[int] = field(default_factory=deque)
    answered: set[int] = field(default_factory=set)
    newest: int = -1
    position: int | None = None
    committed: int | None = None

    def advance(self) -> None:
        """Move the position over every answered frame that nothing unanswered precedes."""
        while self.open and self.open[0] in self.answered:
            offset = self.open.popleft()
            self.answered.remove(offset)
            self.position = offset + 1


class Tenure:
    """The partitions held now. Belongs to one thread.

    Epochs only grow, over all partitions: two tenures never share one, so a result carries its partition's epoch and
    needs nothing else to be told apart from one of today.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._held: dict[Partition, _Holding] = {}
        self._epoch = 0

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """What is ours now."""
        return tuple(self._held)

    def begin(self, partitions: Iterable[Partition]) -> None:
        """These are ours from now on. One that was ours already begins anew: its frames will come again."""
        for partition in partitions:
            self._epoch += 1
            self._held[partition] = _Holding(self._epoch)

    def end(self, partitions: Iterable[Partition]) -> None:
        """These are not ours any more; all that was known of them is forgotten. Unknown ones are no matter."""
        for partition in partitions:
            self._held.pop(partition, None)

    def admit(self, position: Position) -> int:
        """A frame is in hand: the epoch that its result has to carry.

        An offset that steps back means that the partition is being read again from an earlier point: that is a new
        tenure, and what was under way is dropped rather than committed out of order.

        Raises:
            BrokerError: the partition is not ours; committing for it could skip frames, so the consumer has to stop.
        """
        partition = Partition(position.topic, position.partition)
        holding = self._held.get(partition)
        if holding is None:
            msg = (
                f"a frame of {position.topic}-{position.partition} at offset {position.offset} came without an "
                "assignment: expected frames of assigned partitions only; restart the consumer and report this"
            )
            raise BrokerError(msg)
        if position.offset <= holding.newest:
            self.begin([partition])
            holding = self._held[partition]
        holding.newest = position.offset
        holding.open.append(position.offset)
        return holding.epoch

    def steps_back(self, position: Position) -> bool:
        """Whether a frame there would come again, or from before one that is in hand, within a tenure."""
        holding = self._held.get(Partition(position.topic, position.partition))
        return holding is not None and position.offset <= holding.newest

    def holds(self, position: Position, epoch: int) -> bool:
        """Whether a result of this epoch still counts."""
        holding = self._held.get(Partition(position.topic, position.partition))
        return holding is not None and holding.epoch == epoch

    def answered(self, position: Position, epoch: int) -> bool:
        """The broker has this frame's verdict. False where it belongs to an earlier tenure and counts for nothing."""
        holding = self._held.get(Partition(position.topic, position.partition))
        if holding is None or holding.epoch != epoch:
            return False
        holding.answered.add(position.offset)
        holding.advance()
        return True

    def commits(self) -> dict[Partition, int]:
        """For each partition that moved since its last commit, the offset to commit."""
        return {
            partition: holding.position
            for partition, holding in self._held.items()
            if holding.position is not None and holding.position != holding.committed
        }

    def committed(self, positions: Mapping[Partition, int]) -> None:
        """The broker has recorded these positions. Of partitions no longer ours: no matter."""
        for partition, offset in positions.items():
            holding = self._held.get(partition)
            if holding is not None and holding.position is not None and offset <= holding.position:
                holding.committed = offset

    def open_frames(self) -> int:
        """Frames admitted in the tenures of now that no position has passed."""
        return sum(len(holding.open) for holding in self._held.values())
