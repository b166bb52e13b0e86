"""Files with the same bytes: one of each is kept, none where its copies disagree about the class. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.labels import Sample

MOST_LISTED = 200
"""Pairs of each kind in a bundle; all of them are counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """What of n files is left.

    Attributes:
        kept: (m,) indices, ascending.
        copies: (kept, left out) names of equal bytes and one class.
        contradictions: (one, other) names of equal bytes in two classes; both are left out.
        disputed: contents that lie in both classes.
    """

    kept: np.ndarray
    copies: tuple[tuple[str, str], ...]
    contradictions: tuple[tuple[str, str], ...]
    disputed: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must hear, the worse first."""
        notes = []
        if self.contradictions:
            one, other = self.contradictions[0]
            notes.append(
                f"ATTENTION: {self.disputed} images lie in both classes and were left out, for example "
                f"{one} and {other}: one of the two labels is wrong"
            )
        if self.copies:
            one, other = self.copies[0]
            notes.append(
                f"{len(self.copies)} files are byte-for-byte copies of others and were left out, for example "
                f"{other} of {one}"
            )
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """Counts, and the names as far as they are listed."""
        return {
            "copies": [list(pair) for pair in self.copies[:MOST_LISTED]],
            "copies_total": len(self.copies),
            "contradictions": [list(pair) for pair in self.contradictions[:MOST_LISTED]],
            "contradictions_total": len(self.contradictions),
        }


def without_copies(samples: Sequence[Sample], sha256: Sequence[str]) -> Copies:
    """One of each content, the first, so that no copy stands on both sides of a split; none where labels disagree.

    Args:
        samples: n files.
        sha256: (n,) of their bytes.
    """
    by_content: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(sha256):
        by_content[value].append(index)
    kept, copies, contradictions, disputed = [], [], [], 0
    for first, *others in by_content.values():
        contrary = next((index for index in others if samples[index].label != samples[first].label), None)
        if contrary is None:
            kept.append(first)
            copies += [(samples[first].name, samples[index].name) for index in others]
            continue
        disputed += 1
        for index in others:  # each beside one that contradicts it
            one = first if samples[index].label != samples[first].label else contrary
            contradictions.append((samples[one].name, samples[index].name))
    return Copies(np.array(sorted(kept), np.int64), tuple(copies), tuple(contradictions), disputed)
