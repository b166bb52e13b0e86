"""The rendered line: the same for the same seed, labelled truthfully, and defects that are where and as they say."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import astuple
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from engine.errors import InputError
from trainer.rendered import STATIONS, RenderedImage, render_line
from trainer.rendered.camera import Camera, encode
from trainer.rendered.dataset import schedule
from trainer.rendered.defects import DIFFICULTIES, KINDS_OF, Defect
from trainer.rendered.looks import look_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SEED = 5


@pytest.fixture(scope="module")
def cameras() -> dict[str, Camera]:
    return {name: camera(name, lot=1) for name in STATIONS}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RenderedImage]]:
    out = tmp_path_factory.mktemp("line") / "set"
    return out, render_line(out, seed=SEED, per_station=5, defect_share=0.4, first_lot=2, lots=2)


def camera(station: str, *, lot: int, seed: int = SEED) -> Camera:
    number = STATIONS.index(station)
    return Camera(seed, number, lot, look_of(seed, station, number, lot))


def read(path: Path) -> npt.NDArray[np.uint8]:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture is not None, path
    return np.asarray(picture, np.uint8)


def pixels(path: Path) -> str:
    return sha256(read(path).tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_pixels_in_any_choice_of_stations_and_lots(
    line: tuple[Path, list[RenderedImage]], tmp_path: Path
) -> None:
    out, images = line
    again = render_line(
        tmp_path / "again", seed=SEED, per_station=2, first_lot=3, lots=1, stations=["cast-3", "press-1"]
    )
    known = {image.file for image in images}
    shared = [image.file for image in again if image.file in known]
    assert len(shared) == len(again)
    assert all(pixels(tmp_path / "again" / file) == pixels(out / file) for file in shared)


def test_seeds_lots_stations_and_parts_differ() -> None:
    first = camera("press-1", lot=0)
    others = [
        camera("press-1", lot=0, seed=SEED + 1).picture(0, None),
        camera("press-1", lot=1).picture(0, None),
        camera("plate-4", lot=0).picture(0, None),
        first.picture(1, None),
    ]
    one = first.picture(0, None).astype(np.float32)
    assert all(np.abs(one - other).mean() > 1.5 for other in others)


def test_every_file_is_a_colour_picture_of_640_by_480(line: tuple[Path, list[RenderedImage]]) -> None:
    out, images = line
    on_disk = {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")}
    assert on_disk == {image.file for image in images}
    for file in on_disk:
        picture = read(out / file)
        assert picture.shape == (480, 640, 3)
        assert picture.std() > 10


def test_labels_groups_and_names_agree(line: tuple[Path, list[RenderedImage]]) -> None:
    out, images = line
    with (out / "groups.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "label", "group", "station", "kind", "difficulty"]
    assert [tuple(row) for row in rows] == [astuple(image) for image in images]
    for image in images:
        assert image.file.startswith(f"{image.label}/{image.group}_")
        assert image.group.startswith(f"{image.station}_lot0")
        assert (image.label == "fail") == bool(image.kind) == bool(image.difficulty)
        assert not image.kind or (image.kind in KINDS_OF[image.station] and image.difficulty in DIFFICULTIES)


def test_pictures_are_spread_over_stations_and_lots(line: tuple[Path, list[RenderedImage]]) -> None:
    _, images = line
    lots = {"lot02": 3, "lot03": 2}
    expected = {f"{station}_{lot}": count for station in STATIONS for lot, count in lots.items()}
    assert Counter(image.group for image in images) == expected


@pytest.mark.parametrize(("share", "count"), [(0.0, 30), (0.1, 30), (0.4, 60), (0.5, 7), (1.0, 30)])
def test_the_defect_share_holds_in_every_lot(share: float, count: int) -> None:
    for lot in range(8):
        defects = sum(defect is not None for defect in schedule(SEED, "mould-2", lot, count, share))
        assert abs(defects - share * count) < 1


@pytest.mark.parametrize("station", STATIONS)
def test_every_kind_in_every_difficulty_appears_equally_often(station: str) -> None:
    seen = Counter(defect for lot in range(5) for defect in schedule(SEED, station, lot, 75, 0.4) if defect)
    assert set(seen) == {Defect(kind, difficulty) for kind in KINDS_OF[station] for difficulty in DIFFICULTIES}
    assert max(seen.values()) - min(seen.values()) <= 5


def test_all_stations_share_the_four_common_kinds() -> None:
    assert all({"scratch", "dent", "missing_hole", "stain"} < set(kinds) for kinds in KINDS_OF.values())


def test_a_defect_changes_a_small_region_of_its_twin_and_an_obvious_one_more(cameras: dict[str, Camera]) -> None:
    change: dict[tuple[str, str], list[float]] = {}
    for station, line_camera in cameras.items():
        twin = line_camera.picture(0, None).astype(np.float32)
        for kind in KINDS_OF[station]:
            for difficulty in ("obvious", "hard"):
                difference = np.abs(line_camera.picture(0, Defect(kind, difficulty)) - twin).max(axis=2)
                assert difference.max() >= 12, (station, kind, difficulty)
                share = (difference > 0).mean()
                assert share < (0.06 if difficulty == "obvious" else 0.02), (station, kind, difficulty)
                change.setdefault((kind, difficulty), []).append(float(difference.sum()))
    for kind in {kind for kind, _ in change}:
        assert np.mean(change[kind, "obvious"]) > 1.4 * np.mean(change[kind, "hard"]), kind


def test_good_parts_vary_too(cameras: dict[str, Camera]) -> None:
    for line_camera in cameras.values():
        first, second = (line_camera.picture(index, None).astype(np.float32) for index in (0, 1))
        assert np.abs(first - second).max() > 20


def test_a_picture_costs_no_more_bytes_than_a_camera_would_send(cameras: dict[str, Camera]) -> None:
    for line_camera in cameras.values():
        assert 20_000 < len(encode(line_camera.picture(0, None))) < 150_000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"per_station": 0}, "per_station 0"),
        ({"lots": 0}, "lots 0"),
        ({"first_lot": -1}, "first_lot -1"),
        ({"seed": -1}, "seed -1"),
        ({"defect_share": 1.2}, "defect share 1.2"),
        ({"defect_share": float("nan")}, "defect share nan"),
        ({"stations": ["press-9"]}, "press-9"),
        ({"stations": []}, "none"),
        ({"stations": ["press-1", "press-1"]}, "each once"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    out = tmp_path / "set"
    with pytest.raises(InputError, match=named):
        render_line(out, **{"seed": SEED, "per_station": 2, **arguments})
    assert not out.exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty"):
        render_line(tmp_path, seed=SEED, per_station=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        render_line(taken, seed=SEED, per_station=1)
