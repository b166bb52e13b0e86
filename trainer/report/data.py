"""What an acceptance report is made of: plain arrays and values, no files and no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from engine.bundle import Bundle

GOOD_ONLY = "good-only"
"""What a bundle of good parts alone tells as its mode."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """n images, and what a model said of them that had seen neither them nor any image of their groups.

    Attributes:
        names: (n,) path of each inside the source.
        defect: (n,) bool, by its label.
        groups: (n,) number of what stays together in a split.
        probability: (n,) float64 of a defect, at the line's defect rate.
        decision: (n,) str: `pass`, `review` or `fail`.
        columns: name of a breakdown (`group`, `kind`, `station`, ...) -> (n,) each image's value in it; may be empty.
    """

    names: tuple[str, ...]
    defect: np.ndarray
    groups: np.ndarray
    probability: np.ndarray
    decision: np.ndarray
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many images."""
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image for the page.

    Attributes:
        why: `escape` (a defect passed), `false_reject` (a good part failed), `near` (close to the threshold) or
            `label` (the answer speaks against the label).
        plain, heated: JPEG; `heated` with what spoke for a defect drawn over it, None where the model has seen the
            image and its heat would prove nothing.
        size_px: (width, height) of both.
    """

    name: str
    label: str
    is_defect: bool
    group: str
    probability: float
    decision: str
    reasons: tuple[str, ...]
    why: str
    plain: bytes
    heated: bytes | None
    size_px: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Acceptance:
    """One training run, as far as it is told.

    Attributes:
        bundle: as it will be read, its digest and `about` set.
        held: the images held out, judged by the very model in the bundle, through the serving path.
        everything: all images, each judged by a fold's model that had not seen its group; None where there was none.
        pictures: of `held`, the worst mistakes first, then the nearest calls.
        doubtful: of `everything`: images whose answer speaks most against their label.
        used_groups, held_groups: names of the groups on each side of the split; empty where images stand alone.
        used_images, used_defects: counts of what was trained on.
        settings: what was asked for, option -> value in words.
    """

    bundle: Bundle
    held: Judged
    everything: Judged | None = None
    pictures: tuple[Picture, ...] = ()
    doubtful: tuple[Picture, ...] = ()
    used_groups: tuple[str, ...] = ()
    held_groups: tuple[str, ...] = ()
    used_images: int = 0
    used_defects: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_good_only(self) -> bool:
        """Whether no defect was trained on: then there is no probability, no defect rate and no cost."""
        return self.about.get("mode") == GOOD_ONLY

    @property
    def about(self) -> dict[str, Any]:
        """What the bundle tells of itself."""
        return self.bundle.about
