"""One partition in one tenure, as its source and its sink both see it: the token that a commit is checked against.

Pure but for what Python promises of a single assignment: each mark is set once, by one side, and read by the others.
"""

from __future__ import annotations

from dataclasses import dataclass


class Claim:
    """The right to answer for a partition from one assignment (or rewind) on.

    Attributes:
        over: set by the source the moment the partition is given back, taken, or read again from the committed
            position. What was computed under the claim is worth nothing from then on.
        broken: set by a sink that gave up a publication under the claim: nothing later may be recorded under it, or
            the given-up frames would be passed over. A rewind ends it and begins another.
    """

    __slots__ = ("broken", "over")

    def __init__(self) -> None:
        """Running."""
        self.over = False
        self.broken = False

    @property
    def running(self) -> bool:
        """Whether a publication under it may still be recorded."""
        return not (self.over or self.broken)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one partition is answered once a publication is stored.

    Attributes:
        offset: the one after the last frame answered.
        claim: under which its frames were taken in.
    """

    offset: int
    claim: Claim
