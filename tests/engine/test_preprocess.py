"""What the words of ImageSpec promise, held against arrays made by hand, and that no bytes can break the promise."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import FrameError, InputError
from engine.image_header import read_header
from engine.preprocess import decode, preprocess, to_input
from engine.specs import ImageSpec, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPEC = ImageSpec(96, 64)
LOSSLESS = (".png", ".bmp", ".webp", ".tiff")
RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)  # RGB
NOISE_16 = RNG.integers(0, 65536, (37, 53, 3), dtype=np.uint16)
ALPHA = RNG.integers(1, 255, (37, 53, 1), dtype=np.uint8)


def encode(image: np.ndarray, suffix: str) -> bytes:
    """`image` is RGB, RGBA or grey; OpenCV takes them in BGR order. WebP without loss."""
    if image.ndim == 3:
        image = image[:, :, [2, 1, 0, 3][: image.shape[2]]]
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    written, data = cv2.imencode(suffix, image, options)
    assert written
    return data.tobytes()


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def tiff(image: np.ndarray, photometric: int = 2, alpha: int | None = None, order: Literal["<", ">"] = "<") -> bytes:
    """One uncompressed strip of (h, w, samples)."""
    height_px, width_px, samples = image.shape
    bits = image.dtype.itemsize * 8
    pixels: bytes = image.astype(image.dtype.newbyteorder(order)).tobytes()
    fields = [(256, width_px), (257, height_px), (258, bits), (259, 1), (262, photometric), (273, 0), (277, samples)]
    fields += [(278, height_px), (279, len(pixels)), *([(338, alpha)] if alpha is not None else [])]
    start = 8 + 2 + 12 * len(fields) + 4 + 2 * samples
    body = b""
    for tag, value in fields:
        if tag == 258 and samples > 2:
            body += struct.pack(f"{order}HHII", tag, 3, samples, start - 2 * samples)
        elif tag in {273, 279}:
            body += struct.pack(f"{order}HHII", tag, 4, 1, start if tag == 273 else value)
        else:
            count = samples if tag == 258 else 1
            body += struct.pack(f"{order}HHI", tag, 3, count) + (struct.pack(f"{order}H", value) * count).ljust(
                4, b"\0"
            )
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(fields))
    return b"".join((head, body, bytes(4), struct.pack(f"{order}H", bits) * samples, pixels))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_the_colours_come_back_in_rgb_order(suffix: str) -> None:
    image = decode(encode(NOISE, suffix), SPEC)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, NOISE)


def test_jpeg_comes_back_in_rgb_order() -> None:
    red = np.full((16, 16, 3), (250, 10, 30), np.uint8)
    assert np.abs(decode(encode(red, ".jpg"), SPEC).astype(int) - red).max() <= 3


@pytest.mark.parametrize("suffix", [*LOSSLESS[:2], ".tiff"])
def test_grey_becomes_three_equal_channels(suffix: str) -> None:
    grey = NOISE[:, :, 0]
    np.testing.assert_array_equal(decode(encode(grey, suffix), SPEC), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_alpha_is_dropped_and_leaves_the_colours_alone(suffix: str) -> None:
    np.testing.assert_array_equal(decode(encode(np.dstack([NOISE, ALPHA]), suffix), SPEC), NOISE)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_alpha_is_dropped_from_tiff_whatever_it_is_marked_as(kind: int, order: Literal["<", ">"]) -> None:
    payload = tiff(np.dstack([NOISE, ALPHA]), alpha=kind, order=order)
    np.testing.assert_array_equal(decode(payload, SPEC), NOISE)
    np.testing.assert_array_equal(decode(bytearray(payload), SPEC), NOISE)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_become_their_high_byte(suffix: str) -> None:
    high = (NOISE_16 >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(encode(NOISE_16, suffix), SPEC), high)
    np.testing.assert_array_equal(decode(encode(NOISE_16[:, :, 0], suffix), SPEC), np.repeat(high[:, :, :1], 3, axis=2))
    with_alpha = np.dstack([NOISE_16, NOISE_16[:, :, :1]])
    np.testing.assert_array_equal(decode(encode(with_alpha, suffix), SPEC), high)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_become_their_high_byte_in_either_byte_order(order: Literal["<", ">"]) -> None:
    high = (NOISE_16 >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(tiff(NOISE_16, order=order), SPEC), high)
    grey = decode(tiff(NOISE_16[:, :, :1], photometric=1, order=order), SPEC)
    np.testing.assert_array_equal(grey, np.repeat(high[:, :, :1], 3, axis=2))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (4, lambda image: image[::-1]),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: image.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda image: np.rot90(image, 1)),
    ],
)
def test_exif_turns_the_image_upright(orientation: int, turned: Callable[[np.ndarray], np.ndarray]) -> None:
    plain = encode(cv2.resize(NOISE, (64, 40), interpolation=cv2.INTER_CUBIC), ".jpg")
    np.testing.assert_array_equal(decode(with_exif(plain, orientation), SPEC), turned(decode(plain, SPEC)))


def test_an_animated_png_is_its_still_image() -> None:
    plain = encode(NOISE_16, ".png")
    control = png_chunk(b"acTL", struct.pack(">II", 2, 0))
    np.testing.assert_array_equal(decode(plain[:33] + control + plain[33:], SPEC), (NOISE_16 >> 8).astype(np.uint8))


@pytest.mark.parametrize(("payload", "got"), [(None, "null"), (b"", "0 bytes"), ("text", "str"), (7, "int")])
def test_no_bytes_are_undecodable(payload: Any, got: str) -> None:
    with pytest.raises(FrameError, match=got) as caught:
        decode(payload, SPEC)
    assert caught.value.cause == "undecodable"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data + data)[: len(data)]])
def test_bytes_of_every_kind_are_taken(kind: Callable[[bytes], Any]) -> None:
    np.testing.assert_array_equal(decode(kind(encode(NOISE, ".png")), SPEC), NOISE)


def test_scattered_memory_is_taken() -> None:
    data = encode(NOISE, ".png")
    scattered = memoryview(bytes(itertools.chain.from_iterable((byte, 0) for byte in data)))[::2]
    np.testing.assert_array_equal(decode(scattered, SPEC), NOISE)


def test_the_byte_limit_is_inclusive() -> None:
    data = encode(NOISE, ".png")
    assert decode(data, ImageSpec(64, 64, max_bytes=len(data))).shape == NOISE.shape
    with pytest.raises(FrameError, match=rf"{len(data)} bytes.*at most {len(data) - 1}") as caught:
        decode(data, ImageSpec(64, 64, max_bytes=len(data) - 1))
    assert caught.value.cause == "oversize"


@pytest.mark.parametrize("suffix", [".jpg", *LOSSLESS])
def test_the_pixel_limit_is_inclusive(suffix: str) -> None:
    data = encode(NOISE, suffix)
    assert decode(data, ImageSpec(64, 64, max_pixels=37 * 53)).shape == NOISE.shape
    with pytest.raises(FrameError, match=r"53 x 37 px.*at most 1960 px") as caught:
        decode(data, ImageSpec(64, 64, max_pixels=37 * 53 - 1))
    assert caught.value.cause == "oversize"


def test_a_large_tile_in_a_small_image_is_oversize() -> None:
    fields = [(256, 10), (257, 10), (322, 60000), (323, 50000)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    with pytest.raises(FrameError, match="tiles of 3000000000 px") as caught:
        decode(b"II*\0" + struct.pack("<IH", 8, len(fields)) + body + bytes(4), SPEC)
    assert caught.value.cause == "oversize"


@pytest.mark.parametrize(("side_px", "cause"), [(100, "undecodable"), (60000, "oversize")])
def test_a_format_that_is_not_decoded_is_judged_by_its_header(side_px: int, cause: str) -> None:
    gif = b"GIF89a" + struct.pack("<HHBBB", side_px, side_px, 0, 0, 0) + b";"
    with pytest.raises(FrameError, match="GIF") as caught:
        decode(gif, SPEC)
    assert caught.value.cause == cause


def test_a_header_that_the_image_does_not_keep_is_undecodable() -> None:
    payload = bytearray(tiff(NOISE))
    # ImageLength becomes a second ImageWidth: the first one is decoded, the larger one is believed
    entries = [10 + 12 * index for index in range(9)]
    taller = payload[: entries[0]] + payload[entries[0] : entries[0] + 12] + payload[entries[0] :]
    struct.pack_into("<H", taller, 8, 10)
    struct.pack_into("<H", taller, entries[1] + 8, 99)
    for index in range(10):
        tag, _, count, value = struct.unpack_from("<HHII", taller, 10 + 12 * index)
        if tag == 273 or count > 2:
            struct.pack_into("<I", taller, 10 + 12 * index + 8, value + 12)
    assert read_header(taller).width_px == 99
    with pytest.raises(FrameError, match="decodes to 53 x 37 px: expected the 99 x 37 px") as caught:
        decode(taller, SPEC)
    assert caught.value.cause == "undecodable"


def test_an_image_beyond_opencv_s_own_limits_is_undecodable() -> None:
    payload = encode(np.zeros((1, 5, 3), np.uint8), ".bmp")
    wide = payload[:18] + struct.pack("<i", 2_000_000) + payload[22:]
    with pytest.raises(FrameError, match="cannot be decoded") as caught:
        decode(wide, SPEC)
    assert caught.value.cause == "undecodable"


@pytest.mark.parametrize("shape", [(1, 1), (4000, 1), (1, 4000), (64, 96), (1080, 1920), (30, 2000)])
def test_every_shape_becomes_the_input(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), (10, 20, 30), np.uint8)
    result = preprocess(encode(image, ".png"), SPEC)
    assert result.shape == (64, 96, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert (result == (10, 20, 30)).all()


def test_shrinking_averages_areas() -> None:
    image = RNG.integers(0, 256, (64 * 5, 96 * 3, 3), dtype=np.uint8)
    means = image.reshape(64, 5, 96, 3, 3).mean(axis=(1, 3))
    assert np.abs(to_input(image, SPEC) - means).max() <= 0.51


def test_a_side_that_shrinks_is_averaged_although_the_other_grows() -> None:
    image = RNG.integers(0, 256, (64 * 20, 1, 3), dtype=np.uint8)
    means = image.reshape(64, 20, 1, 3).mean(axis=1)
    assert np.abs(to_input(image, SPEC) - means[:, None, 0]).max() <= 0.51


def test_growing_interpolates_linearly() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, 24:] = 200
    row = to_input(image, SPEC)[30, 44:52, 0]
    np.testing.assert_array_equal(row, [0, 0, 0, 50, 150, 200, 200, 200])


def test_the_same_size_is_copied_unchanged() -> None:
    image = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    result = to_input(image, SPEC)
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_the_region_is_cut_before_the_resize() -> None:
    image = RNG.integers(0, 256, (128, 192, 3), dtype=np.uint8)
    spec = ImageSpec(96, 64, Region(0.25, 0.5, 0.75, 1.0))
    np.testing.assert_array_equal(to_input(image, spec), image[64:128, 48:144])


def test_the_region_lies_in_the_upright_image() -> None:
    image = np.zeros((96, 64, 3), np.uint8)
    image[:48] = 255  # as stored, the upper half; turned by 90 degrees clockwise, the right half
    payload = with_exif(encode(image, ".jpg"), 6)
    assert preprocess(payload, ImageSpec(64, 64, Region(0.6, 0, 1, 1))).min() > 250
    assert preprocess(payload, ImageSpec(64, 64, Region(0, 0, 0.4, 1))).max() < 5


@pytest.mark.parametrize("shape", [(64, 96), (200, 300), (20, 30), (500, 10), (10, 500)])
def test_the_result_is_written_into_the_batch(shape: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    batch = np.full((3, 64, 96, 3), 7, np.uint8)
    result = to_input(image, SPEC, out=batch[1])
    assert np.shares_memory(result, batch)
    np.testing.assert_array_equal(batch[1], to_input(image, SPEC))
    assert (batch[[0, 2]] == 7).all()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((96, 64, 3), np.uint8),
        np.empty((64, 96, 3), np.float32),
        np.empty((64, 192, 3), np.uint8)[:, ::2],
        np.frombuffer(bytes(64 * 96 * 3), np.uint8).reshape(64, 96, 3),
    ],
    ids=["shape", "dtype", "strides", "read-only"],
)
def test_an_output_of_another_kind_is_refused(out: np.ndarray) -> None:
    with pytest.raises(InputError, match="C-contiguous and writeable"):
        to_input(NOISE, SPEC, out)


@pytest.mark.parametrize("image", [NOISE[:, :, 0], np.zeros((5, 5, 4), np.uint8), NOISE_16, NOISE[:0]])
def test_an_image_of_another_kind_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected uint8"):
        to_input(image, SPEC)


@pytest.fixture
def opencv_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("opencv_threads")
def test_the_same_bytes_give_the_same_array_in_every_thread() -> None:
    smooth = cv2.resize(NOISE, (1201, 803), interpolation=cv2.INTER_CUBIC)
    payloads = [encode(smooth, ".jpg"), encode(smooth[:, :50], ".png")]
    specs = [ImageSpec(224, 224), ImageSpec(640, 480, Region(0.11, 0.2, 0.77, 0.93))]
    jobs = list(itertools.product(payloads, specs))
    expected = [preprocess(payload, spec) for payload, spec in jobs]
    for threads in (1, 2, 5):
        cv2.setNumThreads(threads)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda job: preprocess(*job), jobs * 4))
        for index, result in enumerate(results):
            np.testing.assert_array_equal(result, expected[index % len(jobs)])


def test_engine_alone_does_not_load_opencv() -> None:
    code = "import sys, engine, engine.specs, engine.errors; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


SEEDS = [
    *(encode(NOISE[:11, :13], suffix) for suffix in (".jpg", *LOSSLESS)),
    *(encode(NOISE_16[:11, :13], suffix) for suffix in (".png", ".tiff")),
    with_exif(encode(NOISE[:11, :13], ".jpg"), 6),
    tiff(np.dstack([NOISE, ALPHA])[:5, :7], alpha=2, order=">"),
    encode(np.dstack([NOISE, ALPHA])[:11, :13], ".webp"),
]
SMALL = ImageSpec(64, 64, max_pixels=1_000_000)


def check(payload: bytes) -> None:
    """An array or a FrameError; and no header that promises less than OpenCV decodes."""
    try:
        header = read_header(payload)
    except FrameError as error:
        assert error.cause == "undecodable"  # noqa: PT017 - both outcomes are right
        header = None
    try:
        image = decode(payload, SMALL)
    except FrameError as error:
        assert error.cause in {"undecodable", "oversize"}  # noqa: PT017 - both outcomes are right
    else:
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)
    # OpenCV 5.0 crashes on some broken animations; `decode` never lets it see one.
    animated = header is not None and header.format == "PNG" and header.patch is not None
    if header is not None and header.buffer_pixels <= SMALL.max_pixels and not animated:
        try:
            raw = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            return
        if raw is not None:
            assert raw.shape[0] * raw.shape[1] <= header.width_px * header.height_px


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), st.binary(max_size=200))
def test_random_bytes_give_an_array_or_an_error(start: bytes, rest: bytes) -> None:
    check(start + rest)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(SEEDS), st.floats(0, 1))
def test_a_cut_image_gives_an_array_or_an_error(seed: bytes, part: float) -> None:
    check(seed[: int(len(seed) * part)])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    st.booleans(),
)
def test_flipped_bytes_give_an_array_or_an_error(seed: bytes, flips: list[tuple[float, int]], anywhere: bool) -> None:
    damaged = bytearray(seed)
    reach = len(seed) if anywhere else min(len(seed), 80)
    for place, value in flips:
        damaged[int(place * reach)] ^= value
    check(bytes(damaged))
