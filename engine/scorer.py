"""The one way to a verdict's numbers: `framegate score` and the consumer both go through here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from engine.bundle_cache import open_located
from engine.choice import open_for
from engine.heads import stack
from engine.prediction import OperatingPoint, Prediction, ScoredBatch
from engine.preprocess import preprocess

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from engine.backend import Backend, Features
    from engine.bundle import Bundle
    from engine.specs import ImageSpec
    from engine.tensorrt_options import TensorRTOptions


class Scorer:
    """A bundle on a backend: encoded bytes to pixels, pixels to predictions.

    `decode` may be called from many threads at once; `score` from one at a time. A context manager: leaving it gives
    the backend back.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Put a bundle on a backend that was opened on its graph."""
        self.bundle = bundle
        self.backend = backend
        self._weights, self._biases = stack([bundle.head])

    @property
    def image_spec(self) -> ImageSpec:
        """How bytes become the network's input."""
        return self.bundle.image

    @property
    def operating_point(self) -> OperatingPoint:
        """Where pass ends and fail begins."""
        return self.bundle.head.operating_point

    def decode(self, payload: bytes | bytearray | memoryview | None) -> np.ndarray:
        """uint8 (h, w, 3) as the graph takes it. Raises FrameError where the bytes are no usable image."""
        return preprocess(payload, self.bundle.image)

    def score(self, images: np.ndarray) -> ScoredBatch:
        """Predictions for uint8 (n, h, w, 3) images; an image's answer does not depend on the others."""
        start_s = time.perf_counter()
        features = self.features(images)
        inferred_s = time.perf_counter()
        predictions = self.predict(images, features)
        done_s = time.perf_counter()
        return ScoredBatch(tuple(predictions), (inferred_s - start_s) * 1e3, (done_s - inferred_s) * 1e3)

    def features(self, images: np.ndarray, *, locations: bool = False) -> Features:
        """What the backend computes of uint8 (n, h, w, 3) images under the bundle's head."""
        return self.backend.infer(images, self._weights, self._biases, locations=locations)

    def predict(self, images: np.ndarray, features: Features) -> list[Prediction]:
        """Predictions from the images' own features."""
        return self.bundle.head.predict(images, features.evidence[:, 0], features.pooled)

    def close(self) -> None:
        """Give the backend back."""
        self.backend.close()

    def __enter__(self) -> Self:
        """The scorer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def open_scorer(
    location: str | Path,
    backend: str = "auto",
    *,
    tensorrt: TensorRTOptions | None = None,
    cache: Path | None = None,
    station: str | None = None,
) -> Scorer:
    """Open a bundle on a backend.

    Args:
        location: path or URL of the bundle.
        backend: a name in `engine.choice.BACKENDS`.
        tensorrt: for TensorRT alone.
        cache: folder for bundles from URLs; None: URLs are refused.
        station: decides at its own operating point, where it has one.

    Raises:
        BundleError: the bundle is not there or not whole.
        RemoteError: it cannot be fetched.
        InputError: there is no such backend.
        DeviceError, PlanError: the backend asked for cannot run here.
    """
    bundle = open_located(location, cache)
    if station is not None:
        bundle = replace(bundle, head=bundle.head.at(station))
    return Scorer(bundle, open_for(bundle, backend, tensorrt=tensorrt))
