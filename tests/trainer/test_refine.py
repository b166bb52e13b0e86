"""New labels join what a bundle was trained on: the same featurizer, the same images held out, nothing lost."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.bundle import open_bundle, read_report
from engine.errors import BundleError, InputError
from tests.web import Web
from trainer.errors import LabelError, SourceError
from trainer.opening import given_featurizer, inherited, refined_of
from trainer.operating_point import Costs
from trainer.refine import Refined
from trainer.settings import TrainSettings
from trainer.train import train
from trainer.training_set import NAME, from_csv

if TYPE_CHECKING:
    from trainer.training_set import Member

pytestmark = pytest.mark.slow

NEW = 12


@pytest.fixture(scope="module")
def earlier(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that was trained on 48 images of each class, one of them under a wrong label."""
    folder = tmp_path_factory.mktemp("earlier")
    for label in ("good", "fail"):
        paths = sorted((shared_data / "data" / "screws" / label).iterdir())
        for path in paths[:48]:
            _copy(path, folder / "images" / label / path.name)
        for path in paths[48 : 48 + NEW]:
            _copy(path, folder / "frames" / f"{label}_{path.name}")
    wrong = sorted((folder / "images" / "good").iterdir())[5]
    wrong.rename(folder / "images" / "fail" / f"wrong_{wrong.name}")
    costs = Costs(escape=9.0)
    train(
        TrainSettings(str(folder / "images"), folder / "first", size_px=(96, 96), seed=3, costs=costs, defect_rate=0.1)
    )
    return folder


@pytest.fixture(scope="module")
def refined(earlier: Path) -> dict[str, Any]:
    """The summary of the same trained again with the reviews of 24 new frames, and of one image that it knew."""
    reviews = earlier / "reviews.csv"
    rows = [(f"frames/{path.name}", path.name.split("_")[0]) for path in sorted((earlier / "frames").iterdir())]
    rows += [(f"fail/{path.name}", "good") for path in (earlier / "images" / "fail").glob("wrong_*")]
    with reviews.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    settings = TrainSettings(None, earlier / "second", refine=str(earlier / "first"), reviews=reviews, seed=3)
    return train(settings)[1]


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _a_good_one(earlier: Path) -> str:
    """Name of an image that was trained on."""
    return f"good/{next((earlier / 'images' / 'good').iterdir()).name}"


def members(bundle: Path) -> dict[str, Member]:
    return {member.sample.name: member for member in from_csv(read_report(bundle, NAME), str(bundle))}


def test_the_new_labels_are_in_and_the_wrong_one_is_corrected(earlier: Path, refined: dict[str, Any]) -> None:
    first, second = members(earlier / "first"), members(earlier / "second")
    assert refined["refined"]["new"] == 2 * NEW
    assert refined["refined"]["relabelled"] == 1
    assert set(second) - set(first) == {f"reviews/frames/{path.name}" for path in (earlier / "frames").iterdir()}
    assert set(first) <= set(second)
    changed = [name for name in first if first[name].sample.is_defect != second[name].sample.is_defect]
    assert changed == [name for name in first if "wrong_" in name]
    assert second[changed[0]].sample.label == "good"


def test_what_was_held_out_stays_held_out_and_new_images_are_on_both_sides(
    earlier: Path, refined: dict[str, Any]
) -> None:
    first, second = members(earlier / "first"), members(earlier / "second")
    assert {name for name in first if first[name].sample.held_out} == {
        name for name in first if second[name].sample.held_out
    }
    new = [member.sample.held_out for name, member in second.items() if name not in first]
    assert 0 < sum(map(bool, new)) < len(new)
    assert refined["images"]["held_out"] == sum(bool(member.sample.held_out) for member in second.values())


def test_the_featurizer_stays_and_the_earlier_bundle_is_judged_on_the_same_images(
    earlier: Path, refined: dict[str, Any]
) -> None:
    first, second = open_bundle(earlier / "first"), open_bundle(earlier / "second")
    assert first.head.featurizer == second.head.featurizer
    assert first.image == second.image
    assert first.digest != second.digest
    assert refined["refined"]["bundle"] == first.digest
    assert refined["refined"]["before"]["images"] == refined["held_out"]["images"]


