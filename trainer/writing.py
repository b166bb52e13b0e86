"""A trained bundle to its place, with its acceptance report where one is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.bundle import sealed, write_bundle
from trainer import training_set
from trainer.progress import Step
from trainer.report.gather import gather
from trainer.telling import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from engine.bundle import Bundle
    from trainer.report.gather import Run, Seen


def write_trained(
    out: Path,
    bundle: Bundle,
    run: Run,
    seen: Seen | None,
    *,
    sha256: Sequence[str],
    options: Mapping[str, str],
    progress: Callable[[Step], None],
) -> tuple[Bundle, dict[str, Any]]:
    """Write it whole; returns the bundle as it was written and the summary that the command prints.

    Args:
        out: new folder or .zip.
        bundle: with all that is told of it.
        run: of the training.
        seen: the report's pictures; None: no report.
        sha256: (n,) of the encoded bytes of the run's samples.
        options: that were given, for the report.
        progress: told what is being done.

    Raises:
        BundleError: `out` exists already or cannot be written.
    """
    files = {training_set.NAME: training_set.to_csv(run.data.samples, sha256, run.held)}
    if seen is not None:
        progress(Step("report"))
        from trainer.report.page import report_files  # noqa: PLC0415 - matplotlib is for who wants a report

        files |= report_files(gather(sealed(bundle), run, seen, options))
    progress(Step("write"))
    written = write_bundle(out, bundle, files)
    return written, summary(out, written, has_report=seen is not None)
