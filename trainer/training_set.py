"""What a bundle was trained on, as a table in its report: file, class, group and content of each image, and its side.

`framegate train --refine` reads it: what was held out stays held out, and what was learned from is learned from again.
"""

from __future__ import annotations

import csv
import io
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import BundleError
from trainer.labels import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAME = "training_set.csv"
_OWN = ("file", "label", "group", "is_defect", "held_out", "sha256")


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a training set; `sha256` is of its encoded bytes."""

    sample: Sample
    sha256: str


def to_csv(samples: Sequence[Sample], sha256: Sequence[str], held: Iterable[int]) -> bytes:
    """The table, UTF-8 but for the bytes of names that are not.

    Args:
        samples: (n,) of the training set, further columns of their own among them.
        sha256: (n,) of their encoded bytes.
        held: which of them were held out.
    """
    out_of_it = set(held)
    further = sorted({name for sample in samples for name in sample.extra if name not in _OWN})
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_OWN, *further])
    for row, (sample, digest) in enumerate(zip(samples, sha256, strict=True)):
        own = [sample.name, sample.label, sample.group or "", int(sample.is_defect), int(row in out_of_it), digest]
        table.writerow([*own, *(sample.extra.get(name, "") for name in further)])
    return text.getvalue().encode(errors="surrogateescape")  # names as the file system has them


def from_csv(data: bytes, where: str) -> tuple[Member, ...]:
    """The opposite of `to_csv`. Raises BundleError where `data` is no such table; `where` is for the message."""
    try:
        table = csv.DictReader(io.StringIO(data.decode(errors="surrogateescape"), newline=""), strict=True)
        where_of = {name: column for column, name in enumerate(table.fieldnames or ())}
        operator.itemgetter(*_OWN)(where_of)  # a table without images, too, has all columns: KeyError
        return tuple(_member(row) for row in table)
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        msg = f"{where} holds no training set that this version reads ({error!r}): train that bundle again"
        raise BundleError(msg) from error


def _member(row: dict[str, str]) -> Member:
    extra = {name: value for name, value in row.items() if name not in _OWN and value}
    flags = {"0": False, "1": True}
    sample = Sample(
        row["file"], row["label"], flags[row["is_defect"]], row["group"] or None, extra, flags[row["held_out"]]
    )
    return Member(sample, row["sha256"])
