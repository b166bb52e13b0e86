"""Features that were computed before: on this machine's disk, by content of the image and digest of the featurizer.

One folder per featurizer, shards of rows in it (see `trainer.shards`). A training that was killed goes on where its
last shard ends; a second one on the same images computes nothing. Any number of processes may use a cache at once:
each writes shards of its own, and what one of them uses is not deleted by another.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from engine.errors import WorkError
from engine.streams import cores
from trainer.shards import PART, SUFFIX, Shard, unwritable
from trainer.stored_rows import StoredRows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from trainer.elsewhere import Elsewhere
    from trainer.featurize import Row
    from trainer.shards import RowShape

LIMIT_GIB = 20.0
"""Of all featurizers together."""

SHARD_ROWS = 64
SHARD_BYTES = 8 << 20
"""Most rows of a shard, or as many as fit in so many bytes: what a kill may cost."""

_LOCK = "lock"
log = logging.getLogger(__name__)


class FeatureCache:
    """A folder of features, for one training. A context manager; from one thread.

    Attributes:
        found, computed: images whose features were there already, and those that were computed, over all featurizers.
        elsewhere: who computes what is not there; None: this process.
    """

    def __init__(self, root: Path | None = None, limit_gib: float = LIMIT_GIB) -> None:
        """Use a folder, which is made when something is stored; None: one of its own that is deleted in the end."""
        self._limit_bytes = int(limit_gib * 2**30)
        self._stack = contextlib.ExitStack()
        self._given = root
        self._open: dict[str, FeatureStore] = {}
        self.found = self.computed = 0
        self.elsewhere: Elsewhere | None = None

    def __enter__(self) -> Self:
        """Hand over itself."""
        if self._given is None:
            own = tempfile.TemporaryDirectory(prefix="framegate-features-")
            self._root = Path(self._stack.enter_context(own))
        else:
            self._root = self._given
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the features; those that were used longest ago are deleted where there are too many."""
        for store in self._open.values():
            store.close()
        self._open.clear()
        self._prune()
        self._stack.close()

    def open(self, digest: str, shape: RowShape) -> FeatureStore:
        """The features of one featurizer; they stay open as long as the cache is.

        Raises:
            WorkError: the folder cannot be used.
        """
        if digest not in self._open:
            self._open[digest] = FeatureStore(self._root / digest, shape)
            self._prune()
        return self._open[digest]

    def _prune(self) -> None:
        """Delete the features that were used longest ago and by nobody now, until there is room."""
        used = {}
        for folder in self._root.glob("?" * 64):
            with contextlib.suppress(OSError):  # another process has deleted it
                used[folder] = ((folder / _LOCK).stat().st_mtime_ns, _bytes_of(folder))
        left = self._limit_bytes
        for folder in sorted(used, key=lambda folder: used[folder][0], reverse=True):
            left -= used[folder][1]
            if left < 0 and folder.name not in self._open:
                _delete_unused(folder)


class FeatureStore:
    """The rows of one featurizer. One thread may append while another looks up; any number of processes."""

    def __init__(self, folder: Path, shape: RowShape) -> None:
        """Read which rows are there; files that are not whole are deleted.

        Raises:
            WorkError: the folder cannot be used.
        """
        self.folder, self.shape = folder, shape
        self.shard_rows = max(1, min(SHARD_ROWS, SHARD_BYTES // shape.row_bytes))
        self._lock = _locked(folder)
        self._shards: list[Shard] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._load()

    def close(self) -> None:
        """Let others delete it."""
        self._lock.close()

    def __len__(self) -> int:
        """How many images it has rows of."""
        return len(self._places)

    def __contains__(self, sha256: str) -> bool:
        """Whether the row of an image is there."""
        return bytes.fromhex(sha256) in self._places

    def append(self, rows: Sequence[Row]) -> None:
        """Keep rows, on the disk before this returns; at most `shard_rows` at once.

        Raises:
            WorkError: the disk is full, or does not take them.
        """
        self._add(Shard.write(self.folder, self.shape, rows))

    def refuse_without_room(self, images: int) -> None:
        """Before the work, not after. Raises WorkError where so many more images do not fit on the disk."""
        need, free = images * self.shape.row_bytes, shutil.disk_usage(self.folder).free
        if need > free:
            msg = (
                f"features of {images} images need {need / 2**30:.1f} GiB in {self.folder.parent}, which has "
                f"{free / 2**30:.1f} GiB left: make room, give a folder on a larger disk with --features, or train "
                "with a smaller --size or fewer images"
            )
            raise WorkError(msg)

    def rows(self, column: str, sha256: Sequence[str]) -> StoredRows:
        """One of the columns `pooled`, `glances` and `channels`, of images that are there."""
        return StoredRows(tuple(self._shards), self.shape, column, self._where(sha256))

    def statistics(self, sha256: Sequence[str]) -> np.ndarray:
        """(n, 4) contrast, detail, level and noise of images that are there."""
        values = [self._shards[shard].statistics[row] for shard, row in self._where(sha256)]
        return np.array(values).reshape(-1, 4)

    def _where(self, sha256: Sequence[str]) -> np.ndarray:
        places = [self._places[bytes.fromhex(digest)] for digest in sha256]
        return np.array(places, np.int32).reshape(-1, 2)

    def _load(self) -> None:
        paths = sorted(self.folder.glob(f"*{SUFFIX}"))
        with ThreadPoolExecutor(cores()) as pool:
            found = list(pool.map(lambda path: Shard.read(path, self.shape), paths))
        for path, shard in zip(paths, found, strict=True):
            if shard is not None:
                self._add(shard)
            else:
                log.warning("features in %s are not whole: they are computed again", path)
                with contextlib.suppress(OSError):
                    path.unlink()

    def _add(self, shard: Shard) -> None:
        number = len(self._shards)
        self._shards.append(shard)
        for row, digest in enumerate(shard.digests):
            self._places.setdefault(digest.tobytes(), (number, row))


def _locked(folder: Path) -> TextIO:
    """The folder's lock, shared; what a process that was killed left half written is deleted."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (folder / _LOCK).open("w", encoding="utf-8")
        except FileNotFoundError:  # deleted in between
            continue
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            alone = _try_alone(lock)
            if alone:
                for part in folder.glob(f"{PART}*"):
                    part.unlink(missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_there(folder / _LOCK, lock):
                os.utime(folder / _LOCK)
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def _delete_unused(folder: Path) -> None:
    """Unless a process uses it."""
    with contextlib.suppress(OSError), (folder / _LOCK).open("r+", encoding="utf-8") as lock:
        if _try_alone(lock) and _is_there(folder / _LOCK, lock):
            log.info("features in %s were used longest ago: deleted", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _try_alone(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(path: Path, lock: TextIO) -> bool:
    """Whether the lock that is held is the one that others find."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except OSError:
        return False


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
