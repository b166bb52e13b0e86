"""The runbook as a board of its own, so that an alert's link leads to its section wherever Grafana can be opened."""

from __future__ import annotations

import re
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import text
from grafana_foundation_sdk.models.text import TextMode

from tests.deploy.board_look import board_link

UID = "framegate-runbook"
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "runbook.md"

WHOLE, HALF = 24, 12
"""Widths, of Grafana's 24 columns."""


def sections() -> dict[str, str]:
    """The text of each section by its alert, in the page's order."""
    _, *parts = _parts()
    return {head: body.strip() for head, _, body in (part.partition("\n") for part in parts)}


def panel_of(alert: str) -> int:
    """The number of the panel with an alert's section."""
    return 1 + [*sections()].index(alert)


def runbook_board() -> build.Dashboard:
    """A panel for each alert, titled with its name, after one with what goes for all."""
    board = (
        build.Dashboard("Framegate runbook")
        .uid(UID)
        .description("What each alert means for the line, what to look at, and what to do.")
        .tags(["framegate"])
        .readonly()
        .timezone("browser")
        .timepicker(build.TimePicker().hidden(hidden=True))
        .link(board_link("The line", "/d/framegate"))
    )
    told = sections()
    board.with_panel(_panel("Runbook", _parts()[0].partition("\n")[2]).id(len(told) + 1).span(WHOLE).height(16))
    for name, body in told.items():
        board.with_panel(_panel(name, body).id(panel_of(name)).span(HALF).height(14))
    return board


def _parts() -> list[str]:
    return re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def _panel(title: str, body: str) -> text.Panel:
    return text.Panel().title(title).mode(TextMode.MARKDOWN).content(_linked(body.strip()))


def _linked(body: str) -> str:
    """Links to sections lead to their panels; those to other pages, which Grafana has not, are told by their text."""
    numbers = {name.lower(): panel_of(name) for name in sections()}
    inside = re.sub(r"\]\(#([a-z]+)\)", lambda found: f"](d/{UID}?viewPanel={numbers[found[1]]})", body)
    return re.sub(r"\[([^\]]+)\]\((?!d/)[^)]+\)", r"\1", inside)
