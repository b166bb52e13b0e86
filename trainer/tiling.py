"""From the tiles asked for to the input: of a size asked for, or of the images' own as near as whole tiles come to it.

Nothing is cut unless asked for: a large scene costs less in tiles, but what happens to lie on a seam looks odd to the
network, and which parts do differs from image to image. Only the user knows whether they may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import InputError
from engine.specs import MAX_SIDE_PX, MIN_SIDE_PX, STRIDE_PX, ImageSpec, nearest_side

if TYPE_CHECKING:
    from engine.specs import Region


def cut(size_px: tuple[int, int], tile_px: tuple[int, int] | None, region: Region) -> ImageSpec:
    """The input of a size that was asked for, in the tiles asked for.

    Tiles as large as the input mean: not cut.

    Args:
        size_px: (width, height) of the input.
        tile_px: (width, height) of a tile, or None.
        region: of interest.

    Raises:
        InputError: the backbone does not take the size, or the tiles do not divide it.
    """
    whole = ImageSpec(*size_px, region=region)
    return whole if tile_px in {None, size_px} else ImageSpec(*size_px, region=region, tile_px=tile_px)


def tiled(own_px: tuple[float, float], tile_px: tuple[int, int], region: Region) -> ImageSpec:
    """The input nearest to the images' own size that such tiles cut evenly.

    Args:
        own_px: (width, height) of the images' region of interest.
        tile_px: (width, height) of a tile.
        region: of interest.

    Raises:
        InputError: the backbone does not take the tile.
    """
    for name, side_px in zip(("width", "height"), tile_px, strict=True):
        if side_px != nearest_side(side_px):
            msg = (
                f"tile {name} {side_px} does not fit the backbone: expected a multiple of {STRIDE_PX} from "
                f"{MIN_SIDE_PX} to {MAX_SIDE_PX}; take {nearest_side(side_px)}"
            )
            raise InputError(msg)
    width_px, height_px = (
        tile * min(max(round(own / tile), 1), MAX_SIDE_PX // tile) for own, tile in zip(own_px, tile_px, strict=True)
    )
    return cut((width_px, height_px), tile_px, region)
