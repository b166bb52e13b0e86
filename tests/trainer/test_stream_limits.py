"""What training images say of their stream: the scene where they have one in common, the noise, the usual distance."""

from __future__ import annotations

import csv
from collections import defaultdict
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from consumer.camera_health import SHIFTED_WINDOWS, CameraHealth
from consumer.events import Frame, Position
from consumer.tenure import Partition
from engine.preprocess import preprocess
from engine.specs import ImageSpec
from engine.watching import SIDE, WINDOW, glance
from tests.scenes import NOISE, frame
from trainer.rendered.dataset import render_line
from trainer.stream_limits import (
    FEWEST_GLANCES,
    MOVED,
    drift_limit,
    image_noise,
    noise_limit,
    scene_limits,
    stream_limits,
)

if TYPE_CHECKING:
    from pathlib import Path


def line(scenes: int, per_group: int = 20, groups: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, glances, groups) of so many stations."""
    rng = np.random.default_rng(3)
    images = [frame(scene, rng) for scene in range(scenes) for _ in range(per_group * groups)]
    numbers = np.repeat(np.arange(scenes * groups), per_group)
    return np.stack(images), np.stack([glance(image) for image in images]), numbers


@pytest.mark.parametrize("stations", [1, 3])
def test_a_line_has_a_scene_for_each_of_its_stations_and_knows_where_it_is(stations: int) -> None:
    _, glances, groups = line(stations)
    scenes, told = scene_limits(glances, groups, seed=0)
    assert scenes is not None, told
    assert told.startswith("on:")
    assert len(scenes.pictures) >= stations
    assert scenes.limit < MOVED / SIDE
    rng = np.random.default_rng(9)
    for station in range(stations):
        for right in (0, MOVED):
            window = np.stack([glance(frame(station, rng, right=right)) for _ in range(WINDOW)])
            found = scenes.match(window.mean(0, dtype=np.float32))
            assert found.likeness >= scenes.likeness
            assert (found.distance > scenes.limit) is (right > 0)


def test_pictures_of_anything_have_no_scene_in_common() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (120, 6, 6), dtype=np.uint8)
    glances = np.stack([cv2.resize(each, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for each in coarse])
    scenes, told = scene_limits(glances, np.arange(120), seed=0)
    assert scenes is None
    assert told.startswith("off: the images have no scenes in common")


def test_too_few_images_say_nothing_of_a_scene() -> None:
    _, glances, groups = line(1)
    few = slice(FEWEST_GLANCES - 1)
    scenes, told = scene_limits(glances[few], groups[few], seed=0)
    assert scenes is None
    assert "too few" in told


def test_the_noise_is_the_sensors_and_never_more() -> None:
    images, glances, _ = line(1)
    noises = np.array([image_noise(image) for image in images])
    expected = 2 * NOISE / np.sqrt(np.pi)  # mean absolute difference of two samples
    assert 0.6 * expected < np.median(noises) < 1.05 * expected
    limit = noise_limit(glances, noises)
    assert limit is not None
    assert 0 < limit < expected / 3


def test_a_scene_full_of_texture_has_no_more_noise_than_its_quiet_corner() -> None:
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rough[:32, :32] = 100
    assert image_noise(rough) == 0


def test_images_that_may_be_the_same_leave_only_equal_bytes() -> None:
    images, glances, groups = line(1)
    glances[5] = glances[17]
    noises = np.array([image_noise(image) for image in images])
    assert noise_limit(glances, noises) is None
    limits, told = stream_limits(glances, noises, groups, seed=0)
    assert limits.noise is None
    assert "same bytes" in told["frozen"]


def test_drift_is_more_than_any_held_back_group_showed() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 10)
    folds = [(np.flatnonzero(groups != group), np.flatnonzero(groups == group)) for group in range(6)]
    distances = [rng.normal(1 + 0.02 * group, 0.1, 10) for group in range(6)]
    limit = drift_limit(distances, groups, folds)
    means = [float(each.mean()) for each in distances]
    assert max(means) <= limit < max(means) + 0.3
    alone = drift_limit(distances, np.arange(60), folds)
    assert alone >= max(means), "images that each stand alone are taken as they come"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four stations: lots 0 to 3 to train on, 4 and 5 that nobody has seen."""
    root = tmp_path_factory.mktemp("rendered")
    render_line(root / "train", seed=1, per_station=48, lots=4)
    render_line(root / "later", seed=1, per_station=32, lots=2, first_lot=4)
    return root


def seen(folder: Path, right: float = 0.0) -> dict[str, list[tuple[bytes, np.ndarray]]]:
    """(payload, image) of each station, as its camera delivers them when it was moved by that share of the width."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*.jpg")):
        picture = cv2.imread(str(path))
        assert picture is not None
        height, width = picture.shape[:2]
        move = np.array([[1, 0, right * width], [0, 1, 0]], np.float32)
        moved = cv2.warpAffine(picture, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
        _, data = cv2.imencode(".jpg", moved, [cv2.IMWRITE_JPEG_QUALITY, 90])
        found[path.name.split("_")[0]].append((data.tobytes(), preprocess(data.tobytes(), ImageSpec(256, 192))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("right", [0.0, 0.08, -0.08])
def test_a_rendered_line_is_well_on_days_nobody_saw_and_found_out_when_it_is_moved(
    rendered: Path, right: float
) -> None:
    trained = [
        (path, preprocess(path.read_bytes(), ImageSpec(256, 192))) for path in (rendered / "train").rglob("*.jpg")
    ]
    glances = np.stack([glance(image) for _, image in trained])
    noises = np.array([image_noise(image) for _, image in trained])
    groups = np.unique([path.name.rpartition("_")[0] for path, _ in trained], return_inverse=True)[1]
    limits, told = stream_limits(glances, noises, groups, seed=0)
    assert limits.scenes is not None, told
    cameras = CameraHealth(lambda _: None)
    for station, frames in seen(rendered / "later", right).items():
        kinds = []
        for number, (payload, image) in enumerate(frames * 2):
            sent = Frame(Position("frames", 0, number), station, f"{station}-{number}", payload, 0.0, 0.0)
            finding = cameras.look(Partition("frames", 0), sent, glance(image), limits)
            kinds.append(None if finding is None else finding.kind)
        assert len(kinds) == 4 * WINDOW
        proof = SHIFTED_WINDOWS * WINDOW - 1 if right else len(kinds)
        assert kinds == [None] * proof + ["shifted"] * (len(kinds) - proof), station


@pytest.mark.slow
@pytest.mark.parametrize("name", ["catdog", "pcb", "screws"])
def test_photographs_without_a_common_scene_switch_the_check_off(shared_data: Path, name: str) -> None:
    root = shared_data / "data" / name
    with (root / "groups.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = [preprocess((root / row["file"]).read_bytes(), ImageSpec(160, 160)) for row in rows]
    glances = np.stack([glance(image) for image in images])
    groups = np.unique([row["group"] for row in rows], return_inverse=True)[1]
    scenes, told = scene_limits(glances, groups, seed=0)
    assert scenes is None, told
