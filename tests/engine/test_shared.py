"""The engine that workers share: what travels together, who may die, and what becomes of what was not answered."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.backend import open_backend
from engine.backend_onnx import OnnxBackend
from engine.choice import open_for
from engine.errors import DeviceError, EngineGoneError, GraphError, HeadError, ParityError
from engine.heads import stack
from engine.shared_client import SharedBackend, Waits
from engine.shared_memory import content_of, map_memory, memory_with
from engine.shared_wire import connect, send
from tests.bundles import graph, pictures, small_bundle, small_head
from tests.shared_engine import ROOT, Engine, EngineProcess, memory_bytes, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.backend import Features, Ticket
    from engine.bundle import Bundle

BUNDLE = small_bundle(with_reference=False)
HEADS = stack([small_head(0)])
OTHERS = stack([small_head(1), small_head(2)])


@pytest.fixture(scope="module")
def reference() -> Iterator[OnnxBackend]:
    backend = OnnxBackend(graph(), streams=1)
    yield backend
    backend.close()


class Gated(OnnxBackend):
    """Waits with each batch until it is let through; fails on an image that is wholly 13."""

    def __init__(self) -> None:
        super().__init__(graph(), streams=1)
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        if (images == 13).all(axis=(1, 2, 3)).any():
            msg = "an image of 13: expected another"
            raise DeviceError(msg)
        return super().submit(images, weights, biases, locations=locations)

    def collect(self, ticket: Ticket) -> Features:
        assert self.gate.wait(20)
        return super().collect(ticket)

    def close(self) -> None:
        self.closed = True
        super().close()


class Gates:
    """Opens gated backends and keeps them."""

    def __init__(self) -> None:
        self.opened: list[Gated] = []

    def __call__(self, _bundle: Bundle) -> Gated:
        self.opened.append(Gated())
        return self.opened[-1]


def waiting(engine: Engine) -> int:
    """Batches that the engine has heard of and not answered."""
    return sum(len(worker.taken) for worker in engine.server._workers)


def same(found: Features, expected: Features) -> None:
    np.testing.assert_array_equal(found.evidence, expected.evidence)
    np.testing.assert_array_equal(found.pooled, expected.pooled)


def test_two_workers_travel_in_one_batch_each_under_its_own_heads(reference: OnnxBackend) -> None:
    gates = Gates()
    with Engine(gates) as engine:
        one, two, three = (SharedBackend(engine.address, BUNDLE, pool=0) for _ in range(3))
        (gated,) = gates.opened
        gated.gate.clear()
        first = one.submit(pictures(1), *HEADS)  # keeps the engine busy
        until(lambda: gated._slots._taken != {})
        tickets = [
            two.submit(pictures(3, 1), *HEADS),
            three.submit(pictures(4, 2), *OTHERS),
            one.submit(pictures(2, 3), *HEADS),
        ]
        until(lambda: waiting(engine) == 4)
        gated.gate.set()
        same(one.collect(first), reference.infer(pictures(1), *HEADS))
        same(two.collect(tickets[0]), reference.infer(pictures(3, 1), *HEADS))
        same(three.collect(tickets[1]), reference.infer(pictures(4, 2), *OTHERS))
        same(one.collect(tickets[2]), reference.infer(pictures(2, 3), *HEADS))
        requests = [computed.requests for computed in engine.computed]
        assert sum(requests) == 4
        assert max(requests) >= 2, "not one by one"
        for client in (one, two, three):
            client.close()


def test_one_workers_bad_frames_cost_the_others_nothing(reference: OnnxBackend) -> None:
    gates = Gates()
    with Engine(gates) as engine:
        good, bad, busy = (SharedBackend(engine.address, BUNDLE, pool=0) for _ in range(3))
        (gated,) = gates.opened
        gated.gate.clear()
        first = busy.submit(pictures(1), *HEADS)
        until(lambda: gated._slots._taken != {})
        poison = np.full((1, 64, 64, 3), 13, np.uint8)
        tickets = good.submit(pictures(1, 1), *HEADS), bad.submit(poison, *HEADS)
        until(lambda: waiting(engine) == 3)
        gated.gate.set()
        same(good.collect(tickets[0]), reference.infer(pictures(1, 1), *HEADS))
        with pytest.raises(DeviceError, match=r"^an image of 13: expected another$"):
            bad.collect(tickets[1])
        busy.collect(first)
        assert sum(computed.failed for computed in engine.computed) == 1, "the two went together, and failed together"
        same(bad.infer(pictures(2), *HEADS), reference.infer(pictures(2), *HEADS))
        for client in (good, bad, busy):
            client.close()


def test_a_frame_that_is_decoded_where_it_is_read_is_not_copied(reference: OnnxBackend) -> None:
    with Engine(lambda b: open_for(b, "onnxruntime")) as engine:
        client = SharedBackend(engine.address, BUNDLE, pool=2)
        mine, mine_too = client.frame(), client.frame()
        assert mine is not None
        assert mine_too is not None
        assert client.frame() is None, "all are taken"
        mine[...], mine_too[...] = pictures(2)
        client._views.frames[: 2 * client.profile.largest] = 7
        ticket = client.submit([mine, mine_too], *HEADS)
        assert (client._views.frames[: 2 * client.profile.largest] == 7).all(), "the slots' own cells are not touched"
        expected = reference.infer(pictures(2), *HEADS)
        del mine, mine_too
        gc.collect()
        assert client.frame() is None, "the batch holds them until it is collected"
        same(client.collect(ticket), expected)
        again = client.frame()
        assert again is not None
        view = again[None, ::2]
        del again
        last = client.frame()
        assert last is not None
        assert client.frame() is None, "a view holds its frame"
        del view, last
        strange = pictures(1, 5)[0]
        kept = client.frame()
        assert kept is not None
        kept[...] = pictures(1)[0]
        both = client.infer([strange, kept], *HEADS)
        same(both, reference.infer(np.stack([strange, kept]), *HEADS))
        client.close()


def test_a_featurizer_is_open_as_long_as_somebody_needs_it() -> None:
    gates = Gates()
    with Engine(gates) as engine:
        one, two = (SharedBackend(engine.address, BUNDLE, pool=0) for _ in range(2))
        assert engine.server.featurizers == len(gates.opened) == 1
        one.close()
        until(lambda: engine.server.workers == 1)
        assert two.infer(pictures(1), *HEADS).evidence.shape == (1, 1)
        assert not gates.opened[0].closed
        two.close()
        until(lambda: gates.opened[0].closed)
        assert engine.server.featurizers == 0


def test_bundles_share_a_featurizer_where_it_answers_as_both_their_references_do() -> None:
    first, second, odd = (small_bundle(name=f"b-{seed}", head=small_head(seed)) for seed in (0, 1, 2))
    assert odd.reference is not None
    odd = replace(odd, reference=replace(odd.reference, probabilities=1 - odd.reference.probabilities))
    with Engine(lambda b: open_for(b, "onnxruntime"), must_agree=True) as engine:
        clients = [SharedBackend(engine.address, bundle, pool=0) for bundle in (first, second)]
        assert engine.server.featurizers == 1
        clients.append(SharedBackend(engine.address, odd, pool=0))
        assert engine.server.featurizers == 2
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", [GraphError, ParityError, RuntimeError])
def test_what_cannot_be_opened_is_refused_as_it_would_be_here(kind: type[Exception]) -> None:
    def refuse(_bundle: Bundle) -> OnnxBackend:
        msg = "it is not to be: expected better; train again"
        raise kind(msg)

    with Engine(refuse) as engine:
        expected = DeviceError if kind is RuntimeError else kind
        with pytest.raises(expected, match=r"it is not to be: expected better; train again$") as caught:
            SharedBackend(engine.address, BUNDLE, pool=0)
        assert type(caught.value) is expected
        until(lambda: engine.server.workers == 0)


def test_more_heads_than_a_worker_has_room_for_are_refused() -> None:
    with Engine(lambda b: open_for(b, "onnxruntime")) as engine:
        client = SharedBackend(engine.address, BUNDLE, largest=3, pool=0)
        assert (client.profile.best, client.profile.largest, client.most_heads) == (3, 3, 64)
        with pytest.raises(HeadError, match="batch has 65 heads: expected at most 64"):
            client.submit(pictures(1), np.zeros((256, 65), np.float32), np.zeros(65, np.float32))
        client.close()


def test_who_says_what_cannot_be_is_cut_off_and_the_others_go_on(reference: OnnxBackend) -> None:
    with Engine(lambda b: open_for(b, "onnxruntime")) as engine:
        client = SharedBackend(engine.address, BUNDLE, pool=0)
        for message in (b"S", b"S" + bytes(14), b"M{}", b"Onothing", b"?", bytes(60_000)):
            link = connect(engine.address)
            send(link, message)
            link.settimeout(5)
            assert link.recv(100) == b"", message[:10]
            link.close()
        fd = memory_with(b"no bundle")
        link = connect(engine.address)
        send(link, b"O", fd)
        link.settimeout(5)
        assert b"is not a whole zip" in link.recv(1000)
        send(link, b"O", fd)
        assert link.recv(100) == b"", "one featurizer a connection, and one attempt"
        link.close()
        os.close(fd)
        same(client.infer(pictures(2), *HEADS), reference.infer(pictures(2), *HEADS))
        client.close()


def test_memory_that_could_shrink_is_not_taken() -> None:
    fd = memory_with(b"12345")
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 1)
    assert content_of(fd, 5) == b"12345"
    for read in (lambda: content_of(fd, 4), lambda: map_memory(fd, 4096)):
        with pytest.raises(Exception, match="expected"):
            read()
    os.close(fd)
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, 4096)
    with pytest.raises(Exception, match="sealed against shrinking"):
        map_memory(loose, 4096)
    os.close(loose)


@pytest.mark.slow
def test_an_engine_killed_in_the_middle_of_two_batches_costs_time_and_nothing_else(reference: OnnxBackend) -> None:
    with EngineProcess("slow") as engine:
        client = SharedBackend(engine.address, BUNDLE, pool=2)
        expected = [reference.infer(pictures(count, count), *HEADS) for count in (3, 2)]
        frames = [client.frame() for _ in range(2)]
        for frame, picture in zip(frames, pictures(2, 2), strict=True):
            assert frame is not None
            frame[...] = picture
        tickets = [
            client.submit(pictures(3, 3), *HEADS),
            client.submit([frame for frame in frames if frame is not None], *HEADS),
        ]
        time.sleep(0.1)
        engine.kill()
        engine.start()
        same(client.collect(tickets[1]), expected[1])
        same(client.collect(tickets[0]), expected[0])
        before = client._link
        engine.kill()  # while nobody waits for it
        engine.start()
        until(lambda: client._link not in {before, None})  # without anybody asking
        same(client.infer(pictures(2, 2), *HEADS), expected[1])
        client.close()


@pytest.mark.slow
def test_an_engine_that_hangs_is_waited_for_so_long_and_no_longer(reference: OnnxBackend) -> None:
    with EngineProcess("hangs") as engine:
        client = SharedBackend(engine.address, BUNDLE, pool=0, waits=Waits(answer_s=0.4))
        began_s = time.monotonic()
        with pytest.raises(EngineGoneError, match=r"does not answer \(it is silent\): expected it to be started again"):
            client.infer(pictures(1), *HEADS)
        assert 0.3 < time.monotonic() - began_s < 5
        client.close()
        patient = SharedBackend(engine.address, BUNDLE, pool=0, waits=Waits(answer_s=30.0))
        ticket = patient.submit(pictures(1), *HEADS)
        time.sleep(0.1)
        engine.kill()  # by its supervisor, which sees that it hangs
        engine._backend = "onnxruntime"
        engine.start()
        same(patient.collect(ticket), reference.infer(pictures(1), *HEADS))
        patient.close()


@pytest.mark.slow
def test_an_engine_that_comes_back_as_another_is_not_believed() -> None:
    with EngineProcess("onnxruntime") as engine:
        client = SharedBackend(engine.address, BUNDLE, pool=0)
        engine.kill()
        engine._backend = "modelled"
        engine.start()
        with pytest.raises(EngineGoneError, match=r"came back as modelled fp32 .*: expected onnxruntime fp32"):
            client.infer(pictures(1), *HEADS)
        client.close()


@pytest.mark.slow
def test_a_bundle_that_kills_the_engine_is_refused() -> None:
    with EngineProcess("dies") as engine:

        def again() -> None:
            assert engine._process is not None
            engine._process.wait(20)
            engine.start()

        thread = threading.Thread(target=again)
        thread.start()
        with pytest.raises(DeviceError, match="ended 2 times while it opened this bundle"):
            SharedBackend(engine.address, BUNDLE, pool=0)
        thread.join()


def test_nobody_there_is_said_so() -> None:
    with pytest.raises(EngineGoneError, match="does not answer"):
        SharedBackend("/nowhere/socket", BUNDLE, waits=Waits(open_s=0.1))


WORKER = """
import sys, time
from engine.heads import stack
from engine.shared_client import SharedBackend
from tests.bundles import pictures, small_bundle, small_head
client = SharedBackend(sys.argv[1], small_bundle(with_reference=False), pool=0)
client.submit(pictures(8), *stack([small_head(0)]))
client.submit(pictures(8), *stack([small_head(0)]))
print("submitted", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_batch_leaves_nothing_behind(reference: OnnxBackend) -> None:
    gates = Gates()
    with Engine(gates) as engine:
        client = SharedBackend(engine.address, BUNDLE, pool=0)
        (gated,) = gates.opened
        gated.gate.clear()
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, engine.address], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "submitted\n"
        until(lambda: gated._slots._taken != {})
        ticket = client.submit(pictures(2), *HEADS)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(20)
        worker.stdout.close()
        until(lambda: engine.server.workers == 1)
        gated.gate.set()
        same(client.collect(ticket), reference.infer(pictures(2), *HEADS))
        assert engine.server.featurizers == 1
        client.close()
        until(lambda: gated.closed)


