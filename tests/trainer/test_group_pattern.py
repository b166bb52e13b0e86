"""Groups from a pattern on the images' paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trainer.errors import LabelError
from trainer.group_pattern import group_by_pattern
from trainer.labels import Sample, label_source
from trainer.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [f"good/lot{number // 4}_cam{number % 2}_{number}.jpg" for number in range(20)]


def samples(names: list[str], group: str | None = None) -> list[Sample]:
    return [Sample(name, "good", is_defect=False, group=group) for name in names]


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"lot(\d+)", list("01234")),
        (r"(lot\d+)_(cam\d)", [f"lot{number}" for number in range(5)]),
        (r"(lot\d+)_(?P<group>cam\d)", ["cam0", "cam1"]),
        (r"(?:good|fail)/(?P<group>lot\d+_cam\d)", [f"lot{lot}_cam{cam}" for lot in range(5) for cam in range(2)]),
    ],
)
def test_the_group_is_what_is_captured(pattern: str, groups: list[str]) -> None:
    grouped, notes = group_by_pattern(samples(NAMES), pattern)
    assert list(dict.fromkeys(sample.group for sample in grouped)) == groups
    assert [sample.name for sample in grouped] == NAMES
    assert notes == (f"20 images lie in {len(groups)} groups by --group-pattern, such as {groups[0]!r}",)


def test_what_does_not_fit_stands_alone_and_is_told() -> None:
    grouped, notes = group_by_pattern(samples([*NAMES, "good/other.jpg", "good/lot_x.jpg"]), r"lot(\d*)")
    assert [sample.group for sample in grouped[-3:]] == ["4", None, None]
    assert notes[1] == "2 images do not fit --group-pattern and stand alone, such as 'good/other.jpg'"


def test_a_pattern_that_keeps_nothing_together_is_told() -> None:
    assert "every image is a group of its own" in group_by_pattern(samples(NAMES), "(.*)")[1][1]


def test_one_group_with_others_that_stand_alone_will_do() -> None:
    grouped, _ = group_by_pattern(samples(NAMES), "(lot1)")
    assert [sample.group for sample in grouped].count("lot1") == 4


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("lot(", r"'lot\(' is no regular expression \(missing \), .*expected for example"),
        (r"lot\d+", "captures nothing: expected brackets"),
        ("(los)", r"'\(los\)' fits none of the 20 images: .*such as 'good/lot0_cam0_0.jpg'"),
        ("(x?)", "fits none of the 20 images"),
        ("(good)/", "puts all 20 images into one group, 'good': nothing could be held out"),
    ],
)
def test_what_tells_nothing_apart_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(LabelError, match=words):
        group_by_pattern(samples(NAMES), pattern)


def test_the_pattern_takes_the_place_of_a_csv_files_groups(tmp_path: Path) -> None:
    names = [name.replace("good", label) for label in ("good", "fail") for name in NAMES]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    lines = [f"{name},{name.partition('/')[0]},from csv {number % 7}" for number, name in enumerate(names)]
    (tmp_path / "groups.csv").write_text("\n".join(["file,label,group", *lines]), encoding="utf-8")
    with open_source(tmp_path) as source:
        labelling = label_source(source, group_pattern=r"(lot\d)")
        assert {sample.group for sample in labelling.samples} == {f"lot{number}" for number in range(5)}
        assert "--group-pattern is given, so the groups in the CSV file are not used" in labelling.notes
        assert {sample.group for sample in label_source(source).samples} == {
            f"from csv {number}" for number in range(7)
        }
