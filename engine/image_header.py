"""Format and size of an encoded image, read from its header without decoding a pixel.

A decoder allocates what a header asks for, and 100 kB can ask for 5 GB, so the header is judged first. The promise is
one-sided: the size reported here is never smaller than what OpenCV would decode. Where a file contradicts itself (two
sizes in a TIFF directory, a canvas and a frame in a WebP) the larger counts.

General libraries do not keep that promise, because they answer another question, "what size is this probably?":
Pillow lets the last of two ImageWidth tags win where libtiff takes the first, reports a GIF's screen and not the
larger frame in it, and refuses files that OpenCV reads; imagesize swaps the sides by EXIF and shares the GIF's screen.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NoReturn

from engine.errors import FrameError

if TYPE_CHECKING:
    from collections.abc import Callable

Format = Literal["JPEG", "PNG", "BMP", "WebP", "TIFF", "GIF", "JPEG 2000"]

# More parts than any real image has in front of its pixels; a file of millions of empty ones would cost seconds.
_MAX_PARTS = 100_000

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_SOI, _JPEG_EOI, _JPEG_SOS, _JPEG_APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_EXIF_MARK = b"Exif\0\0"
_TIFF_PLAIN, _ORIENTATION, _ORIENTATIONS = 42, 274, range(1, 9)

_PNG_IHDR_BYTES = 13

_BMP_CORE_HEADER_BYTES = 12

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_TIFF_BIG = 43
_TIFF_MAX_ENTRIES = 4096  # libtiff refuses more
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR = 256, 257, 258, 262, 277, 284
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 322, 323, 338, 339
_BLACK_IS_ZERO, _RGB, _INTERLEAVED, _UNSIGNED, _ASSOCIATED, _UNASSOCIATED = 1, 2, 1, 1, 1, 2


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes [start, end) of the payload to be replaced before OpenCV sees it."""

    start: int
    end: int
    replacement: bytes


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image says of itself.

    Attributes:
        format: one of JPEG, PNG, BMP, WebP, TIFF, which are decoded, or GIF, JPEG 2000, which are only recognised.
        width_px, height_px: as stored, before EXIF turns the image.
        buffer_pixels: the largest area a decoder allocates: the image's, or one tile's where that is larger.
        sixteen_bit: a TIFF whose samples must be read as 16 bits and cut to 8 here: libtiff's own way to 8 bits rounds
            colours and scrambles grey tiles at the right edge.
        orientation: EXIF's, of a JPEG: 1 to 8, what a decoder turns it upright by. 1 where there is none.
        patch: what must be changed so that OpenCV keeps ImageSpec's words: the mark of an animation, or of an alpha
            channel by which libtiff would multiply the colours.
    """

    format: Format
    width_px: int
    height_px: int
    buffer_pixels: int
    sixteen_bit: bool = False
    patch: Patch | None = None
    orientation: int = 1


def read_header(payload: bytes | bytearray | memoryview) -> ImageHeader:
    """Read format and size.

    Args:
        payload: the whole encoded image, as contiguous bytes.

    Raises:
        FrameError: `undecodable`: no image of a known format, or its header is broken or cut off.
    """
    data = memoryview(payload).cast("B")
    name, reader = _recognise(data)
    try:
        header = reader(data)
    except (struct.error, IndexError, OverflowError) as error:
        _refuse(f"{name} image of {len(data)} bytes ends inside its header", "a whole image", error)
    if header.width_px < 1 or header.height_px < 1:
        _refuse(f"{name} header gives {header.width_px} x {header.height_px} px", "sides of at least 1 px")
    return header


def _refuse(got: str, expected: str, error: Exception | None = None) -> NoReturn:
    msg = f"{got}: expected {expected}; check the camera and the sender"
    raise FrameError(cause="undecodable", message=msg) from error


def _recognise(data: memoryview) -> tuple[Format, Callable[[memoryview], ImageHeader]]:
    """The format by its first bytes."""
    for signature, name, reader in _SIGNATURES:
        if signature.match(data):
            return name, reader
    start = bytes(data[:8]).hex(" ") or "nothing"
    _refuse(f"not an image: it starts with {start}", "JPEG, PNG, BMP, WebP or TIFF")


def _header(name: Format, sizes: list[tuple[int, int]]) -> ImageHeader:
    """The largest of several sizes, side by side."""
    width_px = max(width for width, _ in sizes)
    height_px = max(height for _, height in sizes)
    return ImageHeader(name, width_px, height_px, width_px * height_px)


def _jpeg(data: memoryview) -> ImageHeader:
    """ITU-T T.81, annex B. Segments up to the first scan; what lies inside one (a thumbnail in EXIF) is skipped."""
    sizes: list[tuple[int, int]] = []
    orientation: int | None = None
    position = 2
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            _refuse("JPEG has no scan", "a frame header and a scan")
        marker, position = data[found.end() - 1], found.end()
        if marker == _JPEG_SOS and sizes:
            return replace(_header("JPEG", sizes), orientation=orientation or 1)
        if marker in {_JPEG_SOI, _JPEG_EOI, _JPEG_SOS}:
            _refuse("JPEG has no frame header before its first scan", "a frame header and a scan")
        if marker in _JPEG_BARE:
            continue
        if marker in _JPEG_FRAMES:
            height_px, width_px = struct.unpack_from(">HH", data, position + 3)
            sizes.append((width_px, height_px))
        end = position + struct.unpack_from(">H", data, position)[0]
        if marker == _JPEG_APP1 and orientation is None:
            orientation = _exif_orientation(data[position + 2 : end])
        position = end
    _refuse(f"JPEG has more than {_MAX_PARTS} segments before its first scan", "fewer")


def _exif_orientation(segment: memoryview) -> int | None:
    """The tag in an APP1 segment's first directory, read as leniently as OpenCV does; None: it says nothing."""
    if bytes(segment[: len(_EXIF_MARK)]) != _EXIF_MARK:
        return None
    tiff = segment[len(_EXIF_MARK) :]
    order = "<" if bytes(tiff[:2]) == b"II" else ">"
    try:
        mark, directory = struct.unpack_from(f"{order}HI", tiff, 2)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count if mark == _TIFF_PLAIN else 0, 12):
            if struct.unpack_from(f"{order}H", tiff, entry)[0] == _ORIENTATION:
                (turn,) = struct.unpack_from(f"{order}H", tiff, entry + 8)
                return turn if turn in _ORIENTATIONS else 1
    except struct.error:  # cut off: OpenCV looks no further into it either
        return None
    return None


