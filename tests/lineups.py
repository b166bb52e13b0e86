"""Bundles on disk that can be told apart by their answers, and what each of them alone would say."""

from __future__ import annotations

import functools
import hashlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from consumer.lineup import Loader
from engine.backbone import build_serving_graph
from engine.backend import open_backend
from engine.bundle import open_bundle, write_bundle
from engine.choice import open_for
from engine.heads import Calibration
from engine.scorer import Scorer
from engine.specs import ImageSpec
from tests.bundles import FEATURIZER, pictures, small_bundle, small_head

if TYPE_CHECKING:
    from pathlib import Path

    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.prediction import Prediction

WIDE = ImageSpec(96, 64)
"""Of another size than the small bundle's, and so of another graph."""


@functools.cache
def wide_graph() -> bytes:
    return build_serving_graph(FEATURIZER, WIDE)


@functools.cache
def bundle_of(seed: int, *, wide: bool = False, name: str | None = None) -> Bundle:
    """A bundle whose head no other seed has, and that decides about half of `jpegs` either way.

    Without reference images, which would only take time.
    """
    bundle = small_bundle(name=name or f"seed-{seed}", head=small_head(seed), with_reference=False)
    if wide:
        head = replace(bundle.head, featurizer=hashlib.sha256(wide_graph()).hexdigest())
        bundle = replace(bundle, graph=wide_graph(), image=WIDE, head=head)
    with Scorer(bundle, open_backend("onnxruntime", bundle.graph)) as scorer:
        images = np.stack([scorer.decode(payload) for payload in jpegs(16, seed=99)])
        features = scorer.features(images)
    logits = [bundle.head.logit(float(e), p) for e, p in zip(features.evidence[:, 0], features.pooled, strict=True)]
    own, scale = bundle.head.calibration, 1.0 / float(np.std(logits))
    calibration = Calibration(
        own.evidence_slope * scale,
        own.pooled_slope * scale,
        (own.intercept - float(np.median(logits))) * scale,
    )
    return replace(bundle, head=replace(bundle.head, calibration=calibration))


def put(place: Path, bundle: Bundle) -> Bundle:
    """Write a bundle, or replace the one that lies there as an operator does: written beside it, then renamed."""
    new, old = (place.with_name(f".{mark}-{place.name}") for mark in ("new", "old"))
    written = write_bundle(new, bundle)
    if place.is_dir():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return written


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """Encoded pictures, larger than any bundle's input."""
    encoded = []
    for image in pictures(count, seed):
        done, data = cv2.imencode(".jpg", cv2.resize(image, (160, 120)), [cv2.IMWRITE_JPEG_QUALITY, 95])
        assert done
        encoded.append(data.tobytes())
    return encoded


class Alone:
    """What bundles say when nothing else is loaded: opened one at a time, on a backend of their own."""

    def __init__(self, backend: str = "onnxruntime") -> None:
        self._backend = backend
        self._known: dict[tuple[str, bytes], Prediction] = {}

    def predictions(self, place: Path | str, payloads: list[bytes]) -> list[Prediction]:
        bundle = open_bundle(place)
        missing = [payload for payload in dict.fromkeys(payloads) if (bundle.digest, payload) not in self._known]
        if missing:
            with Scorer(bundle, open_for(bundle, self._backend)) as scorer:
                for payload in missing:
                    (answer,) = scorer.score(np.stack([scorer.decode(payload)])).predictions
                    self._known[bundle.digest, payload] = answer
        return [self._known[bundle.digest, payload] for payload in payloads]

    def of(self, digest: str, payload: bytes) -> Prediction:
        """Of a bundle that was asked before."""
        return self._known[digest, payload]


class Backends:
    """Opens backends and counts them."""

    def __init__(self, name: str = "onnxruntime") -> None:
        self.name = name
        self.opened: list[str] = []

    def __call__(self, bundle: Bundle) -> Backend:
        self.opened.append(bundle.name)
        return open_for(bundle, self.name)


def loader(backends: Backends | None = None, **where: object) -> Loader:
    """For batches of up to 8 on a backend that is asked for by name."""
    return Loader(backends or Backends(), largest=8, must_agree=False, **where)  # type: ignore[arg-type] # passed on
