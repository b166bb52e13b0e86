"""The engine's process: opens featurizers for workers, and computes what lies in the memory that they share with it.

One thread reads what the workers say, one opens featurizers, and each featurizer has one that computes. A worker that
is gone is noticed at once; what it had open is closed where nobody else needs it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import selectors
import socket
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.agreement import compare
from engine.backend import SLOTS, Features
from engine.bundle import unpack_bundle
from engine.errors import FramegateError, InputError
from engine.heads import stack
from engine.shared_featurizer import Featurizer
from engine.shared_layout import Layout, Views
from engine.shared_memory import content_of, map_memory
from engine.shared_queue import Request
from engine.shared_wire import (
    MAP,
    MAPPED,
    OPEN,
    OPENED,
    SUBMIT,
    PeerGoneError,
    Submit,
    done,
    failed,
    is_ours,
    receive,
    refused,
    send,
    with_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.shared_featurizer import Computed

log = logging.getLogger(__name__)

LARGEST_BUNDLE_BYTES = 1 << 31
MOST_WORKERS = 1024
"""Connections at once."""

SLOW_WORKER_S = 5.0
"""How long an answer may wait for a worker to take it: it has room for all that it may ask for."""

AGREEMENT_S = 60.0
POLITE_IMAGES = 2
_TURN_S = 0.5


@dataclass(eq=False)
class _Worker:
    """One connection, and so one featurizer that one worker has open."""

    link: socket.socket
    asked: bool = False
    featurizer: Featurizer | None = None
    views: Views | None = None
    taken: set[int] = field(default_factory=set)
    gone: bool = False


@dataclass(eq=False)
class _Open:
    """A featurizer, what it was opened on, and who needs it."""

    featurizer: Featurizer
    graph: str
    image: tuple[Any, ...]
    digests: set[str]
    users: set[_Worker] = field(default_factory=set)


class EngineServer:
    """Serves until `stop`. `run` on one thread; the rest from any.

    Promised to a worker: an answer to each batch that it submits, as from a backend of its own; a featurizer that it
    has open stays open as long as its connection. Batches of several workers on one featurizer are computed together.
    """

    def __init__(
        self,
        listener: socket.socket,
        open_backend: Callable[[Bundle], Backend],
        *,
        must_agree: bool = True,
        told: Callable[[Computed], None] = lambda _: None,
    ) -> None:
        """Serve who connects to `listener`, which belongs to the caller.

        Args:
            listener: from `shared_wire.listen`.
            open_backend: opens what computes for a bundle.
            must_agree: a bundle shares a featurizer that was opened for another one only where that answers as this
                bundle's reference does. To be left out where the backend was asked for by name.
            told: called after each batch, on the featurizers' threads.
        """
        self._listener = listener
        self._open_backend = open_backend
        self._must_agree = must_agree
        self._told = told
        self._selector = selectors.DefaultSelector()
        self._workers: set[_Worker] = set()
        self._open: list[_Open] = []
        self._lock = threading.Lock()
        self._to_open: SimpleQueue[tuple[_Worker, int] | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._opener = threading.Thread(target=self._open_them, name="open-featurizers", daemon=True)

    @property
    def featurizers(self) -> int:
        """Open now."""
        with self._lock:
            return len(self._open)

    @property
    def workers(self) -> int:
        """Connections now: featurizers that workers have open, each counted for each."""
        return len(self._workers)

    def busy_for_s(self, now_s: float) -> float:
        """How long the slowest call to a backend takes already: above any batch's time it hangs."""
        with self._lock:
            return max((entry.featurizer.busy_for_s(now_s) for entry in self._open), default=0.0)

    def stop(self) -> None:
        """Serve no more. From a signal handler or any thread."""
        self._stopping.set()

    def run(self, beat: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`; then close everything. `beat` is called twice a second."""
        self._listener.settimeout(0)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._opener.start()
        beat_at_s = 0.0
        try:
            while not self._stopping.is_set():
                for key, _ in self._selector.select(_TURN_S):
                    if key.data is None:
                        self._accept()
                    else:
                        self._hear(key.data)
                now_s = time.monotonic()
                if now_s >= beat_at_s:
                    beat_at_s = now_s + _TURN_S
                    beat()
        finally:
            self._close()

    def _accept(self) -> None:
        """A worker connects."""
        with suppress(BlockingIOError):
            link, _ = self._listener.accept()
            if len(self._workers) >= MOST_WORKERS or not is_ours(link):
                log.warning("a connection is refused: of another user, or one too many")
                link.close()
                return
            link.settimeout(SLOW_WORKER_S)
            worker = _Worker(link)
            self._workers.add(worker)
            self._selector.register(link, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> None:
        """One message of a worker, or its end."""
        fd = None
        try:
            kind, body, fd = receive(worker.link)
            if kind == SUBMIT:
                self._submit(worker, Submit.from_bytes(body))
            elif kind == OPEN and fd is not None and not worker.asked:
                worker.asked = True
                self._to_open.put((worker, fd))
                fd = None
            elif kind == MAP and fd is not None and worker.featurizer is not None:
                self._map(worker, fd, body)
            else:
                log.warning("a worker is cut off, for it sent a message of kind %r where none was expected", kind)
                self._drop(worker)
        except (PeerGoneError, TimeoutError):
            self._drop(worker)
        except FramegateError as error:
            log.warning("a worker is cut off, for it said what cannot be: %s", error)
            self._drop(worker)
        finally:
            if fd is not None:
                os.close(fd)

    def _map(self, worker: _Worker, fd: int, body: bytes) -> None:
        """Take a worker's memory."""
        try:
            layout = Layout.from_json(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            msg = f"a layout that cannot be read ({error}): expected one of this Framegate"
            raise InputError(msg) from error
        featurizer = worker.featurizer
        if featurizer is None or layout != layout_for(featurizer, layout.largest, layout.pool):
            msg = f"layout {layout} does not fit the featurizer that was opened: expected its sizes"
            raise InputError(msg)
        worker.views = Views(layout, memoryview(map_memory(fd, layout.n_bytes)))
        self._say(worker, with_json(MAPPED, {}))

    def _submit(self, worker: _Worker, order: Submit) -> None:
        """Let a batch wait."""
        featurizer, views = worker.featurizer, worker.views
        if featurizer is None or views is None:
            msg = "a batch before there was memory for it: expected one behind it"
            raise InputError(msg)
        layout = views.layout
        fits = (
            order.slot < SLOTS
            and order.slot not in worker.taken
            and 0 < len(order.cells) <= layout.largest
            and max(order.cells) < layout.cells
            and 0 < order.heads <= layout.heads
        )
        if not fits:
            msg = f"{order} does not fit {layout}: expected a free slot, and cells and heads that are there"
            raise InputError(msg)
        worker.taken.add(order.slot)
        weights, biases = views.heads(order.slot, order.heads)
        featurizer.add(
            Request(
                [views.frames[cell] for cell in order.cells],
                weights,
                biases,
                order.locations,
                partial(self._answer, worker, views, order),
                lambda: not worker.gone,
            )
        )

    def _answer(self, worker: _Worker, views: Views, order: Submit, found: Features | BaseException) -> None:
        """On a featurizer's thread: put the numbers where the worker looks for them, and say so."""
        if worker.gone:
            return
        images, heads = len(order.cells), order.heads
        if isinstance(found, Features):
            views.evidence(order.slot, images, heads)[...] = found.evidence
            views.pooled(order.slot, images)[...] = found.pooled
            if found.locations is not None:
                views.locations(order.slot, images, heads)[...] = found.locations
        worker.taken.discard(order.slot)
        self._say(worker, done(order.number) if isinstance(found, Features) else failed(order.number, found))

    @staticmethod
    def _say(worker: _Worker, message: bytes) -> None:
        """Tell a worker; one that does not listen is cut off, and dropped when its end is heard."""
        try:
            send(worker.link, message)
        except PeerGoneError:
            with suppress(OSError):
                worker.link.shutdown(socket.SHUT_RDWR)

    def _drop(self, worker: _Worker) -> None:
        """A worker is gone, or has let go of its featurizer."""
        self._selector.unregister(worker.link)
        with self._lock:
            worker.gone = True
            self._workers.discard(worker)
            left = self._without(worker)
        worker.link.close()
        worker.views = None
        for entry in left:
            # Closing may wait for a batch under way, and the others are not to wait for that.
            threading.Thread(target=_close, args=(entry.featurizer,), name="close-featurizer", daemon=True).start()

    def _without(self, worker: _Worker) -> list[_Open]:
        """Under the lock: the featurizers that nobody needs without this worker; they are open no more."""
        left = []
        for entry in self._open:
            if worker in entry.users:
                entry.users.discard(worker)
                if not entry.users:
                    left.append(entry)
        self._open = [entry for entry in self._open if entry not in left]
        return left

    def _open_them(self) -> None:
        """The opening thread's life: one after the other, so that two who want the same get the same."""
        while (wanted := self._to_open.get()) is not None:
            worker, fd = wanted
            try:
                packed = content_of(fd, LARGEST_BUNDLE_BYTES)
                if not worker.gone:
                    self._open_for(worker, packed)
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises belongs to whoever asked for it
                self._say(worker, refused(error))
            finally:
                os.close(fd)

    def _open_for(self, worker: _Worker, packed: bytes) -> None:
        """Give a worker the featurizer of a bundle: an open one where one serves, else a new one. Raises as opening."""
        bundle = unpack_bundle(packed)
        entry = self._serving(worker, bundle) or self._opened(worker, bundle)
        with self._lock:
            worker.featurizer = entry.featurizer
            left = self._without(worker) if worker.gone else []  # it may have gone while we opened
        for closing in left:
            _close(closing.featurizer)
        self._say(worker, with_json(OPENED, _told_of(entry.featurizer)))

    def _opened(self, worker: _Worker, bundle: Bundle) -> _Open:
        """A new one, for a worker."""
        backend = self._open_backend(bundle)
        try:
            featurizer = Featurizer(backend, self._told)
        except BaseException:
            backend.close()
            raise
        graph = hashlib.sha256(bundle.graph).hexdigest()
        entry = _Open(featurizer, graph, _image(bundle), {bundle.digest}, {worker})
        with self._lock:
            self._open.append(entry)
        return entry

    def _serving(self, worker: _Worker, bundle: Bundle) -> _Open | None:
        """One that is open and serves this bundle, for this worker too."""
        graph, image = hashlib.sha256(bundle.graph).hexdigest(), _image(bundle)
        with self._lock:
            candidates = [entry for entry in self._open if (entry.graph, entry.image) == (graph, image)]
        for entry in candidates:
            if not self._must_agree or bundle.digest in entry.digests or self._agrees(bundle, entry.featurizer):
                with self._lock:
                    if entry in self._open:
                        entry.digests.add(bundle.digest)
                        entry.users.add(worker)
                        return entry
        return None

    @staticmethod
    def _agrees(bundle: Bundle, featurizer: Featurizer) -> bool:
        """Whether a featurizer answers as the bundle's reference does; a few images at a time, for it is at work."""
        reference = bundle.reference
        if reference is None:
            return True
        heads = stack([bundle.head])
        try:
            parts = [
                featurizer.infer(list(reference.images[i : i + POLITE_IMAGES]), *heads, AGREEMENT_S)
                for i in range(0, len(reference.images), POLITE_IMAGES)
            ]
        except (FramegateError, FutureTimeoutError):  # closed meanwhile, or too busy: a new one is opened
            return False
        features = Features(np.concatenate([p.evidence for p in parts]), np.concatenate([p.pooled for p in parts]))
        return compare(features, reference, bundle.head, featurizer.backend.precision).agrees

    def _close(self) -> None:
        """Everything, at the end."""
        self._to_open.put(None)
        for worker in list(self._workers):
            worker.gone = True
            worker.link.close()
        self._workers.clear()
        with self._lock:
            entries, self._open = self._open, []
        for entry in entries:
            _close(entry.featurizer)
        self._selector.close()


def layout_for(featurizer: Featurizer, largest: int, pool: int) -> Layout:
    """What lies where, for batches of this featurizer. Raises InputError where it cannot be."""
    shape = featurizer.backend.inputs[0].shape
    if not 0 < largest <= featurizer.backend.profile.largest:
        msg = f"batches of {largest} frames: expected 1 to {featurizer.backend.profile.largest}, what the backend takes"
        raise InputError(msg)
    return Layout(
        height_px=shape[1] or 0,
        width_px=shape[2] or 0,
        channels=featurizer.backend.inputs[1].shape[0] or 0,
        pooled=featurizer.pooled,
        rows=featurizer.grid[0],
        columns=featurizer.grid[1],
        heads=featurizer.most_heads,
        largest=largest,
        pool=pool,
    )


def _told_of(featurizer: Featurizer) -> dict[str, Any]:
    """What a worker has to know of a featurizer."""
    backend = featurizer.backend
    return {
        "name": backend.name,
        "device": backend.device,
        "precision": backend.precision,
        "profile": [backend.profile.smallest, backend.profile.best, backend.profile.largest],
        "inputs": [[spec.name, list(spec.shape), spec.dtype] for spec in backend.inputs],
        "most_heads": featurizer.most_heads,
        "layout": layout_for(featurizer, backend.profile.largest, 0).to_json(),
    }


def _image(bundle: Bundle) -> tuple[Any, ...]:
    """What of an image spec is part of a featurizer: the size, and how it is cut."""
    return bundle.image.height_px, bundle.image.width_px, bundle.image.tile_px


def _close(featurizer: Featurizer) -> None:
    """Close one; it may hang, and then it is left as it is."""
    if not featurizer.close():
        log.warning("an engine on %s is at work for too long and is left as it is", featurizer.backend.device)
    else:
        log.info("a featurizer on %s is closed: no worker needs it", featurizer.backend.device)
