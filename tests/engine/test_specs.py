"""The frozen descriptions: what they refuse, and that JSON brings them back unchanged."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.specs import (
    MAX_SIDE_PX,
    MIN_SIDE_PX,
    STRIDE_PX,
    BatchProfile,
    ImageSpec,
    Region,
    nearest_side,
    tile_sides,
)

if TYPE_CHECKING:
    from collections.abc import Callable

fraction = st.floats(0, 1)
side = st.integers(MIN_SIDE_PX // STRIDE_PX, MAX_SIDE_PX // STRIDE_PX).map(lambda n: n * STRIDE_PX)


@st.composite
def regions(draw: Callable[[st.SearchStrategy[float]], float]) -> Region:
    """Any region that may exist."""
    left, right = sorted((draw(fraction), draw(fraction)))
    top, bottom = sorted((draw(fraction), draw(fraction)))
    return Region(left if left < right else 0.0, top if top < bottom else 0.0, right or 1.0, bottom or 1.0)


@pytest.mark.parametrize(
    "corners",
    [
        (0.5, 0.0, 0.5, 1.0),
        (0.6, 0.0, 0.4, 1.0),
        (-0.1, 0.0, 1.0, 1.0),
        (0.0, 0.0, 1.0, 1.1),
        (0.0, math.nan, 1.0, 1.0),
        (0.0, 0.0, math.inf, 1.0),
    ],
)
def test_a_region_that_is_empty_or_leaves_the_image_is_refused(corners: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="not inside the image"):
        Region(*corners)


def test_a_region_is_read_from_text() -> None:
    assert Region.parse("0.25, 0.1,0.75,0.9") == Region(0.25, 0.1, 0.75, 0.9)


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,d", "0,0,1,1,1", "0;0;1;1"])
def test_text_that_is_no_region_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="four numbers"):
        Region.parse(text)


def test_a_region_in_pixels() -> None:
    assert Region().pixels(1920, 1080) == (0, 0, 1920, 1080)
    assert Region(0.25, 0.1, 0.75, 0.9).pixels(1920, 1080) == (480, 108, 1440, 972)


@given(regions(), st.integers(1, 5000), st.integers(1, 5000))
def test_a_region_in_pixels_is_never_empty_and_inside(region: Region, width_px: int, height_px: int) -> None:
    x0, y0, x1, y1 = region.pixels(width_px, height_px)
    assert 0 <= x0 < x1 <= width_px
    assert 0 <= y0 < y1 <= height_px


@pytest.mark.parametrize("size", [(225, 224), (224, 0), (32, 224), (224, 2080), (-224, 224)])
def test_a_size_that_does_not_fit_the_backbone_is_refused_with_a_cure(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"does not fit the backbone.*take \d+"):
        ImageSpec(*size)


@pytest.mark.parametrize("name", ["resize", "interpolation", "colour", "sixteen_bit", "alpha", "exif"])
def test_a_word_of_another_version_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}='other' is not known"):
        ImageSpec.from_json({**ImageSpec(224, 224).to_json(), name: "other"})


@pytest.mark.parametrize("name", ["max_pixels", "max_bytes"])
def test_a_limit_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match="must be positive"):
        ImageSpec.from_json({**ImageSpec(224, 224).to_json(), name: 0})


@given(side, side, regions(), st.integers(1, 10**9))
def test_an_image_spec_survives_json(width_px: int, height_px: int, region: Region, max_pixels: int) -> None:
    spec = ImageSpec(width_px, height_px, region, max_pixels=max_pixels)
    assert ImageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(side, side, st.data())
def test_tiles_survive_json_and_cover_the_input_exactly(width_px: int, height_px: int, data: st.DataObject) -> None:
    tile_px = (data.draw(st.sampled_from(tile_sides(width_px))), data.draw(st.sampled_from(tile_sides(height_px))))
    spec = ImageSpec(width_px, height_px, Region(0.1), tile_px=tile_px)
    assert ImageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert ImageSpec.from_json(spec.to_json()) == spec
    assert spec.graph_input == ImageSpec(*tile_px, Region(0.1))
    rows, columns = spec.tiles
    assert (columns * tile_px[0], rows * tile_px[1]) == (width_px, height_px)


def test_without_tiles_an_image_spec_is_written_as_before_there_were_any() -> None:
    spec = ImageSpec(224, 160)
    assert "tile_px" not in spec.to_json()
    assert ImageSpec.from_json(spec.to_json()).tile_px is None
    assert spec.graph_input is spec
    assert spec.tiles == (1, 1)


def test_decoded_whole_an_image_spec_is_written_as_before_there_was_a_choice() -> None:
    spec = ImageSpec(224, 160)
    assert spec.to_json() == {
        "width_px": 224,
        "height_px": 160,
        "region": {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0},
        "resize": "stretch",
        "interpolation": "area",
        "colour": "rgb",
        "sixteen_bit": "high_byte",
        "alpha": "drop",
        "exif": "apply",
        "max_pixels": 50_000_000,
        "max_bytes": 16_777_216,
    }
    assert ImageSpec.from_json(spec.to_json()).jpeg == "whole"
    scaled = ImageSpec(224, 160, jpeg="scaled")
    assert scaled.to_json() == {**spec.to_json(), "jpeg": "scaled"}
    assert ImageSpec.from_json(json.loads(json.dumps(scaled.to_json()))) == scaled


@pytest.mark.parametrize("value", ["other", "", None, 2, True])
def test_a_jpeg_that_is_decoded_in_no_known_way_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="jpeg="):
        ImageSpec.from_json({**ImageSpec(128, 128).to_json(), "jpeg": value})


@pytest.mark.parametrize("tile_px", [(96, 64), (64, 100), (32, 64), (0, 64), (-64, 64), (448, 64), (64, 320)])
def test_tiles_that_do_not_cut_the_input_evenly_are_refused_with_those_that_do(tile_px: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"does not cut the input's \d+ px evenly: .*, one of 64, .*take one of these"):
        ImageSpec(320, 192, tile_px=tile_px)


@pytest.mark.parametrize("value", [None, 64, "64x64", [64], [64, 64, 64], [64.0, 64], [True, 64], ["64", "64"]])
def test_a_tile_that_is_not_two_numbers_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="tile_px="):
        ImageSpec.from_json({**ImageSpec(128, 128).to_json(), "tile_px": value})


def test_unknown_and_missing_fields_are_named() -> None:
    value = ImageSpec(224, 224).to_json()
    del value["alpha"]
    with pytest.raises(InputError, match=r"\['alpha', 'tiles'\]"):
        ImageSpec.from_json({**value, "tiles": 4})


@pytest.mark.parametrize("region", [{"left": 0.1}, {"left": 0, "top": 0, "right": 1, "bottom": 1, "x": 0}, None, "all"])
def test_a_region_of_other_fields_is_refused(region: object) -> None:
    with pytest.raises(InputError, match="region"):
        ImageSpec.from_json({**ImageSpec(224, 224).to_json(), "region": region})


@pytest.mark.parametrize(("name", "value"), [("width_px", "224"), ("max_pixels", None), ("max_bytes", 1.5)])
def test_a_field_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        ImageSpec.from_json({**ImageSpec(224, 224).to_json(), name: value})


@pytest.mark.parametrize("value", ["0.1", None, True])
def test_a_corner_that_is_no_number_is_refused(value: object) -> None:
    region = {"left": value, "top": 0.0, "right": 1.0, "bottom": 1.0}
    with pytest.raises(InputError, match="left"):
        ImageSpec.from_json({**ImageSpec(224, 224).to_json(), "region": region})


@pytest.mark.parametrize("profile", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_a_batch_profile_out_of_order_is_refused(profile: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="out of order"):
        BatchProfile(*profile)


@given(st.integers(-100, 10_000))
def test_the_nearest_side_is_taken_by_the_backbone(wanted_px: int) -> None:
    nearest = nearest_side(wanted_px)
    ImageSpec(nearest, nearest)
    assert abs(nearest - min(max(wanted_px, MIN_SIDE_PX), MAX_SIDE_PX)) <= STRIDE_PX // 2
