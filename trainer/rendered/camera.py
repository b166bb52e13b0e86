"""From a part's surface to the picture that a line camera delivers: pose, bench, shadow, lens, sensor, JPEG."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from trainer.rendered.defects import Defect, damage
from trainer.rendered.looks import FRAME, HEIGHT_PX, SLACK_PX, WIDTH_PX, Look
from trainer.rendered.planes import Levels, Plane, grid, levels, plane, white
from trainer.rendered.streams import Use, stream
from trainer.rendered.surface import Surface, Window
from trainer.rendered.wear import wear

JPEG_QUALITY = 90


@lru_cache(maxsize=1)
def _sensor_noise(seed: int) -> npt.NDArray[np.float32]:
    """(480 + 2 x slack, 640 + 2 x slack, 3) of deviation 1, from which pictures take cuts.

    Demosaicing ties neighbouring pixels and the channels together: most of the noise is grey. The channels' own part is
    the same noise from far away.
    """
    grey = white(stream(seed, Use.SENSOR), (WIDTH_PX + 2 * SLACK_PX, HEIGHT_PX + 2 * SLACK_PX))
    apart = [grey + 0.6 * np.roll(grey, move, axis=(0, 1)) for move in ((180, 90), (-140, 240), (60, -300))]
    noise = plane(cv2.GaussianBlur(plane(cv2.merge(apart)), (0, 0), 0.55))
    return plane(noise / float(noise.std()))


class Camera:
    """The camera of one station in one lot. Not shared between threads: it keeps its noise and its look.

    Attributes:
        look: what the station looks like in this lot.
    """

    def __init__(self, seed: int, number: int, lot: int, look: Look) -> None:
        """`number` is the station's place in the line."""
        self.look = look
        self._at = (number, lot)
        self._seed = seed
        # Read noise, and shot noise that grows with the light; already past the sensor's gamma, so gently.
        self._read_noise = _sensor_noise(seed) * np.float32(0.5 * look.noise)
        self._shot_gain = 1 + self._read_noise / 128

    def picture(self, index: int, defect: Defect | None) -> Levels:
        """The picture of part `index`, with a defect or without.

        With `defect` None it is the same part in the same pose under the same noise: the defect's twin.

        Returns:
            (480, 640, 3) uint8 BGR.
        """
        look, part = self.look, self.look.part
        rng = stream(self._seed, Use.SCENE, *self._at, index)
        surface = _surface(look, rng)
        wear(surface, part, stream(self._seed, Use.MARKS, *self._at, index))
        if defect is not None:
            damage(surface, part, stream(self._seed, Use.DEFECT, *self._at, index), defect)
        scene = _place(look, surface, rng)
        return self._expose(scene, rng)

    def _expose(self, scene: Levels, rng: np.random.Generator) -> Levels:
        """Lens, lamp, sensor: the picture in grey levels."""
        sharp = max(0.35, self.look.blur_px + 0.05 * rng.standard_normal())
        seen = cv2.GaussianBlur(scene, (5, 5), sharp)
        flicker = math.exp(0.012 * rng.standard_normal())
        lit = plane(cv2.multiply(seen, self.look.lamp, scale=flicker, dtype=cv2.CV_32F))
        left, top = (int(value) for value in rng.integers(0, 2 * SLACK_PX, 2))
        cut = slice(top, top + HEIGHT_PX), slice(left, left + WIDTH_PX)
        lit *= self._shot_gain[cut]
        # OpenCV rounds and cuts at 0 and 255 as it writes 8 bits.
        return np.asarray(cv2.add(lit, self._read_noise[cut], dtype=cv2.CV_8U), np.uint8)


def _surface(look: Look, rng: np.random.Generator) -> Surface:
    """The part's lit surface with its own cut of the finish, under the lamp's broad reflection."""
    part = look.part
    width, height = part.size
    left, top = (int(value) for value in rng.integers(0, SLACK_PX, 2))
    modulation = look.texture[top : top + height, left : left + width] * part.raw
    modulation += 1
    modulation *= _sheen(look, rng)
    brightness = modulation * look.brightness
    colour = plane(cv2.multiply(cv2.merge([brightness, brightness, brightness]), look.colour))
    colour += look.gloss

    def blank(window: Window) -> npt.NDArray[np.float32]:
        lit = modulation[window.rows] * look.blank_brightness[window.rows]
        return lit[..., None] * look.colour[window.rows]

    return Surface(colour, part.drilled.solid.copy(), look.light, blank)


def _sheen(look: Look, rng: np.random.Generator) -> Plane:
    """The lamp's reflection: a broad bell that wanders a little from part to part."""
    width, height = look.part.size
    step = 8
    x, y = grid((width // step + 2, height // step + 2))
    off_x, off_y = rng.normal(0, 22, 2)
    middle_x = width / 2 + look.light[0] * 130 + off_x
    middle_y = height / 2 + look.light[1] * 130 + off_y
    wide_x, wide_y = look.material.sheen_px
    bell = np.exp(-(((x * step - middle_x) / wide_x) ** 2) - ((y * step - middle_y) / wide_y) ** 2)
    strength = look.material.sheen * float(np.exp(0.10 * rng.standard_normal()))
    coarse = plane(1 - 0.5 * strength + 1.5 * strength * bell)
    size = (coarse.shape[1] * step, coarse.shape[0] * step)
    return plane(cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)[:height, :width])


def _place(look: Look, surface: Surface, rng: np.random.Generator) -> Levels:
    """Lay the part on the bench, a little turned, shifted and nearer or farther, with its shadow."""
    angle = math.radians(1.4 * rng.standard_normal())
    zoom = 1 + 0.008 * rng.standard_normal()
    shift_x, shift_y = np.clip(rng.normal(0, 4, 2), -14, 14)
    width, height = look.part.size
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    pose = np.array(
        [
            [cos, -sin, WIDTH_PX / 2 + shift_x - cos * width / 2 + sin * height / 2],
            [sin, cos, HEIGHT_PX / 2 + shift_y - sin * width / 2 - cos * height / 2],
        ]
    )
    left, top = (int(value) for value in rng.integers(0, SLACK_PX, 2))
    bench = look.bench[top : top + HEIGHT_PX, left : left + WIDTH_PX]
    solid = surface.solid
    cover = levels(solid * np.float32(255))
    body = cv2.multiply(surface.colour, cv2.merge([solid, solid, solid]), dtype=cv2.CV_8U)
    free = cv2.warpAffine(
        cv2.multiply(255 - look.shadow, 255 - cover, scale=1 / 255), pose, FRAME, borderValue=(255.0,)
    )
    scene = cv2.add(
        cv2.warpAffine(body, pose, FRAME),
        cv2.multiply(bench, cv2.merge([free, free, free]), scale=1 / 255),
    )
    return np.asarray(scene, np.uint8)


def encode(picture: Levels) -> bytes:
    """The picture as a JPEG file."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()
