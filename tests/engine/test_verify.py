"""`framegate verify` on an honest backend, and on one that lies in each of the ways that it is there to find."""

from __future__ import annotations

import json
import mmap
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import framegate
from engine.backend import Features
from engine.backend_onnx import OnnxBackend
from engine.bundle import write_bundle
from engine.endurance import LEAK_MIB, MemoryResult, resident_bytes
from engine.errors import BundleError
from engine.golden import GOLDEN, golden_pictures
from engine.scorer import Scorer
from engine.specs import BatchProfile
from engine.verify import Effort, verify, verify_scorer
from engine.verify_table import lines
from tests.bundles import graph, small_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from engine.backend import Ticket

BUNDLE = small_bundle()
BRIEFLY = Effort(seconds=0.0, batches=10)
LARGEST = 5


class Liar:
    """An honest backend whose answers go through `lie`, with a small profile so that every size is quickly run."""

    def __init__(self, honest: OnnxBackend, lie: Callable[[np.ndarray, Features], Features]) -> None:
        self.name, self.device, self.precision, self.inputs = honest.name, honest.device, "fp32", honest.inputs
        self.profile = BatchProfile(1, 2, LARGEST)
        self._honest, self._lie = honest, lie
        self._given: dict[int, np.ndarray] = {}

    def infer(
        self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False
    ) -> Features:
        return self.collect(self.submit(images, weights, biases, locations=locations))

    def submit(self, images: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, locations: bool = False) -> Ticket:
        ticket = self._honest.submit(images, weights, biases, locations=locations)
        self._given[ticket.number] = images
        return ticket

    def collect(self, ticket: Ticket) -> Features:
        return self._lie(self._given.pop(ticket.number), self._honest.collect(ticket))

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def honest() -> Iterator[OnnxBackend]:
    backend = OnnxBackend(graph())
    yield backend
    backend.close()


def verified(
    honest: OnnxBackend, lie: Callable[[np.ndarray, Features], Features], effort: Effort = BRIEFLY, **changes: Any
) -> dict[str, Any]:
    backend = Liar(honest, lie)
    for name, value in changes.items():
        setattr(backend, name, value)
    return verify(Scorer(BUNDLE, backend), effort, time.perf_counter)


def the_truth(_images: np.ndarray, features: Features) -> Features:
    return features


def test_an_honest_backend_agrees_and_all_is_told(honest: OnnxBackend) -> None:
    told: list[tuple[str, int, int]] = []
    ticks = iter(range(10_000))
    result = verify(
        Scorer(BUNDLE, Liar(honest, the_truth)),
        BRIEFLY,
        lambda: next(ticks) / 1000,
        tick=lambda *step: told.append(step),
    )
    assert result["agrees"]
    assert result["faults"] == []
    assert result["reference"]["images"] == 6
    assert result["reference"]["agrees"]
    assert result["golden"]["images"] == GOLDEN
    assert result["golden"]["evidence_difference_max"] == 0.0
    assert [batch["size"] for batch in result["batches"]] == [1, 2, 3, 4, 5]
    for batch in result["batches"]:  # every batch took one tick of a millisecond
        assert batch["same"]
        assert batch["warm_up_ms"] == pytest.approx(1)
        assert batch["images_per_s"] == pytest.approx(1000 * batch["size"])
        assert batch["p50_ms"] == pytest.approx(1)
        assert batch["p99_ms"] == pytest.approx(1)
    assert (result["memory"]["batches"], result["memory"]["size"]) == (10, 2)
    assert {"golden pictures", "batch sizes", "memory"} == {name for name, _, _ in told}
    assert all(done <= total for _, done, total in told)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_one_wrong_image_of_the_reference_is_caught(honest: OnnxBackend) -> None:
    assert BUNDLE.reference is not None
    victim = BUNDLE.reference.images[4]

    def lie(images: np.ndarray, features: Features) -> Features:
        hit = np.array([np.array_equal(image, victim) for image in images])
        return replace(features, evidence=features.evidence + hit[:, None].astype(np.float32))

    result = verified(honest, lie)
    assert not result["agrees"]
    assert not result["reference"]["agrees"]
    assert result["golden"]["agrees"]
    assert len(result["faults"]) == 1
    assert "bundle's reference images" in result["faults"][0]


@pytest.mark.parametrize("index", [0, 1, 9, GOLDEN - 1])
@pytest.mark.parametrize("what", ["evidence", "pooled", "second head"])
def test_one_wrong_golden_picture_is_caught(honest: OnnxBackend, index: int, what: str) -> None:
    victim = golden_pictures(GOLDEN, 64, 64)[index]

    def lie(images: np.ndarray, features: Features) -> Features:
        hit = np.array([np.array_equal(image, victim) for image in images])
        if what == "pooled":
            return replace(features, pooled=np.where(hit[:, None], features.pooled[:, ::-1], features.pooled))
        shift = np.zeros_like(features.evidence)
        shift[hit, -1 if what == "second head" else 0] = 0.1
        return replace(features, evidence=features.evidence + shift)

    result = verified(honest, lie)
    assert not result["golden"]["agrees"]
    assert any("golden pictures" in fault for fault in result["faults"])
    assert result["reference"]["agrees"]


