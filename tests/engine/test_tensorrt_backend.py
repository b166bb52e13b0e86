"""The TensorRT backend's own code, driven over a recording GPU: order of calls, buffers, memory, failures, cures."""

from __future__ import annotations

import gc
import itertools
import logging
import subprocess
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engine.backend_onnx import OnnxBackend
from engine.backend_tensorrt import TensorRTBackend
from engine.errors import BatchError, DeviceError, GraphError, HeadError, PlanError
from engine.half import typed_graph
from engine.heads import stack
from engine.specs import BatchProfile
from engine.tensorrt_options import TensorRTOptions
from tests.bundles import graph, pictures, small_head
from tests.fake_tensorrt import ExecutionContext, FakeTensorRT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.tensorrt_build import BuildStep

HEADS = stack([small_head(0), small_head(1)])
SMALL = BatchProfile(1, 4, 8)


@pytest.fixture
def trt() -> FakeTensorRT:
    return FakeTensorRT()


def settings(folder: Path, **changes: Any) -> TensorRTOptions:
    return TensorRTOptions(**{"precision": "fp32", "throughput": SMALL, "plans": folder, "warm": False, **changes})


@pytest.fixture
def backend(trt: FakeTensorRT, tmp_path: Path) -> Iterator[TensorRTBackend]:
    opened = TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)
    yield opened
    opened.close()


def test_it_answers_as_the_reference_does(backend: TensorRTBackend) -> None:
    reference = OnnxBackend(graph(), streams=1)
    images = pictures(7)
    for count in range(1, 8):
        mine = backend.infer(images[:count], *HEADS, locations=True)
        theirs = reference.infer(images[:count], *HEADS, locations=True)
        np.testing.assert_array_equal(mine.evidence, theirs.evidence)
        np.testing.assert_array_equal(mine.pooled, theirs.pooled)
        assert mine.locations is not None
        assert theirs.locations is not None
        np.testing.assert_array_equal(mine.locations, theirs.locations)
    reference.close()


def test_what_it_runs_is_the_typed_graph(trt: FakeTensorRT, tmp_path: Path) -> None:
    """In fp16 the numbers are those of the very float16 ONNX, which are not the float32 ones."""
    half = TensorRTBackend(graph(), settings(tmp_path, precision="fp16"), trt=trt, open_device=trt.open_device)
    reference = OnnxBackend(typed_graph(graph(), "fp16"), streams=1)
    plain = OnnxBackend(graph(), streams=1)
    images = pictures(2)
    mine = half.infer(images, *HEADS)
    assert half.precision == "fp16"
    np.testing.assert_array_equal(mine.pooled, reference.infer(images, *HEADS).pooled)
    assert np.abs(mine.pooled - plain.infer(images, *HEADS).pooled).max() > 0
    for opened in (half, reference, plain):
        opened.close()


def test_calls_come_in_order(backend: TensorRTBackend, trt: FakeTensorRT) -> None:
    gpu = trt.opened()
    for locations, copies in ((False, 2), (True, 3)):
        gpu.journal.clear()
        backend.infer(pictures(2), *HEADS, locations=locations)
        assert gpu.journal == [
            *["copy in"] * 3,
            *["set shape"] * 3,
            "execute",
            *["copy out"] * copies,
            "record event",
            "wait event",
        ]


def test_nothing_is_made_once_it_runs(backend: TensorRTBackend, trt: FakeTensorRT) -> None:
    gpu = trt.opened()
    gpu.journal.clear()
    used = gpu.used_bytes
    for size in (1, 8, 3, 8):
        backend.infer(pictures(size), *HEADS, locations=True)
    assert gpu.used_bytes == used
    assert not {"alloc", "alloc pinned", "make stream", "make event", "create context"} & set(gpu.journal)


