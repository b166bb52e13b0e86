"""The checker for runs too long to be held in memory: the same questions as `tests.faults.checker`, as it goes.

It is told of frames as the broker acknowledges them and of verdicts as they are read, in any order between the two, and
keeps only what is unanswered, so its memory is bounded by how far ahead the cameras are.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.checker import Report, fault_of, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.faults.checker import Expected, FrameRecord, VerdictRecord

IDS_REMEMBERED = 100_000
"""Verdict ids that are held against later ones."""


@dataclass
class _Partition:
    """What was answered of one partition of frames: all below `below`, and some above it."""

    below: int = 0
    above: set[int] = field(default_factory=set)

    def has(self, offset: int) -> bool:
        return offset < self.below or offset in self.above

    def add(self, offset: int) -> None:
        self.above.add(offset)
        while self.below in self.above:
            self.above.remove(self.below)
            self.below += 1


class RollingCheck:
    """Holds verdicts against frames as both come. Used from one thread. Offsets of frames have no gaps.

    Attributes:
        report: what was found up to now; final after `finish`.
    """

    def __init__(self, expected: Mapping[str, Mapping[str, Expected]], topic: str) -> None:
        """Begin with nothing.

        Args:
            expected: by the digest of the model that judged: what has to be said of a frame, by the digest of its
                bytes.
            topic: the frames' topic, which every verdict has to name.
        """
        self.report = Report()
        self._expected = expected
        self._topic = topic
        self._open: dict[tuple[int, int], FrameRecord] = {}
        self._early: dict[tuple[int, int], VerdictRecord] = {}
        self._answered: dict[int, _Partition] = defaultdict(_Partition)
        self._latest: dict[tuple[str, int], int] = defaultdict(lambda: -1)
        self._homes: dict[str, int] = {}
        self._ids: OrderedDict[str, tuple[int, int]] = OrderedDict()

    @property
    def unanswered(self) -> int:
        """Frames that are in the topic and have no verdict yet."""
        return len(self._open)

    def frame(self, frame: FrameRecord) -> None:
        """One frame is in its topic."""
        self.report.frames += 1
        place = frame.partition, frame.offset
        early = self._early.pop(place, None)
        if early is None:
            self._open[place] = frame
        else:
            self._judge(frame, early)

    def verdict(self, verdict: VerdictRecord) -> None:
        """One verdict, each partition's in the order of its log."""
        self.report.verdicts += 1
        place = verdict.place
        self._look_at_id(verdict)
        if self._answered[place[0]].has(place[1]):
            self.report.note("doubled", name_of(verdict))
            return
        self._answered[place[0]].add(place[1])
        self._look_at_order(verdict)
        frame = self._open.pop(place, None)
        if frame is None:
            self._early[place] = verdict
        else:
            self._judge(frame, verdict)

    def finish(self) -> Report:
        """Nothing more will come: what is open is lost, and what answers no frame is wrong."""
        for (partition, offset), frame in sorted(self._open.items()):
            self.report.note("lost", f"frame {partition}/{offset} of station {frame.station!r}")
        for verdict in self._early.values():
            self.report.note("wrong", f"{name_of(verdict)}: it answers no frame")
        return self.report

    def _judge(self, frame: FrameRecord, verdict: VerdictRecord) -> None:
        """Whether it says what it has to."""
        model = verdict.document["model"]["digest"]
        known = self._expected.get(model)
        fault = (
            f"it is of model {model[:12]!r}, which was never there"
            if known is None
            else fault_of(frame, verdict, known, self._topic)
        )
        if fault is not None:
            self.report.note("wrong", f"{name_of(verdict)}: {fault}")

    def _look_at_id(self, verdict: VerdictRecord) -> None:
        """Whether its id is another frame's."""
        name = verdict.document["verdict_id"]
        if self._ids.setdefault(name, verdict.place) != verdict.place:
            self.report.note("wrong", f"{name_of(verdict)}: its id is another frame's")
        if len(self._ids) > IDS_REMEMBERED:
            self._ids.popitem(last=False)

    def _look_at_order(self, verdict: VerdictRecord) -> None:
        """Whether its station's verdicts stand in the order of its frames, in one partition."""
        number, offset = verdict.place
        line = verdict.key, number
        if offset < self._latest[line]:
            self.report.note("out_of_order", f"{name_of(verdict)}: behind the verdict of offset {self._latest[line]}")
        elif self._homes.setdefault(verdict.key, verdict.partition) != verdict.partition:
            home = self._homes[verdict.key]
            self.report.note("out_of_order", f"{name_of(verdict)}: its station's verdicts lie in partition {home}")
        self._latest[line] = max(self._latest[line], offset)
