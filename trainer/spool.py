"""What one run has fetched, in a file without a name: gone with the process, however that ends."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from typing import TYPE_CHECKING

from trainer.errors import FetchError

if TYPE_CHECKING:
    import io

SPARE_BYTES = 64 << 20
"""Of the disk, for others."""


class Spool:
    """Contents one behind the other. `append` and `read` from any thread.

    It lies in the folder for temporary files: TMPDIR names another one. No name of a store ever becomes one of a file.
    """

    def __init__(self, what: str) -> None:
        """Begin an empty one for `what`, which messages name.

        Raises:
            FetchError: nothing can be written there.
        """
        self._what = what
        self._end = 0
        self._lock = threading.Lock()
        try:
            self.file: io.FileIO = tempfile.TemporaryFile(buffering=0, prefix="framegate-")  # noqa: SIM115 - see close
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error

    def require(self, n_bytes: int) -> None:
        """Before hours of fetching, not after.

        Raises:
            FetchError: there is not so much room.
        """
        free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
        if n_bytes + SPARE_BYTES > free_bytes:
            why = f"it takes {_mib(n_bytes)}, and {_mib(free_bytes)} are free"
            raise self._unwritable(why)

    def append(self, content: bytes) -> int:
        """Put it behind the others; returns where it begins, in bytes.

        Raises:
            FetchError: the disk is full.
        """
        with self._lock:
            start = self._end
            self._end += len(content)
        view, at = memoryview(content), start
        try:
            while view:
                written = os.pwrite(self.file.fileno(), view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error
        return start

    def read(self, start: int, n_bytes: int) -> bytes:
        """What was put there."""
        parts = []
        while n_bytes and (part := os.pread(self.file.fileno(), n_bytes, start)):
            parts.append(part)
            start, n_bytes = start + len(part), n_bytes - len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Give the room back; a second time does nothing."""
        self.file.close()

    def _unwritable(self, why: str) -> FetchError:
        return FetchError(
            f"{self._what} cannot be kept in {tempfile.gettempdir()} while training reads it ({why}): make room, or "
            "name a folder on a larger disk with TMPDIR"
        )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.0f} MiB"
