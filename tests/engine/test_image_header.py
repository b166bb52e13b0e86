"""Headers built by hand, byte by byte, so that nothing that is tested has written what it reads."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from engine.errors import FrameError
from engine.image_header import Patch, read_header

SOI, SCAN = b"\xff\xd8", b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"pixels"


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def frame(width_px: int, height_px: int, marker: int = 0xC0) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height_px, width_px, 1) + b"\x01\x11\x00")


def chunk(kind: bytes, body: bytes, length: int | None = None) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body) if length is None else length) + kind + body + crc


def ihdr(width_px: int, height_px: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))


PNG, IDAT, IEND = b"\x89PNG\r\n\x1a\n", chunk(b"IDAT", b"x"), chunk(b"IEND", b"")


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def vp8(width_px: int, height_px: int) -> tuple[bytes, bytes]:
    return b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width_px | 0x4000, height_px)


def vp8l(width_px: int, height_px: int) -> tuple[bytes, bytes]:
    return b"VP8L", b"\x2f" + struct.pack("<I", (width_px - 1) | (height_px - 1) << 14)


def vp8x(width_px: int, height_px: int) -> tuple[bytes, bytes]:
    return b"VP8X", b"\0\0\0\0" + struct.pack("<I", width_px - 1)[:3] + struct.pack("<I", height_px - 1)[:3]


def tiff(*entries: tuple[int, int, int], order: str = "<", big: bool = False) -> bytes:
    """Entries (tag, type, value), each with one value, written in its place."""
    mark = b"II" if order == "<" else b"MM"
    codes = {1: "B", 3: "H", 4: "I", 16: "Q"}
    head, room = ("HHQ", 8) if big else ("HHI", 4)
    body = b"".join(
        struct.pack(f"{order}{head}", tag, kind, 1) + struct.pack(f"{order}{codes[kind]}", value).ljust(room, b"\0")
        for tag, kind, value in entries
    )
    if big:
        return mark + struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, len(entries)) + body + bytes(8)
    return mark + struct.pack(f"{order}HIH", 42, 8, len(entries)) + body + bytes(4)


def bmp(header_bytes: int, sides: bytes) -> bytes:
    return b"BM" + bytes(8) + struct.pack("<II", 54, header_bytes) + sides + bytes(40)


GIF = b"GIF89a" + struct.pack("<HHBBB", 10, 8, 0x80, 0, 0) + bytes(6)
GIF_EXTENSION = b"!\xf9" + bytes([44]) + b"," * 44 + b"\0"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (SOI + frame(640, 480) + SCAN, ("JPEG", 640, 480)),
        (SOI + frame(640, 480, 0xC2) + SCAN, ("JPEG", 640, 480)),
        (SOI + b"\xff\xff\xff" + frame(640, 480)[1:] + SCAN, ("JPEG", 640, 480)),
        (SOI + segment(0xE1, b"Exif\0\0" + SOI + frame(16, 12) + SCAN) + frame(640, 480) + SCAN, ("JPEG", 640, 480)),
        (SOI + frame(640, 12) + frame(16, 480) + SCAN, ("JPEG", 640, 480)),
        (SOI + segment(0xFE, b"") + frame(640, 480) + SCAN, ("JPEG", 640, 480)),
        (PNG + ihdr(640, 480) + IDAT + IEND, ("PNG", 640, 480)),
        (PNG + ihdr(640, 480) + IDAT + IEND + b"more", ("PNG", 640, 480)),
        (bmp(40, struct.pack("<ii", 640, 480)), ("BMP", 640, 480)),
        (bmp(40, struct.pack("<ii", 640, -480)), ("BMP", 640, 480)),
        (bmp(124, struct.pack("<ii", 640, 480)), ("BMP", 640, 480)),
        (bmp(12, struct.pack("<HH", 640, 60000)), ("BMP", 640, 60000)),
        (riff(vp8(640, 480)), ("WebP", 640, 480)),
        (riff(vp8l(640, 480)), ("WebP", 640, 480)),
        (riff(vp8x(640, 480), (b"ICCP", b"abc"), vp8l(640, 480)), ("WebP", 640, 480)),
        (riff(vp8x(640, 12), vp8(16, 480)), ("WebP", 640, 480)),
        (tiff((256, 3, 640), (257, 4, 480)), ("TIFF", 640, 480)),
        (tiff((256, 3, 640), (257, 4, 480), order=">"), ("TIFF", 640, 480)),
        (tiff((256, 16, 640), (257, 1, 48), big=True), ("TIFF", 640, 48)),
        (tiff((256, 4, 640), (257, 3, 480), order=">", big=True), ("TIFF", 640, 480)),
        (tiff((256, 3, 640), (256, 3, 1), (257, 3, 480), (257, 3, 1)), ("TIFF", 640, 480)),
        (GIF + b";", ("GIF", 10, 8)),
        (GIF + GIF_EXTENSION + b"," + struct.pack("<HHHHBB", 5, 0, 640, 480, 0, 8) + b"\0;", ("GIF", 645, 480)),
        (b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">IIII", 700, 490, 60, 10), ("JPEG 2000", 640, 480)),
    ],
)
def test_format_and_size(data: bytes, expected: tuple[str, int, int]) -> None:
    header = read_header(data)
    assert (header.format, header.width_px, header.height_px) == expected
    assert header.buffer_pixels == expected[1] * expected[2]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an image"),
        (b"\xff\xd8", "not an image"),
        (b"<html>404</html>", "not an image: it starts with 3c 68 74 6d"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not an image"),
        (SOI + b"\xff\xe0\x00", "ends inside its header"),
        (SOI + frame(640, 480), "no scan"),
        (SOI + b"\xff" + SCAN, "no frame header"),
        (SOI + frame(0, 480) + SCAN, "0 x 480"),
        (SOI + frame(640, 480) + b"\xff\xd9", "no frame header"),
        (PNG + IDAT + ihdr(640, 480) + IEND, "does not start with an IHDR"),
        (PNG + ihdr(640, 480) + IDAT, "ends inside its header"),
        (PNG + ihdr(640, 480) + chunk(b"tEXt", b"a\0b", 0x7FFFFFFF) + IDAT + IEND, "cut off"),
        (PNG + ihdr(640, 480) + chunk(b"acTL", struct.pack(">II", 2, 0)) * 2 + IDAT + IEND, "two acTL"),
        (bmp(40, struct.pack("<ii", -640, 480)), "-640 x 480"),
        (riff((b"ICCP", b"abc"), vp8(640, 480)), "does not start with"),
        (riff(vp8x(640, 480), (b"ANIM", bytes(6))), "animation"),
        (riff(), "no chunk"),
        (tiff((256, 3, 640)), "no size"),
        (tiff((256, 3, 640), (257, 3, 480))[:20], "ends inside its header"),
        (b"II*\0\xff\xff\xff\xff", "ends inside its header"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, "ends inside its header"),
        (tiff((256, 3, 640), (257, 3, 480), (339, 3, 3)), "signed or floating"),
        (tiff((256, 3, 64), (257, 3, 48), (258, 3, 16), (262, 3, 0), (322, 3, 16), (323, 3, 16)), "tiles"),
    ],
)
def test_what_is_no_sound_header_is_undecodable(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why) as caught:
        read_header(data)
    assert caught.value.cause == "undecodable"
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        SOI + segment(0xFE, b"") * 200_000 + frame(640, 480) + SCAN,
        PNG + ihdr(640, 480) + chunk(b"teST", b"") * 200_000 + IDAT + IEND,
        riff(vp8x(640, 480), *[(b"teST", b"")] * 200_000, vp8(640, 480)),
    ],
    ids=["JPEG", "PNG", "WebP"],
)
def test_a_file_of_countless_empty_parts_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match="more than"):
        read_header(data)


def test_a_tile_larger_than_its_image_counts() -> None:
    header = read_header(tiff((256, 3, 10), (257, 3, 10), (322, 4, 60000), (323, 4, 50000)))
    assert (header.width_px, header.height_px, header.buffer_pixels) == (10, 10, 3_000_000_000)


def test_an_animation_chunk_is_marked_for_removal() -> None:
    still = PNG + ihdr(640, 480) + chunk(b"acTL", struct.pack(">II", 1, 0)) + IDAT + IEND
    moving = PNG + ihdr(640, 480) + chunk(b"acTL", struct.pack(">II", 3, 0)) + IDAT + IEND
    assert read_header(still).patch is None
    assert read_header(moving).patch == Patch(33, 53, b"")


def exif(*entries: tuple[int, int], order: str = ">", mark: bytes = b"Exif\0\0", magic: int = 42) -> bytes:
    """An APP1 segment with a directory of (tag, 16-bit value)."""
    body = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    start = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HIH", magic, 8, len(entries))
    return segment(0xE1, mark + start + body)


@pytest.mark.parametrize(
    ("segments", "orientation"),
    [
        ([], 1),
        ([exif((0x112, 6))], 6),
        ([exif((0x10F, 7), (0x112, 3), order="<")], 3),
        ([exif((0x112, 9))], 1),
        ([exif((0x10F, 7))], 1),
        ([exif((0x112, 6), mark=b"Exit\0\0")], 1),
        ([exif((0x112, 6), magic=43)], 1),
        ([segment(0xE1, exif((0x112, 6))[4:-6])], 1),
        ([segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), exif((0x112, 8))], 8),
        ([exif((0x112, 6)), exif((0x112, 1))], 6),
        ([exif((0x112, 1)), exif((0x112, 6))], 1),
        ([segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), exif((0x112, 5))], 5),
    ],
)
def test_the_orientation_is_the_one_that_opencv_turns_by(segments: list[bytes], orientation: int) -> None:
    whole = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
    data = whole[:2] + b"".join(segments) + whole[2:]
    assert read_header(data).orientation == orientation
    turned = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert turned is not None
    assert turned.shape[:2] == ((30, 20) if orientation >= 5 else (20, 30))


def test_memory_of_another_kind_is_read() -> None:
    data = SOI + frame(640, 480) + SCAN
    for payload in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8).data):
        assert read_header(payload).width_px == 640


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("shape", [(1, 1), (4000, 1), (1, 4000), (333, 517)])
def test_what_opencv_writes_is_read(suffix: str, shape: tuple[int, int]) -> None:
    written, data = cv2.imencode(suffix, np.zeros((*shape, 3), np.uint8))
    assert written
    header = read_header(data.tobytes())
    assert (header.height_px, header.width_px) == shape
