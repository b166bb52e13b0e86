"""Images that appear in a folder: found, waited for until they are whole, read once each, and moved away when stored.

Polled, not notified: cameras drop files over SMB, NFS and FTP, and a share tells nobody about what another host wrote.
The folder itself is the memory. A file that lies there is still to be sent, one that was acknowledged lies in the done
folder, so nothing has to be written down, and memory follows what is waiting, within a bound, not what was ever sent.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consumer.errors import SettingsError
from consumer.pictures import CONTENT_TYPES, Picture, content_type_of, part_of
from consumer.topics import MAX_MESSAGE_BYTES
from engine.errors import WorkError

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterator

DONE = "done"
REFUSED = "refused"
"""Folder for images that the broker will never take: too large."""

POLL_S = 0.2
MOST_WAITING = 1_000
"""Files that are looked after at once, those that came first; the others are found when these have gone."""

_REFUSALS = frozenset({"MessageSizeTooLargeError", "RecordListTooLargeError"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Look:
    """A file as it is now; another one where any of this differs."""

    inode: int
    size: int  # bytes
    written_ns: int
    arrived_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Look:
        # A file that is moved in keeps the time it was written at; the change of its inode is when it came here.
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class DropFolder:
    """A `LiveSource` of one watched folder and its subfolders.

    Each image is sent once it is whole, in the order in which they arrived, and moved when the broker has it. A crash
    between the two sends it again after the restart, under the same frame id. Hidden files and those without an image's
    suffix are left alone: a camera may write `.1.jpg` or `1.jpg.part` and rename.
    """

    def __init__(
        self,
        folder: Path,
        *,
        done: Path | None = None,
        delete: bool = False,
        settle_s: float = 1.0,
        part_pattern: re.Pattern[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the folders for what was sent and refused.

        Args:
            folder: what is watched.
            done: where sent images go; None: the folder `done` in it. On the same file system.
            delete: sent images are deleted instead.
            settle_s: how long a file must have been the same; 0: as soon as it is seen.
            part_pattern: see `CameraSettings`.
            clock: monotonic seconds.
            wall_clock: epoch seconds; an arrival later than that is now.

        Raises:
            SettingsError: a folder is not there, cannot be written to, or lies on another file system.
        """
        _require_folder(folder)
        self._folder = folder.resolve()
        self._done = None if delete else (done or folder / DONE).resolve()
        self._refused = self._folder / REFUSED
        self._settle_s = settle_s
        self._pattern = part_pattern
        self._clock = clock
        self._wall_clock = wall_clock
        self._next_look_s = clock()
        self._seen: dict[Path, tuple[_Look, float]] = {}
        self._whole: deque[tuple[Path, _Look]] = deque()
        self._under_way: dict[Path, _Look] = {}
        self._settled: deque[tuple[Picture, BaseException | None]] = deque()
        for target in (self._refused, self._done):
            if target is not None:
                _require_target(self._folder, target)

    def take(self) -> Picture | None:
        """The next image that is whole; see `LiveSource`.

        Raises:
            WorkError: the folder or an image cannot be read.
        """
        if not self._whole and self._clock() >= self._next_look_s:
            self._look()
            self._next_look_s = self._clock() + POLL_S
        while self._whole:
            path, look = self._whole.popleft()
            payload = _read(path, look)
            if payload is not None:
                self._under_way[path] = look
                return self._picture(path, look, payload)
        return None

    def settle(self, picture: Picture, error: BaseException | None) -> None:
        """Remember the answer until `tidy`, which runs on the thread that takes; see `LiveSource`."""
        self._settled.append((picture, error))

    def tidy(self) -> None:
        """Move what is stored or refused.

        Raises:
            WorkError: an image was lost under way, or cannot be moved; it still lies in the folder.
        """
        trouble = None
        while self._settled:
            picture, error = self._settled.popleft()
            try:
                self._tidy(picture, error)
            except WorkError as reason:
                trouble = trouble or reason
        if trouble is not None:
            raise trouble

    def _tidy(self, picture: Picture, error: BaseException | None) -> None:
        """One image has its answer."""
        if picture.path is None:
            return
        path, look = picture.path, self._under_way.pop(picture.path)
        if error is not None and type(error).__name__ not in _REFUSALS:
            msg = (
                f"image {path} was not acknowledged ({type(error).__name__}): it stays where it is and is sent at the "
                "next start; see that the broker runs"
            )
            raise WorkError(msg)
        if error is not None:
            _log.warning("image %s is larger than the topic takes; moved to %s", path, self._refused)
        try:
            # Written anew meanwhile: another picture, which is still to be sent.
            if _Look.of(path.stat()) == look:
                self._put_away(path, str(picture.frame_id), refused=error is not None)
        except FileNotFoundError:
            return
        except OSError as reason:
            msg = f"image {path} is sent and cannot be moved away: {reason.strerror}; see the rights on its folder"
            raise WorkError(msg) from reason

    def _put_away(self, path: Path, frame_id: str, *, refused: bool) -> None:
        """Move the file, or delete it; never over another one."""
        target = self._refused if refused else self._done
        if target is None:
            path.unlink()
            return
        place = target / path.relative_to(self._folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place = place.with_name(f"{place.stem}-{frame_id[:8]}{place.suffix}")
        path.rename(place)

    def _picture(self, path: Path, look: _Look, payload: bytes) -> Picture:
        """The image with its own time, and an id that a restart gives it again."""
        name = f"{path.relative_to(self._folder)}\n{look.size}\n{look.written_ns}\n{look.inode}"
        frame_id = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        arrived_s = min(look.arrived_ns / 1e9, self._wall_clock())
        return Picture(payload, content_type_of(path), path, part_of(path, self._pattern), arrived_s, frame_id)

    def _look(self) -> None:
        """Find what is whole, first come first."""
        now_s = self._clock()
        waiting = heapq.nsmallest(
            MOST_WAITING, self._there(), key=lambda found: (found[1].arrived_ns, os.fsencode(found[0]))
        )
        seen: dict[Path, tuple[_Look, float]] = {}
        for path, look in waiting:
            before = self._seen.get(path)
            since_s = before[1] if before is not None and before[0] == look else now_s
            if now_s - since_s >= self._settle_s:
                self._whole.append((path, look))
            else:
                seen[path] = (look, since_s)
        self._seen = seen

    def _there(self) -> Iterator[tuple[Path, _Look]]:
        """The images in the folder that are not under way."""
        left_out = {self._refused, self._done}

        def unreadable(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError) or Path(error.filename) == self._folder:
                msg = f"watched folder {error.filename} cannot be read: {error.strerror}; see that it is mounted"
                raise WorkError(msg) from error

        for name, folders, files in os.walk(self._folder, onerror=unreadable):
            here = Path(name)
            folders[:] = [one for one in folders if not one.startswith(".") and here / one not in left_out]
            for file in files:
                path = here / file
                if file.startswith(".") or path.suffix.lower() not in CONTENT_TYPES or path in self._under_way:
                    continue
                with suppress(FileNotFoundError):  # a file may go while we look
                    yield path, _Look.of(path.stat())


def _read(path: Path, look: _Look) -> bytes | None:
    """The file's bytes; None where it has gone or was written meanwhile: it is found again.

    Of a file that is too large to send no more is read than shows that.
    """
    try:
        with path.open("rb") as file:
            payload = file.read(MAX_MESSAGE_BYTES + 1)
            return payload if _Look.of(os.fstat(file.fileno())) == look else None
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"image {path} cannot be read: {error.strerror}; see the rights on it"
        raise WorkError(msg) from error


def _require_folder(folder: Path) -> None:
    """What is watched is there."""
    if not folder.is_dir():
        msg = f"{folder} is not there: expected a folder to watch"
        raise SettingsError(msg)


def _require_target(folder: Path, target: Path) -> None:
    """Files can be moved there at once."""
    if folder.is_relative_to(target):
        msg = f"{target} holds the watched folder {folder}: expected another one for what was sent"
        raise SettingsError(msg)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"folder {target} cannot be made: {error.strerror}; give the camera the right to write there"
        raise SettingsError(msg) from error
    if target.stat().st_dev != folder.stat().st_dev:
        msg = f"{target} lies on another file system than {folder}: expected the same, for a file is moved at once"
        raise SettingsError(msg)
    if not os.access(target, os.W_OK) or not os.access(folder, os.W_OK):
        msg = f"files cannot be moved from {folder} to {target}: give the camera the right to write in both"
        raise SettingsError(msg)
