"""Files of feature rows: written once, whole or not at all, and never believed without their checksum.

After a first line and JSON, which has each column's CRC-32, come the columns, little-endian, each for all rows in turn:
what is small first, the channels last. A shard is named by the sha256 of its head, so that a torn, changed or
foreign file is no shard, and of two processes that write the same rows the second changes nothing. (sha256 over
everything would take as long as a tenth of the decoding.)
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zlib
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from engine.errors import WorkError
from engine.watching import SIDE
from trainer.featurize import CHANNELS_DTYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import BinaryIO

    from trainer.featurize import Row

SUFFIX, PART = ".rows", ".part-"
_MAGIC = b"framegate features 1\n"
_HEADER_BYTES = 512
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RowShape:
    """Of the rows of one featurizer: the pooled vector's length, cells, and the length of a cell's row of channels."""

    pooled: int
    cells: int
    cell_size: int

    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """The dtype and shape of each column's part of a row, in their order."""
        return {
            "sha256": (np.dtype("u1"), (32,)),
            "statistics": (np.dtype("<f8"), (4,)),  # contrast, detail, level, noise
            "pooled": (np.dtype("<f4"), (self.pooled,)),
            "glances": (np.dtype("u1"), (SIDE, SIDE)),
            "channels": (CHANNELS_DTYPE.newbyteorder("<"), (self.cells, self.cell_size)),
        }

    @property
    def row_bytes(self) -> int:
        """Of one image."""
        return sum(_bytes(dtype, shape) for dtype, shape in self.columns().values())


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A file of rows that was found whole.

    Attributes:
        rows: how many.
        offsets: where each column begins, in bytes.
        digests: (rows, 32) uint8, the images' sha256.
        statistics: (rows, 4) contrast, detail, level, noise.
    """

    path: Path
    rows: int
    offsets: dict[str, int]
    digests: np.ndarray
    statistics: np.ndarray

    @classmethod
    def _found(cls, path: Path, shape: RowShape, rows: int, small: dict[str, np.ndarray]) -> Self:
        offsets, at = {}, _HEADER_BYTES
        for name, (dtype, own) in shape.columns().items():
            offsets[name] = at
            at += rows * _bytes(dtype, own)
        return cls(path, rows, offsets, small["sha256"], small["statistics"])

    @classmethod
    def read(cls, path: Path, shape: RowShape) -> Self | None:
        """The file's rows, without what is large; None where it is not whole or not of this shape."""
        small = {}
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
                told = _told_by(header, shape) if path.name == _name_of(header) else None
                if told is None:
                    return None
                rows, checks = told
                for name, (dtype, own) in shape.columns().items():
                    if name in {"sha256", "statistics"}:
                        content = file.read(rows * _bytes(dtype, own))
                        small[name] = np.frombuffer(content, dtype).reshape(rows, *own)
                        check = zlib.crc32(content)
                    else:
                        check = _check_of_next(file, rows * _bytes(dtype, own))
                    if check != checks[name]:
                        return None
                if file.read(1):
                    return None
        except (OSError, ValueError, KeyError):
            return None
        return cls._found(path, shape, rows, small)

    @classmethod
    def write(cls, folder: Path, shape: RowShape, rows: Sequence[Row]) -> Self:
        """Write rows, on the disk before this returns.

        Raises:
            WorkError: the disk is full, or does not take it.
        """
        digests = np.stack([np.frombuffer(bytes.fromhex(row.sha256), np.uint8) for row in rows])
        statistics = np.array([(row.contrast, row.detail, row.level, row.noise) for row in rows], "<f8")
        parts: dict[str, Iterable[np.ndarray]] = {
            "sha256": [digests],
            "statistics": [statistics],
            "pooled": [row.pooled for row in rows],
            "glances": [row.glance for row in rows],
            "channels": [row.channels for row in rows],
        }
        contents = {
            name: [np.ascontiguousarray(part, dtype).data.cast("B") for part in parts[name]]
            for name, (dtype, _) in shape.columns().items()
        }
        header = _header(shape, len(rows), {name: _check(content) for name, content in contents.items()})
        part = Path()
        try:
            descriptor, name = tempfile.mkstemp(prefix=PART, dir=folder)
            part = Path(name)
            with os.fdopen(descriptor, "wb") as file:
                file.write(header)
                for content in contents.values():
                    file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            path = folder / _name_of(header)
            part.rename(path)
            _sync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise unwritable(folder, error) from error
        return cls._found(path, shape, len(rows), {"sha256": digests, "statistics": statistics})


def unwritable(folder: Path, error: OSError) -> WorkError:
    """Features cannot be kept there."""
    return WorkError(
        f"features cannot be kept in {folder}: {error.strerror}; expected a folder that can be written, with room; "
        "make room there or give another with --features: what is there already is used again"
    )


def _header(shape: RowShape, rows: int, checks: dict[str, int]) -> bytes:
    told = {**asdict(shape), "rows": rows, "crc32": checks}
    return (_MAGIC + json.dumps(told).encode()).ljust(_HEADER_BYTES)


def _name_of(header: bytes) -> str:
    return sha256(header).hexdigest() + SUFFIX


def _told_by(header: bytes, shape: RowShape) -> tuple[int, dict[str, int]] | None:
    """How many rows, and each column's CRC-32; None: it is no header of this shape's."""
    if not header.startswith(_MAGIC) or len(header) != _HEADER_BYTES:
        return None
    told = json.loads(header[len(_MAGIC) :])
    rows, checks = told.pop("rows"), told.pop("crc32")
    return (rows, checks) if type(rows) is int and rows > 0 and told == asdict(shape) else None


def _check(content: Iterable[memoryview]) -> int:
    check = 0
    for part in content:
        check = zlib.crc32(part, check)
    return check


def _check_of_next(file: BinaryIO, count: int) -> int:
    """CRC-32 of the next so many bytes."""
    check = 0
    while count and (block := file.read(min(count, _BLOCK_BYTES))):
        check, count = zlib.crc32(block, check), count - len(block)
    return check


def _bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def _sync(folder: Path) -> None:
    """A new name is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
