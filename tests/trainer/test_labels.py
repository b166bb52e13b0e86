"""Labels from folders, names and a CSV file: what is certain is taken, what is a guess is said, the rest is refused."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainer.errors import LabelError, SourceError
from trainer.label_csv import Columns, read_groups_file
from trainer.labels import MINIMUM_PER_CLASS, label_items, label_source
from trainer.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARED = Path(os.environ.get("FRAMEGATE_TEST_DATA", Path(__file__).parents[2].parent / "shared"))
N = MINIMUM_PER_CLASS


def many(*patterns: str, count: int = N) -> list[str]:
    """`many("good/#.jpg")`: names with numbers."""
    return [pattern.replace("#", str(number)) for pattern in patterns for number in range(count)]


def rows(names: Sequence[str], label: str = "", group: str = "g", header: str = "file,label,group") -> str:
    """A CSV file of the given names, the label being the first folder where none is given."""
    lines = [f"{name},{label or name.split('/', maxsplit=1)[0]},{group}" for name in names]
    return "\n".join([header, *lines, ""])


@pytest.mark.parametrize(
    "patterns",
    [
        ("good/#.jpg", "fail/#.jpg"),
        ("data/good/#.jpg", "data/fail/#.jpg"),
        ("a/b/good/#.jpg", "a/b/fail/#.jpg"),
        ("good/cam1/#.jpg", "fail/#.jpg"),
        ("cam1/good/#.jpg", "cam1/fail/#.jpg", "cam2/good/#.jpg", "cam2/fail/#.jpg"),
        ("train/good/#.jpg", "train/fail/#.jpg", "test/good/#.jpg", "test/fail/#.jpg"),
        ("Good/#.jpg", "FAIL/#.jpg"),
        ("good.#.jpg", "fail.#.jpg"),
        ("good_#.jpg", "fail-#.jpg"),
        ("top/good (#).jpg", "top/fail (#).jpg"),
    ],
)
def test_layouts(patterns: tuple[str, ...]) -> None:
    names = many(*patterns)
    labelling = label_items(names)
    assert (labelling.pass_class.lower(), labelling.fail_class.lower()) == ("good", "fail")
    assert [sample.name for sample in labelling.samples] == names
    assert [sample.is_defect for sample in labelling.samples] == ["fail" in name.lower() for name in names]
    assert labelling.skipped == ()
    assert {sample.group for sample in labelling.samples} == {None}


def test_kaggle_names_are_taken_with_a_note() -> None:
    labelling = label_items(many("cat.#.jpg", "dog.#.jpg"))
    assert (labelling.pass_class, labelling.fail_class, labelling.how) == ("cat", "dog", "names")
    assert "'dog' is taken as the fail class" in labelling.notes[0]
    assert "--fail-class" in labelling.notes[0]
    turned = label_items(many("cat.#.jpg", "dog.#.jpg"), fail_class="Cat")
    assert (turned.pass_class, turned.fail_class, turned.notes) == ("dog", "cat", ())


def test_splits_of_other_people_are_looked_through() -> None:
    labelling = label_items(many("train/cat/#.jpg", "train/dog/#.jpg", "test/cat/#.jpg", "test/dog/#.jpg"))
    assert (labelling.pass_class, labelling.fail_class) == ("cat", "dog")
    assert labelling.notes[0] == "folders test, train are looked through: the split is made here"


@pytest.mark.parametrize(
    ("good", "fail"),
    [
        ("ok", "nok"),
        ("io", "nio"),
        ("i.O", "n.i.O"),
        ("ok_front", "def_front"),
        ("gut", "defekt"),
        ("no_defect", "defect"),
        ("defect-free", "xyz"),
        ("OK", "not_ok"),
        ("normal", "anything"),
        ("board", "broken"),
        ("zebra", "bad"),
    ],
)
def test_well_known_words_beat_the_alphabet(good: str, fail: str) -> None:
    labelling = label_items(many(f"{good}/#.jpg", f"{fail}/#.jpg"))
    assert (labelling.pass_class, labelling.fail_class) == (good, fail)
    assert labelling.notes == ()


@pytest.mark.parametrize(("first", "second"), [("good", "ok"), ("scratch", "dent"), ("bad", "ng")])
def test_two_words_for_the_same_are_asked_about(first: str, second: str) -> None:
    names = many(f"{first}/#.jpg", f"{second}/#.jpg")
    with pytest.raises(LabelError, match="--fail-class"):
        label_items(names)
    assert label_items(names, fail_class=second).pass_class == first


def test_camera_file_names_are_no_classes() -> None:
    with pytest.raises(LabelError, match=r"'DSC' and 'IMG'.*--fail-class"):
        label_items(many("IMG_#.jpg", "DSC_#.jpg"))


def test_spellings_of_one_class_are_one() -> None:
    labelling = label_items(many("cam1/Good/#.jpg", "cam2/good/#.jpg", "cam1/fail/#.jpg"))
    assert {sample.label for sample in labelling.samples} == {"Good", "fail"}


def test_an_unknown_fail_class_is_refused() -> None:
    with pytest.raises(LabelError, match="'bird' is not among the classes: expected 'cat' or 'dog'"):
        label_items(many("cat.#.jpg", "dog.#.jpg"), fail_class="bird")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (many("good/#.jpg"), r"only one class: 'good' \(10 images\)"),
        (many("data/good/#.jpg"), r"only one class: 'good' \(10 images\)"),
        (many("#.jpg"), "no class can be told from the 10 file names, such as '0.jpg', '1.jpg', '2.jpg'"),
        (many("good/#.jpg", "dent/#.jpg", "scratch/#.jpg"), r"3 classes from folders: 'dent' \(10 images\), 'good'"),
        (many("cat.#.jpg", "dog.#.jpg", "cow.#.jpg"), "3 classes from names"),
    ],
)
def test_not_two_classes(names: list[str], words: str) -> None:
    with pytest.raises(LabelError, match=words) as caught:
        label_items(names)
    assert "expected exactly two" in str(caught.value)


def test_a_class_of_three_images_is_refused() -> None:
    names = many("good/#.jpg") + many("fail/#.jpg", count=3)
    with pytest.raises(LabelError, match=r"'fail' \(3 images\).*at least 10 of each class: add 7 more of 'fail'"):
        label_items(names)
    assert len(label_items(names, minimum_per_class=3).samples) == N + 3


def test_strays_are_skipped_with_a_reason() -> None:
    names = [*many("d/good/#.jpg", "d/fail/#.jpg"), "d/overview.jpg"]
    assert label_items(names).skipped == (("d/overview.jpg", "lies beside the class folders"),)
    names = [*many("cat.#.jpg", "dog.#.jpg"), "overview.jpg"]
    assert label_items(names).skipped == (("overview.jpg", "its name gives no class, as cat.12.jpg does"),)


# ------------------------------------------------------------------ CSV


def test_csv_gives_groups_and_extra() -> None:
    names = many("good/#.jpg", "fail/#.jpg")
    lines = [f"{name},{name[:4]},part {index // 2},k{index}" for index, name in enumerate(names)]
    labelling = label_items(names, groups_csv="\n".join(["\ufeffFile,Label, Group ,kind", *lines]))
    assert labelling.how == "csv"
    assert [sample.group for sample in labelling.samples] == [f"part {index // 2}" for index in range(2 * N)]
    assert labelling.samples[3].extra == {"kind": "k3"}
    assert labelling.fail_class == "fail"
    assert labelling.notes == ()


def test_csv_gives_labels_to_flat_images() -> None:
    names = many("#.jpg", count=2 * N)
    text = rows(names[:N], "ok") + rows(names[N:], "ng").partition("\n")[2]
    labelling = label_items(names, groups_csv=text)
    assert [sample.is_defect for sample in labelling.samples] == [False] * N + [True] * N


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_of_other_spreadsheets(delimiter: str) -> None:
    names = many("good/#.jpg", "fail/#.jpg")
    text = rows(names).replace(",", delimiter).replace("/", "\\").replace("\n", "\r\n")
    assert label_items(names, groups_csv=text).samples[0].group == "g"


@pytest.mark.parametrize(
    ("in_source", "in_csv"),
    [
        (("data/good/#.jpg", "data/fail/#.jpg"), ("good/#.jpg", "fail/#.jpg")),
        (("good/#.jpg", "fail/#.jpg"), ("data/good/#.jpg", "data/fail/#.jpg")),
        (("good/#.jpg", "fail/#.jpg"), ("./good/#.jpg", "./fail/#.jpg")),
        (("good/g#.jpg", "fail/f#.jpg"), ("g#.jpg", "f#.jpg")),
        (("g#.jpg", "f#.jpg"), ("good/g#.jpg", "fail/f#.jpg")),
    ],
)
def test_csv_paths_may_differ_by_folders_above(in_source: tuple[str, str], in_csv: tuple[str, str]) -> None:
    lines = [f"{file},{'good' if index < N else 'fail'},{index}" for index, file in enumerate(many(*in_csv))]
    labelling = label_items(many(*in_source), groups_csv="\n".join(["file,label,group", *lines]))
    assert [sample.group for sample in labelling.samples] == [str(index) for index in range(2 * N)]


def test_csv_labels_with_folders_that_mean_something_else() -> None:
    names = many("station1/#.jpg", "station2/#.jpg")
    lines = [f"{name},{'good' if index % 2 else 'fail'},{index}" for index, name in enumerate(names)]
    labelling = label_items(names, groups_csv="\n".join(["file,label,group", *lines]))
    assert [sample.is_defect for sample in labelling.samples] == [True, False] * N


def test_empty_cells() -> None:
    names = many("good/#.jpg", "fail/#.jpg")
    lines = [f"{name},,{'' if index < 3 else 'a'}" for index, name in enumerate(names)]
    labelling = label_items(names, groups_csv="\n".join(["file,label,group", *lines]))
    assert [sample.group for sample in labelling.samples[:4]] == [None, None, None, "a"]
    assert labelling.notes == ("groups file: 3 images have no group and stand alone",)
    flat = many("#.jpg")
    with pytest.raises(LabelError, match="10 rows have no label"):
        label_items(flat, groups_csv="\n".join(["file,label,group", *(f"{name},,a" for name in flat)]))


NAMES = many("good/#.jpg", "fail/#.jpg")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns 'nothing': expected file, and label or group or both.*--columns 'file=image'"),
        ("file,kind\n", "columns 'file,kind': expected file, and label or group.*--columns 'file=file,label=kind'"),
        (
            "image,class,lot,shift\n",
            "columns 'image,class,lot,shift'.*rename them, .*--columns 'file=image,label=class,group=lot'",
        ),
        ("file,label,group,label\n", "each once"),
        (rows(NAMES[:-2]), r"2 of 20 images have no row, such as 'fail/8.jpg', 'fail/9.jpg'"),
        (rows(NAMES).replace("good/3.jpg,good", "good/3.jpg,fail"), "line 5 says 'fail' for 'good/3.jpg'.*says 'good'"),
        (rows([*NAMES, "good/3.jpg"]), "lines 5 and 22 both name the image 'good/3.jpg'"),
        (rows([*NAMES, "data/good/3.jpg"], "good"), "lines 5 and 22 both name"),
        (rows([*NAMES, "3.jpg"], "good"), "line 22: '3.jpg' fits several images"),
        (rows(NAMES) + "good/1.jpg,good\n", "line 22 has 2 cells, expected 3"),
        (rows(NAMES) + ",good,1\n", "line 22 names no file"),
        ("file,label,group\n" + "x" * 200_000, "line 2 is not CSV"),
        (rows(NAMES, "good"), "says 'good'|only one class"),
    ],
)
def test_csv_that_does_not_fit(text: str, words: str) -> None:
    with pytest.raises(LabelError, match=words):
        label_items(NAMES, groups_csv=text)


def test_a_csv_may_have_only_labels_or_only_groups() -> None:
    flat = many("g#.jpg", "f#.jpg")
    labels = "\n".join(["file,label", *(f"{name},{'ok' if name[0] == 'g' else 'ng'}" for name in flat)])
    labelling = label_items(flat, groups_csv=labels)
    assert [sample.is_defect for sample in labelling.samples] == [False] * 10 + [True] * 10
    assert {sample.group for sample in labelling.samples} == {None}
    groups = "\n".join(["file,group", *(f"{name},{number % 5}" for number, name in enumerate(NAMES))])
    labelling = label_items(NAMES, groups_csv=groups)
    assert (labelling.pass_class, labelling.how) == ("good", "csv")
    assert {sample.group for sample in labelling.samples} == set("01234")


def test_columns_may_be_called_otherwise() -> None:
    flat = many("#.jpg", count=20)
    lines = [f"{name};{'gut' if number < 10 else 'Ausschuss'};{number % 4};frueh" for number, name in enumerate(flat)]
    text = "\n".join(["Bild;Klasse;Los;Schicht", *lines])
    labelling = label_items(flat, groups_csv=text, columns=Columns.parse("group=Los, file=Bild ,label=KLASSE"))
    assert (labelling.pass_class, labelling.fail_class) == ("gut", "Ausschuss")
    assert {sample.group for sample in labelling.samples} == set("0123")
    assert labelling.samples[0].extra == {"schicht": "frueh"}
    with pytest.raises(LabelError, match="expected image, and label or group or both, as --columns says"):
        label_items(NAMES, groups_csv=rows(NAMES), columns=Columns.parse("file=image"))
    with pytest.raises(LabelError, match="expected file, and label or batch or both, as --columns says"):
        label_items(NAMES, groups_csv=rows(NAMES), columns=Columns.parse("group=batch"))


@pytest.mark.parametrize("text", ["", "file", "file=", "image=file", "file=a,file=b", "file=a,lot=b"])
def test_columns_that_are_not_understood(text: str) -> None:
    with pytest.raises(LabelError, match="expected for example file=image,label=class,group=lot"):
        Columns.parse(text)


def test_a_row_never_finds_an_image_of_another_class_by_its_last_part() -> None:
    names = many("good/g#.jpg", "fail/f#.jpg")
    text = rows(names) + "fail/g1.jpg,fail,x\n"
    assert "1 rows name files that are not in the source" in label_items(names, groups_csv=text).notes[0]


def test_what_has_no_row_and_no_image_suffix_is_skipped() -> None:
    labelling = label_items([*NAMES, "good/notes"], groups_csv=rows(NAMES))
    assert labelling.skipped == (("good/notes", "has no row in the groups file"),)


def test_groups_file_is_found_or_given(tmp_path: Path) -> None:
    source_folder = tmp_path / "in"
    for name in NAMES:
        (source_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (source_folder / name).write_bytes(b"x")
    (tmp_path / "other.csv").write_text(rows(NAMES, group="given"), encoding="utf-8")
    (source_folder / "groups.csv").write_text(rows(NAMES, group="inside"), encoding="utf-8")
    with open_source(source_folder) as source:
        found = label_source(source)
        given = label_source(source, groups_file=tmp_path / "other.csv")
    assert {sample.group for sample in found.samples} == {"inside"}
    assert "groups.csv inside the source is used" in found.notes[0]
    assert {sample.group for sample in given.samples} == {"given"}
    assert given.notes == ()


def test_groups_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot be read: No such file"):
        read_groups_file(tmp_path / "nowhere.csv")
    (tmp_path / "utf16.csv").write_text("file,label,group", encoding="utf-16")
    with pytest.raises(SourceError, match="UTF-8"):
        read_groups_file(tmp_path / "utf16.csv")


@pytest.mark.parametrize(("name", "good", "fail"), [("pcb", 800, 800), ("screws", 261, 139), ("catdog", 300, 300)])
def test_real_sets(name: str, good: int, fail: int) -> None:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set FRAMEGATE_TEST_DATA")
    with (folder / "groups.csv").open(encoding="utf-8", newline="") as file:
        expected = {row["file"]: (row["label"] == "fail", row["group"]) for row in csv.DictReader(file)}
    with open_source(folder) as source:
        labelling = label_source(source)
    assert {sample.name: (sample.is_defect, sample.group) for sample in labelling.samples} == expected
    assert sum(not sample.is_defect for sample in labelling.samples) == good
    assert sum(sample.is_defect for sample in labelling.samples) == fail
    assert labelling.skipped == ()


def test_a_label_error_says_what_was_ignored(tmp_path: Path) -> None:
    for name in many("logo#.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train.zip").write_bytes(b"PK")
    with (
        open_source(tmp_path) as source,
        pytest.raises(LabelError, match=r"no class .*; 1 archive inside .*'train.zip'"),
    ):
        label_source(source)


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        (("good/#.jpg",), "good"),
        (("screws/#.jpg",), "screws"),
        (("IMG_#.jpg",), "good"),
        (("cam1_#.jpg", "cam2_#.jpg"), "good"),
        (("lot1/#.jpg", "lot2/#.jpg", "lot3/#.jpg"), "good"),
        (("a/good/lot1/#.jpg", "a/good/lot2/#.jpg"), "good"),
    ],
)
def test_one_class_is_enough_where_only_good_parts_are_asked_for(patterns: tuple[str, ...], named: str) -> None:
    names = many(*patterns)
    labelling = label_items(names, good_only=True)
    assert [sample.name for sample in labelling.samples] == names
    assert not any(sample.is_defect for sample in labelling.samples)
    assert (labelling.pass_class, labelling.fail_class) == (named, "defect")
    assert {sample.label for sample in labelling.samples} == {named}
    assert labelling.good_only
    if "lot1" not in names[0]:
        assert label_items(names, good_only=True, fail_class="scratched").fail_class == "scratched"
        assert labelling.notes == ()
    else:
        assert "all images are taken as good parts" in labelling.notes[-1]
        with pytest.raises(LabelError, match=r"fail class 'scratched' is not among the classes|classes from folders"):
            label_items(names, good_only=True, fail_class="scratched")


@pytest.mark.parametrize("patterns", [("good/#.jpg", "fail/#.jpg"), ("ok_#.jpg", "ng_#.jpg"), ("gut/#.jpg", "x/#.jpg")])
def test_defects_beside_good_parts_stay_defects(patterns: tuple[str, ...]) -> None:
    names = [*many(patterns[0]), *many(patterns[1], count=2)]
    labelling = label_items(names, good_only=True)
    assert [sample.is_defect for sample in labelling.samples] == [False] * N + [True] * 2


def test_good_parts_of_a_groups_file_need_no_second_class() -> None:
    names = many("#.jpg")
    labelling = label_items(names, groups_csv=rows(names, label="fine"), good_only=True)
    assert (labelling.pass_class, labelling.fail_class) == ("fine", "defect")
    assert {sample.group for sample in labelling.samples} == {"g"}
    two = "\n".join(["file,label,group", *(f"{name},{'ab'[int(name[0]) % 2]},g" for name in names), ""])
    with pytest.raises(LabelError, match=r"is the defect is unclear: say which"):
        label_items(names, groups_csv=two, good_only=True)
    assert label_items(many("a.#.jpg", "b.#.jpg"), good_only=True, fail_class="b").fail_class == "b"


def test_what_is_refused_of_good_parts() -> None:
    with pytest.raises(LabelError, match=r"expected at least 10 of each class: add 1 more of 'good'"):
        label_items(many("good/#.jpg", count=N - 1), good_only=True)
    with pytest.raises(LabelError, match=r"'good' \(9 images\).*add 1 more of 'good'"):
        label_items([*many("good/#.jpg", count=N - 1), *many("fail/#.jpg")], good_only=True)
    with pytest.raises(LabelError, match=r"the only class is 'fail', which says defect: expected good parts"):
        label_items(many("fail/#.jpg"), good_only=True)
    with pytest.raises(
        LabelError, match=r"only one class: 'good' \(10 images\); .* --mode good-only; expected exactly two"
    ):
        label_items(many("good/#.jpg"))
