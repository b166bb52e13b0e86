"""From real images to an operating point: a bound that is proved or not, and labels that mean nothing."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine.bundle import open_bundle
from trainer.cli import train as train_command
from trainer.errors import ChanceError
from trainer.escapes import Bound
from trainer.settings import TrainSettings
from trainer.train import train

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"size_px": (64, 64), "taps": (2, 4)}


def screws(shared_data: Path, folder: Path, per_class: int, *, shuffled: int | None = None) -> tuple[str, Path]:
    """Real images under names that tell nothing, and a CSV with their classes and stations."""
    files = [
        (path, label)
        for label in ("good", "fail")
        for path in sorted((shared_data / "data" / "screws" / label).iterdir())[:per_class]
    ]
    labels = [label for _, label in files]
    if shuffled is not None:
        labels = [labels[i] for i in np.random.default_rng(shuffled).permutation(len(labels))]
    rows = ["file,label,group,Station"]
    with zipfile.ZipFile(folder / "screws.zip", "w") as archive:
        for number, ((path, _), label) in enumerate(zip(files, labels, strict=True)):
            archive.write(path, f"parts/{number:03}{path.suffix}")
            rows.append(f"parts/{number:03}{path.suffix},{label},,press-{number % 2}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return str(folder / "screws.zip"), folder / "labels.csv"


def test_shuffled_labels_make_no_bundle(shared_data: Path, tmp_path: Path) -> None:
    source, labels = screws(shared_data, tmp_path, 52, shuffled=0)
    settings = TrainSettings(source, tmp_path / "bundle", groups=labels, held_out=tmp_path / "held", **SMALL)
    with pytest.raises(ChanceError, match=r"no better than chance: held-out AUROC 0\.\d+, 95 % interval") as raised:
        train(settings)
    assert raised.value.exit_code == 1
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "held").exists()


def test_with_few_images_they_are_a_loud_warning_and_all_is_uncertain(shared_data: Path, tmp_path: Path) -> None:
    source, labels = screws(shared_data, tmp_path, 10, shuffled=0)
    out = tmp_path / "bundle"
    arguments = [source, "--out", str(out), "--groups", str(labels), "--size", "64x64", "--taps", "2,4"]
    result = CliRunner().invoke(train_command, arguments)
    assert result.exit_code == 0, result.output
    assert "note     ATTENTION: the model may rank parts no better than chance: held-out AUROC" in result.output
    assert "no --defect-rate was given" in result.output
    about = open_bundle(out).about
    assert any(note.startswith("ATTENTION") for note in about["notes"])
    assert about["held_out"]["defects"] <= 3
    assert about["operating_point"]["escape_rate_at_most"] > 0.6
    low, high = about["held_out"]["auroc_interval"]
    assert high - low > 0.3


@pytest.fixture(scope="module")
def sixty(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return screws(shared_data, tmp_path_factory.mktemp("sixty"), 60)


def test_told_to_go_on_it_says_the_bound_that_holds(sixty: tuple[str, Path], tmp_path: Path) -> None:
    source, labels = sixty
    out = tmp_path / "bundle"
    arguments = [source, "--out", str(out), "--groups", str(labels), "--size", "64x64", "--taps", "2,4", "--json"]
    result = CliRunner().invoke(
        train_command, [*arguments, "--max-escape-rate", "0.01", "--accept-unproved", "--defect-rate", "0.02"]
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    point = summary["operating_point"]
    assert (point["by"], point["proved"], point["max_escape_rate"]) == ("costs", False, 0.01)
    assert point["escape_rate_at_most"] > 0.15
    assert "at most" in point["words"][0]
    assert any("299 held-out defects" in note for note in summary["notes"])
    assert (summary["defect_rate"], summary["defect_rate_given"]) == (0.02, True)
    assert summary["held_out"]["expected_calibration_error"] < 0.3  # at the training set's own rate, not at 2 %
    assert summary["held_out"]["by"]["station"].keys() == {"press-0", "press-1"}


def test_a_proved_bound_sets_what_passes(sixty: tuple[str, Path], tmp_path: Path) -> None:
    source, labels = sixty
    bundle, summary = train(TrainSettings(source, tmp_path / "bundle", groups=labels, bound=Bound(0.25, 0.9), **SMALL))
    told, point = summary["operating_point"], bundle.head.operating_point
    assert (told["by"], told["proved"]) == ("bound", True)
    assert told["escape_rate_at_most"] <= 0.25
    assert told["escapes"] <= told["allowed_escapes"]
    assert summary["held_out"]["confusion"]["defect"]["pass"] == told["escapes"]
    assert open_bundle(tmp_path / "bundle").head.operating_point == point
