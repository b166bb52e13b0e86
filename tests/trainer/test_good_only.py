"""Training from good parts alone: what it finds, what it says of itself, and that it is a bundle as any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engine.bundle import open_bundle, read_report
from engine.command import print_json
from engine.errors import GraphError, InputError, WorkError
from engine.heatmap import draw, heat
from engine.scorer import Scorer, open_scorer
from engine.verify import verify_scorer
from tests.parts import part, parts_folder
from trainer.cli_good_only import print_good_only
from trainer.errors import LabelError, SplitError
from trainer.false_rejects import FalseRejects
from trainer.good_only import train_good_only
from trainer.good_patches import evidence
from trainer.operating_point import Costs
from trainer.settings import TrainSettings
from trainer.train import train
from trainer.training_set import NAME, from_csv

if TYPE_CHECKING:
    from pathlib import Path

    from engine.bundle import Bundle

GOOD, SCRATCHED, LOTS = 48, 16, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and scratched parts of six lots."""
    return parts_folder(tmp_path_factory.mktemp("parts") / "set", good=GOOD, scratched=SCRATCHED, lots=LOTS)


@pytest.fixture(scope="module")
def judged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Trained where the defects are there too."""
    out = tmp_path_factory.mktemp("bundles") / "judged"
    return out, train_good_only(TrainSettings(str(folder), out, size_px=(96, 96), features=out.parent / "features"))[1]


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Trained on the same good parts where no defect is."""
    root = tmp_path_factory.mktemp("alone")
    shutil.copytree(folder / "good", root / "set" / "good")
    rows = (folder / "groups.csv").read_text().splitlines()
    (root / "set" / "groups.csv").write_text("\n".join(row for row in rows if "scratched" not in row))
    out = root / "bundle"
    return out, train_good_only(TrainSettings(str(root / "set"), out, size_px=(96, 96)))[1]


def test_scratches_that_were_never_seen_are_told_from_good_parts(judged: tuple[Path, dict[str, Any]]) -> None:
    _, summary = judged
    held = summary["held_out"]
    assert summary["mode"] == "good-only"
    assert held["auroc"] > 0.95
    assert held["recall"] > 0.7
    assert held["false_reject_rate"] == 0
    assert summary["cross_validated"]["auroc"] > 0.95
    assert summary["images"]["used"] + held["images"] - held["defects"] == GOOD
    assert summary["images"]["defects"] == SCRATCHED
    assert sum(fold["images"] for fold in summary["cross_validated"]["by_fold"]) == GOOD + SCRATCHED
    assert any(f"ATTENTION: --mode good-only: the {SCRATCHED} images of 'scratched'" in n for n in summary["notes"])


def test_it_has_an_acceptance_report_where_one_is_wanted(judged: tuple[Path, dict[str, Any]]) -> None:
    out, summary = judged
    assert summary["report"] == "report/index.html"
    figures = json.loads(read_report(out, "report.json"))
    assert figures["held_out"]["images"] == summary["held_out"]["images"]
    assert figures["held_out"]["cost"] is figures["held_out"]["calibration"] is None
    assert figures["trained_on"] == {"images": summary["images"]["used"], "defects": 0}
    assert figures["settings"]["--mode"] == "good-only"
    assert not {"--features", "--features-limit-gib"} & set(figures["settings"])
    assert b"no probability" in read_report(out, "index.html")


