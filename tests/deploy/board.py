"""The Grafana board, made from code: `python -m tests.deploy.board` writes deploy/grafana/*.json anew.

From top to bottom what a shift leader asks first. The screen of a wall (1920 x 1080, kiosk mode) holds the first 26 of
Grafana's rows; on a phone the panels stand below one another in the same order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from tests.deploy.board_line import fail_rate_panel, lag_panel, latency_panel, parts_panel, stations_panel, whole_panels
from tests.deploy.board_look import (
    DATASOURCE,
    board_link,
)
from tests.deploy.board_trouble import alerts_panel, cameras_panel, dead_letters_panel, models_panel
from tests.deploy.runbook_board import UID as RUNBOOK
from tests.deploy.runbook_board import runbook_board

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import stat, table, timeseries

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "deploy" / "grafana"


def line_board() -> build.Dashboard:
    """The board of a line."""
    board = (
        build.Dashboard("Framegate")
        .uid("framegate")
        .description("A line of inspection stations: what is judged, how fast, and what is wrong.")
        .tags(["framegate"])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(board_link("Runbook", f"/d/{RUNBOOK}"))
        .with_variable(
            build.QueryVariable("station")
            .label("Station")
            .description("Which stations to show; those that were judged in the time chosen.")
            .datasource(DATASOURCE)
            .query({"query": "label_values(framegate_verdicts_total, station)", "refId": "stations"})
            .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(".*")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.NATURAL_ASC)
        )
    )
    panels: tuple[stat.Panel | table.Panel | timeseries.Panel, ...] = (
        *whole_panels(4),
        parts_panel(14, 8),
        stations_panel(10, 8),
        fail_rate_panel(12, 7),
        latency_panel(12, 7),
        lag_panel(6, 7),
        cameras_panel(7, 7),
        alerts_panel(11, 7),
        models_panel(14, 7),
        dead_letters_panel(10, 7),
    )
    for place, panel in enumerate(panels, start=1):
        board.with_panel(panel.id(place))
    return board


def files() -> dict[Path, str]:
    """What deploy/grafana is to hold: path and text."""
    boards = {"framegate.json": line_board(), "runbook.json": runbook_board()}
    return {
        FOLDER / name: json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, board in boards.items()
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
