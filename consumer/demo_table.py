"""The demo on a terminal: a live table by station; without a terminal, a line at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from consumer.demo_tally import DECISIONS, STAGES

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from consumer.demo import Progress

_LINE_EVERY_S = 5.0


class Display:
    """Shows progress on standard error, which leaves standard output to the result. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        """Nothing is shown yet."""
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._said: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the table: what is left on the screen is the summary."""
        if self._console.is_terminal:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show one more state."""
        if self._console.is_terminal:
            self._live.update(_picture(progress))
            return
        step, at_s = self._said
        if progress.step != step or (progress.tally is not None and progress.seconds > at_s + _LINE_EVERY_S):
            self._said = (progress.step, progress.seconds)
            self._console.print(_line(progress), highlight=False)


def _line(progress: Progress) -> str:
    counts = "" if progress.tally is None else f": {progress.sent} sent, {len(progress.tally.verdicts)} verdicts"
    return f"[{progress.seconds:6.1f} s] {progress.step}{counts}"


def _picture(progress: Progress) -> Group:
    parts: list[Text | Table] = [Text(_line(progress))]
    if progress.tally is not None:
        parts.append(_table(progress))
    return Group(*parts)


def _table(progress: Progress) -> Table:
    tally = progress.tally
    table = Table(title="p50 / p99 latency in ms by stage", title_justify="right")
    table.add_column("station")
    for name in ("frames", *DECISIONS, *STAGES):
        table.add_column(name, justify="right")
    if tally is None:
        return table
    for station, counts in sorted(tally.stations.items()):
        latency = tally.percentiles(station)
        cells = [f"{latency[s]['p50']:.0f} / {latency[s]['p99']:.0f}" if s in latency else "" for s in STAGES]
        table.add_row(station, str(counts.total()), *(str(counts[d]) for d in DECISIONS), *cells)
    return table


def print_summary(summary: dict[str, Any], console: Console | None = None) -> None:
    """The result for a person, on standard output."""
    out = console or Console(highlight=False)
    decisions = ", ".join(f"{count} {name}" for name, count in summary["decisions"].items())
    out.print(f"frames {summary['frames']}, verdicts {summary['verdicts']} ({decisions}) in {summary['seconds']} s")
    out.print(
        f"on frames never trained on: AUROC {_number(summary['auroc'])}, accuracy {_number(summary['accuracy'])}, "
        f"good parts passed {_number(summary['good_passed'])}"
    )
    for title in ("recall_by_difficulty", "recall_by_kind"):
        if summary[title]:
            cells = ", ".join(f"{name} {_number(v['recall'])} of {v['defects']}" for name, v in summary[title].items())
            out.print(f"defects not passed, by {title.removeprefix('recall_by_')}: {cells}")
    table = Table(title="latency in ms")
    table.add_column("stage")
    for name in ("p50", "p99"):
        table.add_column(name, justify="right")
    for stage, values in summary["latency_ms"].items():
        table.add_row(stage, f"{values['p50']:.1f}", f"{values['p99']:.1f}")
    out.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
