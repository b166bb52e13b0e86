"""Whether more images would help: nested, grouped, judged on the same images, and only said where it can be known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from trainer import learning_curve as module
from trainer.classifier import PARTS, Parts, Recipe, Scores, Table
from trainer.learning_curve import MOST_IMAGES, learning_curve

CELLS, FINE, COARSE = 4, 2, 4


def drawn(count: int, apart: float, *, wide: int = 40, seed: int = 0, share: float = 0.5) -> Table:
    """Images whose pooled vector lies `apart` deviations along a direction that has to be learned."""
    random = np.random.default_rng(seed)
    defect = np.arange(count) % round(1 / share) == 0
    pooled = random.normal(size=(count, wide)) + apart / np.sqrt(wide) * defect[:, None]
    channels = random.normal(size=(count, CELLS, 4 * FINE + COARSE)) + apart * defect[:, None, None] / 8
    return Table(channels.astype(np.float32), pooled.astype(np.float32), defect, FINE)


POOLED = Recipe(parts="pooled")


def test_more_images_help_where_a_direction_has_yet_to_be_learned() -> None:
    told = learning_curve(drawn(1200, 2.0, wide=400), np.arange(1200), POOLED, seed=0)
    aurocs = [point["auroc"] for point in told["points"]]
    assert [point["images"] for point in told["points"]] == pytest.approx([100, 200, 400, 800], abs=1)
    assert [point["defects"] for point in told["points"]] == pytest.approx([50, 100, 200, 400], abs=1)
    assert aurocs[-1] - aurocs[0] > 0.05
    assert told["gain"] == pytest.approx(aurocs[-1] - aurocs[-2])
    assert told["says"].endswith("more images would likely help")
    assert all(point["low"] < point["auroc"] < point["high"] for point in told["points"])


def test_more_of_the_same_does_not_help_where_all_is_learned() -> None:
    told = learning_curve(drawn(1200, 2.0, wide=2), np.arange(1200), POOLED, seed=0)
    assert "flat: more of the same would not help; look at the mistakes instead" in told["says"]


def test_a_few_images_cannot_tell() -> None:
    told = learning_curve(drawn(30, 2.0), np.arange(30), POOLED, seed=0)
    assert told["points"]
    assert "too few images to tell" in told["says"]


def test_a_class_in_one_group_gives_no_curve_but_the_reason() -> None:
    data = drawn(40, 2.0)
    told = learning_curve(data, data.defect.astype(int), POOLED, seed=0)
    assert told["points"] == []
    assert "one group" in told["says"]


def test_where_all_is_right_the_interval_is_not_a_point() -> None:
    told = learning_curve(drawn(120, 60.0), np.arange(120), POOLED, seed=0)
    last = told["points"][-1]
    assert last["auroc"] == last["high"] == 1
    assert last["low"] == pytest.approx(0.05 ** (1 / 40))
    assert "flat" in told["says"]


@pytest.mark.parametrize("parts", PARTS)
def test_every_smaller_set_lies_in_the_larger_and_in_other_groups_than_the_images_judged(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fitted and judged is overheard."""
    data, groups = drawn(240, 2.0), np.arange(240) // 3
    heard: dict[str, list[np.ndarray]] = {"fit": [], "judged": []}
    scores = module._scores

    def overheard(data: Table, recipe: Recipe, fits: list[np.ndarray], tests: list[np.ndarray]) -> Scores:
        heard["fit"] += fits
        heard["judged"] += tests
        return scores(data, recipe, fits, tests)

    monkeypatch.setattr(module, "_scores", overheard)
    told = learning_curve(data, groups, Recipe(parts=parts), seed=0)
    assert len(told["points"]) == 4
    for fold in range(module.JUDGED):
        fits, judged = (heard[name][fold :: module.JUDGED] for name in ("fit", "judged"))
        for smaller, larger in pairwise(fits):
            assert set(smaller) < set(larger)
            assert 0.4 < len(smaller) / len(larger) <= 0.5
            assert 0.4 < data.defect[smaller].mean() < 0.6
            assert not set(groups[smaller]) & set(groups[np.setdiff1d(larger, smaller)])
        assert not set(groups[fits[-1]]) & set(groups[judged[0]])
        assert all(np.array_equal(judged[0], other) for other in judged)


def test_of_a_large_set_a_share_is_drawn() -> None:
    data = drawn(4 * MOST_IMAGES, 2.0, wide=4, share=0.02)
    told = learning_curve(data, np.arange(len(data.defect)), POOLED, seed=0)
    assert told["points"][-1]["images"] <= MOST_IMAGES
    assert told["points"][-1]["defects"] >= 0.015 * told["points"][-1]["images"]


def test_the_seed_decides() -> None:
    data, groups = drawn(80, 1.5), np.arange(80)
    assert learning_curve(data, groups, POOLED, seed=1) == learning_curve(data, groups, POOLED, seed=1)
    assert learning_curve(data, groups, POOLED, seed=1) != learning_curve(data, groups, POOLED, seed=2)
