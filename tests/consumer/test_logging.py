"""What the log looks like, and who it is for."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Literal

import pytest

from consumer.app import log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stream(io.StringIO):
    """Standard error, on a terminal or not."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "is_json"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("text", False, False),
        ("json", True, True),
    ],
)
def test_events_are_json_unless_a_person_reads_them_or_somebody_said_so(
    monkeypatch: pytest.MonkeyPatch, log_format: Literal["auto", "text", "json"], is_terminal: bool, is_json: bool
) -> None:
    stream = Stream(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    log_to_stderr(log_format, worker=3)
    logging.getLogger("consumer.flow").warning("camera of station %r is frozen", "a\nb")
    (line,) = stream.getvalue().splitlines()
    if is_json:
        told = json.loads(line)
        assert (told["level"], told["worker"], told["where"]) == ("warning", 3, "consumer.flow")
        assert told["what"] == r"camera of station 'a\nb' is frozen"
    else:
        assert line.endswith(r"WARNING worker 3 consumer.flow: camera of station 'a\nb' is frozen")