@pytest.mark.slow
def test_fifty_times_opened_and_closed_takes_no_memory() -> None:
    with EngineProcess("onnxruntime") as engine:

        def turn() -> None:
            client = SharedBackend(engine.address, BUNDLE, pool=16)
            client.infer(pictures(16), *HEADS)
            client.close()

        for _ in range(10):
            turn()
        before, here = engine.memory_bytes(), memory_bytes(os.getpid())
        descriptors = len(os.listdir(f"/proc/{engine.pid}/fd"))  # noqa: PTH208 - names are enough
        for _ in range(50):
            turn()
        until(lambda: len(os.listdir(f"/proc/{engine.pid}/fd")) <= descriptors)  # noqa: PTH208 - the same
        assert engine.memory_bytes() - before < 16 << 20
        assert memory_bytes(os.getpid()) - here < 16 << 20


def test_a_process_of_another_kind_at_the_address_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = str(tmp_path_factory.mktemp("s") / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(place)
        other.listen()
        with pytest.raises(EngineGoneError):
            SharedBackend(place, BUNDLE, waits=Waits(open_s=0.1))


def test_a_bundle_crosses_whole() -> None:
    with Engine(lambda b: open_backend("onnxruntime", b.graph)) as engine:
        client = SharedBackend(engine.address, small_bundle(), pool=0)
        assert client.infer(pictures(1), *HEADS).pooled.shape == (1, 768)
        client.close()
