"""Frozen descriptions that travel in the bundle: how bytes become the network's input, and what the graph takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from engine.errors import InputError

STRIDE_PX = 32
"""The backbone halves its input five times: input sides are multiples of this."""

MIN_SIDE_PX = 64
MAX_SIDE_PX = 2048


@dataclass(frozen=True, slots=True)
class Region:
    """A region of interest as fractions of the upright image: left and top inside it, right and bottom past it."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a region that is empty or reaches outside the image."""
        if not (0.0 <= self.left < self.right <= 1.0 and 0.0 <= self.top < self.bottom <= 1.0):
            msg = (
                f"region of interest {self.left},{self.top},{self.right},{self.bottom} is not inside the image: "
                "expected fractions with 0 <= left < right <= 1 and 0 <= top < bottom <= 1, "
                "for example 0.25,0.1,0.75,0.9"
            )
            raise InputError(msg)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `left,top,right,bottom`. Raises InputError on anything else."""
        try:
            left, top, right, bottom = (float(part) for part in text.split(","))
        except ValueError as error:
            msg = (
                f"region of interest {text!r} is not four numbers: expected left,top,right,bottom as fractions, "
                "for example 0.25,0.1,0.75,0.9"
            )
            raise InputError(msg) from error
        return cls(left, top, right, bottom)

    def pixels(self, width_px: int, height_px: int) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels of an upright image; never empty."""
        x0 = min(round(self.left * width_px), width_px - 1)
        y0 = min(round(self.top * height_px), height_px - 1)
        x1 = max(round(self.right * width_px), x0 + 1)
        y1 = max(round(self.bottom * height_px), y0 + 1)
        return x0, y0, x1, y1


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How encoded bytes become one uint8 (height_px, width_px, 3) array, in training and serving alike.

    Attributes:
        width_px, height_px: the whole input; multiples of 32.
        region: cut out first, before anything is resized, so that small defects keep their pixels.
        resize: `stretch` the region to the input (its aspect is not kept).
        interpolation: `area`: averages what it shrinks, linear where it enlarges.
        colour: `rgb`: the order of the channels.
        sixteen_bit: `high_byte`: what 16-bit samples become.
        alpha: `drop`: what an alpha channel becomes.
        exif: `apply`: turn the image upright as its EXIF says.
        jpeg: `scaled`: a JPEG that is larger than needed is decoded to a half, quarter or eighth of its sides, see
            `engine.reduction`; `whole`: none is, as in bundles that do not name it.
        max_pixels, max_bytes: over these an image is `oversize`; read from the header, before decoding.
        tile_px: (width, height) of the tiles that the input is cut into, of which each runs through the network by
            itself; multiples of 32 that divide the input's sides. None: the network sees the input as one.
    """

    width_px: int
    height_px: int
    region: Region = Region()
    resize: str = "stretch"
    interpolation: str = "area"
    colour: str = "rgb"
    sixteen_bit: str = "high_byte"
    alpha: str = "drop"
    exif: str = "apply"
    jpeg: str = "whole"
    max_pixels: int = 50_000_000
    max_bytes: int = 16 * 1024 * 1024
    tile_px: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse sizes the backbone cannot take and words this version does not know."""
        for name, side in (("width", self.width_px), ("height", self.height_px)):
            if side % STRIDE_PX or not MIN_SIDE_PX <= side <= MAX_SIDE_PX:
                msg = (
                    f"input {name} {side} does not fit the backbone: expected a multiple of {STRIDE_PX} from "
                    f"{MIN_SIDE_PX} to {MAX_SIDE_PX}; take {nearest_side(side)}"
                )
                raise InputError(msg)
        known = {
            "resize": ("stretch",),
            "interpolation": ("area",),
            "colour": ("rgb",),
            "sixteen_bit": ("high_byte",),
            "alpha": ("drop",),
            "exif": ("apply",),
            "jpeg": ("scaled", "whole"),
        }
        for name, words in known.items():
            if getattr(self, name) not in words:
                msg = (
                    f"image spec {name}={getattr(self, name)!r} is not known to this version: expected "
                    f"{' or '.join(map(repr, words))}; use the Framegate that wrote it"
                )
                raise InputError(msg)
        if self.max_pixels < 1 or self.max_bytes < 1:
            msg = f"image limits must be positive: got max_pixels {self.max_pixels}, max_bytes {self.max_bytes}"
            raise InputError(msg)
        if self.tile_px is not None:
            self._check_tile(*self.tile_px)

    def _check_tile(self, *tile_px: int) -> None:
        for name, side, tile in zip(("width", "height"), (self.width_px, self.height_px), tile_px, strict=True):
            if tile not in tile_sides(side):
                msg = (
                    f"tile {name} {tile} does not cut the input's {side} px evenly: expected a multiple of {STRIDE_PX} "
                    f"that divides it, one of {', '.join(map(str, tile_sides(side)))}; take one of these or another "
                    "input size"
                )
                raise InputError(msg)

    @property
    def graph_input(self) -> ImageSpec:
        """What the network is built for: one tile, or the whole input where it is not cut."""
        if self.tile_px is None:
            return self
        return replace(self, width_px=self.tile_px[0], height_px=self.tile_px[1], tile_px=None)

    @property
    def tiles(self) -> tuple[int, int]:
        """(rows, columns) of tiles; (1, 1) where the input is not cut."""
        width_px, height_px = self.tile_px or (self.width_px, self.height_px)
        return self.height_px // height_px, self.width_px // width_px

    def to_json(self) -> dict[str, Any]:
        """Plain values, readable by `from_json`; what is as it was before there was a choice is left out.

        So an earlier bundle keeps its digest.
        """
        value = asdict(self)
        tile_px = value.pop("tile_px")
        if self.jpeg == "whole":
            del value["jpeg"]
        return value if tile_px is None else {**value, "tile_px": list(tile_px)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises InputError on unknown, missing or mistyped fields: never guessed."""
        _check_fields(cls, "image spec", value)
        _check_fields(Region, "image spec's region", value["region"])
        tile_px = _tile(value["tile_px"]) if "tile_px" in value else None
        return cls(**{**value, "region": Region(**value["region"]), "tile_px": tile_px})


def _tile(value: list[Any]) -> tuple[int, int]:
    """(width, height) out of JSON. Raises InputError."""
    if [type(side) for side in value] != [int, int]:
        msg = f"image spec has tile_px={value!r}: expected two whole numbers; use the Framegate that wrote it"
        raise InputError(msg)
    return value[0], value[1]


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "Region": (dict,),
    "tuple[int, int] | None": (list,),
}
_LATER_FIELDS = {"tile_px", "jpeg"}
"""Not in what earlier versions wrote, nor where they say what those did."""


def _check_fields(kind: type[ImageSpec | Region], name: str, value: Any) -> None:
    """Exactly the fields of `kind`, each of its own type; True is no number."""
    types = {field.name: _FIELD_TYPES[str(field.type)] for field in fields(kind)}
    if isinstance(value, dict):
        types = {key: known for key, known in types.items() if key in value or key not in _LATER_FIELDS}
    if not isinstance(value, dict) or set(value) != set(types):
        odd = sorted(set(value) ^ set(types)) if isinstance(value, dict) else value
        msg = (
            f"{name} has unknown or missing fields {odd}: expected exactly {sorted(types)}; "
            "use the Framegate that wrote it"
        )
        raise InputError(msg)
    for key, known in types.items():
        if not isinstance(value[key], known) or isinstance(value[key], bool):
            msg = f"{name} has {key}={value[key]!r}: expected {known[0].__name__}; use the Framegate that wrote it"
            raise InputError(msg)


HEAD_GROUP = 4
"""Heads are scored in groups of so many, so that every product has the same shape, however many heads there are.

A library chooses its kernel, and with it the order of a sum, by the shape: without groups one more head could change
another's last bits. The graph takes whole groups; backends fill the last one up with zeros.
"""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of the graph: its name, its shape (None where it varies) and its numpy dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


LARGEST_BATCH = 64
"""Images in the largest batch that a backend is prepared for unless told otherwise."""


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Smallest, best and largest batch that a backend is prepared for."""

    smallest: int = 1
    best: int = 8
    largest: int = LARGEST_BATCH

    def __post_init__(self) -> None:
        """Refuse an order that cannot be."""
        if not 1 <= self.smallest <= self.best <= self.largest:
            msg = (
                f"batch profile {self.smallest},{self.best},{self.largest} is out of order: "
                "expected 1 <= smallest <= best <= largest"
            )
            raise InputError(msg)


def nearest_side(side_px: int) -> int:
    """The input side nearest to `side_px` that the backbone takes."""
    return min(max(round(side_px / STRIDE_PX), MIN_SIDE_PX // STRIDE_PX), MAX_SIDE_PX // STRIDE_PX) * STRIDE_PX


def tile_sides(side_px: int) -> list[int]:
    """The sides of tiles that an input's side can be cut into evenly, the whole side among them; rising."""
    return [tile for tile in range(MIN_SIDE_PX, side_px + 1, STRIDE_PX) if side_px % tile == 0]
