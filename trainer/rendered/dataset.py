"""Write a rendered line to disk: pictures in `good/` and `fail/`, and `groups.csv` that says what each one is."""

from __future__ import annotations

import csv
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Literal

from engine.errors import InputError
from trainer.rendered.camera import Camera, encode
from trainer.rendered.defects import DIFFICULTIES, KINDS_OF, Defect
from trainer.rendered.looks import look_of
from trainer.rendered.streams import Use, stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

STATIONS: tuple[str, ...] = ("press-1", "mould-2", "cast-3", "plate-4")
"""The stations of the line, in its order."""


@dataclass(frozen=True, slots=True)
class RenderedImage:
    """One picture of the set; also a row of `groups.csv`.

    Attributes:
        file: path relative to the set, `good/press-1_lot03_0007.jpg`.
        label: what the part is.
        group: station and lot, `press-1_lot03`: pictures of one group share lamp, finish and bench, so they must not be
            split between training and test.
        station: one of STATIONS.
        kind: the defect, empty for a good part.
        difficulty: `obvious`, `medium` or `hard`, empty for a good part.
    """

    file: str
    label: Literal["good", "fail"]
    group: str
    station: str
    kind: str
    difficulty: str


def render_line(
    out: Path,
    *,
    seed: int,
    per_station: int,
    defect_share: float = 0.4,
    first_lot: int = 0,
    lots: int = 5,
    stations: Sequence[str] = STATIONS,
) -> list[RenderedImage]:
    """Render a line's pictures into `out` and describe them.

    Every picture is a pure function of seed, station, lot, its number in the lot, and the defect it shall show, if
    any: rendering later lots never changes earlier ones, and a station looks the same in any choice of stations.

    Args:
        out: a folder that is empty or not there yet. Gets `good/*.jpg` and `fail/*.jpg` (640 x 480, JPEG) and
            `groups.csv` (file, label, group, station, kind, difficulty).
        seed: 0 or more.
        per_station: pictures of each station, spread evenly over the lots.
        defect_share: share of defective parts, 0 to 1; kept to within one picture in every lot.
        first_lot: number of the first lot: a later one gives parts of the same families that nobody has seen.
        lots: how many lots.
        stations: which stations.

    Returns:
        One entry per picture, by station, lot and number.

    Raises:
        InputError: `out` is not an empty folder or cannot be written, or an argument makes no sense.
    """
    _check(seed, per_station, defect_share, first_lot, lots, stations)
    _prepare(out)
    batches = [
        (station, lot, per_station // lots + (place < per_station % lots))
        for station in stations
        for place, lot in enumerate(range(first_lot, first_lot + lots))
    ]
    # One lot is one piece of work: its look is made once, and only as many looks as threads are in memory.
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="render") as pool:
        futures = [
            pool.submit(_render_lot, out, seed, station, lot, count, defect_share) for station, lot, count in batches
        ]
        images = [image for future in futures for image in future.result()]
    with (out / "groups.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in fields(RenderedImage))
        table.writerows(astuple(image) for image in images)
    return images


def schedule(seed: int, station: str, lot: int, count: int, defect_share: float) -> Iterator[Defect | None]:
    """Which of a lot's parts are defective, and how: spread evenly, every kind in every difficulty in turn."""
    number = STATIONS.index(station)
    whole = [Defect(kind, difficulty) for kind in KINDS_OF[station] for difficulty in DIFFICULTIES]
    order = stream(seed, Use.SCHEDULE, number).permutation(len(whole))
    phase = float(stream(seed, Use.SCHEDULE, number, lot + 1).random())
    for index in range(count):
        before, after = math.floor(index * defect_share + phase), math.floor((index + 1) * defect_share + phase)
        # The step between lots is coprime to the 15 combinations: few pictures a lot still show them all over the lots.
        yield whole[order[(before + 4 * lot) % len(whole)]] if after > before else None


def _render_lot(out: Path, seed: int, station: str, lot: int, count: int, defect_share: float) -> list[RenderedImage]:
    """Render one lot of one station."""
    if not count:
        return []
    number = STATIONS.index(station)
    camera = Camera(seed, number, lot, look_of(seed, station, number, lot))
    group = f"{station}_lot{lot:02d}"
    images = []
    for index, defect in enumerate(schedule(seed, station, lot, count, defect_share)):
        label: Literal["good", "fail"] = "fail" if defect else "good"
        name = f"{label}/{group}_{index:04d}.jpg"
        (out / name).write_bytes(encode(camera.picture(index, defect)))
        images.append(
            RenderedImage(
                name, label, group, station, defect.kind if defect else "", defect.difficulty if defect else ""
            )
        )
    return images


def _check(
    seed: int, per_station: int, defect_share: float, first_lot: int, lots: int, stations: Sequence[str]
) -> None:
    """Refuse arguments that make no sense."""
    numbers = (("seed", seed, 0), ("per_station", per_station, 1), ("first_lot", first_lot, 0), ("lots", lots, 1))
    for name, value, least in numbers:
        if value < least:
            msg = f"{name} {value} is too small for a rendered line: expected {least} or more"
            raise InputError(msg)
    if not 0 <= defect_share <= 1:
        msg = f"defect share {defect_share} is not a share: expected a number from 0 (no defects) to 1 (only defects)"
        raise InputError(msg)
    unknown = sorted(set(stations) - set(STATIONS))
    if unknown or not stations or len(set(stations)) < len(stations):
        got = ", ".join(unknown or stations) or "none"
        msg = f"stations of a rendered line: got {got}; expected some of {', '.join(STATIONS)}, each once"
        raise InputError(msg)


def _prepare(out: Path) -> None:
    """Make the folders; refuse a folder with anything in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            msg = f"{out} is not empty: a rendered line is not mixed with other files; give a new folder or empty it"
            raise InputError(msg)
        for label in ("good", "fail"):
            (out / label).mkdir()
    except OSError as error:
        msg = f"{out} cannot be written: {error.strerror}; give a folder that may be made or filled"
        raise InputError(msg) from error
