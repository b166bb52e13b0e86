"""What a good part may show as well: smudges, dust, faint tool marks, a hole a little off. Never a reason to reject."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from trainer.rendered.planes import plane, smooth, white

if TYPE_CHECKING:
    from trainer.rendered.parts import Part
    from trainer.rendered.surface import Surface

Path = npt.NDArray[np.float64]
"""(n, 2) x, y of a line's points, in pixels of the part's canvas."""


def site(rng: np.random.Generator, part: Part) -> tuple[float, float]:
    """A point on an open face of the part."""
    x, y = part.sites[rng.integers(len(part.sites))]
    return float(x), float(y)


def curve(rng: np.random.Generator, start: tuple[float, float], length_px: float, angle: float, bend: float) -> Path:
    """A gently bent line from `start`; `bend` is its whole turn in radians."""
    steps = max(4, int(length_px / 4))
    turn = angle + np.linspace(-0.5, 0.5, steps) * bend + 0.04 * rng.standard_normal(steps)
    moves = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (length_px / steps)
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    return np.asarray(path + start - moves.sum(axis=0) / 2)


def wear(surface: Surface, part: Part, rng: np.random.Generator) -> None:
    """Put this part's harmless marks on it."""
    for _ in range(rng.poisson(1.6)):
        _smudge(surface, part, rng)
    for _ in range(rng.poisson(1.5)):
        _tool_mark(surface, part, rng)
    for _ in range(rng.poisson(2.5)):
        _dust(surface, part, rng)


def _smudge(surface: Surface, part: Part, rng: np.random.Generator) -> None:
    """A fingerprint's worth of grease: large, soft, a few per cent."""
    x_px, y_px = site(rng, part)
    reach = rng.uniform(18, 48)
    window = surface.window(x_px, y_px, reach)
    x, y = window.grid(x_px, y_px)
    size = (window.x1 - window.x0, window.y1 - window.y0)
    patchy = np.clip(0.6 + 0.5 * cv2.resize(white(rng, (9, 9)), size, interpolation=cv2.INTER_CUBIC), 0, 1.4)
    bell = np.clip(1 - (x * x + y * y) / np.float32(reach * reach), 0, 1) ** 2
    surface.shade(window, plane(1 + rng.normal(0, 0.032) * bell * patchy))


def _tool_mark(surface: Surface, part: Part, rng: np.random.Generator) -> None:
    """A hairline from handling: short and faint, within tolerance."""
    points = curve(rng, site(rng, part), rng.uniform(8, 30), rng.uniform(0, math.pi), 0.3)
    window, line = surface.stroke(points, rng.uniform(0.6, 1.0))
    surface.shade(window, plane(1 + rng.normal(0, 0.05) * line))


def _dust(surface: Surface, part: Part, rng: np.random.Generator) -> None:
    """A grain or a fibre lying on the part."""
    x_px, y_px = site(rng, part)
    window = surface.window(x_px, y_px, 4)
    x, y = window.grid(x_px, y_px)
    width = rng.uniform(0.5, 0.95)
    spot = np.exp(-(x * x + y * y) / np.float32(2 * width * width))
    surface.shade(window, plane(1 + rng.normal(0, 0.09) * spot))


def blob(rng: np.random.Generator, shape: tuple[int, int], ragged: float) -> npt.NDArray[np.float32]:
    """A ragged round cover, 0 to 1, that fills a window of this (height, width) and fades before its border."""
    height, width = shape
    x = (np.arange(width, dtype=np.float32)[None, :] - (width - 1) / 2) / (width / 2)
    y = (np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2) / (height / 2)
    lumps = smooth(rng, (width, height), max(1.5, width / 9), max(1.5, height / 9))
    field = 0.72 - np.hypot(x, y) + ragged * lumps * np.clip(1.2 - np.hypot(x, y), 0, 1)
    edge = max(2.0 / max(width, height), 0.02)
    inside = np.clip(field / (4 * edge), 0, 1) * np.clip((1 - np.hypot(x, y)) * 6, 0, 1)
    return plane(cv2.GaussianBlur(plane(inside), (0, 0), 0.8))
