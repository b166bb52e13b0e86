"""How much smaller than it is a JPEG may be decoded, and where its region of interest then lies.

A JPEG is stored as blocks of 8 x 8 frequencies. Decoded without the high ones, which a smaller image could not show,
it comes out at a half, a quarter or an eighth of its sides, for a part of the work. That is done only as far as the
region of interest stays at least as large as the network's input: the rest of the way it is resized as ever.

Decided by the header and the ImageSpec alone, so that the same bytes are the same pixels wherever they are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.image_header import ImageHeader
    from engine.specs import ImageSpec

FACTORS = (8, 4, 2)

# EXIF orientations by what they do: rows become columns; then what counts from the other end in the upright image.
_TURNED = frozenset({5, 6, 7, 8})
_X_BACKWARDS = frozenset({2, 3, 6, 7})
_Y_BACKWARDS = frozenset({3, 4, 7, 8})


@dataclass(frozen=True, slots=True)
class Reduction:
    """A JPEG decoded smaller.

    Attributes:
        factor: 2, 4 or 8: so many pixels of the JPEG, in each direction, become one.
        width_px, height_px: what it is decoded to, upright. A remainder makes a pixel of its own.
        box: (x0, y0, x1, y1) of the region of interest in it; never smaller than the network's input.
    """

    factor: int
    width_px: int
    height_px: int
    box: tuple[int, int, int, int]


def reduction(header: ImageHeader, spec: ImageSpec) -> Reduction | None:
    """The strongest that leaves the region of interest as large as the network's input; None: decode it whole."""
    if spec.jpeg != "scaled" or header.format != "JPEG":
        return None
    turn = header.orientation
    width_px, height_px = header.width_px, header.height_px
    if turn in _TURNED:
        width_px, height_px = height_px, width_px
    x0, y0, x1, y1 = spec.region.pixels(width_px, height_px)
    factor = next((f for f in FACTORS if x1 - x0 >= f * spec.width_px and y1 - y0 >= f * spec.height_px), None)
    if factor is None:
        return None
    left, right = _span(x0, x1, width_px, factor, backwards=turn in _X_BACKWARDS)
    top, bottom = _span(y0, y1, height_px, factor, backwards=turn in _Y_BACKWARDS)
    return Reduction(factor, _ceil(width_px, factor), _ceil(height_px, factor), (left, top, right, bottom))


def _span(begin: int, end: int, side: int, factor: int, *, backwards: bool) -> tuple[int, int]:
    """Whole reduced pixels nearest to [begin, end) of a side; counted from the end where the file counts from there.

    There lies the pixel of the remainder, of which only a part is picture; the others are all of one size.
    """
    if not backwards:
        return _nearest(begin, factor), _nearest(end, factor)
    reduced = _ceil(side, factor)
    return reduced - _nearest(side - begin, factor), reduced - _nearest(side - end, factor)


def _nearest(px: int, factor: int) -> int:
    return (2 * px + factor) // (2 * factor)


def _ceil(px: int, factor: int) -> int:
    return -(-px // factor)
