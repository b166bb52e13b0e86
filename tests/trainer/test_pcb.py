"""What the trainer reaches on real boards it has never seen, and where it looks: printed, and held to a bound."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from engine.backbone import build_serving_graph, build_training_graph
from engine.backend_onnx import OnnxBackend, OnnxGraph
from engine.featurizer import GRID_STRIDE, FeaturizerSpec
from engine.preprocess import preprocess
from engine.specs import ImageSpec
from tests.graphs import run_alone
from trainer.classifier import Recipe, Table, evidence_model, pooled_model, table
from trainer.cross_validation import FOLDS, judge_held_out
from trainer.features import extract
from trainer.good_only import train_good_only
from trainer.selection import few_recipe
from trainer.settings import TrainSettings
from trainer.split import first_of_each, group_ids, grouped_folds
from trainer.train import train
from trainer.turns import all_turns, turned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GROWN_PX = 8
DRAWS = 4


@pytest.fixture(scope="module")
def summary(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a training with no other choice made than where the groups stand and which class is the defect."""
    pcb = shared_data / "data" / "pcb"
    out = tmp_path_factory.mktemp("pcb") / "bundle"
    return train(TrainSettings(str(pcb), out, groups=pcb / "groups.csv", fail_class="fail"))[1]


@dataclass(frozen=True)
class Boards:
    folder: Path
    files: list[str]
    groups: np.ndarray
    data: Table
    image: ImageSpec
    featurizer: FeaturizerSpec
    folds: list[tuple[np.ndarray, np.ndarray]]
    graph: OnnxGraph


