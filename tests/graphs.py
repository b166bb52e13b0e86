"""A training graph over a few images, as plainly as can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engine.backend_onnx import OnnxGraph


def run_alone(graph: OnnxGraph, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
    """The named outputs for uint8 images (n, h, w, 3), each run by itself, n in front."""
    rows = [graph.run(outputs, {"images": images[index : index + 1]}) for index in range(len(images))]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]
