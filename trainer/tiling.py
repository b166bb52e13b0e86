"""Which tiles a large input is cut into, and which input whole tiles fit into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.specs import MAX_SIDE_PX, ImageSpec, tile_sides

if TYPE_CHECKING:
    from engine.specs import Region

WHOLE_UP_TO_PX = 640
"""An input whose longer side is no longer than this is not cut unless asked for.

On a CPU a pixel costs the same in inputs of 160 and of 320 px a side, a third more at 640 and half more from 1280 on:
there what one layer leaves for the next no longer stays in a core's cache."""

SUITABLE_PX = 320
_LEAST_PX = SUITABLE_PX // 2
"""Smaller tiles are hardly faster and have more seams."""


def cut(size_px: tuple[int, int], tile_px: tuple[int, int] | None, region: Region) -> ImageSpec:
    """The input of a size that was asked for, in the tiles asked for; of a large one also where none were.

    Tiles as large as the input mean: not cut.

    Args:
        size_px: (width, height) of the input.
        tile_px: (width, height) of a tile, or None where that is left open.
        region: of interest.

    Raises:
        InputError: the backbone does not take the size, or the tiles do not divide it.
    """
    whole = ImageSpec(*size_px, region=region)
    tile_px = suitable_tile(size_px) if tile_px is None else tile_px
    return whole if tile_px in {None, size_px} else ImageSpec(*size_px, region=region, tile_px=tile_px)


def suitable_tile(size_px: tuple[int, int]) -> tuple[int, int] | None:
    """The tile with sides nearest to 320 px for a large input, or None: it is not large, or nothing divides it."""
    if max(size_px) <= WHOLE_UP_TO_PX:
        return None
    sides = []
    for side_px in size_px:
        fits = [tile for tile in tile_sides(side_px) if min(side_px, _LEAST_PX) <= tile <= WHOLE_UP_TO_PX]
        if not fits:
            return None
        sides.append(min(fits, key=lambda tile: (abs(tile - SUITABLE_PX), -tile)))
    return sides[0], sides[1]


def tiled(own_px: tuple[float, float], tile_px: tuple[int, int], region: Region) -> ImageSpec:
    """The input nearest to the images' own size that such tiles cut evenly.

    Args:
        own_px: (width, height) of the images' region of interest.
        tile_px: (width, height) of a tile.
        region: of interest.

    Raises:
        InputError: the backbone does not take the tile.
    """
    ImageSpec(*tile_px)
    width_px, height_px = (
        tile * min(max(round(own / tile), 1), MAX_SIDE_PX // tile) for own, tile in zip(own_px, tile_px, strict=True)
    )
    return cut((width_px, height_px), tile_px, region)