def test_one_wrong_batch_size_is_caught_to_the_last_bit(honest: OnnxBackend) -> None:
    def lie(images: np.ndarray, features: Features) -> Features:
        if len(images) != 3:
            return features
        pooled = features.pooled.copy()
        pooled[2, 7] = np.nextafter(pooled[2, 7], np.float32(np.inf))
        return replace(features, pooled=pooled)

    result = verified(honest, lie)
    assert not result["agrees"]
    assert [batch["size"] for batch in result["batches"] if not batch["same"]] == [3]
    assert result["faults"] == ["an image's numbers depend on its batch, in batches of 3"]


def test_tensorrt_may_differ_in_the_last_bits_and_no_further(honest: OnnxBackend) -> None:
    def by(share: float) -> Callable[[np.ndarray, Features], Features]:
        return lambda images, features: (
            replace(features, evidence=features.evidence + np.float32(share)) if len(images) == 3 else features
        )

    assert verified(honest, by(1e-5), name="tensorrt")["agrees"]
    assert not verified(honest, by(1e-5))["agrees"]
    far = verified(honest, by(0.2), name="tensorrt")
    assert [batch["size"] for batch in far["batches"] if not batch["same"]] == [3]


def test_an_answer_of_two_images_swapped_is_caught(honest: OnnxBackend) -> None:
    result = verified(
        honest, lambda images, f: Features(f.evidence[::-1].copy(), f.pooled[::-1].copy()) if len(images) > 1 else f
    )
    assert [batch["size"] for batch in result["batches"] if not batch["same"]] == [2, 3, 4, 5]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_caught_and_told(honest: OnnxBackend, value: float) -> None:
    def lie(images: np.ndarray, features: Features) -> Features:
        broken = Features(features.evidence.copy(), features.pooled.copy())
        broken.evidence[images.mean(axis=(1, 2, 3)) == 255] = value  # the white picture's
        broken.pooled[images.mean(axis=(1, 2, 3)) == 255, 3] = value
        return broken

    result = verified(honest, lie)
    assert not result["agrees"]
    assert not result["golden"]["agrees"]
    assert result["golden"]["pooled_cosine_min"] is None
    assert "not a number" in "\n".join(lines(result))
    json.dumps(result, allow_nan=False)


def test_a_leak_is_caught(honest: OnnxBackend) -> None:
    kept: list[mmap.mmap] = []

    def lie(_images: np.ndarray, features: Features) -> Features:
        kept.append(mmap.mmap(-1, 2**20))  # a MiB that stays, and that no earlier test's freed memory can serve
        kept[-1].write(bytes(range(256)) * 2**12)
        return features

    result = verified(honest, lie, Effort(seconds=0.0, batches=40))
    assert len(kept) > 40
    assert result["agrees"]  # the answers are right
    assert result["memory"]["leaks"]
    assert result["memory"]["growth_mib"] == pytest.approx(40, rel=0.2)
    assert re.fullmatch(r"memory grew by \d+\.\d MiB over 40 batches of 2", result["faults"][0])


def test_resident_memory_is_that_of_this_process() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 2**25) as held:
        held.write(bytes(2**25))
        assert resident_bytes() - before > 2**24


def test_a_leak_on_the_device_is_caught(honest: OnnxBackend) -> None:
    held = iter(range(0, 10**9, 2**20))
    result = verified(honest, the_truth, Effort(0.0, 20), device_memory_bytes=lambda: next(held))
    assert result["memory"]["device_growth_mib"] == pytest.approx(20)
    assert "device's by 20.0 MiB" in result["faults"][0]
    assert not MemoryResult(10, 1, LEAK_MIB * 0.9, None).leaks
    assert MemoryResult(10, 1, 0.0, LEAK_MIB * 1.1).leaks


def test_a_bundle_without_reference_cannot_be_verified(honest: OnnxBackend) -> None:
    scorer = Scorer(small_bundle(with_reference=False), honest)
    with pytest.raises(BundleError, match="no reference images"):
        verify_scorer(scorer, time.perf_counter)


def test_golden_pictures_are_the_same_each_time_and_no_two_alike() -> None:
    pictures = golden_pictures(GOLDEN, 64, 96)
    assert pictures.shape == (GOLDEN, 64, 96, 3)
    np.testing.assert_array_equal(pictures, golden_pictures(GOLDEN, 64, 96))
    assert len({picture.tobytes() for picture in pictures}) == GOLDEN
    assert (pictures[0].max(), pictures[1].min()) == (0, 255)
    assert golden_pictures(1, 64, 64).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_tells_all_and_ends_with_1_on_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    write_bundle(tmp_path / "bundle", BUNDLE)
    command = ["verify", str(tmp_path / "bundle"), "--backend", "onnxruntime", "--batches", "20", "--seconds", "0"]
    command += ["--json"] if as_json else []
    with pytest.raises(SystemExit) as end:
        framegate.main(command)
    out = capsys.readouterr().out
    assert end.value.code == 0
    if as_json:
        result = json.loads(out)
        assert set(result) >= {
            "agrees", "backend", "device", "precision", "images", "decisions_changed", "pooled_cosine_min",
            "probability_difference_max", "evidence_difference_max", "images_per_s",
            "reference", "golden", "batches", "memory", "faults",
        }  # fmt: skip
        assert [batch["size"] for batch in result["batches"]] == list(range(1, 65))
        assert result["memory"]["batches"] == 20
    else:
        assert re.search(r"^memory .* over 20 batches", out, re.MULTILINE)
        assert out.endswith("agrees     yes\n")
    monkeypatch.setattr("engine.endurance.LEAK_MIB", -1e9)
    with pytest.raises(SystemExit) as end:
        framegate.main(command)
    assert end.value.code == 1
    assert "memory grew by" in capsys.readouterr().out
