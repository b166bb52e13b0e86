"""A backend whose work is done in another process, which does it for several workers. Meets `engine.backend.Backend`.

What the engine's process has of us it has in memory that is ours: when it dies, the memory stays, and the next one is
given it again with all that was not answered. So a process that is killed costs time and nothing else. A thread looks
whether it is there while nobody waits for it, so that no frame has to wait until the next one has loaded its graph.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backend import Features, Slots, Ticket, check_batch, check_frames
from engine.bundle import pack_bundle
from engine.errors import DeviceError, EngineGoneError, FramegateError, HeadError
from engine.shared_layout import Layout, Views
from engine.shared_memory import map_memory, memory_with, new_memory
from engine.shared_pool import FramePool
from engine.shared_wire import (
    DONE,
    FAILED,
    MAP,
    MAPPED,
    OPEN,
    OPENED,
    REFUSED,
    PeerGoneError,
    Submit,
    connect,
    done_number,
    error_of,
    is_over,
    receive,
    send,
    with_json,
)
from engine.specs import BatchProfile, TensorSpec

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from engine.bundle import Bundle

log = logging.getLogger(__name__)

POOL_BYTES = 64 << 20
"""Of frames that may be decoded ahead, unless more is asked for."""

_RETRY_S = 0.05
_LOOK_S = 0.5
_LEAST_S = 0.001


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the engine's process is waited for.

    Attributes:
        open_s: until it has opened a featurizer; a plan may have to be built first.
        answer_s: for one batch, through all deaths of the process meanwhile.
        opening_deaths: so many deaths while it opens a bundle, and the bundle is refused.
    """

    open_s: float = 1800.0
    answer_s: float = 180.0
    opening_deaths: int = 2


@dataclass(slots=True, eq=False)
class _Batch:
    """Submitted and not collected. Its frames are held, since they are read until it is done."""

    order: Submit
    frames: Sequence[np.ndarray]
    found: Features | FramegateError | None = None


