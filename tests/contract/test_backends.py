"""The backend contract, held against every implementation that can run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.backbone import inputs as graph_inputs
from engine.backend import CPU_BACKENDS, open_backend
from engine.backend_modelled import BatchCost, ModelledBackend
from engine.backend_tensorrt import TensorRTBackend
from engine.backend_tiled import TiledBackend
from engine.errors import BatchError, DeviceError, GraphError, HeadError, InputError
from engine.heads import stack
from engine.processor import cpu_fields, has_bfloat16
from engine.tensorrt_options import TensorRTOptions
from tests.bundles import FEATURIZER, IMAGE, TILED, graph, pictures, small_head, wide_pictures
from tests.fake_tensorrt import FakeTensorRT
from tests.shared_engine import shared_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.backend import Backend

HEADS = stack([small_head(0), small_head(1)])


ON_RECORDING_GPU = "tensorrt-fp32"
"""The TensorRT backend's own code, over a GPU that records; `tests/gpu` runs it on a real one."""
IN_TILES = "onnxruntime in tiles"
"""Images of two tiles on the reference backend."""
ALONE = (*CPU_BACKENDS, ON_RECORDING_GPU, "modelled", IN_TILES)
SHARED = " shared"
"""Behind the border: the client of an engine that several workers share."""
IMPLEMENTATIONS = (*ALONE, *(name + SHARED for name in ALONE))


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    opened = opened_here(request.param)
    yield opened
    opened.close()


def opened_here(name: str) -> Backend:
    if name.endswith(SHARED):
        return shared_backend(partial(opened_here, name.removesuffix(SHARED)))
    if name.endswith("bf16") and not has_bfloat16():
        pytest.skip("this processor has no bfloat16")
    if name == "modelled":
        return ModelledBackend(graph_inputs(FEATURIZER, IMAGE), FEATURIZER.pooled_size, BatchCost(0.002, 0.0001))
    if name == ON_RECORDING_GPU:
        trt = FakeTensorRT()
        plans = Path(tempfile.mkdtemp(prefix="framegate-plans-"))
        options = TensorRTOptions(precision="fp32", plans=plans, warm=False)
        try:
            return TensorRTBackend(graph(), options, trt=trt, open_device=trt.open_device)
        finally:
            shutil.rmtree(plans)
    if name == IN_TILES:
        return TiledBackend(open_backend("onnxruntime", graph()), TILED, FEATURIZER)
    return open_backend(name, graph())


def width_px(backend: Backend) -> int:
    return TILED.width_px if backend.inputs[0].shape[2] == TILED.width_px else IMAGE.width_px


def pictures_for(backend: Backend, count: int, seed: int = 0) -> np.ndarray:
    return wide_pictures(count, seed) if width_px(backend) == TILED.width_px else pictures(count, seed)


def test_numbers_do_not_depend_on_the_batch(backend: Backend) -> None:
    images = pictures_for(backend, 9)
    whole = backend.infer(images, *HEADS, locations=True)
    assert whole.evidence.shape == (9, 2)
    assert whole.locations is not None
    assert whole.locations.shape == (9, 8, width_px(backend) // 8, 2)
    for index in (0, 4, 8):
        alone = backend.infer(images[index : index + 1], *HEADS, locations=True)
        np.testing.assert_array_equal(alone.evidence[0], whole.evidence[index])
        np.testing.assert_array_equal(alone.pooled[0], whole.pooled[index])
        assert alone.locations is not None
        np.testing.assert_array_equal(alone.locations[0], whole.locations[index])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64])
def test_heads_do_not_see_each_other(backend: Backend, count: int) -> None:
    """Added, removed, changed, in another place: the others' numbers stay the same to the last bit."""
    rng = np.random.default_rng(count)
    weights = rng.normal(0, 0.05, (HEADS[0].shape[0], count)).astype(np.float32)
    biases = rng.normal(0, 1, count).astype(np.float32)
    place = count // 2
    weights[:, place], biases[place] = HEADS[0][:, 1], HEADS[1][1]
    images = pictures_for(backend, 3)
    one = backend.infer(images, *stack([small_head(1)]), locations=True)
    many = backend.infer(images, weights, biases, locations=True)
    assert one.locations is not None
    assert many.locations is not None
    np.testing.assert_array_equal(many.evidence[:, place], one.evidence[:, 0])
    np.testing.assert_array_equal(many.locations[..., place], one.locations[..., 0])
    np.testing.assert_array_equal(many.pooled, one.pooled)


def test_images_are_only_read_and_answers_are_the_callers(backend: Backend) -> None:
    images = pictures_for(backend, 2)
    before = images.copy()
    first = backend.infer(images, *HEADS)
    kept = first.pooled.copy()
    backend.infer(pictures_for(backend, 2, seed=9), *HEADS)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(first.pooled, kept)
    first.pooled[:] = 0  # writable: it is ours


def test_locations_come_only_when_asked_for(backend: Backend) -> None:
    assert backend.infer(pictures_for(backend, 1), *HEADS).locations is None