@pytest.fixture(scope="module")
def boards(shared_data: Path, summary: dict[str, Any]) -> Boards:
    """Features of all crops, each content once, at the size and the cut that the training chose."""
    folder, chosen = shared_data / "data" / "pcb", summary["chosen"]
    with (folder / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    image = ImageSpec(*chosen["input_px"])
    featurizer = FeaturizerSpec.from_json({name: chosen[name] for name in ("backbone", "taps", "embedding")})
    names = [row["file"] for row in rows]
    features = extract(names, lambda name: (folder / name).read_bytes(), image, featurizer)
    first = first_of_each(features.sha256)
    features, rows = features.take(first), [rows[index] for index in first]
    defect = np.array([row["label"] == "fail" for row in rows])
    groups = group_ids([row["group"] for row in rows], features.sha256)
    folds = grouped_folds(defect, groups, folds=FOLDS, seed=0)
    data = table(features, defect, featurizer)
    graph = OnnxGraph(build_training_graph(featurizer, image))
    return Boards(folder, [row["file"] for row in rows], groups, data, image, featurizer, folds, graph)


def recipe_of(summary: dict[str, Any]) -> Recipe:
    chosen = summary["chosen"]
    return Recipe(chosen["parts"], chosen["l2"], chosen["sharpness"], chosen["pooled_strength"])


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def test_five_folds_by_board(summary: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    validated = summary["cross_validated"]
    figures = {name: np.round(value, 4).tolist() for name, value in validated.items() if name.startswith("auroc")}
    tell(capsys, f"pcb, five folds by board: {figures}, took {summary['seconds']:.0f} s")
    assert validated["folds"] == FOLDS
    assert sum(fold["images"] for fold in validated["by_fold"]) == sum(
        summary["images"][side] for side in ("used", "held_out")
    )
    assert validated["auroc"] >= 0.965
    assert validated["auroc"] > validated["auroc_pooled_regression"] + 0.03
    assert summary["seconds"] < 600


def test_probabilities_come_true_on_boards_never_seen(
    summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    validated, held = summary["cross_validated"], summary["held_out"]
    figures = ("expected_calibration_error", "brier_score")
    tell(capsys, f"pcb, out of fold by board: { ({name: round(validated[name], 4) for name in figures}) }")
    tell(capsys, f"pcb, held out: { ({name: round(held[name], 4) for name in figures}) }")
    assert validated["expected_calibration_error"] < 0.05


def test_what_is_proved_of_boards_held_out_is_told(summary: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    told, held = summary["operating_point"], summary["held_out"]
    boards = {
        name: f"{metrics['escape_rate']:.3f} of {metrics['defects']}"
        for name, metrics in held["by"]["group"].items()
        if metrics["defects"]
    }
    tell(capsys, "\n".join([*told["words"], f"escapes by board: {boards}"]))
    assert told["groups"] == len(held["by"]["group"])
    assert told["escapes"] / told["defects"] < told["escape_rate_at_most"] < 0.2
    assert "groups differ" in told["words"][-1]


def test_what_was_chosen_is_the_cheapest_within_noise_of_the_best(summary: dict[str, Any]) -> None:
    candidates = summary["chosen"]["candidates"]
    (taken,) = [row for row in candidates if row["chosen"]]
    assert len({tuple(row["input_px"]) for row in candidates}) == 3
    assert len({tuple(row["taps"]) for row in candidates}) >= 2
    assert max(row["auroc"] for row in candidates) - taken["auroc"] <= taken["standard_error"] + 1e-12
    assert [row["million_macs"] for row in candidates] == sorted(row["million_macs"] for row in candidates)


def draws(boards: Boards, per_class: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows to train on, rows to judge): some of each class of a fold's training boards, and its held-out boards."""
    for number, (fit, held) in enumerate(boards.folds):
        for draw in range(DRAWS):
            random = np.random.default_rng((number, draw))
            sides = [fit[boards.data.defect[fit] == label] for label in (False, True)]
            yield np.concatenate([random.choice(side, per_class, replace=False) for side in sides]), held


def views_of(boards: Boards, rows: np.ndarray, held: np.ndarray) -> tuple[Table, np.ndarray, np.ndarray]:
    """A small table of the rows to train on, in every view, and the rows to judge; and where each of them now is."""
    own = np.concatenate([rows, held])
    turns = range(1, all_turns(boards.image.width_px, boards.image.height_px))
    channels = [boards.data.channels[own]]
    for turn in turns:
        pictures = np.stack([preprocess((boards.folder / boards.files[i]).read_bytes(), boards.image) for i in rows])
        (turned_channels,) = run_alone(boards.graph, ["channels"], turned(pictures, turn))
        unseen = np.zeros((len(held), *turned_channels.shape[1:]), turned_channels.dtype)
        channels.append(np.concatenate([turned_channels, unseen]))
    data = replace(
        boards.data, channels=np.concatenate(channels), pooled=boards.data.pooled[own], defect=boards.data.defect[own]
    )
    return data, np.arange(len(rows)), np.arange(len(rows), len(own))


def test_ten_images_of_each_class(boards: Boards, capsys: pytest.CaptureFixture[str]) -> None:
    figures = []
    for rows, held in draws(boards, 10):
        data, fit, judged = views_of(boards, rows, held)
        groups = boards.groups[np.concatenate([rows, held])]
        recipe, _ = few_recipe(data, groups, fit, views=len(data.channels) // len(data.defect), seed=0)
        judged_as = judge_held_out(data, groups, recipe, fit, judged, seed=0)
        truth = boards.data.defect[held]
        best_pooled = (
            pooled_model(boards.data, Recipe(strength=strength), rows).decision_function(boards.data.pooled[held])
            for strength in (0.03, 0.3, 1.0)
        )
        figures.append([roc_auc_score(truth, judged_as.score), *(roc_auc_score(truth, score) for score in best_pooled)])
    own, *pooled = np.mean(figures, axis=0)
    tell(capsys, f"pcb, 10 images of each class, {len(figures)} draws: AUROC {own:.4f}, pooled {np.round(pooled, 4)}")
    assert own >= 0.79
    assert own >= max(pooled) + 0.07


def test_the_hottest_location_lies_on_the_defect(
    boards: Boards, summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Maps of fail crops from the serving graph itself, under the heads of all folds at once: each takes its own."""
    models = [evidence_model(boards.data, recipe_of(summary), fit) for fit, _ in boards.folds]
    weights = np.stack([model.weights_ for model in models], axis=1).astype(np.float32)
    biases = np.array([model.bias_ for model in models], np.float32)
    fold_of = np.empty(len(boards.files), np.int64)
    for number, (_, held) in enumerate(boards.folds):
        fold_of[held] = number
    inside, at_random = [], []
    backend = OnnxBackend(build_serving_graph(boards.featurizer, boards.image))
    try:
        fails = np.flatnonzero(boards.data.defect)
        for start in range(0, len(fails), backend.profile.largest):
            part = fails[start : start + backend.profile.largest]
            images = np.stack([preprocess((boards.folder / boards.files[i]).read_bytes(), boards.image) for i in part])
            maps = backend.infer(images, weights, biases, locations=True).locations
            assert maps is not None
            for index, heat in zip(part, maps, strict=True):
                hit = near_a_box(boards, boards.files[index], heat.shape[:2])
                inside.append(bool(hit[np.unravel_index(heat[..., fold_of[index]].argmax(), hit.shape)]))
                at_random.append(hit.mean())
    finally:
        backend.close()
    tell(
        capsys,
        f"pcb, hottest location inside a box grown by {GROWN_PX} px: {np.mean(inside):.4f} of {len(inside)} fail "
        f"crops; a uniformly random location: {np.mean(at_random):.4f}",
    )
    assert np.mean(inside) >= 0.95
    assert np.mean(at_random) < 0.25


def test_good_crops_alone_tell_defects_on_boards_never_seen(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pcb = shared_data / "data" / "pcb"
    settings = TrainSettings(str(pcb), tmp_path / "bundle", groups=pcb / "groups.csv", fail_class="fail", seed=0)
    summary = train_good_only(settings)[1]
    held = summary["held_out"]
    tell(
        capsys,
        f"pcb, good crops alone: AUROC {held['auroc']:.4f} of {held['images']} crops of {held['groups']} boards held "
        f"out, {held['defects']} of them defects; took {summary['seconds']:.0f} s",
    )
    assert held["defects"] > 0
    assert held["auroc"] >= 0.87


def near_a_box(boards: Boards, name: str, shape: tuple[int, int]) -> np.ndarray:
    """(rows, columns) bool: whether each location's centre lies in a grown box of the 160 x 160 px crop."""
    rows, columns = np.indices(shape)
    x = (columns + 0.5) * GRID_STRIDE * 160 / boards.image.width_px
    y = (rows + 0.5) * GRID_STRIDE * 160 / boards.image.height_px
    hit = np.zeros(shape, bool)
    for left, top, width, height in boxes(boards.folder)[name]:
        across = (x >= left - GROWN_PX) & (x <= left + width + GROWN_PX)
        hit |= across & (y >= top - GROWN_PX) & (y <= top + height + GROWN_PX)
    return hit


def boxes(folder: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    with (folder / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            box = (float(row["x"]), float(row["y"]), float(row["width"]), float(row["height"]))
            found.setdefault(row["file"], []).append(box)
    return found