def test_no_lot_lies_on_both_sides(judged: tuple[Path, dict[str, Any]]) -> None:
    by_lot = judged[1]["held_out"]["by"]["group"]
    assert 0 < len(by_lot) < LOTS
    assert all(lot["images"] == GOOD // LOTS + lot["defects"] for lot in by_lot.values())


def test_the_defects_decide_nothing(judged: tuple[Path, dict[str, Any]], alone: tuple[Path, dict[str, Any]]) -> None:
    with_defects, without = open_bundle(judged[0]), open_bundle(alone[0])
    assert with_defects.graph == without.graph
    assert with_defects.head.operating_point == without.head.operating_point
    assert with_defects.head.calibration == without.head.calibration
    assert alone[1]["held_out"]["auroc"] is None
    assert alone[1]["held_out"]["recall"] is None
    assert alone[1]["cross_validated"]["auroc"] is None
    assert alone[1]["classes"] == {"pass": "good", "fail": "defect", "how": "csv"}


def test_it_says_what_the_number_is_not(alone: tuple[Path, dict[str, Any]]) -> None:
    out, summary = alone
    told = summary["false_rejects"]
    assert "the number is no probability" in told["meaning"]
    assert "escape rate is unknown" in told["meaning"]
    assert told["held_out_good_parts"] == summary["images"]["used"]
    assert told["false_rejects"] == 0
    assert told["false_reject_at_most"] == pytest.approx(1 - 0.05 ** (1 / told["held_out_good_parts"]))
    assert any("that takes 299" in note for note in summary["notes"])
    bundle = open_bundle(out)
    assert bundle.about["mode"] == "good-only"
    assert bundle.defect_rate == 0
    assert bundle.featurizer["distance"] is True
    low, high = bundle.head.operating_point.review_band
    assert low < high == bundle.head.operating_point.threshold == 0.5


def test_the_heat_lies_on_the_scratch(judged: tuple[Path, dict[str, Any]]) -> None:
    with open_scorer(judged[0]) as scorer:
        warm = [heat_of(scorer, part(seed, scratched=scratched)) for seed in (501, 502) for scratched in (False, True)]
        _, png = draw(scorer, part(501, scratched=True), scorer.decode(part(501, scratched=True)))
    assert all(np.median(good) < 0.1 for good in warm[::2])
    assert all(bad.max() > 0.99 > good.max() for good, bad in zip(warm[::2], warm[1::2], strict=True))
    for seed, bad in zip((501, 502), warm[1::2], strict=True):
        rng = np.random.default_rng(seed)
        rng.integers(-3, 4, 2)
        x, y = rng.integers(20, 76, 2)
        row, column = np.unravel_index(bad.argmax(), bad.shape)
        assert abs(column * 8 + 4 - x) <= 20
        assert abs(row * 8 + 4 - y) <= 20
    assert png.startswith(b"\x89PNG")


def heat_of(scorer: Scorer, payload: bytes) -> np.ndarray:
    features = scorer.features(scorer.decode(payload)[None], locations=True)
    assert features.locations is not None
    return heat(features.locations[0, :, :, 0], scorer.bundle.head, features.pooled[0])


def test_it_verifies_on_the_reference_and_on_what_auto_takes(judged: tuple[Path, dict[str, Any]]) -> None:
    for backend in ("onnxruntime", "auto"):
        with open_scorer(judged[0], backend) as scorer:
            result = verify_scorer(scorer, time.perf_counter)
        assert result["agrees"], result["reference"]["told"]
        assert result["decisions_changed"] == 0


def test_same_seed_same_digest_whatever_the_threads(
    alone: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(str(alone[0].parent / "set"), tmp_path / "again", size_px=(96, 96), report=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert train_good_only(settings)[0].digest == alone[1]["digest"]
    assert not (tmp_path / "again" / "report" / "index.html").exists()
    other = train_good_only(replace(settings, out=tmp_path / "other", seed=5))[0]
    assert other.digest != alone[1]["digest"]


def test_ten_good_parts_are_enough_and_nine_are_not(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"IMG_{number}.png").write_bytes(part(number))
    settings = TrainSettings(str(tmp_path / "set"), tmp_path / "out")
    bundle, summary = train_good_only(settings)
    assert summary["images"] == {"used": 7, "held_out": 3, "defects": 0}
    assert summary["false_rejects"]["false_reject_at_most"] > 0.3
    assert (bundle.image.width_px, bundle.image.height_px) == (128, 128), "enlarged, and no further"
    (tmp_path / "set" / "IMG_9.png").write_bytes(b"no image")
    with pytest.raises(LabelError, match="has 9 images that can be decoded: expected at least 10"):
        train_good_only(replace(settings, out=tmp_path / "other"))


def test_file_names_that_are_not_utf_8_are_no_obstacle(
    folder: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    odd = os.fsdecode(b"odd-\xff.png")
    (tmp_path / "set").mkdir()
    for path in sorted((folder / "good").iterdir())[:10]:
        shutil.copyfile(path, tmp_path / "set" / os.fsdecode(b"\xfe-" + path.name.encode()))
    (tmp_path / "set" / odd).write_bytes(b"no image")
    out = tmp_path / "out"
    _, summary = train_good_only(TrainSettings(str(tmp_path / "set"), out, size_px=(64, 64)))
    (skipped,) = open_bundle(out).about["skipped"]
    assert skipped[0] == odd
    members = from_csv(read_report(out, NAME), "it")
    assert all((tmp_path / "set" / member.sample.name).is_file() for member in members)
    print_json(summary)
    assert json.loads(capsysbinary.readouterr().out)["skipped"] == [skipped]
    print_good_only(summary)
    assert rb"first: 'odd-\udcff.png': " in capsysbinary.readouterr().out


def test_what_cannot_be_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(str(folder), tmp_path / "out", size_px=(64, 64))
    for changed in ({"defect_rate": 0.01}, {"costs": Costs(7, 1, 0)}, {"featurizer_of": "x"}, {"refine": "x"}):
        with pytest.raises(InputError, match=r"--mode good-only was given with --.*bound false rejects"):
            train_good_only(replace(settings, **changed))
    with pytest.raises(WorkError, match=r"the false-reject rate asked for cannot be shown: 3\d held-out"):
        train_good_only(settings, FalseRejects(0.001))
    one = parts_folder(tmp_path / "one", good=12, scratched=0, lots=1)
    with pytest.raises(SplitError, match="all 12 good parts lie in one group: expected at least two"):
        train_good_only(replace(settings, source=str(one)))
    with pytest.raises(LabelError, match="train on good parts with --mode good-only"):
        train(replace(settings, source=str(one)))
    assert not (tmp_path / "out").exists()


def test_a_graph_that_computes_something_else_gets_no_bundle(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.good_only.evidence", lambda *arguments: evidence(*arguments) + 8)
    with pytest.raises(GraphError, match=r"distances up to 0\.25\d* away from those that the operating point"):
        train_good_only(TrainSettings(str(folder), tmp_path / "out", size_px=(64, 64)))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def in_tiles(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("tiles") / "bundle"
    return train_good_only(TrainSettings(str(folder), out, size_px=(128, 128), tile_px=(64, 64), taps=(2, 4, 7)))[0]


def test_tiles_and_taps_stay_usable(in_tiles: Bundle) -> None:
    assert in_tiles.image.tile_px == (64, 64)
    assert in_tiles.featurizer == {
        "backbone": "efficientnet-lite0",
        "taps": [2, 4, 7],
        "embedding": False,
        "distance": True,
    }
    assert in_tiles.about["held_out"]["auroc"] > 0.8


@pytest.mark.slow
def test_once_defects_have_come_a_two_class_head_joins_the_same_featurizer(
    judged: tuple[Path, dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    """Both can be served beside each other, one of them as a shadow."""
    second, summary = train(TrainSettings(str(folder), tmp_path / "second", featurizer_of=str(judged[0])))
    first = open_bundle(judged[0])
    assert second.graph == first.graph
    assert second.head.featurizer == first.head.featurizer
    assert second.head.evidence_weights[-1] == 0
    assert summary["mode"] == "two-class"
    assert summary["held_out"]["auroc"] > 0.9


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "framegate", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_tells_it_all_in_words(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("train", str(folder), "--out", str(out), "--mode", "good-only", "--size", "64x64")
    assert done.returncode == 0, done.stderr
    for words in (
        "good-only: no defect was trained on",
        "never trained on: AUROC",
        "of other groups 0 would fail: at most",
    ):
        assert words in done.stdout
    (tmp_path / "one.png").write_bytes(part(900, scratched=True))
    scored = command("score", str(out), str(tmp_path / "one.png"))
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["decision"] in {"fail", "review"}
    for arguments in (["--max-false-reject", "0.02"], ["--mode", "good-only", "--max-false-reject", "2"]):
        wrong = command("train", str(folder), "--out", str(tmp_path / "other"), *arguments)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr
    short = command(
        "train",
        str(folder),
        "--out",
        str(tmp_path / "other"),
        "--mode",
        "good-only",
        "--size",
        "64x64",
        "--max-false-reject",
        "0.01",
    )
    assert short.returncode == 1
    assert "leave it out to go on with what these show" in short.stderr
    assert not (tmp_path / "other").exists()
