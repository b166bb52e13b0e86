"""Defects: six kinds, each from obvious to hard. A hard one is small and faint: a person must look closely."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from trainer.rendered.planes import Plane, plane, white
from trainer.rendered.wear import Path, blob, curve, site

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trainer.rendered.parts import Part
    from trainer.rendered.surface import Surface

DIFFICULTIES = ("obvious", "medium", "hard")

KINDS_OF = {
    "press-1": ("scratch", "dent", "missing_hole", "stain", "burr"),
    "mould-2": ("scratch", "dent", "missing_hole", "stain", "burr"),
    "cast-3": ("scratch", "dent", "missing_hole", "stain", "crack"),
    "plate-4": ("scratch", "dent", "missing_hole", "stain", "crack"),
}
"""What goes wrong where: burrs where a tool parts metal or a mould closes, cracks in castings and anodised films."""


@dataclass(frozen=True, slots=True)
class Defect:
    """What is wrong with a part: one of the station's kinds, one of DIFFICULTIES."""

    kind: str
    difficulty: str


def _between(rng: np.random.Generator, ranges: Mapping[str, tuple[float, float]], difficulty: str) -> float:
    """A value from the difficulty's own range."""
    return float(rng.uniform(*ranges[difficulty]))


_TRIES = 5


def _on_part(part: Part, paths: list[Path]) -> Path:
    """The path of which most lies on open faces: what runs off the part is unseen."""
    corner = np.array(part.size) - 1

    def share(path: Path) -> float:
        x, y = np.clip(np.rint(path), 0, corner).astype(np.int32).T
        return float((part.drilled.solid[y, x] * (1 - part.drilled.wall[y, x])).mean())

    return max(paths, key=share)


_BARE = (236, 240, 240)
"""BGR of freshly torn material: bright metal, or plastic whitened by stress."""

_SCRATCH_LENGTH_PX = {"obvious": (120, 220), "medium": (88, 130), "hard": (64, 92)}
_SCRATCH_WIDTH_PX = {"obvious": (2.6, 3.6), "medium": (2.1, 2.7), "hard": (1.7, 2.2)}
_SCRATCH_LINES = {"obvious": 6, "medium": 5, "hard": 4}
_SCRATCH_CONTRAST = {"obvious": (0.88, 1.0), "medium": (0.8, 0.92), "hard": (0.66, 0.8)}


def _scratch(surface: Surface, part: Part, rng: np.random.Generator, difficulty: str) -> None:
    """One pull of something hard: a few grooves side by side, mostly across the brushing, where they show."""
    length = _between(rng, _SCRATCH_LENGTH_PX, difficulty)
    angles = rng.normal(math.pi / 2, 0.6, _TRIES)
    points = _on_part(
        part, [curve(rng, site(rng, part), length, angle, 0.35 * rng.standard_normal()) for angle in angles]
    )
    width = _between(rng, _SCRATCH_WIDTH_PX, difficulty)
    contrast = _between(rng, _SCRATCH_CONTRAST, difficulty)
    along = points[-1] - points[0]
    aside = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1.0)
    for number in range(_SCRATCH_LINES[difficulty]):
        begin, end = rng.integers(0, max(1, len(points) // 4)), len(points) - rng.integers(0, max(1, len(points) // 4))
        line = points[begin:end] + aside * number * (width + rng.uniform(2.5, 4.5))
        _groove(surface, line, width * rng.uniform(0.7, 1.0), contrast * rng.uniform(0.75, 1.0))


def _groove(surface: Surface, points: Path, width_px: float, contrast: float) -> None:
    """Bright torn material with a dark flank away from the lamp."""
    window, line = surface.stroke(points, width_px)
    shift = 0.5 + 0.5 * width_px
    beside = cv2.warpAffine(line, np.array([[1, 0, shift], [0, 1, shift]], np.float32), (line.shape[1], line.shape[0]))
    surface.shade(window, plane(1 - 0.75 * contrast * np.clip(plane(beside) - line, 0, 1)))
    surface.paint(window, line * np.float32(contrast), _BARE)


_DENT_RADIUS_PX = {"obvious": (26, 36), "medium": (19, 25), "hard": (13, 17)}
_DENT_DEPTH = {"obvious": (1.1, 1.4), "medium": (0.92, 1.1), "hard": (0.7, 0.88)}


def _dent(surface: Surface, part: Part, rng: np.random.Generator, difficulty: str) -> None:
    """A dimple: dark on the lamp's side, bright on the other, with a raised lip."""
    x_px, y_px = site(rng, part)
    radius = _between(rng, _DENT_RADIUS_PX, difficulty)
    window = surface.window(x_px, y_px, radius * 1.7)
    x, y = window.grid(x_px, y_px)
    angle, squeeze = rng.uniform(0, math.pi), rng.uniform(0.7, 1.0)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    across = (y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))) / np.float32(squeeze)
    reach = (along * along + across * across) / np.float32(radius * radius)
    bowl = -np.exp(-2.2 * reach) + 0.22 * np.exp(-6 * (np.sqrt(reach) - 1) ** 2)
    depth = _between(rng, _DENT_DEPTH, difficulty)
    surface.emboss(window, plane(bowl * radius * 0.5), gain=1.5 * depth, glint=110 * depth)
    surface.shade(window, plane(1 - 0.12 * depth * np.exp(-3 * reach)))