def _png(data: memoryview) -> ImageHeader:
    """W3C PNG, section 5. Walks every chunk, as OpenCV allocates a chunk's length before it looks for its bytes."""
    size: tuple[int, int] | None = None
    animations: list[Patch] = []
    position, pixels_seen = 8, False
    for _ in range(_MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            _refuse(f"PNG is cut off: a chunk ends at byte {end} of {len(data)}", "a whole image")
        if size is None:
            if kind != b"IHDR" or length != _PNG_IHDR_BYTES:
                _refuse("PNG does not start with an IHDR chunk of 13 bytes", "IHDR first")
            size = struct.unpack_from(">II", data, position + 8)
        pixels_seen = pixels_seen or kind == b"IDAT"
        if kind == b"acTL" and not pixels_seen and struct.unpack_from(">I", data, position + 8)[0] > 1:
            animations.append(Patch(position, end, b""))
        if kind == b"IEND":
            break
        position = end
    else:
        _refuse(f"PNG has more than {_MAX_PARTS} chunks", "fewer")
    if len(animations) > 1:
        _refuse("PNG has two acTL chunks", "one at most")
    # Without its acTL chunk an animated PNG is its still image: no blending of frames, and the same 16-bit rule.
    return ImageHeader("PNG", *size, size[0] * size[1], patch=animations[0] if animations else None)


def _bmp(data: memoryview) -> ImageHeader:
    """Microsoft BITMAPCOREHEADER (12 bytes, unsigned 16-bit sides) or BITMAPINFOHEADER and later (signed 32-bit)."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == _BMP_CORE_HEADER_BYTES:
        return _header("BMP", [struct.unpack_from("<HH", data, 18)])
    width_px, height_px = struct.unpack_from("<ii", data, 18)
    return _header("BMP", [(width_px, abs(height_px))])  # a negative height means: the first row is the top one


def _webp(data: memoryview) -> ImageHeader:
    """RFC 9649. The canvas and the image's own header."""
    sizes: list[tuple[int, int]] = []
    position = 12
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if not sizes and kind not in {b"VP8X", b"VP8 ", b"VP8L"}:
            # libwebp would read a bare bitstream here
            _refuse("WebP does not start with a VP8, VP8L or VP8X chunk", "one of them first")
        body = position + 8
        if kind == b"VP8X":
            sizes.append((_u24(data, body + 4) + 1, _u24(data, body + 7) + 1))
        elif kind in {b"ANIM", b"ANMF"}:
            # OpenCV would blend its frames by their alpha, which ImageSpec says is dropped
            _refuse("WebP is an animation", "a still image")
        elif kind == b"VP8 ":
            width_px, height_px = struct.unpack_from("<HH", data, body + 6)
            sizes.append((width_px & 0x3FFF, height_px & 0x3FFF))
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            sizes.append(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
        position = body + length + (length & 1)
    else:
        _refuse(f"WebP has more than {_MAX_PARTS} chunks", "fewer")
    if not sizes:
        _refuse("WebP holds no chunk", "an image chunk")
    return _header("WebP", sizes)


def _u24(data: memoryview, position: int) -> int:
    """Three bytes, little-endian."""
    return int(data[position]) | data[position + 1] << 8 | data[position + 2] << 16


def _tiff(data: memoryview) -> ImageHeader:
    """TIFF 6.0 and BigTIFF: the first directory, which is the one that is decoded."""
    fields, places, order = _tiff_fields(data)
    try:
        width_px, height_px = max(fields[_WIDTH]), max(fields[_HEIGHT])
    except KeyError:
        _refuse("TIFF's first directory gives no size", "ImageWidth and ImageLength")
    # libtiff takes the first of two equal tags
    first = {tag: values[0] for tag, values in fields.items()}
    tile_pixels = max(fields.get(_TILE_WIDTH, [0])) * max(fields.get(_TILE_HEIGHT, [0]))
    if first.get(_SAMPLE_FORMAT, _UNSIGNED) != _UNSIGNED:
        _refuse("TIFF samples are signed or floating-point", "unsigned integers of 1, 2, 4, 8 or 16 bits")
    sixteen_bit = _reads_as_16_bit(first)
    if tile_pixels and not sixteen_bit and _scrambles_tiles(first):
        _refuse("TIFF tiles hold grey with alpha or 16-bit samples", "strips, or tiles of grey or RGB without alpha")
    patch = None
    if first.get(_PHOTOMETRIC) == _RGB and first.get(_EXTRA_SAMPLES) == _UNASSOCIATED:
        patch = Patch(places[_EXTRA_SAMPLES], places[_EXTRA_SAMPLES] + 2, struct.pack(f"{order}H", _ASSOCIATED))
    return ImageHeader("TIFF", width_px, height_px, max(width_px * height_px, tile_pixels), sixteen_bit, patch)


def _reads_as_16_bit(first: dict[int, int]) -> bool:
    """Whether OpenCV's 16-bit reader, which only copies, gives the colours: interleaved and not inverted."""
    colours = (first.get(_PHOTOMETRIC), first.get(_SAMPLES, 1))
    return (
        first.get(_BITS) == 16  # noqa: PLR2004 - bits
        and colours in {(_BLACK_IS_ZERO, 1), (_RGB, 3), (_RGB, 4)}
        and first.get(_PLANAR, _INTERLEAVED) == _INTERLEAVED
    )


def _scrambles_tiles(first: dict[int, int]) -> bool:
    """Whether libtiff 4.7 misplaces the pixels of tiles that reach past the right edge, without a word."""
    return first.get(_BITS) == 16 or first.get(_SAMPLES) == 2  # noqa: PLR2004 - bits; grey and alpha


def _tiff_fields(data: memoryview) -> tuple[dict[int, list[int]], dict[int, int], str]:
    """The first value of each wanted tag, once per occurrence; where the first occurrence's lies; the byte order."""
    order = "<" if data[0] == ord("I") else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == _TIFF_BIG
    (directory,) = struct.unpack_from(f"{order}Q", data, 8) if big else struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, directory)
    if count > _TIFF_MAX_ENTRIES:
        _refuse(f"TIFF's first directory has {count} entries", f"at most {_TIFF_MAX_ENTRIES}")
    first_entry, entry_bytes = directory + (8 if big else 2), 20 if big else 12
    head, inline_bytes, offset_code = ("HHQ", 8, "Q") if big else ("HHI", 4, "I")
    wanted = {_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR}
    wanted |= {_TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES, _SAMPLE_FORMAT}
    fields: dict[int, list[int]] = {}
    places: dict[int, int] = {}
    for entry in range(first_entry, first_entry + count * entry_bytes, entry_bytes):
        tag, kind, values = struct.unpack_from(f"{order}{head}", data, entry)
        if tag not in wanted or kind not in _TIFF_TYPES or not values:
            continue
        code = f"{order}{_TIFF_TYPES[kind]}"
        place = entry + struct.calcsize(f"{order}{head}")
        if values * struct.calcsize(code) > inline_bytes:
            (place,) = struct.unpack_from(f"{order}{offset_code}", data, place)
        fields.setdefault(tag, []).append(struct.unpack_from(code, data, place)[0])
        places.setdefault(tag, place)
    return fields, places, order


def _gif(data: memoryview) -> ImageHeader:
    """GIF89a: the screen and every frame's far corner. Never decoded."""
    sizes = [struct.unpack_from("<HH", data, 6)]
    position = 13 + _gif_palette_bytes(data[10])
    in_block = False
    for _ in range(_MAX_PARTS):
        kind = data[position]
        if in_block:  # a sub-block: its length and as many bytes; the last one has none
            position += 1 + kind
            in_block = kind > 0
        elif kind == ord(","):
            left, top, width_px, height_px, flags = struct.unpack_from("<HHHHB", data, position + 1)
            sizes.append((left + width_px, top + height_px))
            position += 11 + _gif_palette_bytes(flags)
            in_block = True
        elif kind == ord("!"):
            position += 2
            in_block = True
        else:
            break
    return _header("GIF", sizes)


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _jpeg2000(data: memoryview) -> ImageHeader:
    """ITU-T T.800: the SIZ segment of the code stream, boxed or bare. Never decoded."""
    found = re.search(rb"\xff\x4f\xff\x51", data)
    if found is None:
        _refuse("JPEG 2000 holds no code stream", "JPEG, PNG, BMP, WebP or TIFF")
    right, bottom, left, top = struct.unpack_from(">IIII", data, found.start() + 8)
    return _header("JPEG 2000", [(right - left, bottom - top)])


# The same signatures as OpenCV's own, or stricter.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], Format, Callable[[memoryview], ImageHeader]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", _png),
    (re.compile(rb"BM"), "BMP", _bmp),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP", _webp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", _tiff),
    (re.compile(rb"GIF8[79]a"), "GIF", _gif),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG 2000", _jpeg2000),
)
