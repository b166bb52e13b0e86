"""TensorRT on a real GPU: `pytest -m gpu`. Needs Framegate with its extra [gpu], pytest, an NVIDIA GPU and its driver.

Without these all of it skips and says what is missing; with FRAMEGATE_TEST_GPU set it fails instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engine.backbone import FeaturizerSpec, build_serving_graph
from engine.backend_onnx import OnnxBackend
from engine.backend_tensorrt import TensorRTBackend, _default_device, _import_tensorrt, _needed_cuda
from engine.errors import DeviceError
from engine.heads import stack
from engine.specs import BatchProfile, ImageSpec
from engine.tensorrt_options import TensorRTOptions
from tests.bundles import graph, pictures, small_head

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

HEADS = stack([small_head(seed) for seed in range(3)])
SIDE_PX = 160
BATCHES = 10_000
GROWTH_BYTES = 32 << 20


def large_pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, 160, 160, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 20, 20, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    """Skip where there is no GPU to test on."""
    try:
        with ThreadPoolExecutor(1) as thread:  # which ends, and with it whatever CUDA remembers of it
            thread.submit(look).result()
    except DeviceError as error:
        if os.environ.get("FRAMEGATE_TEST_GPU"):
            raise
        pytest.skip(str(error))


def look() -> None:
    """Raises DeviceError where something is missing."""
    _import_tensorrt()
    _default_device()(0, _needed_cuda()).close()


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan cache for all tests here."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def large() -> bytes:
    return build_serving_graph(FeaturizerSpec(), ImageSpec(SIDE_PX, SIDE_PX))


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def backend(request: pytest.FixtureRequest, plans: Path, large: bytes) -> Iterator[TensorRTBackend]:
    opened = TensorRTBackend(large, TensorRTOptions(precision=request.param, plans=plans))
    yield opened
    opened.close()


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    result: np.ndarray = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return result


def test_it_answers_as_the_reference_does(backend: TensorRTBackend, large: bytes) -> None:
    """Every size of batch, on both sides of the profiles' border."""
    reference = OnnxBackend(large)
    images = large_pictures(64)
    expected = [reference.infer(images[start : start + 32], *HEADS, locations=True) for start in (0, 32)]
    reference.close()
    evidence, pooled = (np.concatenate([getattr(part, name) for part in expected]) for name in ("evidence", "pooled"))
    locations = np.concatenate([part.locations for part in expected if part.locations is not None])
    tolerance, nearest = {"fp16": (0.05, 0.9999), "fp32": (1e-3, 0.999999)}[backend.precision]
    assert sorted(backend.warm_up_s) == list(range(1, 65))
    for size in range(1, 65):
        found = backend.infer(images[:size], *HEADS, locations=True)
        assert cosine(found.pooled, pooled[:size]).min() >= nearest
        np.testing.assert_allclose(found.evidence, evidence[:size], atol=tolerance * np.abs(evidence).max())
        assert found.locations is not None
        np.testing.assert_allclose(found.locations, locations[:size], atol=tolerance * np.abs(locations).max())


def test_decisions_stay_the_same(backend: TensorRTBackend, large: bytes) -> None:
    reference = OnnxBackend(large)
    head, images = small_head(), large_pictures(32, seed=5)
    parts = [opened.infer(images, *stack([head])) for opened in (reference, backend)]
    reference.close()
    first, second = (head.predict(images, part.evidence[:, 0], part.pooled) for part in parts)
    limits = (head.operating_point.threshold, *head.operating_point.review_band)
    for a, b in zip(first, second, strict=True):
        assert abs(a.defect_probability - b.defect_probability) < 0.02
        if min(abs(a.defect_probability - limit) for limit in limits) > 0.02:
            assert a.decision == b.decision


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4), (5, 8, 31, 64)], ids=["latency", "throughput"])
def test_an_image_does_not_see_its_neighbours(sizes: tuple[int, ...], backend: TensorRTBackend) -> None:
    images = large_pictures(64)
    whole = backend.infer(images[: sizes[-1]], *HEADS)
    for size in sizes:
        found = backend.infer(images[:size], *HEADS)
        np.testing.assert_array_equal(found.pooled, whole.pooled[:size])
        np.testing.assert_array_equal(found.evidence, whole.evidence[:size])


@pytest.mark.parametrize("count", [1, 2, 5, 64])
@pytest.mark.parametrize("size", [1, 16])
def test_a_head_does_not_see_its_neighbours(count: int, size: int, backend: TensorRTBackend) -> None:
    rng = np.random.default_rng(count)
    weights = rng.normal(0, 0.05, (HEADS[0].shape[0], count)).astype(np.float32)
    biases = rng.normal(0, 1, count).astype(np.float32)
    place = count // 2
    weights[:, place], biases[place] = HEADS[0][:, 1], HEADS[1][1]
    images = large_pictures(size)
    alone = backend.infer(images, HEADS[0][:, 1:2], HEADS[1][1:2], locations=True)
    beside = backend.infer(images, weights, biases, locations=True)
    np.testing.assert_array_equal(beside.evidence[:, place], alone.evidence[:, 0])
    np.testing.assert_array_equal(beside.pooled, alone.pooled)
    assert alone.locations is not None
    assert beside.locations is not None
    np.testing.assert_array_equal(beside.locations[..., place], alone.locations[..., 0])


