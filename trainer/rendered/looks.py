"""How a station looks in one lot: its material and bench, and what drifts from lot to lot (lamp, exposure, finish)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from trainer.rendered.parts import Part, part_of
from trainer.rendered.planes import Levels, Plane, Size, grid, levels, mix, plane, slopes, smooth, white
from trainer.rendered.streams import Use, stream

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH_PX = 640
HEIGHT_PX = 480
FRAME: Size = (WIDTH_PX, HEIGHT_PX)

SLACK_PX = 96
"""Sheets of texture and bench are this much larger than what is cut from them, so that no two pictures share a cut."""


@dataclass(frozen=True, slots=True)
class Material:
    """What does not drift.

    Attributes:
        base: BGR of the lit flat surface, 0 to 255.
        relief: how strongly slopes change the brightness.
        gloss: white added where the relief mirrors the lamp, 0 to 255.
        shine: sharpness of that highlight.
        sheen: strength of the lamp's broad reflection over the part.
        sheen_px: its width along x and y.
        texture: relative contrast of the raw finish.
    """

    base: tuple[float, float, float]
    relief: float
    gloss: float
    shine: float
    sheen: float
    sheen_px: tuple[float, float]
    texture: float


MATERIALS = {
    "press-1": Material((172, 170, 166), 1.0, 60, 60, 0.26, (130, 4000), 0.032),
    "mould-2": Material((36, 104, 214), 0.9, 80, 45, 0.16, (210, 170), 0.010),
    "cast-3": Material((150, 152, 153), 1.1, 40, 20, 0.14, (260, 220), 0.036),
    "plate-4": Material((166, 128, 88), 0.9, 50, 50, 0.24, (240, 200), 0.022),
}


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A station in one lot, ready for pictures. Read only.

    Attributes:
        light: x, y of the unit vector towards the lamp, in the part's plane.
        brightness, blank_brightness: shaded surface, 1 where flat, with holes and without.
        gloss: (height_px, width_px, 3) white to add, 0 to 255.
        colour: (height_px, width_px, 3) BGR of the flat surface.
        texture: (height_px + slack, width_px + slack), deviation about the material's contrast; times `part.raw`.
        shadow: what the part takes from the bench's light, 0 to 255 (all), on the part's canvas.
        bench: (480 + slack, 640 + slack, 3) BGR.
        lamp: (480, 640, 3) gain of lamp, lens and white balance at every pixel of the picture.
        noise: sensor noise of the lot's camera gain, in grey levels at mid grey.
        blur_px: sigma of the lens.
    """

    station: str
    part: Part
    material: Material
    light: tuple[float, float]
    brightness: Plane
    blank_brightness: Plane
    gloss: npt.NDArray[np.float32]
    colour: npt.NDArray[np.float32]
    texture: Plane
    shadow: Levels
    bench: Levels
    lamp: npt.NDArray[np.float32]
    noise: float
    blur_px: float


def look_of(seed: int, station: str, number: int, lot: int) -> Look:
    """The look of one lot: some 60 ms of work, shared by its pictures. `number` is the station's place in the line."""
    rng = stream(seed, Use.LOOK, number, lot)
    part, material = part_of(station), MATERIALS[station]
    azimuth = math.radians(-128 + 7 * rng.standard_normal())
    tilt = 0.62 + 0.03 * rng.standard_normal()
    light = (tilt * math.cos(azimuth), tilt * math.sin(azimuth))
    up = math.sqrt(1 - tilt * tilt)
    finish = float(np.exp(0.10 * rng.standard_normal()))
    drilled, gloss = _shade(part.drilled.height_px, part.drilled.wall, light, up, material)
    blank, _ = _shade(part.blank.height_px, part.blank.wall, light, up, material)
    turned = _lathe(rng, part, light)
    hue = np.exp(0.012 * rng.standard_normal(3)).astype(np.float32)
    bench = _BENCHES[station](rng, (WIDTH_PX + SLACK_PX, HEIGHT_PX + SLACK_PX))
    return Look(
        station=station,
        part=part,
        material=material,
        light=light,
        brightness=drilled * turned,
        blank_brightness=blank * turned,
        gloss=np.repeat(gloss[..., None], 3, axis=2),
        colour=part.tint * (np.asarray(material.base, np.float32) * hue),
        texture=_FINISHES[station](rng, (part.size[0] + SLACK_PX, part.size[1] + SLACK_PX))
        * np.float32(material.texture * finish),
        shadow=levels(_shadow(part, light) * 255),
        bench=levels(bench),
        lamp=_lamp(rng, light),
        noise=float(1.6 * np.exp(0.12 * rng.standard_normal())),
        blur_px=float(0.62 + 0.07 * rng.standard_normal()),
    )


