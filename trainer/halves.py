"""float32 to float16 and back, as numpy does to the last bit, in a tenth and a quarter of the time.

numpy converts one value after the other in software; OpenCV uses the processor's own instructions.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

_NOTHING: Any = 0.0


def narrow(values: np.ndarray, out: np.ndarray) -> None:
    """Round float32 (m, c) to the nearest float16, ties to even, into `out`, which is contiguous."""
    cv2.add(values, _NOTHING, dst=out, dtype=cv2.CV_16F)


def widened(values: np.ndarray) -> np.ndarray:
    """(n, ..., c) float16 or float32 as float32, contiguous."""
    if values.dtype != np.float16:
        return np.ascontiguousarray(values, np.float32)
    if not values.size:
        return np.zeros(values.shape, np.float32)
    flat = values.reshape(-1, values.shape[-1])  # a view where only columns were cut off
    wide = np.empty(flat.shape, np.float32)
    cv2.add(flat, _NOTHING, dst=wide, dtype=cv2.CV_32F)
    return wide.reshape(values.shape)