def test_two_batches_travel_at_once(backend: TensorRTBackend) -> None:
    batches = [large_pictures(64, seed=seed) for seed in range(8)]
    expected = [backend.infer(images, *HEADS) for images in batches]
    tickets = [backend.submit(batches[0], *HEADS)]
    for index in range(1, len(batches)):
        tickets.append(backend.submit(batches[index], *HEADS))
        np.testing.assert_array_equal(backend.collect(tickets[index - 1]).pooled, expected[index - 1].pooled)
    np.testing.assert_array_equal(backend.collect(tickets[-1]).pooled, expected[-1].pooled)


def options(plans: Path, **changes: Any) -> TensorRTOptions:
    return TensorRTOptions(**{"throughput": BatchProfile(1, 8, 8), "plans": plans, **changes})


def test_plans_are_found_again_and_rebuilt_where_they_do_not_load(tmp_path: Path) -> None:
    first = TensorRTBackend(graph(), options(tmp_path))
    assert [plan.built for plan in first.plans] == [True, True]
    before = first.infer(pictures(3), *HEADS).pooled
    first.close()
    second = TensorRTBackend(graph(), options(tmp_path))
    assert [plan.built for plan in second.plans] == [False, False]
    np.testing.assert_array_equal(second.infer(pictures(3), *HEADS).pooled, before)
    second.close()
    other = TensorRTBackend(graph(), options(tmp_path, most_heads=8))
    assert [plan.built for plan in other.plans] == [True, True]
    other.close()
    spoil(first.plans[0].path)
    again = TensorRTBackend(graph(), options(tmp_path))
    assert [plan.built for plan in again.plans] == [True, False]
    assert cosine(again.infer(pictures(3), *HEADS).pooled, before).min() > 0.9999
    again.close()


def spoil(path: Path) -> None:
    """Make of a plan what another TensorRT might have written: whole, as its checksum says, and of no use here."""
    magic, header, _ = path.read_bytes().split(b"\n", 2)
    about = json.loads(header)
    plan = b"of another TensorRT" * 1000
    about["plan_sha256"] = hashlib.sha256(plan).hexdigest()
    line = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(b"\n".join([magic, line, plan]))


def test_not_exact_is_one_plan(tmp_path: Path) -> None:
    opened = TensorRTBackend(graph(), options(tmp_path, exact=False))
    assert len(opened.plans) == 1
    for size in (1, 8):
        assert np.isfinite(opened.infer(pictures(size), *HEADS).pooled).all()
    opened.close()


def test_a_memory_limit_halves_the_batch(tmp_path: Path) -> None:
    opened = TensorRTBackend(graph(), options(tmp_path, warm=False))
    session: Any = opened._work._session
    used = session._used_bytes
    opened.close()
    limited = TensorRTBackend(graph(), options(tmp_path, warm=False, memory_limit_bytes=used - 1))
    assert limited.profile.largest < 8
    assert limited.infer(pictures(limited.profile.largest), *HEADS).evidence.shape[1] == 3
    limited.close()


def free_bytes(opened: TensorRTBackend) -> int:
    device: Any = opened._work._device
    free, _ = opened._owner.submit(device.memory).result()
    return int(free)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_opening_and_closing_gives_everything_back(tmp_path: Path) -> None:
    free: list[int] = []
    for _ in range(10):
        opened = TensorRTBackend(graph(), options(tmp_path))
        opened.submit(pictures(8), *HEADS)  # given up
        free.append(free_bytes(opened))
        opened.close()
        opened.close()
    assert free[2] - free[-1] <= GROWTH_BYTES


@pytest.mark.slow
def test_ten_thousand_batches_take_no_more_memory(backend: TensorRTBackend, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = np.random.default_rng(0).integers(1, 65, BATCHES)
    images = large_pictures(64)
    expected = {size: backend.infer(images[:size], *HEADS).evidence for size in (1, 4, 5, 64)}

    def drive(part: np.ndarray) -> None:
        ticket = backend.submit(images[: part[0]], *HEADS)
        for size in part[1:]:
            following = backend.submit(images[:size], *HEADS, locations=bool(size % 2))
            backend.collect(ticket)
            ticket = following
        backend.collect(ticket)

    drive(sizes[:500])
    device, host = free_bytes(backend), resident_bytes()
    start_s = time.perf_counter()
    drive(sizes)
    seconds = time.perf_counter() - start_s
    assert device - free_bytes(backend) <= GROWTH_BYTES
    assert resident_bytes() - host <= GROWTH_BYTES
    for size, evidence in expected.items():
        np.testing.assert_array_equal(backend.infer(images[:size], *HEADS).evidence, evidence)
    latencies: list[float] = []
    for _ in range(500):
        begin_s = time.perf_counter()
        backend.infer(images[:1], *HEADS)
        latencies.append(time.perf_counter() - begin_s)
    p50, p99 = (1e3 * float(np.quantile(latencies, q)) for q in (0.5, 0.99))
    with capsys.disabled():
        line = (
            f"\n{backend.device} {backend.precision}: {sizes.sum() / seconds:.0f} images/s, mixed sizes; batch of 1: "
        )
        os.write(1, f"{line}p50 {p50:.2f} ms, p99 {p99:.2f} ms\n".encode())
