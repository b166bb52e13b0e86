"""The CSV file that says what each image is and what it belongs to, as spreadsheets save it."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from trainer.archives import show
from trainer.csv_rows import csv_rows, decode_csv, posix_name
from trainer.errors import LabelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that mean something; further ones are kept beside each image.

    Attributes:
        file: path inside the source, or a unique end of it.
        label: its class; without it the folders or the file names give it.
        group: what it belongs to (lot, part, board); without it every image stands alone.
    """

    file: str = "file"
    label: str = "label"
    group: str = "group"

    @classmethod
    def parse(cls, text: str | None) -> Columns:
        """Of `file=image,label=class,group=lot`, in any order; what is not named keeps its name.

        Raises:
            LabelError: anything else.
        """
        if text is None:
            return cls()
        known = [field.name for field in fields(cls)]
        pairs = [part.partition("=") for part in text.split(",")]
        given = {key.strip(): name.strip().casefold() for key, _, name in pairs}
        if len(given) != len(pairs) or not set(given) <= set(known) or not all(given.values()):
            msg = f"columns {show(text)} are not understood: expected for example file=image,label=class,group=lot"
            raise LabelError(msg)
        return cls(**given)


DEFAULT_COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the CSV file."""

    line: int
    file: str
    label: str
    group: str | None
    extra: Mapping[str, str]


def read_groups_file(path: Path) -> str:
    """Text of a CSV file on this machine.

    Raises:
        LabelError: it cannot be read.
        SourceError: it is not UTF-8 text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"groups file {path} cannot be read: {error.strerror}; expected a CSV file with columns file,label,group"
        raise LabelError(msg) from error
    return decode_csv(content, f"groups file {path}")


def match_rows(names: Sequence[str], text: str, columns: Columns) -> tuple[dict[str, Row], list[str]]:
    """Image -> its row, and notes on rows without an image.

    Args:
        names: posix paths inside the source.
        text: the CSV file: comma, semicolon or tab.
        columns: what its columns are called.

    Raises:
        LabelError: no such columns, or rows that do not fit the images.
    """
    index = _suffix_index(names)
    matched: dict[str, Row] = {}
    unknown: list[Row] = []
    for row in _read_rows(text, columns):
        name = _find(row, index)
        if name is None:
            unknown.append(row)
        elif name in matched:
            msg = (
                f"groups file: lines {matched[name].line} and {row.line} both name the image {show(name)}; expected one"
                " line for each image"
            )
            raise LabelError(msg)
        else:
            matched[name] = row
    notes = []
    if unknown:
        notes.append(
            f"groups file: {len(unknown)} rows name files that are not in the source, such as {show(unknown[0].file)}"
        )
    alone = sum(row.group is None for row in matched.values())
    if 0 < alone < len(matched):
        notes.append(f"groups file: {alone} images have no group and stand alone")
    return matched, notes


def _suffix_index(names: Sequence[str]) -> dict[str, str | None]:
    """Every path and every end of one -> the image; None where several images share that end."""
    index: dict[str, str | None] = {}
    for name in names:
        parts = name.split("/")
        for start in range(1, len(parts)):
            end = "/".join(parts[start:])
            index[end] = None if end in index else name
    index.update({name: name for name in names})
    return index


def _find(row: Row, index: Mapping[str, str | None]) -> str | None:
    """The image a row means: its path or a unique end of it, with or without the row's own top folder."""
    file = row.file
    if file in index:
        name = index[file]
        if name is None:
            msg = f"groups file: line {row.line}: {show(file)} fits several images; expected the path inside the source"
            raise LabelError(msg)
        return name
    # Only a whole path here: `fail/1.jpg` must never find `good/1.jpg` by its last part.
    below_top = file.partition("/")[2]
    return below_top if index.get(below_top) == below_top and below_top else None


def _read_rows(text: str, meant: Columns) -> list[Row]:
    """The lines of the CSV file."""

    def refuse(columns: Sequence[str]) -> None:
        _refuse_columns(columns, meant)

    lines = csv_rows(text, "groups file", "file,label,group", refuse, strict=False)
    return [_row(line, values, meant) for line, values in lines]


def _refuse_columns(columns: Sequence[str], meant: Columns) -> None:
    """A file must say which images it means, and something of them; what was named must be there."""
    named = {name for name, own in zip(astuple(meant), astuple(DEFAULT_COLUMNS), strict=True) if name != own}
    has_meaning = meant.file in columns and {meant.label, meant.group} & set(columns)
    if has_meaning and named <= set(columns) and len(set(columns)) == len(columns):
        return
    wanted = f"{meant.file}, and {meant.label} or {meant.group} or both" + (", as --columns says" if named else "")
    kinds = (field.name for field in fields(Columns))
    example = ",".join(f"{kind}={name}" for kind, name in zip(kinds, columns, strict=False)) or "file=image"
    msg = (
        f"groups file has columns {show(','.join(columns) or 'nothing')}: expected {wanted}, each once, and any "
        f"further ones; rename them, or say which is which, for example with --columns {show(example)}"
    )
    raise LabelError(msg)


def _row(line: int, values: dict[str, str], meant: Columns) -> Row:
    """One line, checked."""
    file = posix_name(values.pop(meant.file))
    if not file:
        msg = f"groups file: line {line} names no file; expected a path inside the source"
        raise LabelError(msg)
    return Row(line, file, values.pop(meant.label, ""), values.pop(meant.group, "") or None, values)