def test_costs_and_the_line_s_rate_stay_unless_others_are_given(earlier: Path, refined: dict[str, Any]) -> None:
    assert refined["defect_rate"] == 0.1
    assert refined["threshold"] == pytest.approx(1 / 10)
    own = TrainSettings(None, earlier / "x", refine=str(earlier / "first"), costs=Costs(escape=2.0), defect_rate=0.2)
    unseen: Any = None
    assert inherited(own, Refined(open_bundle(earlier / "first"), unseen, unseen, {}, {})) == own


def test_a_refined_bundle_is_refined_again(earlier: Path, refined: dict[str, Any], tmp_path: Path) -> None:
    assert refined
    again = tmp_path / "again.jsonl"
    frame = next(iter(sorted((earlier / "frames").iterdir())))
    shutil.copyfile(frame, tmp_path / "other_name.jpg")  # an image it knows, by its bytes
    again.write_text('{"file": "other_name.jpg", "label": "pass"}\n')
    settings = TrainSettings(None, tmp_path / "third", refine=str(earlier / "second"), reviews=again, seed=3)
    _, summary = train(settings)
    assert (summary["refined"]["new"], summary["refined"]["relabelled"]) == (0, 1)
    before, after = members(earlier / "second"), members(tmp_path / "third")
    assert set(before) == set(after)
    assert not after[f"reviews/frames/{frame.name}"].sample.is_defect


def test_images_that_moved_are_found_where_the_user_says(earlier: Path, tmp_path: Path) -> None:
    moved, bundle = tmp_path / "moved", tmp_path / "out"
    shutil.copytree(earlier / "images", moved)
    name = _a_good_one(earlier)
    (tmp_path / "r.csv").write_text(f"file,label\n{name},pass\n")
    settings = TrainSettings(str(moved), bundle, refine=str(earlier / "first"), reviews=tmp_path / "r.csv", seed=3)
    written, summary = train(settings)
    assert summary["refined"]["confirmed"] == 1
    assert written.digest == open_bundle(earlier / "first").digest  # nothing new was said
    (moved / name).unlink()
    with pytest.raises(SourceError, match=r"1 of 96 images of the earlier training set are not in .*moved any more"):
        train(replace(settings, out=tmp_path / "other"))


def test_the_earlier_bundle_may_lie_at_a_url(earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(f"file,label\n{_a_good_one(earlier)},pass\n")
    zipped = Path(shutil.make_archive(str(tmp_path / "first"), "zip", earlier / "first"))
    cache = tmp_path / "cache"
    with Web(zipped.read_bytes()) as web:
        to_refine = TrainSettings(
            None, tmp_path / "out", refine=web.url, reviews=tmp_path / "r.csv", bundle_cache=cache
        )
        refined = refined_of(to_refine, lambda _: None)
        one_more_head = TrainSettings("any", tmp_path / "out", featurizer_of=web.url, bundle_cache=cache)
        given = given_featurizer(one_more_head)
        assert web.asked.count("GET") == 1
    assert refined is not None
    with refined.source:
        assert refined.told["confirmed"] == 1
    assert given is not None
    assert refined.bundle.digest == given.digest == open_bundle(earlier / "first").digest


@pytest.mark.parametrize("file", ["../images/good", "none.jpg", "../../etc/passwd"])
def test_a_row_that_names_no_image_is_refused(earlier: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "r.csv").write_text(f"file,label\n{file},pass\n")
    settings = TrainSettings(None, tmp_path / "out", refine=str(earlier / "first"), reviews=tmp_path / "r.csv")
    with pytest.raises(LabelError, match=r"line 2 names .* neither a file in the review file's folder nor"):
        train(settings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reviews": None}, "--refine was given without --reviews"),
        ({"refine": None}, "--reviews was given without --refine"),
        ({"size_px": (64, 64)}, "--refine was given with --size"),
        ({"fail_class": "good"}, "--refine was given with --fail-class"),
    ],
)
def test_settings_that_contradict_are_refused(
    earlier: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    (tmp_path / "r.csv").write_text("file,label\n1.jpg,pass\n")
    settings = TrainSettings(None, tmp_path / "out", refine=str(earlier / "first"), reviews=tmp_path / "r.csv")
    with pytest.raises(InputError, match=says):
        train(replace(settings, **changes))


def test_a_bundle_that_does_not_say_what_it_was_trained_on(earlier: Path) -> None:
    with pytest.raises(BundleError, match=r"has no other\.csv in its report"):
        read_report(earlier / "first", "other.csv")
