"""CSV files as spreadsheets save them: comma, semicolon or tab, any further columns, empty lines anywhere."""

from __future__ import annotations

import csv
import io
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from trainer.errors import LabelError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def decode_csv(content: bytes, origin: str) -> str:
    """Text of a CSV file: UTF-8, with or without a byte order mark.

    Raises:
        SourceError: the bytes are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{origin} is not UTF-8 text ({error.reason} at byte {error.start}): save it as 'CSV UTF-8'"
        raise SourceError(msg) from error


def csv_rows(
    text: str, what: str, expected: str, refuse_columns: Callable[[list[str]], None], *, strict: bool
) -> Iterator[tuple[int, dict[str, str]]]:
    """Each line after the header: its number, and its cells by the lower case names of the columns.

    Args:
        text: of the file.
        what: file it is, for messages.
        expected: columns, for messages.
        refuse_columns: told the columns before the first row, none where the file is empty; raises what it will.
        strict: a quote that is never closed is an error.

    Raises:
        LabelError: it is no CSV, or a line has more or fewer cells than the header.
    """
    text = text.lstrip("\ufeff")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    try:
        table = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        msg = f"{what}: line {reader.line_num} is not CSV ({error}); expected columns {expected}"
        raise LabelError(msg) from error
    columns = [cell.strip().casefold() for cell in table[0][1]] if table else []
    refuse_columns(columns)
    for line, cells in table[1:]:
        if len(cells) != len(columns):
            msg = f"{what}: line {line} has {len(cells)} cells, expected {len(columns)} as in the header"
            raise LabelError(msg)
        yield line, {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}


def posix_name(text: str) -> str:
    r"""A path inside a source as its names are written: `a\1.jpg` is `a/1.jpg`; empty where there is none."""
    return "/".join(PurePosixPath(text.replace("\\", "/")).parts)
