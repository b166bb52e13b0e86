"""Cross-validation: each image judged once, by what saw neither it nor its group."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from trainer.classifier import PARTS, Recipe, Table
from trainer.cross_validation import cross_validate, judge_held_out

if TYPE_CHECKING:
    from trainer.classifier import Parts

CELLS, FINE, COARSE, POOLED = 4, 3, 2, 6


def drawn(images: int, groups: int, seed: int = 0, rate: float = 0.4) -> tuple[Table, np.ndarray]:
    """Defects that both parts see, not too clearly; groups that each shift the whole picture."""
    random = np.random.default_rng(seed)
    defect = random.random(images) < rate
    group = random.integers(0, groups, images)
    shift = random.normal(0, 0.3, groups)[group]
    channels = random.normal(0, 1, (images, CELLS, 4 * FINE + COARSE)) + shift[:, None, None]
    channels[defect, 0, :FINE] += 1.5
    pooled = random.normal(0, 1, (images, POOLED)) + shift[:, None]
    pooled[defect, 0] += 1.5
    return Table(channels.astype(np.float32), pooled.astype(np.float32), defect, FINE), group


@pytest.mark.parametrize("parts", PARTS)
def test_each_image_is_held_out_once_and_with_its_group(parts: Parts) -> None:
    data, groups = drawn(240, 24)
    validated = cross_validate(data, groups, Recipe(parts), seed=0)
    assert validated.probability.shape == validated.fold.shape == (240,)
    assert ((validated.probability > 0) & (validated.probability < 1)).all()
    assert set(validated.fold) == set(range(validated.told["folds"]))
    assert all(len(set(validated.fold[groups == group])) == 1 for group in set(groups))
    sizes = [fold["images"] for fold in validated.told["by_fold"]]
    assert sizes == np.bincount(validated.fold).tolist()


@pytest.mark.parametrize("parts", PARTS)
def test_neither_a_held_out_label_nor_its_neighbours_are_seen(parts: Parts) -> None:
    data, groups = drawn(240, 24)
    held, fit = np.flatnonzero(groups < 5), np.flatnonzero(groups >= 5)
    recipe = Recipe(parts)
    judged = judge_held_out(data, groups, recipe, fit, held, seed=0)
    turned = data.defect.copy()
    turned[held] = ~turned[held]
    again = judge_held_out(replace(data, defect=turned), groups, recipe, fit, held, seed=0)
    np.testing.assert_array_equal(again.probability, judged.probability)
    one = judge_held_out(data, groups, recipe, fit, held[:1], seed=0)
    np.testing.assert_allclose(one.probability, judged.probability[:1], rtol=1e-5)  # float32 sums


def test_probabilities_are_at_the_rate_of_the_training_set() -> None:
    data, groups = drawn(600, 60, seed=1)
    validated = cross_validate(data, groups, Recipe("both"), seed=0)
    assert validated.probability.mean() == pytest.approx(data.defect.mean(), abs=0.03)


def test_ten_percent_of_defects_are_ranked_and_calibrated_all_the_same() -> None:
    data, groups = drawn(1200, 120, seed=2, rate=0.1)
    validated = cross_validate(data, groups, Recipe("both"), seed=0)
    assert validated.probability.mean() == pytest.approx(data.defect.mean(), abs=0.02)
    assert validated.told["expected_calibration_error"] < 0.05
    assert validated.told["auroc"] > 0.8
    # Both classes weigh the same in the fit: read without a calibration its scores would see far too many defects.
    assert (validated.probability[data.defect] > 0.3).mean() > 0.3


def test_where_only_one_group_of_a_class_is_left_the_calibration_is_by_image() -> None:
    data, groups = drawn(120, 12)
    groups = np.where(data.defect, groups % 2, groups + 2)  # defects lie in two groups only
    validated = cross_validate(data, groups, Recipe("pooled"), seed=0)
    assert validated.told["folds"] == 2
    assert np.isfinite(validated.probability).all()
