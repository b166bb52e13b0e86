"""What is chosen follows from what pays: sizes, cuts, parts and regularisation, and what noise may excuse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from engine.featurizer import FeaturizerSpec, multiply_accumulates
from engine.specs import ImageSpec, Region
from trainer.candidates import (
    Candidate,
    Sizes,
    candidates,
    cheapest_of_the_best,
    choose_parts,
    cuts,
    ladder,
    other_sizes,
    report,
    too_much,
    tune,
)
from trainer.classifier import Recipe, Scores, Table
from trainer.features import FeatureSet, Looks
from trainer.judge import MOST_LOSS, Judge
from trainer.split import grouped_folds

if TYPE_CHECKING:
    from trainer.classifier import Parts
    from trainer.stored_rows import Rows

CUT, DEFAULT, WHOLE = (
    FeaturizerSpec(taps=(2, 4, 7)),
    FeaturizerSpec(),
    FeaturizerSpec(embedding=True),
)


def judge(count: int = 200, groups: int = 20, folds: int = 3) -> Judge:
    defect, members = np.arange(count) % 2 == 1, np.arange(count) // 2 % groups
    return Judge(defect, members, grouped_folds(defect, members, folds=folds, seed=0))


def scores(seen_by: Judge, strength: float, seed: int = 0) -> np.ndarray:
    """A score that separates the classes by `strength` deviations."""
    return seen_by.defect * strength + np.random.default_rng(seed).normal(0, 1, len(seen_by.defect))


def candidate(seen_by: Judge, score: np.ndarray, side_px: int, parts: Parts = "evidence") -> Candidate:
    return Candidate(ImageSpec(side_px, side_px), DEFAULT, parts, score, seen_by.auroc(score))


def test_jackknife_error_is_what_the_difference_does_on_new_groups() -> None:
    """Against the spread of the difference over many sets drawn anew, where groups shift the scores together."""

    def drawn(seed: int) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        own = judge(120, 24)
        shift = rng.normal(0, 1, (2, 24))[:, own.groups]
        noise = rng.normal(0, 1, (2, 120))
        better, worse = own.defect * 2.0 + shift[0] + noise[0], own.defect * 1.5 + shift[1] + noise[1]
        return own.difference(better, worse)

    differences, errors = np.array([drawn(seed) for seed in range(40)]).T
    assert errors.mean() == pytest.approx(differences.std(), rel=0.3)


def test_leaving_a_group_out_is_as_if_it_had_never_been_there() -> None:
    own = judge(90, 7)
    score = np.round(scores(own, 1.0), 1)  # with ties
    expected = [roc_auc_score(own.defect[own.groups != g], score[own.groups != g]) for g in range(7)]
    np.testing.assert_allclose(own._without_each_block(score), expected, rtol=1e-12)


def test_noise_excuses_one_standard_error_and_never_much() -> None:
    few, many = judge(40, 20), judge(4000, 2000)
    same = scores(many, 2.0)
    assert many.is_noise(same, same)
    assert many.is_noise(same, same + np.random.default_rng(1).normal(0, 0.02, len(same)))
    assert not many.is_noise(same, scores(many, 1.5))
    good, poor = scores(few, 2.5), scores(few, 1.8, seed=1)
    lost, error = few.difference(good, poor)
    assert MOST_LOSS < lost < error * 3  # few images could excuse it, the bound does not
    assert not few.is_noise(good, poor)


def test_the_cheapest_of_equals_is_taken_and_the_best_where_it_pays() -> None:
    seen_by = judge(1000, 40)
    good = scores(seen_by, 2.0)
    equal = good + np.random.default_rng(2).normal(0, 0.01, len(good))
    small, large = candidate(seen_by, equal, 96), candidate(seen_by, good, 160)
    assert cheapest_of_the_best(seen_by, [large, small]) is small
    poor = candidate(seen_by, scores(seen_by, 1.6), 64)
    assert cheapest_of_the_best(seen_by, [poor, large, small]) is small
    assert cheapest_of_the_best(seen_by, [poor, large]) is large
    pooled = candidate(seen_by, good, 96, "pooled")
    assert cheapest_of_the_best(seen_by, [pooled, candidate(seen_by, good, 96)]).parts == "evidence"
    told = report(seen_by, [large, poor, small], small)
    assert [row["input_px"][0] for row in told] == [64, 96, 160]
    assert [row["chosen"] for row in told] == [False, True, False]
    assert [row["million_macs"] for row in told] == sorted(row["million_macs"] for row in told)


def features(seen_by: Judge, rng: np.random.Generator) -> FeatureSet:
    """Of the right shapes for 64 x 64 px and the whole network, without any sign of a defect."""
    count = len(seen_by.defect)
    pooled = rng.normal(size=(count, WHOLE.pooled_size)).astype(np.float32)
    channels = rng.normal(size=(count, 4, WHOLE.cell_size)).astype(np.float32)
    looks = Looks(np.zeros(count), np.zeros(count), np.zeros((count, 64, 64), np.uint8))
    return FeatureSet(np.arange(count), pooled, channels, np.zeros((count, 2)), ("",) * count, (), looks)


def in_memory(rows: Rows) -> np.ndarray:
    """What may be written to."""
    assert isinstance(rows, np.ndarray)
    return rows


def tables(found: FeatureSet, seen_by: Judge) -> list[tuple[FeaturizerSpec, Table]]:
    from trainer.classifier import table  # noqa: PLC0415 - beside its only use

    return [(each, table(found, seen_by.defect, each)) for each in cuts(WHOLE)]


def chosen_of(found: FeatureSet, seen_by: Judge) -> Candidate:
    rows = np.arange(len(seen_by.defect))
    return cheapest_of_the_best(seen_by, candidates(seen_by, ImageSpec(64, 64), tables(found, seen_by), rows))


@pytest.mark.slow
def test_embedding_is_used_only_where_it_helps() -> None:
    seen_by = judge(120, 120)
    found = features(seen_by, np.random.default_rng(3))
    in_memory(found.pooled)[:, 3 * 256 + 7] += 9 * seen_by.defect
    with_it = chosen_of(found, seen_by)
    assert with_it.featurizer == WHOLE
    assert with_it.parts in {"pooled", "both"}
    in_memory(found.pooled)[:, 2] += 15 * seen_by.defect  # now the taps know it as well
    without = chosen_of(found, seen_by)
    assert not without.featurizer.embedding
    assert without.parts == "pooled"


@pytest.mark.slow
def test_the_network_is_cut_where_the_last_tap_says_nothing() -> None:
    seen_by = judge(120, 120)
    found = features(seen_by, np.random.default_rng(4))
    in_memory(found.channels)[:, 1, 3] += 12 * seen_by.defect  # a channel of the first tap, at one location
    early = chosen_of(found, seen_by)
    assert (early.featurizer, early.parts) == (CUT, "evidence")
    late = features(seen_by, np.random.default_rng(5))
    in_memory(late.channels)[:, 1, -1] += 12 * seen_by.defect  # the last tap's last channel
    assert chosen_of(late, seen_by).featurizer.taps == DEFAULT.taps


def test_parts_are_both_where_each_knows_what_the_other_does_not() -> None:
    seen_by = judge(1000, 40)
    one, other = scores(seen_by, 1.5, 6), scores(seen_by, 1.5, 7)
    assert choose_parts(seen_by, Scores(one, other))[0] == "both"
    assert choose_parts(seen_by, Scores(one, scores(seen_by, 0.0, 8)))[0] == "evidence"
    assert choose_parts(seen_by, Scores(scores(seen_by, 0.0, 9), other))[0] == "pooled"
    assert choose_parts(seen_by, Scores(one, one))[0] == "evidence"


def test_regularisation_leaves_the_standard_only_for_a_gain_above_noise() -> None:
    seen_by = judge(120, 120)
    found = features(seen_by, np.random.default_rng(10))
    in_memory(found.channels)[:, 1, 3] += 20 * seen_by.defect
    recipe, out, tried = tune(seen_by, tables(found, seen_by)[0][1], np.arange(120))
    assert replace(recipe, strength=Recipe().strength) == Recipe()
    assert seen_by.auroc(out.evidence) > 0.99
    assert {row["part"] for row in tried} == {"evidence", "pooled"}
    assert len({(row["l2"], row["sharpness"]) for row in tried if row["part"] == "evidence"}) == 5


@pytest.mark.parametrize(
    ("own_px", "expected"),
    [
        ((160, 160), [(128, 128), (160, 160), (224, 224)]),
        ((256, 256), [(160, 160), (224, 224), (320, 320)]),
        ((640, 480), [(160, 128), (224, 160), (320, 224), (448, 320), (640, 480)]),
        (
            (1920, 1080),
            [(160, 96), (224, 128), (320, 192), (448, 256), (640, 352), (896, 512), (1280, 704), (1792, 1024)],
        ),
        ((48, 40), [(64, 64)]),
    ],
)
def test_sizes_go_up_to_the_images_own(own_px: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    region = Region(0.1, 0.1, 0.9, 0.9)
    sizes = ladder(own_px, region)
    images = [*sizes.smaller, sizes.base, *sizes.larger]
    assert [(image.width_px, image.height_px) for image in images] == expected
    assert {image.region for image in images} == {region}


def test_a_size_that_takes_too_much_is_refused_by_count() -> None:
    assert too_much(1200, ImageSpec(160, 160), WHOLE) is None
    assert "million features" in str(too_much(1200, ImageSpec(1280, 704), DEFAULT))
    assert "products" in str(
        too_much(1200, ImageSpec(480, 448), FeaturizerSpec("efficientnet-lite2", taps=(10,), embedding=True))
    )


@pytest.mark.slow
def test_larger_sizes_are_tried_while_the_last_one_gained() -> None:
    """The sign of a defect grows with the size, up to 320 px; no cut but those as good as the best goes along."""
    seen_by = judge(200, 100)
    asked: list[tuple[int, FeaturizerSpec]] = []

    def extract(image: ImageSpec, featurizer: FeaturizerSpec) -> FeatureSet:
        asked.append((image.width_px, featurizer))
        found = features(seen_by, np.random.default_rng(11))
        strength = {160: 1.0, 224: 3.0, 320: 8.0, 448: 8.0}[image.width_px]
        in_memory(found.channels)[:, 1, 3] += strength * seen_by.defect
        return found

    image = ImageSpec(224, 224)
    rows = np.arange(200)
    found = extract(image, WHOLE)
    at_base = candidates(seen_by, image, tables(found, seen_by), rows)
    asked.clear()
    sizes = Sizes(image, (ImageSpec(160, 160),), tuple(ImageSpec(side, side) for side in (320, 448, 640)))
    more, refused = other_sizes(seen_by, sizes, at_base, extract)
    assert [side for side, _ in asked] == [160, 320, 448]
    assert WHOLE not in {featurizer for _, featurizer in asked}
    assert refused == []
    assert cheapest_of_the_best(seen_by, [*at_base, *more]).image.width_px == 320


@pytest.mark.slow
def test_a_defect_that_shows_in_none_of_the_first_sizes_is_still_looked_for() -> None:
    seen_by = judge(120, 60)

    def extract(image: ImageSpec, _: FeaturizerSpec) -> FeatureSet:
        found = features(seen_by, np.random.default_rng(12))
        in_memory(found.channels)[:, 1, 3] += (9.0 if image.width_px == 640 else 0.0) * seen_by.defect
        return found

    image, rows = ImageSpec(224, 224), np.arange(120)
    at_base = candidates(seen_by, image, tables(extract(image, WHOLE), seen_by), rows)
    sizes = Sizes(image, (), tuple(ImageSpec(side, side) for side in (320, 448, 640)))
    more, _ = other_sizes(seen_by, sizes, at_base, extract)
    assert cheapest_of_the_best(seen_by, [*at_base, *more]).image.width_px == 640


def test_cost_is_a_count() -> None:
    costs = [multiply_accumulates(each, ImageSpec(160, 160)) for each in cuts(WHOLE)]
    assert costs == sorted(costs)
    assert len(set(costs)) == 3
