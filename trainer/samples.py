"""Labelled images back to disk: a folder per class, and a CSV that says what each file is."""

from __future__ import annotations

import csv
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trainer.labels import Sample

CSV_NAME = "groups.csv"
_OWN = ("file", "label", "group", "is_defect")


def write_samples(out: Path, samples: Sequence[Sample], read: Callable[[str], bytes]) -> None:
    """Write each sample's bytes, unchanged, to `out/CLASS/NUMBER_NAME`, and `out/groups.csv` beside them.

    The folder is itself a source to train on. Further columns of the samples' own groups file are kept; `is_defect` is
    1 or 0. The number keeps apart files of the same name from different folders.
    """
    further = sorted({name for sample in samples for name in sample.extra if name not in _OWN})
    out.mkdir(parents=True)
    with (out / CSV_NAME).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*_OWN, *further])
        for number, sample in enumerate(samples):
            name = f"{number:06d}_{PurePosixPath(sample.name).name}"
            path = out / sample.label / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(read(sample.name))
            own = [f"{sample.label}/{name}", sample.label, sample.group or name, int(sample.is_defect)]
            table.writerow([*own, *(sample.extra.get(column, "") for column in further)])
