"""Copies of one picture are found, other parts at one fixture are not: drawn vectors, a rendered line, photos."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from engine.featurizer import DEFAULT_BACKBONE, OWN_TAPS, FeaturizerSpec
from engine.specs import Region
from trainer.classifier import Recipe, pooled_out_of_fold, table
from trainer.dataset import scaled
from trainer.features import extract
from trainer.near_duplicates import ENOUGH, LARGEST_SHARE, MOST_IN_BURST, NearDuplicates, find, summary
from trainer.rendered import render_line
from trainer.sketches import LENGTH, Sketcher, Sketches
from trainer.split import grouped_folds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trainer.features import FeatureSet

ALTERED = ("encoded", "brighter", "noisy", "shifted", "cropped", "burst")
EASY = ("encoded", "brighter", "noisy")


def drawn(parts: int, pictures: int, apart: float, seed: int = 0, detail: float = 100) -> Sketches:
    """Sketches of so many pictures of each part: parts lie 100 apart, a part's pictures `apart`."""
    random = np.random.default_rng(seed)
    scale = np.sqrt(2 * LENGTH)
    own = random.normal(0, 100 / scale, (parts, LENGTH)).repeat(pictures, axis=0)
    vectors = own + random.normal(0, apart / scale, own.shape)
    return Sketches(vectors.astype(np.float32), np.full(len(vectors), detail))