def _shade(
    height: Plane, wall: Plane, light: tuple[float, float], up: float, material: Material
) -> tuple[Plane, Plane]:
    """Lambert over ambient light, 1 where flat, and a Blinn highlight on the slopes; hole walls lie in the shade."""
    # A distance transform counts in pixel steps: unsmoothed, its fillets would show a fine saw-tooth.
    slope_x, slope_y = slopes(plane(cv2.GaussianBlur(height, (0, 0), 1.1)))
    length = np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    facing = np.maximum(
        (up - slope_x * np.float32(light[0]) - slope_y * np.float32(light[1])) / length, 0
    ) / np.float32(up)
    brightness = np.clip(1 + material.relief * 0.62 * (facing - 1), 0.12, 2.2)
    norm = math.hypot(light[0], light[1], up + 1)
    mirrored = np.maximum(((up + 1) - slope_x * light[0] - slope_y * light[1]) / (length * norm), 0)
    gloss = material.gloss * plane(cv2.pow(mirrored, material.shine))
    deep = cv2.GaussianBlur(wall, (0, 0), 2.0)
    brightness = brightness * (1 - wall) + wall * (0.40 - 0.26 * deep)
    return plane(brightness), plane(gloss * (1 - wall))


def _lathe(rng: np.random.Generator, part: Part, light: tuple[float, float]) -> Plane:
    """Turned faces: fine rings, and the bow-tie of light that rings throw across them."""
    if not part.turned.any():
        return np.ones_like(part.turned)
    x, y = grid(part.size)
    x, y = x - np.float32(part.size[0] / 2), y - np.float32(part.size[1] / 2)
    radius = np.hypot(x, y)
    profile = smooth(rng, (512, 1), 0.7, 0.7)[0]
    rings = plane(cv2.remap(profile[None, :], radius + 8, np.zeros_like(radius), cv2.INTER_LINEAR))
    along = (x * np.float32(light[0]) + y * np.float32(light[1])) / np.maximum(radius, 1)
    bow = (along / np.float32(np.hypot(*light))) ** 4
    return plane(1 + part.turned * (0.12 + 0.05 * rings + 0.26 * bow))


def _shadow(part: Part, light: tuple[float, float]) -> Plane:
    """A tight contact shadow and a soft cast one that leans away from the lamp."""
    solid = part.drilled.solid
    contact = cv2.GaussianBlur(solid, (0, 0), 3)
    lean = np.array([[1, 0, -light[0] * 15], [0, 1, -light[1] * 15]], np.float32)
    cast = cv2.GaussianBlur(cv2.warpAffine(solid, lean, part.size), (0, 0), 7)
    return plane(np.clip(0.48 * contact + 0.46 * cast, 0, 0.86))


