"""A progress bar for what takes a while, on standard error where a terminal is there; silent elsewhere."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_bar(
    *, width: int = 20, stays: bool = False, hides_done: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Gives what is to be called, by any thread, with (what is being done, how much of it, of how much or 0).

    Args:
        width: columns for what is being done.
        stays: the bars are still there afterwards.
        hides_done: one that is through makes room for the others.
    """
    from rich.console import Console  # noqa: PLC0415 - only while something is shown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    name_column = TextColumn(f"{{task.description:<{width}.{width}}}")
    columns = (name_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=not stays) as bar:
        tasks: dict[str, Any] = {}
        telling = threading.Lock()

        def show(name: str, done: int, total: int) -> None:
            with telling:
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=total or None)
                visible = not (hides_done and done >= total)
                bar.update(tasks[name], completed=done, total=total or None, visible=visible)

        yield show
