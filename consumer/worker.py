"""One worker: a whole consumer in a process that `consumer.workers` starts, as `python -m consumer.worker`.

On standard input it is given what to do, and reads on: the end of that is the supervisor's end, and then it stops too.
On what was standard output it reports, one line at a time. Its log goes where the supervisor's goes.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from io import FileIO
from typing import TYPE_CHECKING

from engine.streams import share_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer.app import Instruments
    from consumer.config import Settings

REPORT_EVERY_S = 0.5

REPORT_SHARE = 0.01
"""Of the time, spent on reports at most: with many stations they come less often."""

SILENT_AT_MOST_S = 10.0
"""But not less often than this: a supervisor takes one that is silent for a minute for one that hangs, and kills it."""


def instructions(number: int | str, workers: int, settings: Settings) -> bytes:
    """What a worker is given on its standard input.

    Args:
        number: which worker it is; what is no worker has a name.
        workers: how many share the cores.
        settings: its own. Pickled, so that they arrive as they were checked; on a pipe, since they may hold secrets,
            which a command line or an environment would show.
    """
    content = pickle.dumps(settings)
    return json.dumps({"worker": number, "workers": workers, "bytes": len(content)}).encode() + b"\n" + content


def main(run: Callable[[Settings, Instruments], None] | None = None) -> int:
    """Work until told to stop. Returns the process's exit status, as the front door's would be.

    Args:
        run: what to do with the settings; None: judge frames with the bundle's engine.
    """
    faulthandler.enable()
    out = _own_output()
    # Without a buffer: its lock, held by a thread that waits for ever, would abort the interpreter at its end.
    given = FileIO(0, closefd=False)
    order = json.loads(given.readline())
    share_cores(order["workers"])
    settings: Settings = pickle.loads(_exactly(given, order["bytes"]))  # noqa: S301 - from our parent, over our own pipe
    return _work(order["worker"], settings, given, out, run)


def _exactly(given: FileIO, size: int) -> bytes:
    """So many bytes."""
    content = b""
    while len(content) < size and (more := given.read(size - len(content))):
        content += more
    return content


def _own_output() -> FileIO:
    """Standard output for reports alone: what others print goes to standard error."""
    out = FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _work(
    number: int | str,
    settings: Settings,
    given: FileIO,
    out: FileIO,
    run: Callable[[Settings, Instruments], None] | None,
) -> int:
    """Run the consumer and report."""
    from consumer.app import Instruments, log_to_stderr, run_consumer  # noqa: PLC0415 - heavy
    from engine.errors import FramegateError  # noqa: PLC0415 - the same

    log_to_stderr(settings.log_format, worker=number)
    threading.Thread(target=_stop_with_the_supervisor, args=(given,), name="supervisor", daemon=True).start()
    instruments = Instruments()
    try:
        with _reporting(instruments, out):
            (run or run_consumer)(settings, instruments)
    except FramegateError as error:
        _report(instruments, out, str(error))
        return error.exit_code
    except Exception as error:  # a fault of the program's own: the supervisor tells it and starts another
        logging.getLogger(__name__).exception("worker %s failed unexpectedly", number)
        _report(instruments, out, f"{type(error).__name__}: {error}")
        return 1
    return 0


def _stop_with_the_supervisor(given: FileIO) -> None:
    """Stop in order when the supervisor has gone. On Linux the kernel is faster: see `children.bound_command`."""
    while given.read(4096):
        pass  # nothing more is said, but what is not read would hide the end
    os.kill(os.getpid(), signal.SIGTERM)


def rest_after(took_s: float) -> float:
    """How long to say nothing after a report that took so much of a processor's time.

    Not the time on the clock: a report that had to wait half a second for the interpreter, as while an engine is
    compiled, would silence the worker for almost a minute.
    """
    return min(SILENT_AT_MOST_S, max(REPORT_EVERY_S, took_s / REPORT_SHARE))


@contextmanager
def _reporting(instruments: Instruments, out: FileIO) -> Iterator[None]:
    """Report inside the block, and a last time when it has ended well."""
    over = threading.Event()

    def run() -> None:
        rest_s = 0.0
        while not over.wait(rest_s):
            began_s = time.thread_time()
            _report(instruments, out)
            rest_s = rest_after(time.thread_time() - began_s)

    thread = threading.Thread(target=run, name="reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    _report(instruments, out)


def _report(instruments: Instruments, out: FileIO, error: str | None = None) -> None:
    """One line, if anybody listens."""
    from consumer.reports import Report, families_of  # noqa: PLC0415 - heavy

    health = instruments.health
    line = Report(health.live(time.monotonic()), health.ready(), families_of(instruments.registry), error).to_line()
    with suppress(BrokenPipeError):
        while line:  # a pipe takes what it has room for
            line = line[out.write(line) or 0 :]


if __name__ == "__main__":
    sys.exit(main())
