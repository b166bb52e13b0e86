"""Child processes that cannot outlive their parent, whatever becomes of it.

Each child runs in a session of its own, so that a Ctrl-C in the terminal reaches the parent alone, which then ends the
children in order. Against a parent that is killed outright there is `bound_command`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

from consumer.errors import ChildError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LAUNCHER = """
import ctypes, json, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
parent, environment, *command = sys.argv[1:]
if os.getppid() != int(parent):
    sys.exit("the process that wanted this one ended before it started")
os.execve(command[0], command, os.environ if environment == "null" else json.loads(environment))
"""
"""1 is PR_SET_PDEATHSIG. The parent's id is compared after the call: the parent may have ended before it."""

_TAIL_LINES = 12


def bound_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """A command line that runs `command` so that it does not outlive the thread that starts it.

    On Linux the kernel kills it when that thread ends, however it ends; elsewhere this does nothing. The process that
    `subprocess.Popen` reports is the command itself: the launcher becomes it by `exec`.

    Args:
        command: the program's path, not only its name, and its arguments.
        environment: all that the program sees; None hands on the one that the launcher is started with.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
    given = json.dumps(None if environment is None else dict(environment))
    return [*launcher, str(os.getpid()), given, *command]


class Child:
    """One `framegate` command in a process of its own, with a log file for what it says."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, output: Path | None = None) -> None:
        """Start `framegate ARGUMENTS`; standard error and, without `output`, standard output go to `log`."""
        self.name = name
        self._log = log
        command = bound_command([sys.executable, "-m", "framegate", *arguments])
        with log.open("wb") as errors, contextlib.ExitStack() as stack:
            out = stack.enter_context(output.open("wb")) if output is not None else errors
            self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def check(self) -> bool:
        """True once it has ended well, False while it runs.

        Raises:
            ChildError: it has ended badly; the message has the last lines it wrote.
        """
        status = self.poll()
        if status not in {None, 0}:
            raise ChildError(self._ended(status))
        return status == 0

    def require_running(self) -> None:
        """Raises ChildError where it has ended, well or badly."""
        status = self.poll()
        if status is not None:
            raise ChildError(self._ended(status))

    def wait(self, timeout_s: float) -> None:
        """Wait for a good end. Raises ChildError on a bad one, or where there is none within `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            msg = f"{self.name} has not ended within {timeout_s:.0f} s{self._tail()}"
            raise ChildError(msg) from error
        self.check()

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self, timeout_s: float) -> None:
        """See it end: killed where it has not ended within `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self, status: int | None) -> str:
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        return f"{self.name} ended {how}{self._tail()}"

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
            if lines:
                return "; it wrote last:\n  " + "\n  ".join(lines)
        return "; it wrote nothing"


class Children:
    """All children of one parent. Leaving the context ends them, last started first, by their own ids."""

    def __init__(self, logs: Path, patience_s: float = 10.0) -> None:
        """`logs` is an existing folder; `patience_s` is what an unwilling child is given before it is killed."""
        self._logs = logs
        self._patience_s = patience_s
        self._children: list[Child] = []

    def start(self, name: str, arguments: Sequence[str], output: Path | None = None) -> Child:
        """Start `framegate ARGUMENTS` under a name that no other child has."""
        child = Child(name, arguments, self._logs / f"{name}.log", output)
        self._children.append(child)
        return child

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End those that still run."""
        for child in reversed(self._children):
            child.terminate()
        deadline_s = time.monotonic() + self._patience_s
        for child in reversed(self._children):
            child.end(max(0.1, deadline_s - time.monotonic()))
