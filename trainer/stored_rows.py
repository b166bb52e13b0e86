"""Columns of features that stay on the disk: what is asked for is read, the rest takes no memory.

Read, not mapped: pages that are mapped count as the process's own memory. What was read before is in the system's page
cache as long as there is room, so that walking over the same features again costs a copy and no disk.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trainer.shards import RowShape, Shard

_CHUNK_BYTES = 1 << 22


class StoredRows:
    """One column of n rows that lie in shards, as an array that is read where it is indexed.

    `rows[index]` with a number, a slice, a mask or an array of row numbers gives an ndarray; further indices select in
    what was read. `np.asarray` reads all of it. Any number of threads may read.

    Attributes:
        shape, dtype: as an ndarray's.
    """

    def __init__(
        self, shards: Sequence[Shard], shape: RowShape, column: str, where: np.ndarray, last: int | None = None
    ) -> None:
        """Rows (n, 2) `where` = (shard, row in it) of a column; `last` keeps so many entries of its last axis."""
        self._shards, self._rows, self._column, self._where, self._last = shards, shape, column, where, last
        stored, own = shape.columns()[column]
        self._own = own
        self.dtype = stored.newbyteorder("=")
        self.shape: tuple[int, ...] = (len(where), *own[:-1], own[-1] if last is None else last)

    def __len__(self) -> int:
        """How many rows."""
        return len(self._where)

    @property
    def size(self) -> int:
        """Values in all rows."""
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, rows: np.ndarray | slice) -> StoredRows:
        """Some rows, in the order given, still on the disk."""
        return StoredRows(self._shards, self._rows, self._column, self._where[rows], self._last)

    def columns(self, last: int) -> StoredRows:
        """The first entries of the last axis, still on the disk."""
        return StoredRows(self._shards, self._rows, self._column, self._where, last)

    def __getitem__(self, key: Any) -> Any:
        """Read rows."""
        first, *further = key if isinstance(key, tuple) else (key,)
        if isinstance(first, int | np.integer):
            return self._read(self._where[first][None])[(0, *further)]
        read = self._read(self._where[first])
        return read[(slice(None), *further)] if further else read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, in memory."""
        if copy is False:
            msg = "features on the disk cannot be an array without being read: expected copy=None or True"
            raise ValueError(msg)
        return np.asarray(self._read(self._where), dtype)

    def at(self, rows: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(m, ...) the entry `second` of the second axis, of each of m rows: nothing else of them is read."""
        out = np.empty((len(rows), *self._own[1:]), self.dtype)
        entry_bytes = out[:1].nbytes
        count = self._own[0]
        self._fill(out, self._where[rows], second, entry_bytes, count)
        return out[..., : self._last]

    def _read(self, where: np.ndarray) -> np.ndarray:
        out = np.empty((len(where), *self._own), self.dtype)
        if len(where):
            self._fill(out, where, np.zeros(len(where), np.int64), out[:1].nbytes, 1)
        return out[..., : self._last]

    def _fill(self, out: np.ndarray, where: np.ndarray, entry: np.ndarray, entry_bytes: int, per_row: int) -> None:
        """Fill `out` with entries of so many bytes, of which each row has `per_row`; neighbours in one read."""
        places = where[:, 1].astype(np.int64) * per_row + entry
        apart = (np.diff(where[:, 0]) != 0) | (np.diff(places) != 1)
        starts = [0, *(np.flatnonzero(apart) + 1).tolist(), len(where)]
        flat = out.reshape(-1).view(np.uint8)
        opened, descriptor = -1, -1
        try:
            for begin, end in itertools.pairwise(starts):
                shard = int(where[begin, 0])
                if shard != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, opened = os.open(self._shards[shard].path, os.O_RDONLY | os.O_CLOEXEC), shard
                offset = self._shards[shard].offsets[self._column] + int(places[begin]) * entry_bytes
                part = flat[begin * entry_bytes : end * entry_bytes]
                if os.preadv(descriptor, [part.data], offset) != len(part):
                    msg = f"features in {self._shards[shard].path} end too early: it was changed; start again"
                    raise WorkError(msg)
        except OSError as error:
            msg = f"features in {error.filename or self._shards[opened].path} are gone ({error.strerror}): start again"
            raise WorkError(msg) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)


Rows = np.ndarray | StoredRows
"""Features of n images, in memory or on the disk."""


def take(rows: Rows, chosen: np.ndarray | slice) -> Rows:
    """Some rows, in the order given; where they are on the disk they stay there."""
    return rows.take(chosen) if isinstance(rows, StoredRows) else rows[chosen]


def first_columns(rows: Rows, count: int) -> Rows:
    """The first entries of the last axis; nothing is copied."""
    return rows.columns(count) if isinstance(rows, StoredRows) else rows[..., :count]


def joined(parts: Sequence[Rows]) -> Rows:
    """One after the other; on the disk only where all of them are."""
    stored = [part for part in parts if isinstance(part, StoredRows)]
    if len(stored) < len(parts):
        return np.concatenate([np.asarray(part) for part in parts])
    first = stored[0]
    shards: list[Shard] = []
    places = []
    for part in stored:
        places.append(part._where + np.array([len(shards), 0]))  # noqa: SLF001 - of its own class
        shards += part._shards  # noqa: SLF001 - the same
    return StoredRows(shards, first._rows, first._column, np.concatenate(places), first._last)  # noqa: SLF001 - the same


def entries(rows: Rows, index: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(m, ...) `rows[index, second]`."""
    return rows.at(index, second) if isinstance(rows, StoredRows) else rows[index, second]


def chunks(rows: Rows) -> Iterator[tuple[slice, np.ndarray]]:
    """All rows in turn, a few MiB at a time, with where they stand."""
    count = max(1, _CHUNK_BYTES // max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize))
    for start in range(0, len(rows), count):
        part = slice(start, start + count)
        yield part, np.asarray(rows[part])
