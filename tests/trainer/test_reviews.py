"""What inspectors said, read from CSV or JSON lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from engine.bundle import Classes
from trainer.errors import LabelError
from trainer.reviews import read_reviews

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = Classes("Screw", "Hole")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_has_its_rows_with_the_bundle_s_own_words(tmp_path: Path) -> None:
    text = "file;label;group;by\na/1.jpg;hole;lot 7;Ann\n\nb\\2.jpg;PASS;;\n"
    (first, second), notes = read_reviews(write(tmp_path / "r.csv", text), CLASSES)
    assert (first.file, first.label, first.is_defect, first.group, dict(first.extra)) == (
        "a/1.jpg",
        "Hole",
        True,
        "lot 7",
        {"by": "Ann"},
    )
    assert (second.file, second.label, second.is_defect, second.group, second.line) == (
        "b/2.jpg",
        "Screw",
        False,
        None,
        4,
    )
    assert notes == ()


def test_json_lines_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"file": "a/1.jpg", "label": "fail", "group": "lot 7", "verdict": {"id": 1}},
        {"file": "b.jpg", "Label": "Screw"},
    ]
    found, _ = read_reviews(write(tmp_path / "r.jsonl", "\n".join(map(json.dumps, rows))), CLASSES)
    assert [(row.file, row.label, row.group, dict(row.extra)) for row in found] == [
        ("a/1.jpg", "Hole", "lot 7", {}),
        ("b.jpg", "Screw", None, {}),
    ]


def test_the_last_row_of_an_image_counts_and_one_without_a_label_does_not(tmp_path: Path) -> None:
    text = "file,label\n1.jpg,Hole\n2.jpg,\n1.jpg,Screw\n"
    (only,), notes = read_reviews(write(tmp_path / "r.csv", text), CLASSES)
    assert not only.is_defect
    assert notes == (
        "review file: 1 rows have no label and were left out",
        "review file: 1 images have rows that disagree, the last counts: '1.jpg'",
    )


def test_a_class_called_pass_may_be_the_defect(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", "file,label\n1.jpg,pass\n")
    (only,), _ = read_reviews(path, Classes("fail", "pass"))
    assert only.is_defect


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no labelled row"),
        ("file,label\n", "no labelled row"),
        ("file,name\n1.jpg,Hole\n", "has columns 'file,name': expected file,label"),
        ("file,label\n1.jpg,Hole,x\n", "line 2 has 3 cells, expected 2"),
        ("file,label\n,Hole\n", "line 2 names no file"),
        ("file,label\n1.jpg,scratch\n", "line 2 says 'scratch': expected 'Screw' or 'Hole', pass or fail"),
        ('{"file": "1.jpg"\n', "line 1 is not JSON"),
        ('{"file": "1.jpg", "label": "Hole"}\n[1]\n', "line 2 is '[1]'"),
        ('file,label\n"1.jpg,Hole\n', "is not CSV"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(LabelError, match="review file") as error:
        read_reviews(write(tmp_path / "r.csv", text), CLASSES)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"cannot be read: No such file"):
        read_reviews(tmp_path / "none.csv", CLASSES)
