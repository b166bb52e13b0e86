"""The backend contract, held against every implementation that can run here."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.backend import open_backend
from engine.errors import InputError
from engine.heads import stack
from tests.bundles import graph, pictures, small_head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.backend import Backend

HEADS = stack([small_head(0), small_head(1)])


@pytest.fixture(params=["onnx", "auto"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    opened = open_backend(request.param, graph())
    yield opened
    opened.close()


def test_numbers_do_not_depend_on_the_batch(backend: Backend) -> None:
    images = pictures(9)
    whole = backend.infer(images, *HEADS, locations=True)
    assert whole.evidence.shape == (9, 2)
    assert whole.locations is not None
    assert whole.locations.shape == (9, 2, 8, 8)
    for index in (0, 4, 8):
        alone = backend.infer(images[index : index + 1], *HEADS, locations=True)
        np.testing.assert_array_equal(alone.evidence[0], whole.evidence[index])
        np.testing.assert_array_equal(alone.pooled[0], whole.pooled[index])
        assert alone.locations is not None
        np.testing.assert_array_equal(alone.locations[0], whole.locations[index])


def test_heads_do_not_see_each_other(backend: Backend) -> None:
    images = pictures(2)
    both = backend.infer(images, *HEADS)
    one = backend.infer(images, *stack([small_head(1)]))
    np.testing.assert_allclose(one.evidence[:, 0], both.evidence[:, 1], rtol=1e-5)


def test_images_are_only_read_and_answers_are_the_callers(backend: Backend) -> None:
    images = pictures(2)
    before = images.copy()
    first = backend.infer(images, *HEADS)
    kept = first.pooled.copy()
    backend.infer(pictures(2, seed=9), *HEADS)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(first.pooled, kept)
    first.pooled[:] = 0  # writable: it is ours


def test_locations_come_only_when_asked_for(backend: Backend) -> None:
    assert backend.infer(pictures(1), *HEADS).locations is None


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
    with pytest.raises(InputError, match="expected uint8"):
        backend.infer(images, *HEADS)


def test_it_says_what_it_is_and_closes_twice(backend: Backend) -> None:
    assert backend.name == "onnx"
    assert backend.precision == "fp32"
    assert backend.device
    assert backend.inputs[0].shape == (None, 64, 64, 3)
    backend.close()
    backend.close()


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
