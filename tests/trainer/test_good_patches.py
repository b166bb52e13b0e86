"""Good parts as one Gaussian: sums as numpy's own, the same on any number of threads, from memory or from the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trainer import good_patches
from trainer.good_patches import evidence, moments

if TYPE_CHECKING:
    from pathlib import Path

FINE, COARSE, IMAGES, CELLS = 5, 3, 23, 6


@pytest.fixture
def channels() -> np.ndarray:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(IMAGES, CELLS, 4 * FINE + COARSE)) @ rng.normal(size=(4 * FINE + COARSE,) * 2)
    return (mixed + 3).astype(np.float16)


def locations(channels: np.ndarray) -> np.ndarray:
    flat = channels.reshape(-1, channels.shape[2]).astype(np.float64)
    own, shared = flat[:, : 4 * FINE].reshape(-1, 4, FINE), flat[:, 4 * FINE :]
    return np.concatenate([own, np.repeat(shared[:, None], 4, axis=1)], axis=2).reshape(-1, FINE + COARSE)


def test_moments_are_those_of_all_locations(channels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([3, 4, 5, 9, 20])
    for values in (1, 400, 1 << 20):  # an image at a time, some, all
        monkeypatch.setattr(good_patches, "_CHUNK_VALUES", values)
        found, expected = moments(channels, FINE, rows), locations(channels[rows])
        assert found.count == len(expected)
        np.testing.assert_allclose(found.total, expected.sum(0))
        np.testing.assert_allclose(found.square, expected.T @ expected)


def test_all_less_a_part_is_the_rest(channels: np.ndarray) -> None:
    everything, part = moments(channels, FINE, np.arange(IMAGES)), moments(channels, FINE, np.arange(7))
    rest, direct = everything - part, moments(channels, FINE, np.arange(7, IMAGES))
    assert rest.count == direct.count
    one, two = (each.distance(FINE)(channels) for each in (rest, direct))
    np.testing.assert_allclose(one, two, rtol=1e-4)
    again = (part + rest).distance(FINE)(channels)
    np.testing.assert_allclose(again, everything.distance(FINE)(channels), rtol=1e-4)


def test_evidence_is_a_smooth_maximum_of_the_distance(channels: np.ndarray) -> None:
    distance = moments(channels, FINE, np.arange(IMAGES)).distance(FINE)
    rows = np.array([1, 8, 22])
    largest = distance(channels[rows]).reshape(3, -1).max(1)
    found = evidence(channels, rows, distance, 16.0) / 16
    assert (found <= largest + 1e-6).all()
    assert (found >= largest - np.log(4 * CELLS) / 16).all()
    odd = channels.copy()
    odd[8, 2, 0] += 40  # one channel of one location
    assert evidence(odd, rows, distance)[1] > 2 * evidence(channels, rows, distance)[1]
    assert evidence(channels, np.arange(0), distance).shape == (0,)


def test_a_channel_that_never_moves_does_no_harm(channels: np.ndarray) -> None:
    channels[..., -1] = 0
    distance = moments(channels, FINE, np.arange(IMAGES)).distance(FINE)
    found = distance(channels)
    assert np.isfinite(found).all()
    assert 0.8 < np.sqrt(np.square(found).mean()) < 1.05


def test_the_number_of_threads_changes_no_bit(channels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(good_patches, "_CHUNK_VALUES", 400)

    def run() -> tuple[bytes, bytes]:
        found = moments(channels, FINE, np.arange(IMAGES))
        return found.square.tobytes(), evidence(channels, np.arange(IMAGES), found.distance(FINE)).tobytes()

    here = run()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    assert run() == here


class Listed:
    """What is on the disk: rows are read in chunks, and never all of them."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.most = 0

    def __getitem__(self, rows: Any) -> np.ndarray:
        self.most = max(self.most, len(rows))
        read: np.ndarray = self._array[rows]
        return read


def test_features_may_lie_on_the_disk(channels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(good_patches, "_CHUNK_VALUES", 400)
    np.save(tmp_path / "channels.npy", channels)
    stored = Listed(np.load(tmp_path / "channels.npy", mmap_mode="r"))
    rows = np.arange(IMAGES)
    found = moments(stored, FINE, rows)
    np.testing.assert_array_equal(found.square, moments(channels, FINE, rows).square)
    distance = found.distance(FINE)
    np.testing.assert_array_equal(evidence(stored, rows, distance), evidence(channels, rows, distance))
    assert stored.most <= 3
