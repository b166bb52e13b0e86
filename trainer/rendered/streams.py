"""Random numbers for every part of a rendered line, each a pure function of a few integers."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What a stream is for. Each use has its own, so that switching a defect off moves nothing else in the picture."""

    SCHEDULE = 0
    LOOK = 1
    SCENE = 2
    MARKS = 3
    DEFECT = 4
    SENSOR = 5


def stream(seed: int, use: Use, station: int = 0, lot: int = 0, index: int = 0) -> np.random.Generator:
    """A PCG64 generator for one use; the same integers give the same numbers on every machine.

    The coordinates go into the spawn key and not beside the seed: numpy pads short entropy with zeros, so that
    (1, 2) and (1, 2, 0) would be the same stream.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(use, station, lot, index))))
