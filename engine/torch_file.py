"""Read the tensors of a PyTorch weights file without PyTorch, and without running what a pickle could run.

Only the layout that PyTorch wrote before version 1.6 is read: five pickles (magic number, protocol version, system
info, the state dict, the storage keys) and then every storage's raw values in the order of the keys.
Source of the layout: `torch.serialization._legacy_save`.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES: dict[object, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a state dict, by name, as arrays of their own shape; float32 or int64.

    Raises:
        InputError: the file is not of this layout, is cut short, or holds anything but tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"weights file {path} cannot be read: {error.strerror}; install the pinned requirements again"
        raise InputError(msg) from error
    try:
        return _Reader(io.BytesIO(data)).tensors()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        msg = (
            f"weights file {path} is not a PyTorch state dict of the older layout ({error}): "
            "expected the file of the pinned package; install the pinned requirements again"
        )
        raise InputError(msg) from error


class _Storage:
    """One flat buffer that tensors are views of; filled after the state dict has been read."""

    def __init__(self, dtype: np.dtype[Any], count: int) -> None:
        self.dtype = dtype
        self.count = count
        self.values: np.ndarray | None = None


class _LazyTensor:
    """Where a tensor lies in its storage."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage = storage
        self.offset = offset
        self.shape = shape
        self.strides = strides

    def array(self) -> np.ndarray:
        """A copy of its own, so that no tensor keeps another's storage alive."""
        values = self.storage.values
        if values is None:
            msg = "a tensor's storage is missing"
            raise ValueError(msg)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.strides)) < 0 or last >= values.size:
            msg = "a tensor reaches outside its storage"
            raise ValueError(msg)
        item = values.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            values[self.offset :], self.shape, tuple(s * item for s in self.strides), writeable=False
        )
        return np.array(view)


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool = False,  # noqa: ARG001 - the pickle gives it
    hooks: Any = None,  # noqa: ARG001 - the pickle gives it
) -> _LazyTensor:
    return _LazyTensor(storage, offset, shape, strides)


class _Restricted(pickle.Unpickler):
    """Knows four names and refuses every other: nothing else is ever imported or called."""

    _allowed: dict[tuple[str, str], Callable[..., Any] | str] = {  # noqa: RUF012 - never changed
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch", "FloatStorage"): "FloatStorage",
        ("torch", "LongStorage"): "LongStorage",
    }

    def __init__(self, file: io.BytesIO, storages: dict[str, _Storage]) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            _refuse(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, count, view = pid
        if kind != "storage" or view is not None:
            _refuse("it holds something other than plain storages")
        return self._storages.setdefault(key, _Storage(_DTYPES[storage_type], count))


class _Reader:
    """Walks the file once, front to back."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file
        self._storages: dict[str, _Storage] = {}

    def tensors(self) -> dict[str, np.ndarray]:
        if self._load() != _MAGIC or self._load() != _PROTOCOL:
            _refuse("its magic number or protocol is another")
        if not self._load().get("little_endian"):
            _refuse("it was written on a big-endian machine")
        state = self._load()
        if not isinstance(state, dict):
            _refuse("it holds no state dict")
        for key in self._load():
            self._fill(self._storages[key])
        return {name: tensor.array() for name, tensor in state.items()}

    def _load(self) -> Any:
        return _Restricted(self._file, self._storages).load()

    def _fill(self, storage: _Storage) -> None:
        count = int.from_bytes(self._file.read(8), "little")
        if count != storage.count:
            _refuse(f"a storage has {count} values where {storage.count} were announced")
        data = self._file.read(count * storage.dtype.itemsize)
        values = np.frombuffer(data, storage.dtype)  # a short read leaves fewer values, refused below
        if values.size != count:
            _refuse("it is cut short")
        storage.values = values if sys.byteorder == "little" else values.astype(storage.dtype.newbyteorder("="))


def _refuse(why: str) -> NoReturn:
    raise pickle.UnpicklingError(why)
