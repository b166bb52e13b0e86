"""What inspectors said of frames: a CSV or JSON lines file with one image and its label in each row.

    file,label,group            {"file": "frames/000123.jpg", "label": "fail", "group": "lot 7", "by": "inspector 3"}

`file` is a path from the review file's folder on, or the name of an image that was trained on already, whose label is
corrected. `label` is the name of one of the two classes, or `pass` or `fail`; a row without one is left out. `group` is
optional. Further columns are kept for the report's tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.archives import show
from trainer.csv_rows import csv_rows, decode_csv, posix_name
from trainer.errors import LabelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from engine.bundle import Classes

COLUMNS = ("file", "label", "group")


@dataclass(frozen=True, slots=True)
class Review:
    """One row.

    Attributes:
        file: posix path, as it stands there.
        label: name of a class, spelled as the bundle does.
        line: of the file, from 1.
    """

    file: str
    label: str
    is_defect: bool
    group: str | None
    extra: Mapping[str, str]
    line: int


def read_reviews(path: Path, classes: Classes) -> tuple[tuple[Review, ...], tuple[str, ...]]:
    """The rows that have a label, each file once (its last row counts), and what the user should hear.

    Raises:
        LabelError: it cannot be read, is neither CSV nor JSON lines, or a row names no file or another class.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"review file {path} cannot be read: {error.strerror}; expected CSV or JSON lines with file and label"
        raise LabelError(msg) from error
    text = decode_csv(content, f"review file {path}")
    rows = _json_rows(text, path) if text.lstrip().startswith("{") else _csv_rows(text, path)
    found: dict[str, Review] = {}
    unlabelled, changed = 0, list[str]()
    for line, row in rows:
        review = _review(row, line, path, classes)
        if review is None:
            unlabelled += 1
            continue
        earlier = found.pop(review.file, None)
        if earlier is not None and earlier.label != review.label:
            changed.append(review.file)
        found[review.file] = review
    notes = [f"review file: {unlabelled} rows have no label and were left out"] if unlabelled else []
    if changed:
        notes.append(f"review file: {len(changed)} images have rows that disagree, the last counts: {show(changed[0])}")
    if not found:
        msg = f"review file {path} holds no labelled row: expected at least one image with its label"
        raise LabelError(msg)
    return tuple(found.values()), tuple(notes)


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for line, entry in enumerate(text.splitlines(), start=1):
        if not entry.strip():
            continue
        try:
            row: Any = json.loads(entry)
        except ValueError as error:
            msg = f"review file {path}: line {line} is not JSON ({error}); expected one object in each line"
            raise LabelError(msg) from error
        if not isinstance(row, dict):
            msg = f"review file {path}: line {line} is {show(entry)}; expected an object with file and label"
            raise LabelError(msg)
        plain = {key: value for key, value in row.items() if value is not None and not isinstance(value, (dict, list))}
        yield line, {key.casefold(): str(value).strip() for key, value in plain.items()}


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    def refuse(columns: list[str]) -> None:
        _require_columns(columns, path)

    return csv_rows(text, f"review file {path}", "file,label", refuse, strict=True)


def _require_columns(columns: list[str], path: Path) -> None:
    if columns and ({"file", "label"} - set(columns) or len(set(columns)) != len(columns)):
        msg = (
            f"review file {path} has columns {show(','.join(columns))}: expected file,label, each once, and any "
            "further ones, such as group"
        )
        raise LabelError(msg)


def _review(row: dict[str, str], line: int, path: Path, classes: Classes) -> Review | None:
    file = posix_name(row.get("file", ""))
    if not file:
        msg = f"review file {path}: line {line} names no file; expected a path from the file's own folder on"
        raise LabelError(msg)
    said = row.get("label", "")
    if not said:
        return None
    is_defect = _is_defect(said, classes)
    if is_defect is None:
        msg = (
            f"review file {path}: line {line} says {show(said)}: expected {show(classes.passed)} or "
            f"{show(classes.failed)}, pass or fail, or nothing where the inspector could not tell"
        )
        raise LabelError(msg)
    label = classes.failed if is_defect else classes.passed
    extra = {name: value for name, value in row.items() if name not in COLUMNS and value}
    return Review(file, label, is_defect, row.get("group") or None, extra, line)


def _is_defect(said: str, classes: Classes) -> bool | None:
    """By the classes' own names first: a class may be called `pass` and be the defect."""
    word = said.casefold()
    for known in ((classes.passed.casefold(), classes.failed.casefold()), ("pass", "fail")):
        if word in known:
            return word == known[1]
    return None
