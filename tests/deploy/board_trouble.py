"""Panels on what is wrong: cameras, alerts, models, dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.deploy.board_look import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    bars,
    colour,
    columns,
    first,
    link,
    listing,
    over_time,
    rows_now,
    shaded,
    unit,
    words,
)
from tests.deploy.board_queries import CAMERAS, TROUBLE, alerts_expr
from tests.deploy.runbook_board import UID as RUNBOOK
from tests.deploy.runbook_board import sections

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import table, timeseries


def cameras_panel(wide: int, high: int) -> table.Panel:
    return (
        listing(
            "Cameras that need cleaning",
            "Share of a camera's pictures in 5 minutes that are dark, bright, blank or blurred: clean lens and "
            "lamp. Red from 5 %. frozen and shifted: see to the camera and its mount; none of its parts is let "
            "through.",
            "No camera needs cleaning",
            wide=wide,
            high=high,
        )
        .with_target(rows_now(CAMERAS))
        .transformations(columns({"station": "Station", "trouble": "What is wrong", "Value": "Pictures"}))
        .sort_by(first("Pictures", most=True))
        .override_by_name("Pictures", [*unit("percentunit", 0), *shaded((TROUBLE, RED), below=ORANGE)])
    )


def alerts_panel(wide: int, high: int) -> table.Panel:
    names = {
        "severity": "How bad",
        "alertname": "Alert",
        "station": "Station",
        "what": "What",
        "instance": "Consumer",
        "worker": "Worker",
        "Value": "Runbook",
    }
    said = {"critical": ("now", RED), "warning": ("this shift", ORANGE), "info": ("a look", BLUE)}
    return (
        listing(
            "Alerts that fire",
            "now: parts wait, are rejected unjudged, or nobody judges them. this shift: parts are judged, but "
            "something is wrong. What to do leads to the alert's section of the runbook.",
            "No alert fires",
            wide=wide,
            high=high,
        )
        .with_target(rows_now(alerts_expr()))
        .transformations(columns(names))
        .sort_by(first("How bad"))
        .override_by_name("How bad", words(said))
        .override_by_name("Runbook", link("What to do", f"/d/{RUNBOOK}?viewPanel=${{__value.raw}}", len(sections())))
    )


def models_panel(wide: int, high: int) -> table.Panel:
    expr = """max by (instance, worker, name, version, digest) (framegate_model_info)
        * on (instance, worker) group_left min by (instance, worker) (framegate_last_reload_successful)"""
    names = {
        "instance": "Consumer",
        "worker": "Worker",
        "name": "Model",
        "version": "Version",
        "digest": "Digest",
        "Value": "Last reload",
    }
    return (
        listing(
            "Model in use, by worker",
            "Which bundle judges. All workers of a line should show the same digests. refused: what lies in the "
            "bundle's place is not sound, and the model of before goes on.",
            "No consumer has a model",
            wide=wide,
            high=high,
        )
        .with_target(rows_now(expr))
        .transformations(columns(names))
        .override_by_name("Last reload", words({"1": ("good", GREEN), "0": ("refused", RED)}))
    )


def dead_letters_panel(wide: int, high: int) -> timeseries.Panel:
    return (
        bars(
            "Dead letters per minute, by cause",
            "Frames that could not be judged and were set aside on frames.dead with the reason. Lost: the broker "
            "did not take the letter; the verdict none was published all the same.",
            group="letters",
            wide=wide,
            high=high,
        )
        .with_target(
            over_time("sum by (cause) (rate(framegate_dead_letters_total[$__rate_interval])) * 60", "{{cause}}", "A")
        )
        .with_target(
            over_time(
                "sum by (reason) (rate(framegate_dead_letter_errors_total[$__rate_interval])) * 60",
                "lost: {{reason}}",
                "B",
            )
        )
        .override_by_query("B", [colour(PURPLE)])
    )