@pytest.mark.usefixtures("backend")
def test_each_context_serves_one_profile_of_one_stream(trt: FakeTensorRT) -> None:
    assert [build["profiles"][0]["images"][2][0] for build in trt.builds] == [4, 8]
    served = [(context._stream, context._ranges["images"][2][0]) for context in trt.contexts]
    streams = sorted({stream for stream, _ in served})
    assert sorted(served) == sorted(itertools.product(streams, [4, 8]))
    assert len(streams) == 2
    addresses = [frozenset(context._addresses.values()) for context in trt.contexts]
    assert len(set(addresses)) == 2  # the contexts of a lane share its buffers, the lanes share none
    assert not frozenset.intersection(*set(addresses))


@pytest.mark.parametrize(("size", "largest"), [(1, 4), (4, 4), (5, 8), (8, 8)])
def test_small_batches_go_by_the_latency_profile(
    size: int, largest: int, backend: TensorRTBackend, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    execute = ExecutionContext.execute_async_v3

    def noting(self: ExecutionContext, stream: int) -> bool:
        used.append(self._ranges["images"][2][0])
        return execute(self, stream)

    monkeypatch.setattr(ExecutionContext, "execute_async_v3", noting)
    backend.infer(pictures(size), *HEADS)
    assert used == [largest]
    assert len(trt.contexts) == 4


def test_lanes_do_not_touch_each_other(backend: TensorRTBackend) -> None:
    """Nothing of either batch has run when the second is queued: what one overwrote of the other would show."""
    one, two = pictures(8), pictures(5, seed=1)
    expected = [backend.infer(images, *HEADS, locations=True) for images in (one, two)]
    for order in ((0, 1), (1, 0)):
        weights = HEADS[0].copy()
        tickets = [backend.submit(one, weights, HEADS[1], locations=True), backend.submit(two, *HEADS, locations=True)]
        weights[:] = np.nan
        for index in order:
            found = backend.collect(tickets[index])
            np.testing.assert_array_equal(found.evidence, expected[index].evidence)
            np.testing.assert_array_equal(found.pooled, expected[index].pooled)
            assert found.locations is not None
            assert expected[index].locations is not None
            np.testing.assert_array_equal(found.locations, expected[index].locations)


def test_answers_are_the_callers(backend: TensorRTBackend) -> None:
    four = stack([small_head(seed) for seed in range(4)])  # a whole group: nothing is cut off, so nothing copied by it
    first = backend.infer(pictures(2), *four, locations=True)
    assert first.locations is not None
    kept = [values.copy() for values in (first.evidence, first.pooled, first.locations)]
    for seed in range(3):
        backend.infer(pictures(2, seed=9 + seed), *four, locations=True)
    for values, before in zip((first.evidence, first.pooled, first.locations), kept, strict=True):
        np.testing.assert_array_equal(values, before)
        assert values.flags.owndata
        assert values.flags.c_contiguous


def test_frames_that_lie_apart_are_taken_as_they_lie(tmp_path: Path) -> None:
    trt = FakeTensorRT()
    opened = TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)
    images = pictures(5)
    expected = opened.infer(images, *HEADS)
    found = opened.collect(opened.submit([image.copy() for image in images], *HEADS))
    np.testing.assert_array_equal(found.evidence, expected.evidence)
    np.testing.assert_array_equal(found.pooled, expected.pooled)
    with pytest.raises(BatchError, match="expected uint8"):
        opened.submit([images[0], images[1][:32]], *HEADS)
    with pytest.raises(BatchError, match=r"batch has 0 images: expected 1 to"):
        opened.submit([], *HEADS)
    opened.close()


def test_a_head_beside_it_changes_no_bit(backend: TensorRTBackend) -> None:
    images = pictures(3)
    alone = backend.infer(images, *stack([small_head(1)]))
    for count in (2, 5, 64):
        beside = backend.infer(images, *stack([small_head(seed) for seed in range(count)]))
        np.testing.assert_array_equal(beside.evidence[:, 1], alone.evidence[:, 0])


def test_limits_are_named(backend: TensorRTBackend) -> None:
    assert backend.profile == SMALL
    with pytest.raises(BatchError, match="batch has 9 images: expected at most 8"):
        backend.infer(pictures(9), *HEADS)
    with pytest.raises(HeadError, match="batch has 65 heads: expected at most 64"):
        backend.infer(pictures(1), *stack([small_head(seed) for seed in range(65)]))
    with pytest.raises(BatchError, match="expected uint8"):
        backend.infer(pictures(1).astype(np.float32), *HEADS)
    assert backend.infer(pictures(1), *HEADS).evidence.shape == (1, 2)