def test_two_batches_travel_at_once_and_come_back_in_any_order(backend: Backend) -> None:
    one, two = pictures_for(backend, 5), pictures_for(backend, 3, seed=1)
    expected = [backend.infer(images, *HEADS) for images in (one, two)]
    for turn in (0, 1):
        weights = HEADS[0].copy()
        tickets = [backend.submit(one, weights, HEADS[1]), backend.submit(two, *HEADS)]
        weights[:] = np.nan  # heads are ours again once `submit` has returned
        with pytest.raises(BatchError, match="collected first"):
            backend.submit(one, *HEADS)
        order = [0, 1] if turn else [1, 0]
        for index in order:
            features = backend.collect(tickets[index])
            np.testing.assert_array_equal(features.evidence, expected[index].evidence)
            np.testing.assert_array_equal(features.pooled, expected[index].pooled)
        with pytest.raises(BatchError, match="is not out"):
            backend.collect(tickets[0])
    np.testing.assert_array_equal(backend.infer(one, *HEADS).evidence, expected[0].evidence)


def test_a_refused_batch_takes_no_slot(backend: Backend) -> None:
    for _ in range(3):
        with pytest.raises(BatchError):
            backend.submit(pictures_for(backend, 1)[:, :32], *HEADS)
    assert backend.infer(pictures_for(backend, 1), *HEADS).evidence.shape == (1, 2)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((1, 64, 96, 3), np.uint8),
        np.zeros((1, 64, 64), np.uint8),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
    ],
)
def test_images_that_do_not_fit_are_refused(backend: Backend, images: np.ndarray) -> None:
    with pytest.raises(BatchError, match="expected uint8"):
        backend.infer(images, *HEADS)


def test_more_images_than_the_profile_are_refused(backend: Backend) -> None:
    largest = backend.profile.largest
    assert backend.infer(pictures_for(backend, largest), *HEADS).evidence.shape == (largest, 2)
    with pytest.raises(BatchError, match=f"{largest + 1} images: expected at most {largest}"):
        backend.infer(pictures_for(backend, largest + 1), *HEADS)


@pytest.mark.parametrize(
    ("weights", "biases"),
    [
        (HEADS[0][:-1], HEADS[1]),
        (HEADS[0], HEADS[1][:1]),
        (HEADS[0].astype(np.float64), HEADS[1]),
        (HEADS[0][:, 0], HEADS[1]),
        (HEADS[0][:, :0], HEADS[1][:0]),
    ],
)
def test_heads_that_do_not_fit_are_refused(backend: Backend, weights: np.ndarray, biases: np.ndarray) -> None:
    with pytest.raises(HeadError, match=r"expected float32 \(256, k\)"):
        backend.infer(pictures_for(backend, 1), weights, biases)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_it_says_what_it_is_and_closes_twice(name: str) -> None:
    backend = opened_here(name)
    assert name.removesuffix(SHARED).removesuffix(" in tiles") in {backend.name, f"{backend.name}-{backend.precision}"}
    assert backend.precision == ("bf16" if "bf16" in name else "fp32")
    assert backend.device
    assert backend.inputs[0].shape == (None, 64, width_px(backend), 3)
    backend.submit(pictures_for(backend, 2), *HEADS)  # given up
    backend.close()
    backend.close()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("data", [b"", b"not a graph", graph()[: len(graph()) // 2]])
def test_a_corrupt_graph_is_named_with_its_cure(name: str, data: bytes) -> None:
    with pytest.raises(GraphError, match=r"cannot be loaded .* train the bundle again"):
        open_backend(name, data)


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.backend_openvino.has_bfloat16", lambda: False)
    with pytest.raises(DeviceError, match="has no bfloat16: expected AMX"):
        open_backend("openvino-bf16", graph())
    assert has_bfloat16({"flags": "fpu amx_bf16 sse"})
    assert has_bfloat16({"Features": "fp bf16"})
    assert not has_bfloat16({"flags": "avx512f"})
    assert not has_bfloat16({})


def test_the_processors_fields_are_read_from_the_systems_list(tmp_path: Path) -> None:
    there = tmp_path / "cpuinfo"
    there.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: a b\n\nprocessor\t: 1\nmodel name\t: Other\n")
    assert cpu_fields(there) == {"processor": "0", "model name": "Some CPU", "flags": "a b"}
    assert cpu_fields(tmp_path / "none") == {}


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(InputError, match="'abacus' is not known"):
        open_backend("abacus", graph())


def test_onnx_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """Its telemetry leaves a session file in the temporary folder as soon as it starts; with it off there is none."""
    code = "import engine.backend_onnx, os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    environment = {key: value for key, value in os.environ.items() if key not in {"ORT_DISABLE_TELEMETRY", "CI"}}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Its telemetry makes a folder in the home and looks its maker up as soon as it is imported."""
    code = (
        "import sys, socket; socket.getaddrinfo = socket.socket.connect = lambda *a, **k: sys.exit('network'); "
        "from tests.bundles import graph; from engine.backend import open_backend; "
        "open_backend('openvino-bf16' if sys.argv[1:] else 'openvino', graph()).close(); "
        "assert sys.modules['openvino_telemetry'] is None"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    arguments = ["bf16"] if has_bfloat16() else []
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
