"""Cameras of a test, all in one thread, each of which may be told to do something else at any time."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
from kafka import KafkaProducer

from consumer.topics import producer_limits
from consumer.wire import frame_record
from tests.scenes import NOISE, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TICK_S = 0.5
SIDE_PX = 128
PICTURES = 48
"""Each of a kind is another one, so that no camera looks frozen."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture, and when its camera says that it was taken, in seconds from now."""

    payload: bytes
    taken_s: float = 0.0


def jpeg(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    return data.tobytes()


def plain(seed: int = 1) -> list[bytes]:
    """Pictures of a live scene with parts in it."""
    rng = np.random.default_rng(seed)
    return [jpeg(frame(1, rng, side=SIDE_PX)) for _ in range(PICTURES)]


def other_colour(seed: int = 2) -> list[bytes]:
    """The same scene with another material in it: one colour inverted, the green one, which shows the place, kept."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(PICTURES):
        image = frame(1, rng, side=SIDE_PX)
        image[..., 0] = 255 - image[..., 0]
        pictures.append(jpeg(image))
    return pictures


def dark(level: float, seed: int = 3) -> list[bytes]:
    """A lens with its cap on: the sensor's noise alone."""
    rng = np.random.default_rng(seed)
    sides = (SIDE_PX, SIDE_PX, 3)
    return [jpeg(np.clip(rng.normal(level, 2 * NOISE, sides), 0, 255).astype(np.uint8)) for _ in range(PICTURES)]


class Feed:
    """Sends a picture of every station each tick; of those in `busy`, so many. A context manager."""

    def __init__(self, bootstrap_servers: str, topic: str, busy: dict[str, int]) -> None:
        self._producer: Any = KafkaProducer(bootstrap_servers=bootstrap_servers, **producer_limits())
        self._topic = topic
        self._busy = busy
        self._cameras: dict[str, Callable[[int], Shot]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        self._producer.close(timeout=5)

    def shows(self, station: str, pictures: Sequence[bytes], *taken_s: float) -> None:
        """From now on the station sends these in turn; `taken_s`: what its clock says, in turn, seconds from now."""
        clock = taken_s or (0.0,)
        self._put(station, lambda number: Shot(pictures[number % len(pictures)], clock[number % len(clock)]))

    def falls_silent(self, station: str) -> None:
        """From now on it sends nothing."""
        with self._lock:
            del self._cameras[station]

    def _put(self, station: str, camera: Callable[[int], Shot]) -> None:
        with self._lock:
            self._cameras[station] = camera

    def _run(self) -> None:
        try:
            for tick in itertools.count():
                with self._lock:
                    cameras = dict(self._cameras)
                for station, camera in cameras.items():
                    each = self._busy.get(station, 1)
                    for number in range(tick * each, (tick + 1) * each):
                        self._send(station, number, camera(number))
                if self._over.wait(TICK_S):
                    return
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def _send(self, station: str, number: int, shot: Shot) -> None:
        record = frame_record(
            station=station,
            payload=shot.payload,
            frame_id=f"{station}-{number}",
            captured_at_s=time.time() + shot.taken_s,
            content_type="image/jpeg",
        )
        self._producer.send(self._topic, value=record.value, key=record.key, headers=record.headers)