def test_everything_is_released_in_order(trt: FakeTensorRT, tmp_path: Path) -> None:
    opened = TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)
    gpu = trt.opened()
    opened.submit(pictures(2), *HEADS)  # given up
    gpu.journal.clear()
    opened.close()
    opened.close()
    order = [what for what, _ in itertools.groupby(gpu.journal) if what.startswith(("context", "engine", "runtime"))]
    assert order == ["context gone", "engine gone", "runtime gone"]
    ends = {
        what: (gpu.journal.index(what), len(gpu.journal) - 1 - gpu.journal[::-1].index(what)) for what in gpu.journal
    }
    assert ends["runtime gone"][1] < min(ends[f"free {kind}"][0] for kind in ("device", "pinned", "stream", "event"))
    assert gpu.journal[-1] == "close device"
    assert gpu.journal.count("close device") == 1
    assert gpu.used_bytes == 0
    assert "engine-cuda" not in {thread.name for thread in threading.enumerate()}


def test_a_backend_that_nobody_closes_is_closed_when_it_goes(trt: FakeTensorRT, tmp_path: Path) -> None:
    opened = TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)
    opened.submit(pictures(2), *HEADS)
    del opened
    gc.collect()
    assert trt.opened().journal[-1] == "close device"
    assert "engine-cuda" not in {thread.name for thread in threading.enumerate()}


