"""Small bundles for tests that need one, made in a moment: a real featurizer, a head of random weights."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from engine.backbone import FeaturizerSpec, build_serving_graph
from engine.backend_onnx import OnnxBackend
from engine.backend_tiled import on_whole_images
from engine.bundle import Bundle, Classes, Reference
from engine.familiarity import FeatureLimits, PixelLimits
from engine.heads import Calibration, Head, stack
from engine.prediction import OperatingPoint
from engine.specs import ImageSpec

IMAGE = ImageSpec(64, 64)
TILED = ImageSpec(128, 64, tile_px=(64, 64))
"""Two tiles, each of which the graph for `IMAGE` takes."""
FEATURIZER = FeaturizerSpec()


@functools.cache
def graph() -> bytes:
    return build_serving_graph(FEATURIZER, IMAGE)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, 64, 64, 3): smooth blobs, so that they have both contrast and detail."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2))


def wide_pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, 64, 128, 3) as `TILED` has them."""
    return np.concatenate([pictures(count, seed), pictures(count, seed + 1000)], axis=2)


def small_head(seed: int = 0, *, limit: float = 1e9) -> Head:
    """A head whose probabilities spread over 0 to 1 on `pictures`."""
    rng = np.random.default_rng(seed)
    size = FEATURIZER.pooled_size
    return Head(
        name="default",
        featurizer=hashlib.sha256(graph()).hexdigest(),
        evidence_weights=rng.normal(0, 0.02, FEATURIZER.channels).astype(np.float32),
        evidence_bias=0.25,
        pooled_weights=rng.normal(0, 0.02, size).astype(np.float32),
        pooled_bias=-0.5,
        calibration=Calibration(1.0, 0.7, 0.1),
        operating_point=OperatingPoint(0.5, (0.3, 0.6)),
        pixels=PixelLimits(1.0, 0.5),
        features=FeatureLimits(
            mean=np.zeros(size, np.float32),
            scale=np.ones(size, np.float32),
            directions=np.eye(3, size, dtype=np.float32),
            deviations=np.ones(3, np.float32),
            residual=1.0,
            limit=limit,
        ),
    )


def small_bundle(
    *, name: str = "parts", head: Head | None = None, with_reference: bool = True, image: ImageSpec = IMAGE
) -> Bundle:
    """A bundle ready to be written; its digest is not set. `image` is `IMAGE` or `TILED`."""
    head = head or small_head()
    return Bundle(
        name=name,
        version="7",
        digest="",
        classes=Classes("good", "scratched"),
        image=image,
        featurizer=FEATURIZER.to_json(),
        graph=graph(),
        head=head,
        defect_rate=0.4,
        about={"created_at": "2026-01-02T03:04:05+00:00"},
        reference=_reference(head, image) if with_reference else None,
    )


def _reference(head: Head, image: ImageSpec) -> Reference:
    images = pictures(6, seed=3) if image == IMAGE else wide_pictures(6, seed=3)
    backend = on_whole_images(OnnxBackend(graph(), streams=1), image, FEATURIZER)
    try:
        features = backend.infer(images, *stack([head]))
    finally:
        backend.close()
    predictions = head.predict(images, features.evidence[:, 0], features.pooled)
    probabilities = np.array([prediction.defect_probability for prediction in predictions])
    return Reference(images, features.pooled, features.evidence[:, 0], probabilities)