class SharedBackend:
    """One featurizer in the engine's process.

    Beyond the contract: what is decoded into a frame of `frame()` and given to `submit` as one of a sequence of frames
    is not copied. `EngineGoneError` is raised where the engine's process is away for too long; nothing else depends on
    its life.

    Attributes:
        most_heads: heads that one batch may have.
    """

    def __init__(
        self,
        address: str,
        bundle: Bundle,
        *,
        largest: int | None = None,
        pool: int | None = None,
        waits: Waits | None = None,
    ) -> None:
        """Have a bundle opened.

        Args:
            address: of the engine's process.
            bundle: what to open; a copy is kept, to be given to the next process whatever then lies where it came from.
            largest: frames in the largest batch that will be submitted; None: as many as the backend takes.
            pool: frames that may be decoded ahead; None: as many as `POOL_BYTES` hold.
            waits: how long to wait.

        Raises:
            FramegateError: of the class and with the text of the error that opening the bundle raised there.
            EngineGoneError: the engine's process was not there for too long.
            DeviceError: it died over this bundle.
        """
        self._address = address
        self._waits = waits or Waits()
        self._link: socket.socket | None = None
        self._slots = Slots()
        self._out: dict[int, _Batch] = {}
        self._closing = threading.Event()
        self._using = threading.RLock()
        self._fds: list[int] = [memory_with(pack_bundle(bundle))]
        try:
            told = self._open_first()
            self._take(told)
            whole = Layout.from_json(told["layout"])
            most = whole.largest if largest is None else min(largest, whole.largest)
            frames = POOL_BYTES // whole.frame_bytes if pool is None else pool
            self._layout = Layout.from_json(whole.to_json() | {"largest": most, "pool": frames})
            self.profile = BatchProfile(1, min(self._best, most), most)
            self._fds.append(new_memory(self._layout.n_bytes))
            self._views = Views(self._layout, memoryview(map_memory(self._fds[1], self._layout.n_bytes)))
            self._pool = FramePool(self._views)
            self._map_first(time.monotonic() + self._waits.answer_s)
        except BaseException:
            self.close()
            raise
        threading.Thread(
            target=_look_again_and_again, args=(weakref.ref(self), self._closing), name="engine-there", daemon=True
        ).start()

    def frame(self) -> np.ndarray | None:
        """Room for one frame where the engine reads it, uint8 (h, w, 3); None where all is taken. From any thread.

        It is the caller's for as long as the array, or a view of it, is held.
        """
        return self._pool.take()

    def infer(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        weights: np.ndarray,
        biases: np.ndarray,
        *,
        locations: bool = False,
    ) -> Features:
        """See `Backend.infer`."""
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        weights: np.ndarray,
        biases: np.ndarray,
        *,
        locations: bool = False,
    ) -> Ticket:
        """See `Backend.submit`. `images` may also be a sequence of (h, w, 3) frames."""
        with self._using:
            return self._submit(self._checked(images, weights, biases), weights, biases, locations=locations)

    def _submit(
        self, frames: Sequence[np.ndarray], weights: np.ndarray, biases: np.ndarray, *, locations: bool
    ) -> Ticket:
        """Put a batch where the engine reads it, and say so."""
        ticket, slot = self._slots.take()
        cells = []
        for place, frame in enumerate(frames):
            cell = self._pool.cell_of(frame)
            if cell is None:
                cell = slot * self._layout.largest + place
                self._views.frames[cell] = frame
            cells.append(cell)
        count = weights.shape[1]
        there = self._views.heads(slot, count)
        there[0][...], there[1][...] = weights, biases
        batch = _Batch(Submit(ticket.number, slot, count, locations, tuple(cells)), frames)
        self._out[ticket.number] = batch
        if self._link is not None:
            try:
                send(self._link, batch.order.to_bytes())
            except PeerGoneError:
                self._lose()  # whoever collects has it submitted again
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        """See `Backend.collect`.

        Raises:
            EngineGoneError: the engine's process was away, or silent, for too long. The frames can be judged again.
        """
        with self._using:
            self._slots.slot(ticket)
            batch = self._out[ticket.number]
            try:
                found = self._wait_for(batch)
            finally:
                del self._out[ticket.number]
                self._slots.give_back(ticket)
        if isinstance(found, Features):
            return found
        raise found

    def look(self) -> None:
        """Where the engine's process has died while nobody waited for it, have the next one make ready. Any thread."""
        if not self._using.acquire(blocking=False):
            return  # whoever waits for a batch sees to it
        try:
            if self._link is not None and not self._out and is_over(self._link):
                self._lose()
            if self._link is None and not self._closing.is_set():
                self._come_back(time.monotonic() + self._waits.answer_s)
        except EngineGoneError as error:
            log.warning("%s", error)
        finally:
            self._using.release()

    def close(self) -> None:
        """See `Backend.close`. The memory goes once the last frame of it is let go."""
        self._closing.set()
        if (link := self._link) is not None:
            with suppress(OSError):
                link.shutdown(SHUT_RDWR)  # it may be waited on: see `look`
        with self._using:
            self._hang_up()
            self._out.clear()
            while self._fds:
                os.close(self._fds.pop())

    def _checked(
        self, images: np.ndarray | Sequence[np.ndarray], weights: np.ndarray, biases: np.ndarray
    ) -> Sequence[np.ndarray]:
        """The frames. Raises as `Backend.infer`, before anything is touched."""
        if isinstance(images, np.ndarray):
            check_batch(self.inputs, images, weights, biases, largest=self.profile.largest)
            frames: Sequence[np.ndarray] = list(images)
        else:
            check_frames(self.inputs, images, weights, biases, largest=self.profile.largest)
            frames = images
        if weights.shape[1] > self.most_heads:
            msg = (
                f"batch has {weights.shape[1]} heads: expected at most {self.most_heads}, as many as the engine's "
                "process takes from one worker; score them in turns"
            )
            raise HeadError(msg)
        return frames

    def _take(self, told: dict[str, Any]) -> None:
        """What the featurizer is."""
        self._told = told
        self.name: str = told["name"]
        self.device: str = told["device"]
        self.precision: str = told["precision"]
        self.most_heads: int = told["most_heads"]
        self.inputs = tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in told["inputs"])
        self._best: int = told["profile"][1]

    def _open_first(self) -> dict[str, Any]:
        """Have the bundle opened for the first time; it may be what kills the process."""
        deadline_s = time.monotonic() + self._waits.open_s
        deaths = 0
        while True:
            self._link = self._connected(deadline_s)
            try:
                return self._open(deadline_s)
            except PeerGoneError as error:
                self._hang_up()
                deaths += 1
                if deaths >= self._waits.opening_deaths:
                    msg = (
                        f"the engine's process ended {deaths} times while it opened this bundle ({error}): expected "
                        "it to stay; see its log, and try another backend"
                    )
                    raise DeviceError(msg) from error
                time.sleep(_RETRY_S)

    def _connected(self, deadline_s: float) -> socket.socket:
        """A connection, as soon as somebody listens. Raises EngineGoneError."""
        while True:
            try:
                return connect(self._address)
            except PeerGoneError as error:
                if time.monotonic() >= deadline_s or self._closing.is_set():
                    raise EngineGoneError(_gone(str(error))) from error
                time.sleep(_RETRY_S)

    def _open(self, deadline_s: float) -> dict[str, Any]:
        """Have the bundle opened on this connection. Raises what was raised there, and PeerGoneError."""
        send(self._linked(), OPEN, self._fds[0])
        kind, document = self._hear(deadline_s)
        if kind == REFUSED:
            raise error_of(document)
        if kind != OPENED:
            msg = f"said {kind!r} where a featurizer was to be opened"
            raise PeerGoneError(msg)
        return document

    def _map_first(self, deadline_s: float) -> None:
        """Give it our memory; the bundle is open by now, so it kills nothing. Raises EngineGoneError."""
        try:
            self._map(deadline_s)
        except PeerGoneError:
            self._lose()
            self._come_back(deadline_s)

    def _map(self, deadline_s: float) -> None:
        """Give it our memory. Raises PeerGoneError."""
        send(self._linked(), with_json(MAP, self._layout.to_json()), self._fds[1])
        kind, _ = self._hear(deadline_s)
        if kind != MAPPED:
            msg = f"said {kind!r} where memory was to be mapped"
            raise PeerGoneError(msg)

    def _hear(self, deadline_s: float) -> tuple[bytes, dict[str, Any]]:
        """Its next word. Raises PeerGoneError, and EngineGoneError where it is silent for too long."""
        link = self._linked()
        link.settimeout(max(_LEAST_S, deadline_s - time.monotonic()))
        try:
            kind, body, fd = receive(link)
        except TimeoutError as error:
            raise EngineGoneError(_gone("it is silent")) from error
        if fd is not None:
            os.close(fd)
        return kind, {"number": done_number(body)} if kind == DONE else json.loads(body)

    def _linked(self) -> socket.socket:
        if self._link is None:
            msg = "not connected"
            raise PeerGoneError(msg)
        return self._link

    def _wait_for(self, batch: _Batch) -> Features | FramegateError:
        """What becomes of a batch. Raises EngineGoneError."""
        deadline_s = time.monotonic() + self._waits.answer_s
        while batch.found is None:
            try:
                if self._link is None:
                    self._come_back(deadline_s)
                kind, document = self._hear(deadline_s)
            except PeerGoneError:
                self._lose()
                continue
            except EngineGoneError:
                self._hang_up()  # should it wake up, it must not write where another batch lies by then
                raise
            answered = self._out.get(document.get("number", 0))
            if answered is None or kind not in {DONE, FAILED}:
                self._lose()  # out of step: begin anew
            else:
                answered.found = self._features(answered.order) if kind == DONE else error_of(document)
        return batch.found

    def _come_back(self, deadline_s: float) -> None:
        """Give the next process what the last one had: the bundle, the memory, and all that was not answered.

        Raises:
            EngineGoneError: there is none in time, or it is another engine than the one that our verdicts name.
        """
        while not self._closing.is_set():
            self._link = self._connected(deadline_s)
            try:
                self._expect_the_same(self._open(deadline_s))
                self._map(deadline_s)
                for batch in self._out.values():
                    if batch.found is None:
                        send(self._linked(), batch.order.to_bytes())
            except PeerGoneError:
                self._hang_up()
            except EngineGoneError:
                self._hang_up()
                raise
            except FramegateError as error:
                # It was good once, so this is not the bundle's fault: the device may need a moment.
                self._hang_up()
                if time.monotonic() >= deadline_s:
                    raise EngineGoneError(_gone(str(error))) from error
                log.warning("the engine's process refuses what it had open before: %s; it is asked again", error)
                time.sleep(1.0)
            else:
                log.info("the engine's process is back; it is given what was not answered: %d batches", len(self._out))
                return
            time.sleep(_RETRY_S)
        raise EngineGoneError(_gone("it is not waited for any more"))

    def _expect_the_same(self, told: dict[str, Any]) -> None:
        """Raises EngineGoneError where it is another engine than before."""
        if told != self._told:
            msg = (
                f"the engine's process came back as {told['name']} {told['precision']} on {told['device']}: "
                f"expected {self.name} {self.precision} on {self.device}; this worker has to start again"
            )
            raise EngineGoneError(msg)

    def _features(self, order: Submit) -> Features:
        """A slot's numbers, as the caller's own."""
        images = len(order.cells)
        locations = self._views.locations(order.slot, images, order.heads).copy() if order.locations else None
        evidence = self._views.evidence(order.slot, images, order.heads).copy()
        return Features(evidence, self._views.pooled(order.slot, images).copy(), locations)

    def _lose(self) -> None:
        """The engine's process is gone, or as good as that."""
        if self._link is not None:
            log.warning("the engine's process is gone; what it had is given to the next one")
        self._hang_up()

    def _hang_up(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            with suppress(OSError):
                link.close()


def _look_again_and_again(client: weakref.ref[SharedBackend], closing: threading.Event) -> None:
    """The thread's life; it does not keep the client."""
    while not closing.wait(_LOOK_S) and (there := client()) is not None:
        there.look()
        del there


def _gone(why: str) -> str:
    """What to tell who waited in vain."""
    return (
        f"the engine's process does not answer ({why}): expected it to be started again by its supervisor; its log "
        "says why it ends"
    )