def test_a_backend_that_is_open_when_python_ends_is_closed(tmp_path: Path) -> None:
    """pycuda aborts the process where a thread ends with a context on it."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.engine.test_tensorrt_backend import *\n"
        "from tests.fake_tensorrt import FakeGpu\n"
        "close = FakeGpu.close\n"
        "def closing(self): close(self); print('closed'); sys.stdout.flush()\n"
        "FakeGpu.close = closing\n"
        "trt = FakeTensorRT()\n"
        "opened = TensorRTBackend(graph(), settings(Path(sys.argv[1])), trt=trt, open_device=trt.open_device)\n"
        "print(opened.infer(pictures(1), *HEADS).evidence.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 2)", "closed"]
    assert done.stderr == ""


CALLS = {
    "Builder": (DeviceError, "cannot start its builder .* told to"),
    "Runtime": (DeviceError, "cannot start its runtime .* told to"),
    "build_serialized_network": (PlanError, "built no plan .* told to"),
    "create_execution_context": (DeviceError, "makes no execution context .* told to"),
    "set_optimization_profile_async": (DeviceError, "refuses profile 0 .* told to"),
    "set_tensor_address": (DeviceError, "refuses the buffer of images .* told to"),
    "set_input_shape": (DeviceError, r"refuses the shape \(1, 64, 64, 3\) of input images .* told to"),
    "execute_async_v3": (DeviceError, "does not run 1 images under 4 heads .* told to"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_returns_nothing_becomes_an_error_and_all_is_given_back(
    call: str, trt: FakeTensorRT, tmp_path: Path
) -> None:
    kind, message = CALLS[call]
    trt.fail[call] = 1
    with pytest.raises(kind, match=message) as caught:
        TensorRTBackend(graph(), settings(tmp_path, warm=True), trt=trt, open_device=trt.open_device)
    assert "expected" in str(caught.value)
    gpu = trt.opened()
    assert gpu.journal[-1] == "close device"
    assert gpu.used_bytes == 0
    live = {
        name: gpu.journal.count(made) - gpu.journal.count(gone)
        for name, made, gone in (
            ("streams", "make stream", "free stream"),
            ("events", "make event", "free event"),
            ("pinned", "alloc pinned", "free pinned"),
        )
    }
    assert set(live.values()) == {0}


def test_half_way_the_objects_go_before_the_context(trt: FakeTensorRT, tmp_path: Path) -> None:
    """A traceback holds its frames, and these hold what was being opened: they must not outlive the CUDA context."""
    trt.fail["execute_async_v3"] = 1
    with pytest.raises(DeviceError) as caught:
        TensorRTBackend(graph(), settings(tmp_path, warm=True), trt=trt, open_device=trt.open_device)
    journal = trt.opened().journal
    assert caught.value.__traceback__ is not None
    assert journal.count("context gone") == journal.count("create context") == 4
    gone = [index for index, what in enumerate(journal) if what.endswith("gone")]
    assert gone
    assert max(gone) < min(index for index, what in enumerate(journal) if what.startswith("free"))
    assert journal[-1] == "close device"


def test_a_failed_batch_leaves_the_other_alone(backend: TensorRTBackend, trt: FakeTensorRT) -> None:
    expected = backend.infer(pictures(3), *HEADS)
    good = backend.submit(pictures(3), *HEADS)
    next(iter(backend._out.values()))[0].result()  # it is queued: the failure is for the next
    trt.fail["execute_async_v3"] = 1
    bad = backend.submit(pictures(2), *HEADS)
    with pytest.raises(DeviceError, match="does not run 2 images"):
        backend.collect(bad)
    with pytest.raises(BatchError, match="is not out"):
        backend.collect(bad)
    np.testing.assert_array_equal(backend.collect(good).evidence, expected.evidence)
    np.testing.assert_array_equal(backend.infer(pictures(3), *HEADS).pooled, expected.pooled)


def test_a_gpu_that_fails_is_named_and_still_closed(trt: FakeTensorRT, tmp_path: Path) -> None:
    opened = TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)
    trt.opened().broken = "a batch (an illegal memory access was encountered)"
    with pytest.raises(DeviceError, match="illegal memory access"):
        opened.infer(pictures(1), *HEADS)
    opened.close()
    assert trt.opened().journal[-1] == "close device"


def test_out_of_memory_halves_the_batch_and_says_so(
    trt: FakeTensorRT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trt.scratch_bytes_per_image = 10_000_000
    trt.capacity_bytes = 50_000_000  # two lanes of two images, not of four
    with caplog.at_level(logging.WARNING):
        opened = TensorRTBackend(graph(), settings(tmp_path, most_heads=4), trt=trt, open_device=trt.open_device)
    assert [record.message for record in caplog.records] == [
        "batches are now at most 4, not 8: out of memory",
        "batches are now at most 2, not 4: out of memory",
    ]
    assert opened.profile == BatchProfile(1, 2, 2)
    assert opened.infer(pictures(2), *HEADS).evidence.shape == (2, 2)
    with pytest.raises(BatchError, match="3 images: expected at most 2"):
        opened.infer(pictures(3), *HEADS)
    opened.close()


def test_no_room_for_one_image_is_an_error(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.capacity_bytes = 10_000
    with pytest.raises(DeviceError, match=r"not even one image fits .* free; end what else runs on it"):
        TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)


def test_a_set_memory_limit_counts_like_a_full_gpu(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.scratch_bytes_per_image = 10_000_000
    opened = TensorRTBackend(
        graph(),
        settings(tmp_path, most_heads=4, memory_limit_bytes=100_000_000),
        trt=trt,
        open_device=trt.open_device,
    )
    assert opened.profile.largest == 4
    assert trt.opened().used_bytes <= 100_000_000
    opened.close()


def test_memory_that_runs_out_as_tensorrt_builds_or_loads_counts_too(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.reason = "Error Code 2: OutOfMemory (Requested size was 14448576 bytes.)"
    for turn, call in enumerate(("build_serialized_network", "deserialize_cuda_engine", "create_execution_context")):
        trt.fail[call] = 1
        opened = TensorRTBackend(graph(), settings(tmp_path / str(turn)), trt=trt, open_device=trt.open_device)
        assert opened.profile.largest == 4, call
        opened.close()


def test_plans_are_built_once_and_warmed_each_time(trt: FakeTensorRT, tmp_path: Path) -> None:
    for turn in range(2):
        steps: list[BuildStep] = []
        opened = TensorRTBackend(
            graph(), settings(tmp_path, warm=True), progress=steps.append, trt=trt, open_device=trt.open_device
        )
        assert [plan.built for plan in opened.plans] == [turn == 0] * 2
        assert sorted(opened.warm_up_s) == list(range(1, 9))
        assert {step.name for step in steps} == ({"Building", "warm up"} if turn == 0 else {"warm up"})
        assert trt.opened().journal.count("execute") == 2 * 8
        opened.close()
    assert len(trt.builds) == 2
    assert all(build["flags"] == ["DISTRIBUTIVE_INDEPENDENCE"] for build in trt.builds)  # and no TF32
    assert all(build["verbosity"] == "DETAILED" for build in trt.builds)
    assert [build["timing"] for build in trt.builds] == [0, 1]  # the second build began with what the first measured


def test_not_exact_is_one_plan_of_two_profiles(trt: FakeTensorRT, tmp_path: Path) -> None:
    opened = TensorRTBackend(graph(), settings(tmp_path, exact=False), trt=trt, open_device=trt.open_device)
    (build,) = trt.builds
    assert [ranges["images"][2][0] for ranges in build["profiles"]] == [4, 8]
    assert build["flags"] == []
    assert opened.infer(pictures(6), *HEADS).evidence.shape == (6, 2)
    opened.close()


def test_a_plan_that_does_not_load_is_rebuilt_once(
    trt: FakeTensorRT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device).close()
    trt.fail["deserialize_cuda_engine"] = 1
    opened = TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)
    assert [plan.built for plan in opened.plans] == [True, False]
    assert "does not load" in caplog.text
    assert opened.infer(pictures(1), *HEADS).evidence.shape == (1, 2)
    opened.close()
    trt.fail["deserialize_cuda_engine"] = 2
    with pytest.raises(PlanError, match=r"does not load though it was built just now .* told to"):
        TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device)
    assert len(trt.builds) == 4
    TensorRTBackend(graph(), settings(tmp_path), trt=trt, open_device=trt.open_device).close()  # nothing bad was kept
    assert len(trt.builds) == 5


def test_an_interrupted_build_ends_and_gives_back(trt: FakeTensorRT, tmp_path: Path) -> None:
    def interrupt(_: BuildStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TensorRTBackend(graph(), settings(tmp_path), progress=interrupt, trt=trt, open_device=trt.open_device)
    assert trt.opened().journal[-1] == "close device"
    assert trt.builds == []
    assert not list(tmp_path.glob("*.plan"))


@pytest.mark.parametrize("data", [b"", b"not a graph", graph()[: len(graph()) // 2]])
def test_a_corrupt_graph_never_reaches_the_gpu(data: bytes, trt: FakeTensorRT, tmp_path: Path) -> None:
    with pytest.raises(GraphError):
        TensorRTBackend(data, settings(tmp_path), trt=trt, open_device=trt.open_device)
    assert trt.gpus == []


def test_without_tensorrt_there_is_one_clear_error() -> None:
    """In a fresh interpreter: nothing of this process may have loaded it."""
    code = (
        "import sys; sys.modules['tensorrt'] = None\n"
        "from engine.backend_tensorrt import TensorRTBackend\n"
        "from engine.errors import DeviceError\n"
        "from tests.bundles import graph\n"
        "try: TensorRTBackend(graph())\n"
        "except DeviceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("TensorRT is not installed")
    assert "[gpu]" in done.stdout
    assert "--backend auto" in done.stdout


class Failing:
    """Finds tensorrt, and fails as it does where its libraries are not."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "tensorrt":
            msg = "libnvinfer.so.11: cannot open shared object file"
            raise ImportError(msg)


def test_a_tensorrt_that_does_not_load_or_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    old: Any = ModuleType("tensorrt")
    old.__version__ = "10.13.3.9"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(DeviceError, match=r"TensorRT 10\.13\.3\.9 is too old: expected 11 or newer"):
        TensorRTBackend(graph())
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(sys, "meta_path", [Failing(), *sys.meta_path])
    with pytest.raises(DeviceError, match=r"cannot be loaded \(libnvinfer.* --backend auto"):
        TensorRTBackend(graph())
