"""Whether another machine computes the very same features: what it is, and what it answers to one image."""

from __future__ import annotations

import base64
import importlib.metadata
import platform
from hashlib import sha256
from typing import TYPE_CHECKING

import cv2
import numpy as np

from engine.backbone import build_training_graph
from engine.processor import vector_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec
    from trainer.featurize import Featurizer, Row

PACKAGES = ("framegate", "numpy", "onnxruntime", "opencv-python-headless")
"""What computes features. Other packages may differ."""

PROBE_SIDE_PX = 320
_ANSWER = "answer to one image"


def identity(image: ImageSpec, featurizer: FeaturizerSpec) -> dict[str, str]:
    """What decides the last bit of this machine's features, by name.

    Versions of the packages that compute, the kind of processor with the vector instructions that libraries choose
    their code by, and the digest of the graph, which has the pretrained weights in it.
    """
    graph = build_training_graph(featurizer, image.graph_input)
    return {
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "processor": f"{platform.machine()} with {' '.join(vector_features()) or 'no vector instructions'}",
        "graph": sha256(graph).hexdigest(),
    }


def probe_image() -> str:
    """A JPEG with edges, gradients and noise, in base64; the driver makes it, the others get it."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:PROBE_SIDE_PX, 0:PROBE_SIDE_PX]
    waves = np.sin(x / 7) * np.cos(y / 11) * 60 + (x + y) / 5
    pixels = waves[:, :, None] + random.normal(0, 12, (PROBE_SIDE_PX, PROBE_SIDE_PX, 3)) + [40, 60, 80]
    pixels[80:150, 100:240] = [200, 30, 90]
    _, encoded = cv2.imencode(".jpg", pixels.clip(0, 255).astype(np.uint8))
    return base64.b64encode(encoded.tobytes()).decode("ascii")


def answer(running: Featurizer, probe: str) -> str:
    """Digest of the features of the probe, to the last bit."""
    (row,) = running.featurize([base64.b64decode(probe)])
    return sha256(row.encode() if isinstance(row, str) else _content(row)).hexdigest()


def difference(ours: Mapping[str, str], theirs: Mapping[str, str], answers: tuple[str, str]) -> str | None:
    """The first thing in which they differ, in words; None where they are the same.

    Args:
        ours: `identity` of the driver.
        theirs: `identity` of an executor.
        answers: `answer` of both.
    """
    for name in sorted({*ours, *theirs}):
        one, other = ours.get(name, "nothing"), theirs.get(name, "nothing")
        if one != other:
            return f"{name} {other} where this machine has {one}"
    one, other = answers
    return None if one == other else f"{_ANSWER} {other[:12]} where this machine computes {one[:12]}"


def _content(row: Row) -> bytes:
    numbers = np.array([row.contrast, row.detail, row.level, row.noise], np.float64)
    return b"".join(
        (row.sha256.encode(), row.pooled.tobytes(), row.channels.tobytes(), numbers.tobytes(), row.glance.tobytes())
    )
