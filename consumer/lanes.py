"""One backend and the heads that share its batches. It closes when nobody needs it any more, and not before."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, cast

import numpy as np

from consumer.events import EngineRef
from engine.agreement import compare
from engine.backend import Features
from engine.errors import BundleError, EngineGoneError, FramegateError, WorkError
from engine.heads import stack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.backend import Backend
    from engine.bundle import Bundle, Reference
    from engine.heads import Head

log = logging.getLogger(__name__)

POLITE_IMAGES = 2
"""Images that a check computes at a time on a lane that judges: a batch never waits for more than these."""

CLOSE_S = 5.0
"""How long closing waits for a batch under way; one that hangs longer must not keep the process."""


class Lane:
    """A backend, opened, and how many need it.

    `infer` may be called from several threads, and computes for one at a time. Whoever makes a lane needs it; every
    other need begins with `hold` and ends with `let_go`.

    Attributes:
        featurizer: sha256 of the graph.
        engine: what computes.
        largest: images in the largest batch.
        most_heads: heads in one batch, at most.
    """

    def __init__(self, featurizer: str, backend: Backend) -> None:
        """Take over a backend that was opened on this graph."""
        self.featurizer = featurizer
        self.engine = EngineRef(backend.name, backend.device, backend.precision)
        self.largest = backend.profile.largest
        # A TensorRT plan is built for so many; a processor takes any number.
        self.most_heads: float = getattr(backend, "most_heads", math.inf)
        self._backend = backend
        # A backend in another process may say where it reads frames, and takes them one by one from there.
        self._frame: Callable[[], np.ndarray | None] | None = getattr(backend, "frame", None)
        self._warm_to = 0
        self._computing = threading.Lock()
        self._counting = threading.Lock()
        self._needs = 1
        self._closed = threading.Event()

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(h, w, 3) of the images that the graph takes."""
        return self._backend.inputs[0].shape[1:]

    def hold(self) -> bool:
        """Need it. False: too late, the last need is over and it closes."""
        with self._counting:
            if self._needs == 0:
                return False
            self._needs += 1
            return True

    def let_go(self) -> None:
        """Need it no more. The last one to do so has it closed, on a thread of its own: closing may take a while."""
        with self._counting:
            self._needs -= 1
            last = self._needs == 0
        if last:
            threading.Thread(target=self.close, name="close-engine", daemon=True).start()

    def close(self) -> None:
        """Give the backend back, whoever may need it still. Twice is harmless."""
        if not self._computing.acquire(timeout=CLOSE_S):
            log.warning("an engine on %s is at work for more than %.0f s and is left as it is", self.engine, CLOSE_S)
            return
        try:
            if not self._closed.is_set():
                self._backend.close()
                self._closed.set()
        finally:
            self._computing.release()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until the backend is given back. False: not yet."""
        return self._closed.wait(timeout_s)

    def frame(self) -> np.ndarray | None:
        """Room for one image where the backend reads it, uint8 (h, w, 3); None: there is none. From any thread."""
        return None if self._frame is None else self._frame()

    def infer(self, images: np.ndarray | Sequence[np.ndarray], heads: Sequence[Head]) -> Features:
        """Features of uint8 (n, h, w, 3) images, or n of (h, w, 3), under each head. Raises as `Backend.infer`."""
        if self._frame is None and not isinstance(images, np.ndarray):
            images = np.stack(images)
        return self._infer(cast("np.ndarray", images), *stack(heads))

    def _infer(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> Features:
        with self._computing:
            if self._closed.is_set():
                msg = f"the engine on {self.engine} is closed: expected whoever computes to hold it"
                raise WorkError(msg)
            return self._backend.infer(images, weights, biases)

    def warm(self, largest: int, *, gently: bool = False) -> None:
        """Compute once in every size of batch up to `largest` that was not computed yet.

        Args:
            largest: images in the largest batch.
            gently: rest after each for as long as it took: another lane judges meanwhile, perhaps on the same cores.
        """
        channels = self._backend.inputs[1].shape[0] or 0
        weights, biases = np.zeros((channels, 1), np.float32), np.zeros(1, np.float32)
        sides = tuple(side or 0 for side in self.image_shape)
        for size in range(self._warm_to + 1, largest + 1):
            began_s = time.monotonic()
            self._infer(np.zeros((size, *sides), np.uint8), weights, biases)
            self._warm_to = size
            if gently:
                time.sleep(time.monotonic() - began_s)

    def try_head(self, bundle: Bundle) -> None:
        """See that a bundle's head fits, on one image of noise: all that a head has is looked at, unlike with a blank.

        Raises:
            BundleError: it does not.
            EngineGoneError: the engine is away, which says nothing of the head.
        """
        sides = (bundle.image.height_px, bundle.image.width_px, 3)
        image = np.random.default_rng(0).integers(0, 256, (1, *sides), dtype=np.uint8)
        try:
            features = self.infer(image, [bundle.head])
            bundle.head.predict(image, features.evidence[:, 0], features.pooled)
            bundle.head.features.distance(features.pooled[0])  # not asked for where the pixels are found wanting
        except EngineGoneError:
            raise
        except (FramegateError, ValueError) as error:  # numpy's own for arrays that do not fit each other
            msg = f"bundle {bundle.name!r} has a head that cannot judge an image ({error}); train it again"
            raise BundleError(msg) from error

    def agrees(self, bundle: Bundle) -> bool:
        """Whether this lane answers as the bundle's reference does; a few images at a time, for it may be judging."""
        if bundle.reference is None:
            return True
        features = self._few_at_a_time(bundle.reference, bundle.head)
        return compare(features, bundle.reference, bundle.head, self.engine.precision).agrees

    def _few_at_a_time(self, reference: Reference, head: Head) -> Features:
        images = reference.images
        parts = [self.infer(images[i : i + POLITE_IMAGES], [head]) for i in range(0, len(images), POLITE_IMAGES)]
        return Features(np.concatenate([p.evidence for p in parts]), np.concatenate([p.pooled for p in parts]))