def _lamp(rng: np.random.Generator, light: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Exposure, colour temperature, fall-off towards the lamp's far side, and the lens's vignette."""
    x, y = grid((WIDTH_PX // 8, HEIGHT_PX // 8))
    x, y = plane((x * 16 + 8 - WIDTH_PX) / WIDTH_PX), plane((y * 16 + 8 - HEIGHT_PX) / WIDTH_PX)
    vignette = 1 - (0.17 + 0.03 * rng.standard_normal()) * (x * x + y * y)
    slope = 0.10 + 0.03 * rng.standard_normal()
    field = vignette * (1 + slope * (x * light[0] + y * light[1])) * math.exp(0.04 * rng.standard_normal())
    warmth, green = 0.015 * rng.standard_normal(), 0.006 * rng.standard_normal()
    gain = plane(field[..., None] * np.exp([-warmth, green, warmth]))
    return plane(cv2.resize(gain, FRAME, interpolation=cv2.INTER_CUBIC))


def _brushed(rng: np.random.Generator, size: Size) -> Plane:
    """Long strokes of several widths along x."""
    strokes = ((0.6, 60.0, 0.5), (0.5, 25.0, 0.4), (0.45, 120.0, 1.6), (0.25, 200.0, 6.0))
    return mix(
        [*((weight, smooth(rng, size, along, across)) for weight, along, across in strokes), (0.2, white(rng, size))]
    )


def _moulded(rng: np.random.Generator, size: Size) -> Plane:
    """Nearly smooth: flow marks and a fine orange peel."""
    return mix([(0.8, smooth(rng, size, 30, 22)), (0.5, smooth(rng, size, 1.6, 1.6)), (0.3, white(rng, size))])


def _sand_cast(rng: np.random.Generator, size: Size) -> Plane:
    """The grain of a sand mould, lit from one side, with pits."""
    grain = mix(
        [(1.0, smooth(rng, size, 1.3, 1.3)), (1.0, smooth(rng, size, 3.0, 3.0)), (1.2, smooth(rng, size, 7, 7))]
    )
    slope_x, slope_y = slopes(grain)
    lit = slope_x + slope_y
    pits = np.minimum(smooth(rng, size, 1.6, 1.6) + 2.1, 0)
    return mix([(0.95 / float(lit.std()), lit), (0.35, smooth(rng, size, 18, 18)), (1.6, pits)])


def _blasted(rng: np.random.Generator, size: Size) -> Plane:
    """Fine bead blasting under the anodised film."""
    return mix(
        [(0.8, smooth(rng, size, 0.8, 0.8)), (0.4, smooth(rng, size, 2.4, 2.4)), (0.35, smooth(rng, size, 40, 40))]
    )


def _belt(rng: np.random.Generator, size: Size) -> npt.NDArray[np.float32]:
    """A dark rubber belt with its weave, scuffs along the run and dust."""
    x, y = grid(size)
    weave = np.sin((x + y) * np.float32(0.55)) * np.sin((x - y) * np.float32(0.55))
    scuffs = np.maximum(smooth(rng, size, 140, 1.2) - 0.8, 0)
    dust = np.maximum(smooth(rng, size, 0.8, 0.8) - 3.0, 0)
    level = (
        40 + 1.8 * weave + 1.6 * smooth(rng, size, 1.0, 1.0) + 3.2 * smooth(rng, size, 80, 50) + 3 * scuffs + 16 * dust
    )
    return plane(level[..., None] * np.array([1.04, 1.0, 0.97], np.float32))


def _foam(rng: np.random.Generator, size: Size) -> npt.NDArray[np.float32]:
    """Grey packing foam: open cells and a slow unevenness."""
    cells = smooth(rng, size, 1.8, 1.8)
    pores = np.minimum(cells + 1.3, 0)
    level = 128 + 3 * cells + 7 * pores + 4 * smooth(rng, size, 70, 70)
    return plane(level[..., None] * np.array([1.03, 1.01, 0.97], np.float32))


def _table(rng: np.random.Generator, size: Size) -> npt.NDArray[np.float32]:
    """A painted steel table, scratched down to primer, with rust in places."""
    paint = 84 + 2.6 * smooth(rng, size, 1.2, 1.2) + 5 * smooth(rng, size, 60, 60)
    worn = np.clip(np.maximum(smooth(rng, size, 26, 0.7) - 2.3, smooth(rng, size, 0.7, 30) - 2.5), 0, 1)
    rust = np.clip(smooth(rng, size, 14, 12) * 0.7 + smooth(rng, size, 2, 2) * 0.35 - 1.75, 0, 1)
    colour = paint[..., None] * np.array([0.92, 1.06, 0.88], np.float32)
    colour += (worn * 14)[..., None]
    return plane(colour + rust[..., None] * (np.array([38, 58, 96], np.float32) - colour) * 0.35)


def _laminate(rng: np.random.Generator, size: Size) -> npt.NDArray[np.float32]:
    """A pale bench top: speckled laminate, faint wipe marks."""
    speckle = np.minimum(smooth(rng, size, 1.1, 1.1) + 1.9, 0)
    wipes = np.maximum(smooth(rng, size, 70, 9) - 1.0, 0)
    level = 182 + 1.8 * smooth(rng, size, 1, 1) + 3 * smooth(rng, size, 90, 70) + 7 * speckle - 3 * wipes
    return plane(level[..., None] * np.array([0.97, 1.0, 1.01], np.float32))


_FINISHES: dict[str, Callable[[np.random.Generator, Size], Plane]] = {
    "press-1": _brushed,
    "mould-2": _moulded,
    "cast-3": _sand_cast,
    "plate-4": _blasted,
}
_BENCHES: dict[str, Callable[[np.random.Generator, Size], npt.NDArray[np.float32]]] = {
    "press-1": _belt,
    "mould-2": _foam,
    "cast-3": _table,
    "plate-4": _laminate,
}
