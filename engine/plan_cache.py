"""Plans that this machine built, on its disk. A plan is executable input: only what this user built here is trusted.

One file per plan: a first line that says what it is, a second that says what it was built for (JSON), then the plan.
Private to its owner, written whole or not at all, and built by one process at a time, for two builds on one GPU would
spoil each other's measurements.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LOG = logging.getLogger(__name__)
_MAGIC = b"framegate plan 1\n"
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_POLL_S = 0.1
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def default_folder(environment: Mapping[str, str]) -> Path:
    """Where plans lie when nothing was said: the user's cache folder, as the XDG base directories have it.

    Args:
        environment: the process's, read at the edge; an empty one leaves the folder below the user's home.
    """
    named = Path(environment.get("XDG_CACHE_HOME") or "")
    # A relative XDG_CACHE_HOME is to be ignored, says the specification.
    base = named if named.is_absolute() else Path(environment.get("HOME") or "~").expanduser() / ".cache"
    return base / "framegate" / "plans"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan is bound to besides its graph and the builder's options.

    Attributes:
        tensorrt: the full version.
        gpu: name of the model.
        capability: its compute capability, such as `9.0`.
        driver: the driver's version.
        cuda: the CUDA versions of driver and headers.
    """

    tensorrt: str
    gpu: str
    capability: str
    driver: str
    cuda: str

    def digest(self) -> str:
        """sha256 over all of it: what a timing cache is bound to."""
        return _sha256_of_json(asdict(self))


@dataclass(frozen=True, slots=True)
class PlanKey:
    """Everything that decides whether a plan fits: another value anywhere is another plan.

    Attributes:
        onnx_sha256: of the very bytes that TensorRT is given.
        machine: where it runs.
        profiles: each input's smallest, best and largest shape, for each profile.
        options: every option of the builder.
    """

    onnx_sha256: str
    machine: Machine
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], ...]], ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "onnx_sha256": self.onnx_sha256,
            "machine": asdict(self.machine),
            "profiles": [
                {name: [list(shape) for shape in shapes] for name, shapes in p.items()} for p in self.profiles
            ],
            "options": dict(self.options),
        }

    def digest(self) -> str:
        """sha256 over all of it: the plan's file name."""
        return _sha256_of_json(self.to_json())


@dataclass(frozen=True, slots=True)
class CachedPlan:
    """A plan, where it lies, and whether it lay there already."""

    plan: bytes
    path: Path
    hit: bool


class PlanCache:
    """A folder of plans.

    Attributes:
        hits, misses: how often a plan was there, and how often it had to be built.
    """

    def __init__(self, folder: Path, waiting: Callable[[], None] = lambda: None) -> None:
        """Use a folder; it is made when something is stored.

        `waiting` is called a few times a second while another process builds; what it raises ends the wait.
        """
        self.folder = folder
        self._waiting = waiting
        self.hits = 0
        self.misses = 0

    def path(self, key: PlanKey) -> Path:
        """Where a plan lies or would lie."""
        return self.folder / f"{key.digest()}.plan"

    def get_or_build(self, key: PlanKey, build: Callable[[], bytes]) -> CachedPlan:
        """The plan of a key; `build` makes it where it is not there, or not whole.

        Raises:
            PlanError: the folder or file belongs to another user, others may write to it, or it cannot be written.
            FramegateError: whatever `build` raises.
        """
        path = self.path(key)
        plan = self._read_plan(path, key)
        if plan is None:
            with self._one_builder():
                plan = self._read_plan(path, key)  # another process may have built it while this one waited
                if plan is None:
                    self.misses += 1
                    plan = build()
                    self._write(path, _MAGIC + _header(key, plan) + plan)
                    return CachedPlan(plan, path, hit=False)
        self.hits += 1
        return CachedPlan(plan, path, hit=True)

    def discard(self, key: PlanKey) -> None:
        """Remove a plan that turned out not to load."""
        self.path(key).unlink(missing_ok=True)

    def timing(self, machine: Machine) -> bytes:
        """What earlier builds on this machine measured; empty where there were none. Raises PlanError as above."""
        return self._read(self._timing_path(machine)) or b""

    def keep_timing(self, machine: Machine, timing: bytes) -> None:
        """Keep what a build measured for the next. Raises PlanError where it cannot be written."""
        if timing:
            self._write(self._timing_path(machine), timing)

    def _timing_path(self, machine: Machine) -> Path:
        return self.folder / f"{machine.digest()}.timing"

    def _read_plan(self, path: Path, key: PlanKey) -> bytes | None:
        """A whole plan of this very key, or None."""
        content = self._read(path)
        if content is None:
            return None
        header, _, plan = content.removeprefix(_MAGIC).partition(b"\n")
        if not content.startswith(_MAGIC) or header + b"\n" != _header(key, plan):
            _LOG.warning("plan %s is not whole: expected the checksum in its header; it is built again", path)
            return None
        return plan

    def _read(self, path: Path) -> bytes | None:
        """A file's bytes if nobody else can have written them, None where there is no file."""
        try:
            self._check_owner(self.folder, self.folder.lstat())
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _untrusted(path, "a symbolic link") from error
            msg = f"plan {path} cannot be read: {error.strerror}; expected a file of this user's own, delete it"
            raise PlanError(msg) from error
        with os.fdopen(descriptor, "rb") as file:
            self._check_owner(path, os.fstat(descriptor))
            return file.read()

    @staticmethod
    def _check_owner(path: Path, status: os.stat_result) -> None:
        """Raise PlanError for what others may have written."""
        if stat.S_ISLNK(status.st_mode):
            raise _untrusted(path, "a symbolic link")
        if status.st_uid != os.geteuid():
            raise _untrusted(path, f"owned by user {status.st_uid}")
        if status.st_mode & _OTHERS_WRITE:
            raise _untrusted(path, f"writable by others (mode {stat.S_IMODE(status.st_mode):o})")

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self._check_owner(self.folder, self.folder.lstat())

    def _write(self, path: Path, content: bytes) -> None:
        """Atomically: a reader sees the old file, the new one or none."""
        try:
            self._make_folder()
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".new-", delete=False) as file:
                try:
                    os.fchmod(file.fileno(), _FILE_MODE)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            msg = (
                f"plan {path} cannot be written: {error.strerror}; expected a folder of this user's own with room in it"
            )
            raise PlanError(msg) from error

    @contextlib.contextmanager
    def _one_builder(self) -> Iterator[None]:
        """Hold the folder's lock; the system frees it when its holder dies, however it dies."""
        try:
            self._make_folder()
            descriptor = os.open(
                self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE
            )
        except OSError as error:
            msg = f"plan folder {self.folder} cannot be used: {error.strerror}; choose another one with --plans"
            raise PlanError(msg) from error
        try:
            told = False
            while not _locked(descriptor):
                if not told:
                    _LOG.warning("another process is building a plan in %s: waiting for it", self.folder)
                told = True
                self._waiting()
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _header(key: PlanKey, plan: bytes) -> bytes:
    """One line: what the plan is for, and its checksum."""
    content = {**key.to_json(), "plan_sha256": hashlib.sha256(plan).hexdigest()}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _untrusted(path: Path, what: str) -> PlanError:
    return PlanError(
        f"{path} is {what}: a plan is run as it is, so expected a file and folder that only this user can write; "
        "delete it, or choose another folder with --plans"
    )
