"""One part's surface while its picture is being made, and the few ways in which wear and defects change it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from trainer.rendered.planes import Plane, plane, slopes

if TYPE_CHECKING:
    from collections.abc import Callable

_LINE_OVERSAMPLING = 4


@dataclass(frozen=True, slots=True)
class Window:
    """A box on the part's canvas: x0, y0 inside, x1, y1 past it. The only pixels that a change may touch."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def rows(self) -> tuple[slice, slice]:
        """The index of this box in a plane."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def grid(self, x_px: float, y_px: float) -> tuple[Plane, Plane]:
        """Offsets from a point, as (1, width) and (height, 1)."""
        x = np.arange(self.x0, self.x1, dtype=np.float32)[None, :] - np.float32(x_px)
        y = np.arange(self.y0, self.y1, dtype=np.float32)[:, None] - np.float32(y_px)
        return x, y


@dataclass(slots=True, eq=False)
class Surface:
    """What is painted on. Owned by one picture, except `blank`, which is only read.

    Attributes:
        colour: (height_px, width_px, 3) BGR float32, 0 to 255.
        solid: (height_px, width_px) cover of the bench, 0 to 1.
        light: x, y towards the lamp.
        blank: gives the colour, without wear, that a window would have had no hole been made.
    """

    colour: npt.NDArray[np.float32]
    solid: Plane
    light: tuple[float, float]
    blank: Callable[[Window], npt.NDArray[np.float32]]

    def window(self, x_px: float, y_px: float, reach_px: float) -> Window:
        """The box round a point, cut at the canvas; never empty for a point on the canvas."""
        height, width = self.solid.shape
        x0, y0 = max(0, math.floor(x_px - reach_px)), max(0, math.floor(y_px - reach_px))
        return Window(x0, y0, min(width, math.ceil(x_px + reach_px) + 1), min(height, math.ceil(y_px + reach_px) + 1))

    def shade(self, window: Window, factor: Plane) -> None:
        """Multiply the brightness in a window."""
        self.colour[window.rows] *= factor[..., None]

    def paint(self, window: Window, cover: Plane, bgr: tuple[float, float, float]) -> None:
        """Lay a colour over a window with this cover, 0 to 1."""
        region = self.colour[window.rows]
        region += cover[..., None] * (np.asarray(bgr, np.float32) - region)

    def emboss(self, window: Window, height_px: Plane, gain: float, glint: float = 0.0) -> None:
        """Shade a relief: sides towards the lamp brighten, the others darken; steep lit sides glint."""
        slope_x, slope_y = slopes(height_px)
        lit = -(slope_x * np.float32(self.light[0]) + slope_y * np.float32(self.light[1]))
        self.shade(window, plane(np.clip(1 + gain * lit, 0.15, 1.9)))
        if glint:
            self.colour[window.rows] += np.float32(glint) * np.clip(lit - 0.12, 0, 1)[..., None]

    def fill(self, cover: Plane, window: Window) -> None:
        """Close a hole where `cover` is 1, with the surface that would be there had it not been made."""
        region = self.colour[window.rows]
        region += cover[..., None] * (self.blank(window) - region)
        self.solid[window.rows] = np.maximum(self.solid[window.rows], cover)

    def stroke(self, points: npt.NDArray[np.float64], width_px: float, reach_px: float = 4.0) -> tuple[Window, Plane]:
        """Antialiased mask of a polyline, (n, 2) pixels, tapered at both ends, and the window it lies in."""
        low, high = points.min(axis=0) - reach_px - width_px, points.max(axis=0) + reach_px + width_px
        height, width = self.solid.shape
        window = Window(
            int(np.clip(low[0], 0, width - 2)),
            int(np.clip(low[1], 0, height - 2)),
            int(np.clip(high[0] + 1, 2, width)),
            int(np.clip(high[1] + 1, 2, height)),
        )
        size = (window.x1 - window.x0, window.y1 - window.y0)
        fine = np.zeros((size[1] * _LINE_OVERSAMPLING, size[0] * _LINE_OVERSAMPLING), np.uint8)
        at = np.rint((points - (window.x0, window.y0) + 0.5) * _LINE_OVERSAMPLING).astype(np.int32)
        last = len(at) - 1
        for number in range(last):
            taper = math.sin(math.pi * (number + 0.5) / last) ** 0.5
            thick = max(1, round(width_px * _LINE_OVERSAMPLING * taper))
            ends = (int(at[number, 0]), int(at[number, 1])), (int(at[number + 1, 0]), int(at[number + 1, 1]))
            cv2.line(fine, *ends, (255.0,), thick, cv2.LINE_AA)
        mask = cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
        return window, plane(mask) / np.float32(255)
