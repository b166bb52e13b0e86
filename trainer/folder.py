"""A folder of images on this machine. Nothing is decoded and nothing is written."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.archives import show
from trainer.errors import MemberError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trainer.archives import Limits
    from trainer.progress import Step


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The whole content of one file. Raises MemberError where it cannot be read, or is larger than it may be."""
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise MemberError(msg) from error
    if len(content) > limit_bytes:
        msg = f"{path} is larger than {limit_bytes:,} bytes: expected one image; take it out"
        raise MemberError(msg)
    return content


class Folder:
    """A folder as a `trainer.sources.Store`. Links are followed only to files inside it."""

    def __init__(self, path: Path, limits: Limits) -> None:
        """List it.

        Raises:
            SourceError: a folder in it cannot be listed, or it holds too many files.
        """
        self._root = path.resolve()
        self._limits = limits
        self.sizes: dict[str, int] = {}
        self._unfollowed: list[str] = []
        self._walk()

    @property
    def notes(self) -> Sequence[str]:
        """One line on links that were not followed."""
        if not self._unfollowed:
            return ()
        count = len(self._unfollowed)
        first = show(self._unfollowed[0])
        return (f"{count} link{'' if count == 1 else 's'} not followed (to a folder, nothing or outside): {first}",)

    def read(self, name: str) -> bytes:
        """The content of one file, up to the size limit."""
        if name not in self.sizes:
            msg = f"{show(name)} is not in {self._root}: expected a name from its listing"
            raise MemberError(msg)
        return read_file(self._root / name, self._limits.max_member_bytes)

    def fetch(self, names: Sequence[str], tell: Callable[[Step], None]) -> None:
        """Everything is here."""

    def close(self) -> None:
        """Nothing is held open."""

    def _walk(self) -> None:
        """List every plain file below the root."""
        for folder, folders, files in os.walk(self._root, onerror=_refuse_unlisted):
            self._unfollowed += [self._name(folder, name) for name in folders if Path(folder, name).is_symlink()]
            for name in files:
                self._add(Path(folder, name), self._name(folder, name))

    def _name(self, folder: str, name: str) -> str:
        """Path inside the source."""
        return Path(folder, name).relative_to(self._root).as_posix()

    def _add(self, path: Path, name: str) -> None:
        """Note one file's size; pipes and devices are no files, a link counts where its target lies inside."""
        if path.is_symlink() and not path.resolve().is_relative_to(self._root):
            self._unfollowed.append(name)
            return
        try:
            status = path.stat()
        except OSError:  # a link to nothing, or a file deleted since it was listed
            self._unfollowed.append(name)
            return
        if stat.S_ISREG(status.st_mode):
            self.sizes[name] = status.st_size
        if len(self.sizes) > self._limits.max_members:
            msg = f"{self._root} holds more than {self._limits.max_members:,} files: split it"
            raise SourceError(msg)


def _refuse_unlisted(error: OSError) -> None:
    """A folder that cannot be listed would silently shrink a class."""
    msg = f"folder {error.filename} cannot be listed: {error.strerror}; give this user the right to read it"
    raise SourceError(msg) from error