_BURNT = (40, 52, 70)
_HOLE_BURNT = {"obvious": 0.92, "medium": 0.84, "hard": 0.66}
_HOLE_LEFT = {"obvious": (0.0, 0.0), "medium": (0.38, 0.5), "hard": (0.66, 0.75)}


def _missing_hole(surface: Surface, part: Part, rng: np.random.Generator, difficulty: str) -> None:
    """A slug or flash left in the hole. Obvious: all of it; medium: half; hard: a sliver along the rim.

    What should have come out was torn and burnt by the tool: dark, rough, with a bright torn edge.
    """
    hole = part.holes[rng.integers(len(part.holes))]
    window = surface.window(hole.x_px, hole.y_px, hole.radius_px * 1.3 + 3)
    x, y = window.grid(hole.x_px, hole.y_px)
    left = _between(rng, _HOLE_LEFT, difficulty) * hole.radius_px
    toward = rng.uniform(0, 2 * math.pi)
    off = (hole.radius_px - left) * 0.9
    mouth = np.clip(hole.radius_px + 1.0 - np.hypot(x, y), 0, 1)
    if left:
        mouth = mouth * (
            1 - np.clip(left + 0.5 - np.hypot(x - off * math.cos(toward), y - off * math.sin(toward)), 0, 1)
        )
    cover = plane(mouth)
    surface.fill(cover, window)
    size = (window.x1 - window.x0, window.y1 - window.y0)
    rough = cv2.resize(white(rng, (size[0] // 3 + 2, size[1] // 3 + 2)), size, interpolation=cv2.INTER_CUBIC)
    burnt = _HOLE_BURNT[difficulty]
    surface.paint(window, cover * np.float32(burnt), _BURNT)
    surface.shade(window, plane(np.clip(1 + 0.6 * burnt * rough * cover, 0.2, 2)))
    torn = np.clip(2.2 * np.abs(cover - plane(cv2.GaussianBlur(cover, (0, 0), 2.2))), 0, 1)
    surface.paint(window, plane(burnt * torn * surface.solid[window.rows]), _BARE)


_STAIN_RADIUS_PX = {"obvious": (46, 66), "medium": (33, 43), "hard": (23, 31)}
_STAIN_COVER = {"obvious": (0.72, 0.84), "medium": (0.62, 0.72), "hard": (0.48, 0.58)}
_STAIN_DROPS = {"obvious": 12, "medium": 8, "hard": 5}
_STAIN_BGR = ((14, 22, 34), (18, 40, 76))
"""Old oil and rust."""


def _stain(surface: Surface, part: Part, rng: np.random.Generator, difficulty: str) -> None:
    """A ragged film with a darker drying edge, grainy inside, and drops that splashed beside it."""
    x_px, y_px = site(rng, part)
    radius = _between(rng, _STAIN_RADIUS_PX, difficulty)
    window = surface.window(x_px, y_px, 1.5 * radius)
    size = (window.x1 - window.x0, window.y1 - window.y0)
    inner = surface.window(x_px, y_px, radius)
    film = np.zeros((size[1], size[0]), np.float32)
    top, left = inner.y0 - window.y0, inner.x0 - window.x0
    shape = (inner.y1 - inner.y0, inner.x1 - inner.x0)
    film[top : top + shape[0], left : left + shape[1]] = blob(rng, shape, 0.16)
    x, y = window.grid(x_px, y_px)
    for _ in range(_STAIN_DROPS[difficulty]):
        angle, away, drop = (
            rng.uniform(0, 2 * math.pi),
            radius * rng.uniform(0.75, 1.3),
            rng.uniform(1.5, 1.5 + radius / 12),
        )
        apart = np.hypot(x - np.float32(away * math.cos(angle)), y - np.float32(away * math.sin(angle)))
        film = np.maximum(film, np.clip(drop + 0.5 - apart, 0, 1))
    edge = np.clip(film - plane(cv2.GaussianBlur(film, (0, 0), max(1.2, radius / 11))), 0, 1)
    grain = plane(cv2.GaussianBlur(white(rng, size), (0, 0), 1.1)) * 3.5
    cover = _between(rng, _STAIN_COVER, difficulty) * (film * (0.82 + 0.16 * grain) + edge * 0.9)
    cover = plane(np.clip(cover, 0, 0.92)) * surface.solid[window.rows]
    surface.paint(window, cover, _STAIN_BGR[rng.integers(len(_STAIN_BGR))])


_CRACK_LENGTH_PX = {"obvious": (110, 180), "medium": (80, 115), "hard": (54, 76)}
_CRACK_WIDTH_PX = {"obvious": (4.0, 5.5), "medium": (3.2, 4.0), "hard": (2.4, 2.9)}
_CRACK_CONTRAST = {"obvious": (0.82, 0.92), "medium": (0.74, 0.84), "hard": (0.58, 0.7)}


def _crack(surface: Surface, part: Part, rng: np.random.Generator, difficulty: str) -> None:
    """A jagged dark line with a side branch, one flank catching the light."""
    length = _between(rng, _CRACK_LENGTH_PX, difficulty)
    contrast = _between(rng, _CRACK_CONTRAST, difficulty)
    width = _between(rng, _CRACK_WIDTH_PX, difficulty)
    headings = rng.uniform(0, 2 * math.pi, _TRIES)
    trunk = _on_part(part, [_jagged(rng, np.asarray(site(rng, part)), length, heading) for heading in headings])
    onward = math.atan2(*(trunk[-1] - trunk[0])[::-1])
    branch = _jagged(rng, trunk[len(trunk) // 2], length * 0.35, onward + rng.choice([-0.7, 0.7]))
    for points in (trunk, branch):
        window, line = surface.stroke(points, width)
        lit = cv2.warpAffine(line, np.array([[1, 0, 1.2], [0, 1, 1.2]], np.float32), (line.shape[1], line.shape[0]))
        surface.shade(window, plane(1 - contrast * line))
        surface.colour[window.rows] += (np.float32(contrast * 30) * np.clip(plane(lit) - line, 0, 1))[..., None]


def _jagged(rng: np.random.Generator, start: Path, length_px: float, heading: float) -> Path:
    """(n, 2) points of a random walk that keeps its heading on the whole."""
    steps = max(5, int(length_px / 5))
    turn = heading + 0.55 * rng.standard_normal(steps)
    moves = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (length_px / steps)
    return np.asarray(start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)]))


_BURR_LENGTH_PX = {"obvious": (46, 60), "medium": (34, 44), "hard": (24, 31)}
_BURR_OUT_PX = {"obvious": (16, 20), "medium": (12, 15), "hard": (8, 10.5)}


def _burr(surface: Surface, part: Part, rng: np.random.Generator, difficulty: str) -> None:
    """Material pressed past the outline: a thin ragged tongue that catches the light."""
    x_px, y_px, out_x, out_y = (float(value) for value in part.rim[rng.integers(len(part.rim))])
    half = _between(rng, _BURR_LENGTH_PX, difficulty) / 2
    out = _between(rng, _BURR_OUT_PX, difficulty)
    window = surface.window(x_px, y_px, half + out + 3)
    x, y = window.grid(x_px, y_px)
    along = (y * np.float32(out_x) - x * np.float32(out_y)) / np.float32(half)
    beyond = x * np.float32(out_x) + y * np.float32(out_y)
    ragged = np.interp(along.ravel(), np.linspace(-1, 1, 9), [0, *rng.uniform(0.35, 1, 7), 0], left=-1, right=-1)
    inside: Plane = plane(np.clip(out * ragged.reshape(along.shape) - beyond + 0.5, 0, 1) * np.clip(beyond + 3.5, 0, 1))
    size = (window.x1 - window.x0, window.y1 - window.y0)
    facets = cv2.resize(white(rng, (size[0] // 5 + 2, size[1] // 5 + 2)), size, interpolation=cv2.INTER_CUBIC)
    surface.paint(window, inside, _BARE)
    surface.solid[window.rows] = np.maximum(surface.solid[window.rows], inside)
    surface.shade(window, plane(1 + inside * (np.clip(0.8 + 0.18 * facets, 0.4, 1.1) - 1)))
    root = np.exp(-((beyond + 3) ** 2) / 4) * np.clip(1.1 - np.abs(along), 0, 1)
    surface.shade(window, plane(1 - 0.55 * np.clip(root, 0, 1)))


_PAINTERS: dict[str, Callable[[Surface, Part, np.random.Generator, str], None]] = {
    "scratch": _scratch,
    "dent": _dent,
    "missing_hole": _missing_hole,
    "stain": _stain,
    "crack": _crack,
    "burr": _burr,
}


def damage(surface: Surface, part: Part, rng: np.random.Generator, defect: Defect) -> None:
    """Put a defect on the part, at a place and of a size that `rng` draws."""
    _PAINTERS[defect.kind](surface, part, rng, defect.difficulty)
