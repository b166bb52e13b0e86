"""The folder that the driver and the executors share: a path that all of them see, or a URL of an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import SparkError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO


class SharedFolder:
    """Files by their names below one root. What is written is there whole or not at all, whoever writes it twice.

    Raises SparkError, from every method, where the folder cannot be used.
    """

    def __init__(self, root: str) -> None:
        """Take a path or a URL; nothing is touched yet."""
        self.root = root.rstrip("/") or root
        self._remote: Any = None
        if "://" in root:
            self._remote, self._base = _open_url(self.root)

    def write(self, name: str, content: bytes) -> None:
        """Put a whole file, over what is there."""
        with self._told(name, "written"):
            if self._remote is not None:
                self._remote.pipe_file(f"{self._base}/{name}", content)
                return
            path = Path(self.root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self._told(name, "read"):
            if self._remote is not None:
                content: bytes = self._remote.cat_file(f"{self._base}/{name}")
                return content
            return Path(self.root, name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        """A file to read from any place in it; to be closed."""
        with self._told(name, "read"):
            if self._remote is not None:
                file: BinaryIO = self._remote.open(f"{self._base}/{name}", "rb")
                return file
            return Path(self.root, name).open("rb")

    def exists(self, name: str) -> bool:
        """Whether it has been written."""
        with self._told(name, "looked for"):
            if self._remote is not None:
                self._remote.invalidate_cache()
                return bool(self._remote.exists(f"{self._base}/{name}"))
            return Path(self.root, name).exists()

    def names(self, folder: str) -> set[str]:
        """The files of a folder below the root, as `folder/name`; none where it is not there."""
        with self._told(folder, "listed"):
            try:
                if self._remote is not None:
                    self._remote.invalidate_cache()
                    found = [str(path) for path in self._remote.ls(f"{self._base}/{folder}", detail=False)]
                else:
                    found = os.listdir(Path(self.root, folder))  # noqa: PTH208 - names are all that is needed
            except FileNotFoundError:
                return set()
        return {f"{folder}/{path.rsplit('/', 1)[-1]}" for path in found}

    def remove(self) -> None:
        """Take the folder away with all that is in it; nothing happens where it is not there."""
        if self._remote is not None:
            with self._told("", "removed"), contextlib.suppress(FileNotFoundError):
                self._remote.rm(self._base, recursive=True)
        else:
            with self._told("", "removed"), contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.root)

    def remove_empty(self) -> None:
        """Take the folder away where nothing is in it; an object store has no empty folders."""
        if self._remote is None:
            with contextlib.suppress(OSError):  # not empty, or not there: not ours to take
                Path(self.root).rmdir()

    @contextlib.contextmanager
    def _told(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if what == "listed":
                raise
            msg = (
                f"{name} is not in {self.root}: expected a folder that this machine and every executor see under the "
                "same name; give a shared path or an object store's URL with --spark-folder"
            )
            raise SparkError(msg) from error
        except OSError as error:
            msg = f"{self.root}/{name} cannot be {what} ({error.strerror or error}): expected a shared folder to use"
            raise SparkError(msg) from error


def _open_url(root: str) -> tuple[Any, str]:
    """A file system and the root's path in it. Raises SparkError."""
    try:
        import fsspec  # noqa: PLC0415 - only for URLs

        system, base = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        msg = f"{root} cannot be opened ({error}): expected a URL that fsspec knows; install framegate[s3] or [azure]"
        raise SparkError(msg) from error
    return system, str(base)
