"""From evidence to a decision: the arithmetic, its edges, and doubt about the image itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import HeadError
from engine.familiarity import PixelLimits, all_pixel_statistics, examine, pixel_statistics, trouble, unfamiliar
from engine.heads import decide, sigmoid, stack
from engine.prediction import OperatingPoint
from tests.bundles import FEATURIZER, pictures, small_head

BAND = OperatingPoint(0.5, (0.3, 0.6))
NO_BAND = OperatingPoint(0.5, (0.5, 0.5))


@pytest.mark.parametrize(
    ("probability", "point", "decision"),
    [
        (0.0, BAND, "pass"),
        (0.299999, BAND, "pass"),
        (0.3, BAND, "review"),
        (0.599999, BAND, "review"),
        (0.6, BAND, "fail"),
        (1.0, BAND, "fail"),
        (0.499999, NO_BAND, "pass"),
        (0.5, NO_BAND, "fail"),
    ],
)
def test_decision_at_each_edge(probability: float, point: OperatingPoint, decision: str) -> None:
    prediction = decide(probability, point, None)
    assert prediction.decision == decision
    assert prediction.reasons == (("band",) if decision == "review" else ())


@given(st.floats(0, 1))
def test_doubt_about_the_image_never_passes(probability: float) -> None:
    prediction = decide(probability, BAND, "camera")
    assert prediction.decision == "review"
    assert prediction.reasons == ("camera",)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_sigmoid_is_a_probability_for_any_number(logit: float) -> None:
    value = sigmoid(logit)
    assert 0.0 <= value <= 1.0
    if math.isnan(logit):
        assert value == 1.0


def test_probability_is_the_written_formula() -> None:
    head = small_head()
    pooled = np.random.default_rng(5).normal(size=head.pooled_weights.size).astype(np.float32)
    score = float(pooled.astype(np.float64) @ head.pooled_weights.astype(np.float64)) + head.pooled_bias
    expected = 1 / (1 + math.exp(-(1.0 * 0.8 + 0.7 * score + 0.1)))
    assert head.probability(0.8, pooled) == pytest.approx(expected, abs=2e-6)
    assert round(head.probability(0.8, pooled), 6) == head.probability(0.8, pooled)


def test_black_white_and_flat_images_are_the_cameras_fault() -> None:
    head = small_head()
    pooled = np.zeros(head.pooled_weights.size, np.float32)
    for value in (0, 255, 90):
        flat = np.full((64, 64, 3), value, np.uint8)
        assert unfamiliar(flat, pooled, head.pixels, head.features) == "camera"
    assert unfamiliar(pictures(1)[0], pooled, head.pixels, head.features) is None


def test_blur_lowers_detail_and_not_contrast() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    smooth = np.repeat(np.repeat(ramp[None, :, None], 64, axis=0), 3, axis=2)
    contrast, detail = pixel_statistics(smooth)
    assert contrast > 50
    assert detail < 5


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_features_that_are_no_numbers_are_unfamiliar(value: float) -> None:
    head = small_head(limit=3.0)
    pooled = np.full(head.pooled_weights.size, value, np.float32)
    with np.errstate(all="ignore"):
        assert unfamiliar(pictures(1)[0], pooled, head.pixels, head.features) == "out_of_distribution"


def test_distance_grows_outside_the_known_directions_too() -> None:
    head = small_head(limit=3.0)
    inside, outside = np.zeros((2, head.pooled_weights.size), np.float32)
    inside[0], outside[100] = 10.0, 1000.0
    assert head.features.distance(inside) > 3
    assert head.features.distance(outside) > 3
    assert head.features.distance(np.zeros_like(inside)) == 0


def test_heads_stack_into_columns() -> None:
    one, two = small_head(0), replace(small_head(1), evidence_bias=0.75)
    weights, biases = stack([one, two])
    assert weights.shape == (256, 2)
    assert weights.flags.c_contiguous
    np.testing.assert_array_equal(weights[:, 1], two.evidence_weights)
    np.testing.assert_array_equal(biases, np.array([0.25, 0.75], np.float32))


def test_a_head_of_another_featurizer_is_refused_with_both_digests() -> None:
    head = small_head()
    head.check_fits(head.featurizer, channels=FEATURIZER.channels, pooled_size=FEATURIZER.pooled_size)
    stranger = replace(head, name="other", featurizer="5" * 64)
    with pytest.raises(
        HeadError, match=rf"'other' was fitted on featurizer {'5' * 64}: expected {head.featurizer}.*--feat"
    ):
        stranger.check_fits(head.featurizer, channels=FEATURIZER.channels, pooled_size=FEATURIZER.pooled_size)
    with pytest.raises(HeadError, match=f"{'5' * 64}: expected {head.featurizer}"):
        stack([head, stranger])


@pytest.mark.parametrize(("channels", "pooled_size"), [(255, 768), (256, 769)])
def test_a_head_that_does_not_fit_the_taps_is_refused(channels: int, pooled_size: int) -> None:
    head = small_head()
    with pytest.raises(HeadError, match="expected float32"):
        head.check_fits(head.featurizer, channels=channels, pooled_size=pooled_size)


@pytest.mark.parametrize(("height_px", "width_px", "most"), [(2, 2, 256), (192, 224, 256), (31, 57, 2), (480, 640, 1)])
def test_pixel_statistics_are_those_of_the_definition(height_px: int, width_px: int, most: int) -> None:
    image = np.random.default_rng(3).integers(0, most, (height_px, width_px, 3)).astype(np.uint8)
    for picture in (image, 255 - image):
        grey = picture.astype(np.float64).mean(2)
        detail = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        found = all_pixel_statistics(picture)
        assert (found.contrast, found.detail, found.level) == pytest.approx((grey.std(), detail, grey.mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("level", "spread", "expected"),
    [(30, 20, "dark"), (228, 20, "bright"), (128, 1, "blank"), (30, 1, "dark"), (128, 20, None)],
)
def test_what_is_wrong_with_an_image_is_said_in_one_word(level: int, spread: int, expected: str | None) -> None:
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(level, spread, (64, 64, 3)), 0, 255).astype(np.uint8)
    limits = PixelLimits(contrast=4.0, detail=0.5, dark=40.0, bright=220.0)
    assert trouble(all_pixel_statistics(image), limits) == expected
    smooth = np.repeat(np.linspace(60, 180, 64)[None, :, None], 64, axis=0).repeat(3, axis=2).astype(np.uint8)
    assert trouble(all_pixel_statistics(smooth), limits) is None
    assert trouble(all_pixel_statistics(smooth), replace(limits, detail=3.0)) == "blurred"


def test_light_is_judged_only_by_a_bundle_that_knows_its_light() -> None:
    dim = (pictures(1)[0] // 16).astype(np.uint8)
    head = small_head()
    pooled = np.zeros(head.features.mean.shape, np.float32)
    assert examine(dim, pooled, head.pixels, head.features)[:2] == (None, None), "as an old bundle did"
    lit = replace(head.pixels, dark=20.0)
    assert examine(dim, pooled, lit, head.features) == ("camera", "dark", None)


def test_a_prediction_tells_its_trouble_and_distance_and_is_the_same_answer_without_them() -> None:
    head = small_head()
    images = np.stack([pictures(1)[0], np.zeros((64, 64, 3), np.uint8)])
    pooled = np.full((2, len(head.features.mean)), 2.0, np.float32)
    sound, black = head.predict(images, np.zeros(2, np.float32), pooled)
    assert sound.distance == head.features.distance(pooled[0])
    assert (black.reasons, black.trouble, black.distance) == (("camera",), "blank", None)
    assert black == replace(black, trouble=None)
    assert sound == replace(sound, distance=None)
