"""One backend and the heads that share its batches. It closes when nobody needs it any more, and not before."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np

from consumer.events import EngineRef
from engine.agreement import compare
from engine.backend import SLOTS, Features
from engine.batch_cost import measure
from engine.errors import BundleError, EngineGoneError, FramegateError, WorkError
from engine.heads import stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.backend import Backend, Ticket
    from engine.batch_cost import CostCurve
    from engine.bundle import Bundle, Reference
    from engine.heads import Head

log = logging.getLogger(__name__)

POLITE_IMAGES = 2
"""Images that a check computes at a time on a lane that judges: a batch never waits for more than these."""

CLOSE_S = 5.0
"""How long closing waits for a batch under way; one that hangs longer must not keep the process."""


class Computing:
    """A batch that a lane was given. `features` once or never, from any thread."""

    def __init__(self, lane: Lane, images: np.ndarray, ticket: Ticket) -> None:
        """Under way; `images` are held, since they are read until it is over."""
        self._lane = lane
        self._images: np.ndarray | None = images
        self._ticket = ticket
        self._found: Features | Exception | None = None

    def wait(self) -> None:
        """Return when it is over, however it went. Raises nothing; may be called again."""
        self._lane.wait(self)

    def features(self) -> Features:
        """What it gave; waits for it. Raises as `Backend.collect`; WorkError where the lane was closed meanwhile."""
        self.wait()
        found = cast("Features | Exception", self._found)
        if isinstance(found, Exception):
            raise found
        return found

    @property
    def over(self) -> bool:
        """Whether it is."""
        return self._found is not None

    def end(self, backend: Backend | None, closed: WorkError) -> None:
        """For the lane, under its lock: collect it; without a backend it is given up."""
        try:
            self._found = closed if backend is None else backend.collect(self._ticket)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is for whoever wants the features
            self._found = error
        self._images = None


class Lane:
    """A backend, opened, and how many need it.

    Everything may be called from several threads; one at a time deals with the backend. Not more is with it than its
    slots hold: where they are taken, whoever comes next waits for the oldest batch, whose features are kept for whoever
    gave it. `submit` is for whoever judges; `infer` is for guests, who compute a little now and then, and while they do
    `ahead` is 1: so a batch that judges waits for no more than what they compute at a time.

    Whoever makes a lane needs it; every other need begins with `hold` and ends with `let_go`.

    Attributes:
        featurizer: sha256 of the graph.
        engine: what computes.
        largest: images in the largest batch.
        most_heads: heads in one batch, at most.
        costs: what a batch takes by its size; None: not measured.
    """

    def __init__(self, featurizer: str, backend: Backend) -> None:
        """Take over a backend that was opened on this graph."""
        self.featurizer = featurizer
        self.engine = EngineRef(backend.name, backend.device, backend.precision)
        self.largest = backend.profile.largest
        # A TensorRT plan is built for so many; a processor takes any number.
        self.most_heads: float = getattr(backend, "most_heads", math.inf)
        self.costs: CostCurve | None = None
        self._backend = backend
        # A backend in another process may say where it reads frames, and takes them one by one from there.
        self._frame: Callable[[], np.ndarray | None] | None = getattr(backend, "frame", None)
        self._warm_to = 0
        self._out: deque[Computing] = deque()
        self._guests = 0
        self._computing = threading.Lock()
        self._counting = threading.Lock()
        self._needs = 1
        self._closed = threading.Event()

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(h, w, 3) of the images that the graph takes."""
        return self._backend.inputs[0].shape[1:]

    @property
    def ahead(self) -> int:
        """Batches that are to be given to it at a time by whoever judges."""
        return 1 if self._guests else SLOTS

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
                while self._out:
                    self._out.popleft().end(None, self._is_closed())
        finally:
            self._computing.release()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until the backend is given back. False: not yet."""
        return self._closed.wait(timeout_s)

    def frame(self) -> np.ndarray | None:
        """Room for one image where the backend reads it, uint8 (h, w, 3); None: there is none. From any thread."""
        return None if self._frame is None else self._frame()

    def submit(self, images: np.ndarray | Sequence[np.ndarray], heads: Sequence[Head]) -> Computing:
        """Begin uint8 (n, h, w, 3) images, or n of (h, w, 3), under each head; they must stay as they are.

        Raises:
            BatchError, HeadError, DeviceError: as `Backend.submit`.
            WorkError: the lane is closed.
        """
        if self._frame is None and not isinstance(images, np.ndarray):
            images = np.stack(images)
        return self._submit(cast("np.ndarray", images), *stack(heads))

    def infer(self, images: np.ndarray, heads: Sequence[Head]) -> Features:
        """`submit`, and wait for its features, as a guest. Raises as `Backend.infer`."""
        with self._as_guest():
            return self.submit(images, heads).features()

    def wait(self, computing: Computing) -> None:
        """Collect what was submitted, up to this one."""
        while not computing.over:
            with self._computing:  # given up between two, for others to find theirs collected
                if not computing.over:
                    self._end_oldest()

    @contextmanager
    def _as_guest(self) -> Iterator[None]:
        with self._counting:
            self._guests += 1
        try:
            yield
        finally:
            with self._counting:
                self._guests -= 1

    def _submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> Computing:
        with self._computing:
            if self._closed.is_set():
                raise self._is_closed()
            if len(self._out) >= SLOTS:
                self._end_oldest()
            computing = Computing(self, images, self._backend.submit(images, weights, biases))
            self._out.append(computing)
            return computing

    def _end_oldest(self) -> None:
        self._out.popleft().end(self._backend, self._is_closed())

    def _is_closed(self) -> WorkError:
        return WorkError(f"the engine on {self.engine} is closed: expected whoever computes to hold it")

    def warm(self, largest: int, *, gently: bool = False) -> None:
        """Compute once in every size of batch up to `largest` that was not computed yet.

        Args:
            largest: images in the largest batch.
            gently: rest after each for as long as it took: another lane judges meanwhile, perhaps on the same cores.
        """
        for size in range(self._warm_to + 1, largest + 1):
            began_s = time.monotonic()
            self._infer_blank(size)
            self._warm_to = size
            if gently:
                time.sleep(time.monotonic() - began_s)

    def measure(self, most: int, *, gently: bool = False) -> CostCurve:
        """What batches take by their size; measured once in a lane's life.

        Args:
            most: images in the largest batch that may be wanted; no larger one is tried.
            gently: as in `warm`.
        """
        if self.costs is None:
            self.costs = measure(
                self._infer_blank,
                min(most, self.largest),
                clock=time.perf_counter,
                rest=time.sleep if gently else lambda _s: None,
            )
            told = ", ".join(
                f"{size}: {seconds * 1e3:.2f} ms"
                for size, seconds in zip(self.costs.sizes, self.costs.seconds, strict=True)
            )
            log.info("batches on %s take %s; up to %d are worth it", self.engine.device, told, self.costs.worth)
        return self.costs

    def _infer_blank(self, size: int) -> None:
        """One batch of black images under one head."""
        channels = self._backend.inputs[1].shape[0] or 0
        weights, biases = np.zeros((channels, 1), np.float32), np.zeros(1, np.float32)
        sides = tuple(side or 0 for side in self.image_shape)
        with self._as_guest():
            self._submit(np.zeros((size, *sides), np.uint8), weights, biases).features()

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
        with self._as_guest():
            parts = [self.infer(images[i : i + POLITE_IMAGES], [head]) for i in range(0, len(images), POLITE_IMAGES)]
        return Features(np.concatenate([p.evidence for p in parts]), np.concatenate([p.pooled for p in parts]))
