"""What belongs together, by a pattern on the images' paths. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from trainer.archives import show
from trainer.errors import LabelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.labels import Sample


def group_by_pattern(samples: Sequence[Sample], pattern: str) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Group images by what a regular expression captures of their paths; the groups that they had before are dropped.

    Args:
        samples: n labelled images.
        pattern: searched in each path inside the source; the group is what its part named `group` captures, else its
            first one.

    Returns:
        The n images with their groups, None where the pattern does not fit, and what the user should hear.

    Raises:
        LabelError: no regular expression, none that captures, or one that tells nothing apart.
    """
    groups = _capture([sample.name for sample in samples], pattern)
    kinds = dict.fromkeys(group for group in groups if group is not None)
    found = len(groups) - groups.count(None)
    notes = [f"{found} images lie in {len(kinds)} groups by --group-pattern, such as {show(next(iter(kinds)))}"]
    if len(kinds) == found:
        notes.append("by --group-pattern every image is a group of its own: it keeps nothing together")
    if None in groups:
        first = samples[groups.index(None)].name
        notes.append(f"{groups.count(None)} images do not fit --group-pattern and stand alone, such as {show(first)}")
    if any(sample.group is not None for sample in samples):
        notes.append("--group-pattern is given, so the groups in the CSV file are not used")
    return tuple(replace(sample, group=group) for sample, group in zip(samples, groups, strict=True)), tuple(notes)


def _capture(names: Sequence[str], pattern: str) -> list[str | None]:
    """What the pattern finds in each name; refuses what tells nothing apart."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        msg = f"group pattern {show(pattern)} is no regular expression ({error}): expected for example '(lot[0-9]+)'"
        raise LabelError(msg) from error
    if not compiled.groups:
        msg = (
            f"group pattern {show(pattern)} captures nothing: expected brackets around what names the group, for "
            "example '(lot[0-9]+)' or '(?P<group>board[^/]*)/'"
        )
        raise LabelError(msg)
    part = "group" if "group" in compiled.groupindex else 1
    matches = (compiled.search(name) for name in names)
    groups = [(match[part] or None) if match else None for match in matches]
    kinds = set(groups) - {None}
    if not kinds:
        msg = (
            f"group pattern {show(pattern)} fits none of the {len(names)} images: expected it to be found in paths "
            f"inside the source, such as {', '.join(show(name) for name in names[:3])}"
        )
        raise LabelError(msg)
    if len(kinds) == 1 and None not in groups:
        msg = (
            f"group pattern {show(pattern)} puts all {len(names)} images into one group, {show(str(kinds.pop()))}: "
            "nothing could be held out; expected it to capture what differs from lot to lot"
        )
        raise LabelError(msg)
    return groups
