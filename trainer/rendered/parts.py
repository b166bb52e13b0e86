"""The parts: what each station's product is shaped like. Geometry and print only, no light and no wear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from trainer.rendered.planes import Plane, Size, disk, fillet, lettering, plane, polygon, rounded_box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Hole:
    """A through hole of the drawing, in pixels of the part's own canvas."""

    x_px: float
    y_px: float
    radius_px: float


@dataclass(frozen=True, slots=True)
class Body:
    """The shape of a part, with its holes or without them. All planes are (height_px, width_px) float32.

    Attributes:
        solid: 1 where material is, 0 where the background shows.
        wall: 1 on the inner walls of holes, which lie in the shade.
        height_px: relief of the surface.
    """

    solid: Plane
    wall: Plane
    height_px: Plane


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One product.

    Attributes:
        size: (width_px, height_px) of its canvas; the part is centred and keeps clear of the border.
        drilled, blank: the body as drawn, and as it would be had no hole been made.
        raw: 1 where the surface has the raw finish (brushed, cast, blasted), 0 where it is machined or printed.
        turned: 1 where it was turned on a lathe round the centre.
        tint: (height_px, width_px, 3) BGR reflectance relative to the part's base colour.
        holes: those that may be missing.
        sites: (n, 2) int32 x, y of the open faces, clear of edges: where wear and defects are put.
        rim: (n, 4) float32 x, y, outward unit x, y along the outer edge.
    """

    size: Size
    drilled: Body
    blank: Body
    raw: Plane
    turned: Plane
    tint: npt.NDArray[np.float32]
    holes: tuple[Hole, ...]
    sites: npt.NDArray[np.int32]
    rim: npt.NDArray[np.float32]


_PARALLAX = (0.16, 0.11)
"""How far a hole's far rim is seen shifted, as a share of its radius: no camera looks down every hole's axis."""

_SITE_MARGIN_PX = 9


def _body(
    size: Size, outline: Plane, relief: Plane, holes: Sequence[Hole], bevel_px: float, thickness_px: float
) -> Body:
    """Cut holes into an outline: what is left, the walls that are seen inside, and the rounded edges."""
    top = outline.copy()
    through = np.zeros_like(outline)
    for hole in holes:
        mouth = disk(size, hole.x_px, hole.y_px, hole.radius_px)
        shift_x, shift_y = _PARALLAX[0] * hole.radius_px, _PARALLAX[1] * hole.radius_px
        far = disk(size, hole.x_px + shift_x, hole.y_px + shift_y, hole.radius_px * 0.97)
        top = np.minimum(top, 1 - mouth)
        through = np.maximum(through, np.minimum(mouth, far))
    solid = np.minimum(outline, 1 - through)
    return Body(solid, np.clip(solid - top, 0, 1), relief + fillet(top, bevel_px, thickness_px))


def _sites(body: Body, keep_clear: Plane) -> npt.NDArray[np.int32]:
    """Every second pixel of the open faces that keeps the margin to edges and to what must stay clear."""
    free = ((body.solid > 0.99) & (body.wall < 0.01) & (keep_clear < 0.5)).astype(np.uint8)  # noqa: PLR2004 - covered, or not
    distance = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_5)
    y, x = np.nonzero(distance > _SITE_MARGIN_PX)
    return np.stack([x, y], axis=1).astype(np.int32)[::2]


def _rim(outline: Plane) -> npt.NDArray[np.float32]:
    """Points of the outer edge with the direction that leads off the part."""
    contours, _ = cv2.findContours(np.rint(outline).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=len).reshape(-1, 2)
    soft = cv2.GaussianBlur(outline, (0, 0), 3)
    across = -cv2.Sobel(soft, cv2.CV_32F, 1, 0)[points[:, 1], points[:, 0]]
    down = -cv2.Sobel(soft, cv2.CV_32F, 0, 1)[points[:, 1], points[:, 0]]
    length = np.maximum(np.hypot(across, down), 1e-6)
    return np.stack([points[:, 0], points[:, 1], across / length, down / length], axis=1).astype(np.float32)


def _part(
    size: Size,
    outline: Plane,
    relief: Plane,
    holes: Sequence[Hole],
    *,
    bevel_px: float,
    thickness_px: float,
    fixed: Sequence[Hole] = (),
    raw: Plane | None = None,
    turned: Plane | None = None,
    tint: npt.NDArray[np.float32] | None = None,
    keep_clear: Plane | None = None,
) -> Part:
    """Put a part together. `fixed` are openings that no defect closes."""
    drilled = _body(size, outline, relief, [*holes, *fixed], bevel_px, thickness_px)
    nothing = np.zeros_like(outline)
    return Part(
        size=size,
        drilled=drilled,
        blank=_body(size, outline, relief, fixed, bevel_px, thickness_px),
        raw=np.ones_like(outline) if raw is None else raw,
        turned=nothing if turned is None else turned,
        tint=np.ones((*outline.shape, 3), np.float32) if tint is None else tint,
        holes=tuple(holes),
        sites=_sites(drilled, nothing if keep_clear is None else keep_clear),
        rim=_rim(outline),
    )


def _bracket() -> Part:
    """A stamped steel bracket: a plate with a bent flange, two stiffening beads, five holes and a slot."""
    size = (500, 350)
    outline = np.maximum(rounded_box(size, (250, 185), (215, 118), 20), rounded_box(size, (345, 70), (78, 48), 22))
    outline = np.minimum(outline, 1 - disk(size, 35, 185, 26))
    slot = rounded_box(size, (250, 262), (62, 9.5), 9.4)
    outline = np.minimum(outline, 1 - slot)
    bead = np.maximum(rounded_box(size, (135, 185), (9, 44), 8.9), rounded_box(size, (365, 185), (9, 44), 8.9))
    y = np.arange(size[1], dtype=np.float32)[:, None]
    bend = plane(0.26 * np.minimum(232 - y, 0) + np.zeros_like(outline))
    at = ((78, 112, 17), (388, 62, 19), (82, 258, 17), (418, 258, 17), (250, 165, 38), (182, 108, 13))
    holes = [Hole(*numbers) for numbers in at]
    return _part(size, outline, fillet(bead, 9, 3.2) + bend, holes, bevel_px=3.5, thickness_px=3.0, keep_clear=bead)


def _gear() -> Part:
    """A moulded gear: teeth, a raised rim, a web with six holes and ribs, a hub with its bore."""
    size, teeth = (440, 440), 20
    centre = 220.0
    turn = np.arange(teeth * 4) * (2 * math.pi / (teeth * 4))
    radius = np.tile([207.0, 207.0, 184.0, 184.0], teeth)
    lean = np.tile([-0.016, 0.016, -0.016, 0.016], teeth)
    outline = polygon(
        size, np.stack([centre + radius * np.cos(turn + lean), centre + radius * np.sin(turn + lean)], axis=1)
    )
    rim = np.minimum(disk(size, centre, centre, 178), 1 - disk(size, centre, centre, 152))
    hub = disk(size, centre, centre, 66)
    relief = fillet(rim, 7, 4.0) + fillet(hub, 8, 5.0)
    holes, ribs = [], np.zeros_like(outline)
    for spoke in range(6):
        angle = math.pi / 3 * spoke + 0.3
        holes.append(Hole(centre + 110 * math.cos(angle), centre + 110 * math.sin(angle), 24))
        across = angle + math.pi / 6
        x, y = math.cos(across), math.sin(across)
        near, far, half = 60, 158, 4.5
        corners = [(near, -half), (far, -half), (far, half), (near, half)]
        ribs = np.maximum(ribs, polygon(size, [(centre + a * x - b * y, centre + a * y + b * x) for a, b in corners]))
    ribs = np.minimum(ribs, 1 - np.maximum(rim, hub))
    relief += fillet(ribs, 4, 2.6) + 0.8 * cv2.GaussianBlur(lettering(size, "PA66", (196, 268), 0.42), (0, 0), 0.7)
    edges = np.maximum(ribs, _edge_band(rim) + _edge_band(hub))
    fixed = [Hole(centre, centre, 27)]
    return _part(size, outline, relief, holes, bevel_px=5, thickness_px=4.0, fixed=fixed, keep_clear=edges)


def _edge_band(mask: Plane) -> Plane:
    """1 close to the edge of a mask: steps are no place for wear."""
    return plane(np.abs(plane(cv2.GaussianBlur(mask, (0, 0), 2.5)) - 0.5) < 0.42)  # noqa: PLR2004 - of the step


def _flange() -> Part:
    """A cast flange: four lobes with spot-faced bolt holes, a turned sealing face round a wide bore."""
    size = (440, 440)
    centre = 220.0
    outline = np.maximum(rounded_box(size, (centre, centre), (150, 150), 60), disk(size, centre, centre, 176))
    lobes = [(centre + 138 * x, centre + 138 * y) for x in (-1, 1) for y in (-1, 1)]
    spot = np.zeros_like(outline)
    for x, y in lobes:
        outline = np.maximum(outline, disk(size, x, y, 58))
        spot = np.maximum(spot, disk(size, x, y, 35))
    soft = cv2.GaussianBlur(outline, (0, 0), 5)
    outline = np.clip((soft - 0.5) * 6 + 0.5, 0, 1).astype(np.float32)
    boss = disk(size, centre, centre, 124)
    relief = fillet(boss, 14, 8.0) - fillet(spot, 3, 2.2)
    for text, at in (("AL 7", (192, 68)), ("0419", (193, 388))):
        relief += 2.2 * cv2.GaussianBlur(lettering(size, text, at, 0.75, 2), (0, 0), 1.0)
    turned = disk(size, centre, centre, 114)
    raw = np.clip(1 - turned - spot, 0.06, 1).astype(np.float32)
    holes = [Hole(x, y, 22) for x, y in lobes]
    fixed = [Hole(centre, centre, 66)]
    keep_clear = np.maximum(_edge_band(boss), _edge_band(spot))
    return _part(
        size,
        outline,
        relief,
        holes,
        bevel_px=9,
        thickness_px=6.0,
        fixed=fixed,
        raw=raw,
        turned=turned,
        keep_clear=keep_clear,
    )


def _panel() -> Part:
    """An anodised front panel: countersunk corner holes, lamp holes, a connector cut-out and a printed legend."""
    size = (530, 370)
    outline = rounded_box(size, (265, 185), (240, 158), 16)
    cutout = rounded_box(size, (150, 245), (66, 26), 9)
    outline = np.minimum(outline, 1 - cutout)
    corners = [Hole(x, y, 13) for x in (58, 472) for y in (58, 312)]
    lamps = [Hole(300 + 35 * number, 247, 12) for number in range(5)]
    sink = np.zeros_like(outline)
    for hole in corners:
        sink = np.maximum(sink, disk(size, hole.x_px, hole.y_px, 21))
    relief = -fillet(sink, 8, 4.5)
    ink = _legend(size)
    tint = np.ones((*outline.shape, 3), np.float32)
    tint += ink[..., None] * (np.array([1.35, 1.65, 2.25], np.float32) - 1)
    tint += (sink * (1 - ink))[..., None] * (np.array([1.1, 1.35, 1.85], np.float32) - 1)
    raw = np.clip(1 - 0.7 * ink - sink, 0.1, 1).astype(np.float32)
    return _part(
        size, outline, relief, [*corners, *lamps], bevel_px=3, thickness_px=2.6, raw=raw, tint=tint, keep_clear=sink
    )


def _legend(size: Size) -> Plane:
    """What is printed on the panel: a name, a rating, a rule and a frame round the lamps."""
    ink = np.maximum(
        lettering(size, "AXIS CONTROL", (96, 88), 0.95, 2), lettering(size, "24 V DC   4 A   IP54", (98, 116), 0.5)
    )
    frame = rounded_box(size, (368, 240), (98, 42), 8)
    ink = np.maximum(ink, frame - rounded_box(size, (368, 240), (96.4, 40.4), 7))
    ink = np.maximum(ink, rounded_box(size, (265, 138), (172, 1.2), 1))
    ink = np.maximum(ink, lettering(size, "SERIAL BUS", (105, 300), 0.5))
    return plane(ink)


_BUILDERS: dict[str, Callable[[], Part]] = {"press-1": _bracket, "mould-2": _gear, "cast-3": _flange, "plate-4": _panel}


@cache
def part_of(station: str) -> Part:
    """The part that a station makes. Read only: it is shared by all threads.

    Raises:
        KeyError: no such station.
    """
    return _BUILDERS[station]()
