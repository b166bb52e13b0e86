"""A bundle for measurements that need no training: the featurizer as pretrained, a head of random weights."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from engine.agreement import infer_all
from engine.backbone import FeaturizerSpec, build_serving_graph
from engine.backend import open_backend
from engine.bundle import Bundle, Classes, Reference
from engine.familiarity import FeatureLimits, PixelLimits
from engine.heads import Calibration, Head
from engine.prediction import OperatingPoint
from engine.specs import ImageSpec

SIDE_PX = 160


def stand_in(side_px: int | None = None) -> Bundle:
    """Its reference is what ONNX Runtime answers on `pictures`, half of which lie on either side of its threshold."""
    side_px = side_px or SIDE_PX
    featurizer, image = FeaturizerSpec(), ImageSpec(side_px, side_px, jpeg="scaled")
    graph = build_serving_graph(featurizer, image)
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.02, featurizer.channels).astype(np.float32)
    images = pictures(side_px)
    backend = open_backend("onnxruntime", graph)
    try:
        features = infer_all(backend, images, weights[:, None], np.zeros(1, np.float32))
    finally:
        backend.close()
    evidence = features.evidence[:, 0]
    slope = 1.0 / float(evidence.std())
    head = Head(
        name="random",
        featurizer=hashlib.sha256(graph).hexdigest(),
        evidence_weights=weights,
        evidence_bias=0.0,
        pooled_weights=np.zeros(featurizer.pooled_size, np.float32),
        pooled_bias=0.0,
        calibration=Calibration(slope, 0.0, -slope * float(np.median(evidence))),
        operating_point=OperatingPoint(0.5, (0.5, 0.5)),
        pixels=PixelLimits(1.0, 0.5),
        features=FeatureLimits(
            mean=np.zeros(featurizer.pooled_size, np.float32),
            scale=np.ones(featurizer.pooled_size, np.float32),
            directions=np.eye(1, featurizer.pooled_size, dtype=np.float32),
            deviations=np.ones(1, np.float32),
            residual=1.0,
            limit=1e9,
        ),
    )
    probabilities = [head.probability(float(e), p) for e, p in zip(evidence, features.pooled, strict=True)]
    return Bundle(
        name="stand-in",
        version="0",
        digest="",
        classes=Classes("pass", "fail"),
        image=image,
        featurizer=featurizer.to_json(),
        graph=graph,
        head=head,
        defect_rate=0.5,
        about={},
        reference=Reference(images, features.pooled, evidence, np.array(probabilities)),
    )


def pictures(side_px: int, count: int = 24) -> np.ndarray:
    """uint8 (count, side_px, side_px, 3): what a camera might see, soft patches of colour under a little noise."""
    rng = np.random.default_rng(1)
    patches = rng.integers(32, 224, (count, 8, 8, 3)).astype(np.uint8)
    smooth = np.stack([cv2.resize(patch, (side_px, side_px), interpolation=cv2.INTER_CUBIC) for patch in patches])
    noisy: np.ndarray = smooth + rng.normal(0, 4, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)