def by_part(parts: int, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Each picture's part, and whether that is a defect: every other is."""
    part = np.arange(parts).repeat(pictures)
    return part, part % 2 == 1


@pytest.mark.parametrize("pictures", [2, 4, 9])
def test_pictures_of_one_part_are_one_cluster(pictures: int) -> None:
    part, defect = by_part(40 if pictures < 9 else 200 // 9 + 20, pictures)
    found = find(drawn(len(np.unique(part)), pictures, 30), defect)
    assert found.bound == 1
    np.testing.assert_array_equal(found.clusters, part)


def test_parts_that_all_look_alike_are_not_joined() -> None:
    _, defect = by_part(200, 1)
    found = find(drawn(200, 1, 1, detail=1000), defect)  # each is near, by its detail, to all others
    np.testing.assert_array_equal(found.clusters, np.arange(200))


def test_a_slow_drift_is_no_endless_chain() -> None:
    random = np.random.default_rng(0)
    walk = np.cumsum(random.normal(0, 1, (300, LENGTH)), axis=0)
    found = find(Sketches(walk.astype(np.float32), np.full(300, 1e4)), np.arange(300) % 2 == 1)
    assert np.bincount(found.clusters).max() <= MOST_IN_BURST


def test_of_few_images_only_the_nearest_are_joined() -> None:
    part, defect = by_part(ENOUGH // 2 - 2, 2)
    assert len(np.unique(find(drawn(len(part) // 2, 2, 30), defect).clusters)) == len(part)
    np.testing.assert_array_equal(find(drawn(len(part) // 2, 2, 10), defect).clusters, part)


def test_two_labels_speak_against_one_part() -> None:
    part, _ = by_part(60, 2)
    defect = np.arange(120) % 2 == 1  # each part's second picture
    assert len(np.unique(find(drawn(60, 2, 45), defect).clusters)) == 120
    assert len(np.unique(find(drawn(60, 2, 45), part % 2 == 1).clusters)) == 60
    np.testing.assert_array_equal(find(drawn(60, 2, 25), defect).clusters, part)


def test_what_would_swallow_a_class_is_not_joined() -> None:
    """Ten pictures of one defect among 24 defects: held out or not, either side would be empty of much."""
    sketches = drawn(180, 1, 1)
    defect = np.arange(180) < 24
    sketches.vectors[:10] = sketches.vectors[0] + np.random.default_rng(1).normal(0, 0.1, (10, LENGTH))
    found = find(sketches, defect)
    assert LARGEST_SHARE * 24 < 10
    assert np.bincount(found.clusters).max() <= 8
    said = summary(found, [str(i) for i in range(180)], defect)["notes"]
    assert found.bound == 0
    assert any("not joined" in note for note in said)


def test_the_summary_names_what_holds_both_classes_first_and_loudly() -> None:
    clusters = np.array([0, 0, 0, 1, 2, 2, 3])
    defect = np.array([1, 1, 1, 0, 0, 1, 0], bool)
    told = summary(NearDuplicates(clusters, 1.0), list("abcdefg"), defect)
    assert (told["clusters"], told["images"], told["largest"], told["both_classes"]) == (2, 5, 3, 1)
    assert told["examples"] == [
        {"images": 2, "names": ["e", "f"], "both_classes": True},
        {"images": 3, "names": ["a", "b", "c"], "both_classes": False},
    ]
    loud, main = told["notes"]
    assert loud.startswith("ATTENTION: 1 clusters of near-duplicates hold both classes, for example e and f")
    assert "5 images in 2 clusters" in main
    assert loud in told["says"]


def test_sketches_keep_distances() -> None:
    random = np.random.default_rng(0)
    features = (random.normal(0, 3, (150, 20, 48)) + random.normal(0, 5, 48)).astype(np.float16)
    sketcher = Sketcher.of(features)
    exact = features.astype(np.float64)
    own = ((exact - exact.mean((0, 1))) / exact.std((0, 1))).reshape(150, -1)
    sketches = sketcher.sketch(features)
    pairs = np.array([(i, j) for i in range(150) for j in range(i)])
    true, kept = (np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1) for x in (own, sketches.vectors))
    assert np.abs(kept / true - 1).max() < 0.2
    assert abs(np.mean(kept / true) - 1) < 0.01
    np.testing.assert_array_equal(sketcher.sketch(features[90:]).vectors, sketches.vectors[90:])


def altered(image: np.ndarray, how: str, random: np.random.Generator) -> bytes:
    """The picture taken again, more or less: what a camera, a file converter or a person does to it."""
    height, width = image.shape[:2]
    quality = {"encoded": 70, "burst": 85}.get(how, 95)
    picture: np.ndarray = image.astype(np.float32)
    if how in {"shifted", "burst"}:
        right, down = random.integers(1, 3, 2)
        move = np.array([[1, 0, right], [0, 1, down]], np.float32)
        picture = cv2.warpAffine(picture, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
    if how in {"brighter", "burst"}:
        picture *= 1.03
    if how in {"noisy", "burst"}:
        picture += random.normal(0, 2, picture.shape)
    if how == "cropped":
        x, y = round(width / 100), round(height / 100)
        picture = picture[y : height - y, x : width - x]
    pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@dataclass(frozen=True)
class Pictures:
    """n own pictures, then altered ones: of which own picture each was made, and how; -1 and "" for the own."""

    features: FeatureSet
    sketches: Sketches
    defect: np.ndarray
    made_of: np.ndarray
    how: np.ndarray

    def found(self, rows: np.ndarray) -> NearDuplicates:
        return find(Sketches(self.sketches.vectors[rows], self.sketches.detail[rows]), self.defect[rows])


def with_altered(paths: Sequence[Path], defect: Sequence[bool], every: int, ways: Sequence[str]) -> Pictures:
    """Featurized as `train` does, with an altered copy in each way of every so many pictures."""
    random = np.random.default_rng(0)
    payloads = [path.read_bytes() for path in paths]
    images = {i: np.asarray(cv2.imdecode(np.frombuffer(payloads[i], np.uint8), 1)) for i in range(0, len(paths), every)}
    made_of, hows = [-1] * len(paths), [""] * len(paths)
    for how in ways:
        for row, image in images.items():
            payloads.append(altered(image, how, random))
            made_of.append(row)
            hows.append(how)
    height, width = images[0].shape[:2]
    spec = scaled((width, height), min(224, max(width, height)), Region())
    read: Callable[[str], bytes] = lambda name: payloads[int(name)]  # noqa: E731
    features = extract(
        [str(i) for i in range(len(payloads))], read, spec, FeaturizerSpec(DEFAULT_BACKBONE, OWN_TAPS, embedding=False)
    )
    labels = np.array([*defect, *(defect[row] for row in made_of if row >= 0)], bool)
    sketches = Sketcher.of(features.channels).sketch(features.channels)
    return Pictures(features, sketches, labels, np.array(made_of), np.array(hows))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Two stations, a lot each: 120 parts, fresh noise on each, half of them with altered copies."""
    folder = tmp_path_factory.mktemp("line") / "set"
    rendered = render_line(folder, seed=3, per_station=60, lots=1, stations=("press-1", "cast-3"))
    defect = [image.label == "fail" for image in rendered]
    return with_altered([folder / image.file for image in rendered], defect, 2, ALTERED)


@pytest.mark.slow
def test_no_part_of_a_line_is_joined_with_another(line: Pictures) -> None:
    own = np.flatnonzero(line.made_of < 0)
    found = line.found(own)
    assert len(np.unique(found.clusters)) >= len(own) - 1
    assert summary(found, [str(row) for row in own], line.defect[own])["both_classes"] == 0


@pytest.mark.slow
def test_copies_of_a_lines_pictures_are_found(line: Pictures) -> None:
    own = np.flatnonzero(line.made_of < 0)
    shares = {}
    for how in ALTERED:
        copies = np.flatnonzero(line.how == how)
        clusters = line.found(np.concatenate([own, copies])).clusters
        shares[how] = float(np.mean(clusters[len(own) :] == clusters[line.made_of[copies]]))
        assert np.bincount(clusters).max() <= 3
    sys.stderr.write(f"\nrendered line, share of copies found: {shares}\n")
    assert min(shares[how] for how in EASY) >= 0.95
    assert min(shares["shifted"], shares["burst"]) >= 0.5


@pytest.mark.slow
def test_clusters_take_away_what_copies_add_to_shuffled_labels(line: Pictures) -> None:
    """Each part in four pictures, its label drawn by lot: without clusters a model knows its own copies again."""
    rows = np.flatnonzero((line.made_of >= 0) & np.isin(line.how, (*EASY, "shifted")))
    rows = rows[np.argsort(line.made_of[rows], kind="stable")]
    part = np.unique(line.made_of[rows], return_inverse=True)[1]
    by_image, by_cluster = list[float](), list[float]()
    for seed in range(4):
        label = np.random.default_rng(seed).permutation(np.arange(part.max() + 1) % 2 == 1)[part]
        shuffled = Pictures(line.features, line.sketches, np.zeros(len(line.defect), bool), line.made_of, line.how)
        shuffled.defect[rows] = label
        clusters = shuffled.found(rows).clusters
        data = table(line.features.take(rows), label, FeaturizerSpec(DEFAULT_BACKBONE, OWN_TAPS, embedding=False))
        for groups, aurocs in ((np.arange(len(rows)), by_image), (clusters, by_cluster)):
            folds = grouped_folds(label, groups, folds=5, seed=seed)
            aurocs.append(roc_auc_score(label, pooled_out_of_fold(data, folds, Recipe())))
    sys.stderr.write(f"\nlabels shuffled: AUROC by image {by_image}, by cluster {by_cluster}\n")
    assert np.mean(by_image) > 0.85
    assert np.mean(by_cluster) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("screws", 0.8), ("catdog", 0.95), ("pcb", 0.6)])
def test_copies_of_real_images_are_found_and_little_else(name: str, least: float, shared_data: Path) -> None:
    folder = shared_data / "data" / name
    paths = [path for label in ("good", "fail") for path in sorted((folder / label).iterdir())[::3]]
    pictures = with_altered(paths, [path.parent.name == "fail" for path in paths], 8, ALTERED)
    own = np.flatnonzero(pictures.made_of < 0)
    before = summary(pictures.found(own), [path.name for path in paths], pictures.defect[own])
    shares = {}
    for how in ALTERED:
        copies = np.flatnonzero(pictures.how == how)
        clusters = pictures.found(np.concatenate([own, copies])).clusters
        shares[how] = float(np.mean(clusters[len(own) :] == clusters[pictures.made_of[copies]]))
    sys.stderr.write(f"\n{name}: {before['images']} of {len(own)} own images joined, copies found {shares}\n")
    assert before["images"] <= len(own) / 25  # of pcb a few crops show next to nothing, and the same
    assert before["both_classes"] == 0
    assert min(share for how, share in shares.items() if how != "noisy" or name != "pcb") >= least
