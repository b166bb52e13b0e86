"""How far a JPEG is reduced, where its region then lies, and that OpenCV's reduced images hold what that expects."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.preprocess
from engine.errors import FrameError
from engine.image_header import ImageHeader, read_header
from engine.preprocess import decode, preprocess, to_input
from engine.reduction import Reduction, reduction
from engine.specs import ImageSpec, Region

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = ImageSpec(64, 64, jpeg="scaled")
WHOLE = replace(SMALL, jpeg="whole")
RNG = np.random.default_rng(5)
KINDS: dict[str, list[int]] = {
    "plain": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "colours as fine as grey": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    "colours half as fine across": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422],
    "with restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 4],
}
TURNS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda image: image,
    lambda image: image[:, ::-1],
    lambda image: image[::-1, ::-1],
    lambda image: image[::-1],
    lambda image: image.transpose(1, 0, 2),
    lambda image: np.rot90(image, 1),
    lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    lambda image: np.rot90(image, -1),
]
"""From the upright image to what a file of orientation 1, 2, ... 8 stores."""


def smooth(width_px: int, height_px: int) -> np.ndarray:
    """uint8 (h, w, 3) RGB whose colours change slowly and differently along both sides."""
    x, y = np.meshgrid(np.linspace(0, 1, width_px), np.linspace(0, 1, height_px))
    return np.stack([20 + 215 * x, 20 + 215 * y, 60 + 100 * x * y], axis=-1).astype(np.uint8)


def jpeg(image: np.ndarray, *options: int, quality: int = 97) -> bytes:
    """Of RGB or grey."""
    written, data = cv2.imencode(
        ".jpg", image[..., ::-1] if image.ndim == 3 else image, [cv2.IMWRITE_JPEG_QUALITY, quality, *options]
    )
    assert written
    return data.tobytes()


def with_exif(payload: bytes, orientation: int) -> bytes:
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return payload[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + payload[2:]


def header(width_px: int, height_px: int, orientation: int = 1) -> ImageHeader:
    return ImageHeader("JPEG", width_px, height_px, width_px * height_px, orientation=orientation)


@pytest.mark.parametrize(
    ("width_px", "height_px", "expected"),
    [
        (127, 480, None),
        (128, 128, Reduction(2, 64, 64, (0, 0, 64, 64))),
        (128, 127, None),
        (255, 600, Reduction(2, 128, 300, (0, 0, 128, 300))),
        (641, 519, Reduction(8, 81, 65, (0, 0, 80, 65))),  # most of the 81st column is no picture
        (640, 480, Reduction(4, 160, 120, (0, 0, 160, 120))),
        (8000, 6000, Reduction(8, 1000, 750, (0, 0, 1000, 750))),
    ],
)
def test_the_strongest_that_leaves_the_input_its_size(
    width_px: int, height_px: int, expected: Reduction | None
) -> None:
    assert reduction(header(width_px, height_px), SMALL) == expected


def test_only_a_jpeg_and_only_where_the_spec_says_so() -> None:
    assert reduction(header(640, 480), WHOLE) is None
    assert reduction(replace(header(640, 480), format="PNG"), SMALL) is None


def test_it_is_the_region_that_must_stay_large_enough() -> None:
    assert reduction(header(640, 640), replace(SMALL, region=Region(0.5, 0.5, 0.75, 1.0))) == Reduction(
        2, 320, 320, (160, 160, 240, 320)
    )
    assert reduction(header(640, 640), replace(SMALL, region=Region(0.5, 0.5, 0.65, 1.0))) is None


def test_the_sides_are_those_of_the_upright_image() -> None:
    wide = ImageSpec(320, 64, jpeg="scaled")
    assert reduction(header(640, 480), wide) == Reduction(2, 320, 240, (0, 0, 320, 240))
    assert reduction(header(640, 480, orientation=6), wide) is None
    assert reduction(header(480, 640, orientation=6), wide) == Reduction(2, 320, 240, (0, 0, 320, 240))


def test_counted_backwards_the_remainder_lies_in_front() -> None:
    assert reduction(header(641, 513, orientation=3), SMALL) == Reduction(8, 81, 65, (1, 1, 81, 65))
    assert reduction(header(641, 513, orientation=6), SMALL) == Reduction(8, 65, 81, (1, 0, 65, 80))
    assert reduction(header(641, 513, orientation=8), SMALL) == Reduction(8, 65, 81, (0, 1, 64, 81))


fraction = st.floats(0, 1)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 8), st.tuples(fraction, fraction, fraction, fraction))
def test_a_reduced_region_is_inside_and_large_enough_and_where_it_was(
    width_px: int, height_px: int, orientation: int, corners: tuple[float, float, float, float]
) -> None:
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    region = Region(left, top, right, bottom) if left < right and top < bottom else Region()
    found = reduction(header(width_px, height_px, orientation), replace(SMALL, region=region))
    if found is None:
        return
    sides = (height_px, width_px) if orientation >= 5 else (width_px, height_px)
    x0, y0, x1, y1 = found.box
    assert 0 <= x0 <= x1 - 64 <= x1 <= found.width_px
    assert 0 <= y0 <= y1 - 64 <= y1 <= found.height_px
    source = region.pixels(*sides)
    # A pixel of the reduced image at its largest: the remainder's, at the end where it lies, and half of rounding.
    assert max(abs(found.factor * a - b) for a, b in zip(found.box, source, strict=True)) < 1.5 * found.factor


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(640, 480), (641, 479), (530, 523), (1043, 777), (139, 147)])
def test_the_pixels_are_those_of_the_whole_image_in_place(size: tuple[int, int], orientation: int) -> None:
    upright = smooth(*size)
    payload = with_exif(jpeg(np.ascontiguousarray(TURNS[orientation - 1](upright))), orientation)
    for region in (Region(), Region(0.03, 0.0, 0.98, 1.0)):
        spec = replace(SMALL, region=region)
        assert reduction(read_header(payload), spec) is not None
        difference = preprocess(payload, spec).astype(int) - to_input(upright, spec)
        assert np.abs(difference).mean() < 1.5
        # Half a pixel of the input is 1.7 levels; a wrong side would be a hundred.
        assert np.abs(difference).max() <= 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_jpeg_is_reduced(kind: str) -> None:
    upright = smooth(640, 480)
    for image in (upright, upright[:, :, 0]):
        payload = jpeg(image, *KINDS[kind])
        difference = preprocess(payload, SMALL).astype(int) - preprocess(payload, WHOLE)
        assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_what_is_reduced_is_decoded_smaller_and_not_only_resized(factor: int) -> None:
    """Without the high frequencies: noise is not averaged away, it was never decoded."""
    noisy = RNG.integers(0, 256, (64 * factor, 64 * factor, 3), dtype=np.uint8)
    payload = jpeg(noisy)
    reduced = cv2.imdecode(
        np.frombuffer(payload, np.uint8),
        {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[factor],
    )
    assert reduced is not None
    np.testing.assert_array_equal(preprocess(payload, SMALL), reduced[:, :, ::-1])


def test_decode_gives_the_whole_image_whatever_the_spec() -> None:
    payload = jpeg(smooth(640, 480))
    assert decode(payload, SMALL).shape == (480, 640, 3)
    np.testing.assert_array_equal(decode(payload, SMALL), decode(payload, WHOLE))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff"])
def test_other_formats_stay_as_they_are(suffix: str) -> None:
    payload = cv2.imencode(suffix, smooth(640, 480))[1].tobytes()
    np.testing.assert_array_equal(preprocess(payload, SMALL), preprocess(payload, WHOLE))


def test_an_image_that_comes_out_otherwise_is_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = jpeg(smooth(640, 480))

    def mistaken(*_: Any) -> Reduction:
        return Reduction(2, 240, 320, (0, 0, 240, 320))

    monkeypatch.setattr(engine.preprocess, "reduction", mistaken)
    np.testing.assert_array_equal(preprocess(payload, SMALL), preprocess(payload, WHOLE))


def test_the_limits_are_those_of_the_whole_image() -> None:
    payload = jpeg(smooth(640, 480))
    assert preprocess(payload, replace(SMALL, max_pixels=640 * 480)).shape == (64, 64, 3)
    with pytest.raises(FrameError, match=r"640 x 480 px") as caught:
        preprocess(payload, replace(SMALL, max_pixels=640 * 480 - 1))
    assert caught.value.cause == "oversize"


def outcome(payload: bytes, spec: ImageSpec) -> str:
    try:
        preprocess(payload, spec)
    except FrameError as error:
        return error.cause
    return "decoded"


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_jpeg_is_refused_wherever_it_is_cut(kind: str) -> None:
    payload = jpeg(smooth(203, 171), *KINDS[kind], quality=60)
    assert outcome(payload, SMALL) == "decoded"
    places = {*range(0, len(payload), 17), *range(len(payload) - 40, len(payload))}
    assert {outcome(payload[:place], SMALL) for place in places} == {"undecodable"}


SEEDS = [
    jpeg(smooth(203, 171), quality=60),
    jpeg(smooth(203, 171), *KINDS["progressive"], quality=60),
    with_exif(jpeg(smooth(203, 171)[:, :, 0], quality=60), 6),
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([60, 700, 100_000]),
)
def test_a_damaged_jpeg_is_refused_or_not_as_the_whole_one(
    seed: bytes, flips: list[tuple[float, int]], reach: int
) -> None:
    damaged = bytearray(seed)
    for place, value in flips:
        damaged[int(place * min(len(seed), reach))] ^= value
    assert outcome(bytes(damaged), SMALL) == outcome(bytes(damaged), WHOLE)


def test_the_same_bytes_give_the_same_array_in_every_thread() -> None:
    payloads = [jpeg(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ((300, 200), (150, 643), (640, 480))]
    expected = [preprocess(payload, SMALL) for payload in payloads]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda payload: preprocess(payload, SMALL), payloads * 8))
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[index % len(payloads)])
