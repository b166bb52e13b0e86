"""Panels on the parts: how many, how many fail, how fast they are judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders.common import GraphThresholdsStyleConfig
from grafana_foundation_sdk.models.common import GraphThresholdsStyleMode
from grafana_foundation_sdk.models.dashboard import (
    DynamicConfigValue,
)

from tests.deploy.board_look import (
    BLUE,
    DECISION_COLOURS,
    GREY,
    ORANGE,
    RED,
    bars,
    colour,
    columns,
    dashed,
    limits,
    listing,
    now,
    number,
    one_colour,
    over_time,
    plot,
    rows_now,
    shaded,
    unit,
)
from tests.deploy.board_queries import (
    CAMERAS,
    CHANGED_POINTS,
    FIRING,
    LAG_S,
    SOME_TROUBLE,
    STATIONS,
    failed,
    latency,
    verdicts,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import stat, table, timeseries


def whole_panels(wide: int) -> tuple[stat.Panel, ...]:
    """The line in six numbers."""
    per_minute = (
        number("Parts per minute", "Verdicts of all chosen stations, over the last 5 minutes.", "none", wide=wide)
        .color_scheme(one_colour(BLUE))
        .with_target(now(f"sum(rate(framegate_verdicts_total{{{STATIONS}}}[5m])) * 60", legend="parts/min"))
    )
    fails = 'sum(increase(framegate_verdicts_total{%s, decision=~"%s"}[1h]%s))'
    rates = [
        f"{fails % (STATIONS, 'fail', offset)} / {fails % (STATIONS, 'pass|fail', offset)}"
        for offset in ("", " offset 1d")
    ]
    against = (
        number(
            "Failed, this hour and yesterday",
            "Fails among passes and fails of all chosen stations: in the last hour, and in the same hour yesterday.",
            "percentunit",
            wide=wide,
            decimals=1,
        )
        .with_target(now(rates[0], "A", "last hour"))
        .with_target(now(rates[1], "B", "yesterday"))
        .color_scheme(one_colour(GREY))
    )
    slow = number(
        "Slowest 1 % of verdicts",
        "99 of 100 verdicts of the last 5 minutes took no longer than this from capture to decision.",
        "s",
        wide=wide,
        decimals=None,
    ).with_target(now(latency(0.99, "le", "5m"), legend="p99"))
    slow.color_scheme(one_colour(BLUE))
    lag = (
        number(
            "Lag",
            "Age of the oldest frame that waits for its verdict, in the worst consumer.",
            "s",
            wide=wide,
            decimals=None,
        )
        .thresholds(limits((LAG_S / 2, ORANGE), (LAG_S, RED)))
        .with_target(now("max(framegate_lag_seconds)", legend="lag"))
    )
    cameras = (
        number(
            "Cameras to see to",
            "Stations whose camera is dirty, dark, out of focus, frozen or moved.",
            "none",
            wide=wide,
        )
        .thresholds(limits((1, ORANGE)))
        .with_target(now(f"count(count by (station) ({CAMERAS})) or vector(0)", legend="cameras"))
    )
    alerts = (
        number("Alerts", "Alerts that fire now, of all stations. The list below says which.", "none", wide=wide)
        .thresholds(limits((1, RED)))
        .with_target(now(f"count({FIRING}) or vector(0)", legend="alerts"))
    )
    return per_minute, against, slow, lag, cameras, alerts


def parts_panel(wide: int, high: int) -> timeseries.Panel:
    expr = f"sum by (station, decision) (rate(framegate_verdicts_total{{{STATIONS}}}[$__rate_interval])) * 60"
    panel = bars(
        "Parts per minute, by station and decision",
        "One verdict is one part. Green pass, red fail, orange review, purple none (it could not be judged). "
        "Only pass goes through the gate.",
        group="parts",
        wide=wide,
        high=high,
    ).with_target(over_time(expr, "{{station}} {{decision}}"))
    for decision, name in DECISION_COLOURS.items():
        panel.override_by_regexp(f"/ {decision}$/", [colour(name)])
    return panel


def stations_panel(wide: int, high: int) -> table.Panel:
    unjudged = verdicts('decision="none"', "1h")
    panel = listing(
        "Each station, this hour against yesterday",
        "Failed: fails among passes and fails, in the last hour and in the same hour yesterday. Change in "
        "percentage points; orange from 3, up or down, as the alert has it. Not judged: verdicts none, which are not "
        "let through.",
        "No verdicts",
        wide=wide,
        high=high,
    )
    names = {
        "station": "Station",
        "Value #A": "Parts/min",
        "Value #B": "Failed",
        "Value #C": "Yesterday",
        "Value #D": "Change",
        "Value #E": "Not judged",
    }
    for ref_id, expr in {
        "A": f"sum by (station) (rate(framegate_verdicts_total{{{STATIONS}}}[5m])) * 60",
        "B": failed("1h"),
        "C": failed("1h", offset=" offset 1d"),
        "D": f"100 * ({failed('1h')} - {failed('1h', offset=' offset 1d')})",
        "E": f"{unjudged} / {verdicts('', '1h')}",
    }.items():
        panel.with_target(rows_now(expr, ref_id))
    return (
        panel.transformations(columns(names))
        .override_by_name("Parts/min", unit("none", 1))
        .override_by_name("Failed", unit("percentunit", 1))
        .override_by_name("Yesterday", unit("percentunit", 1))
        .override_by_name(
            "Change", [*unit("none", 1), *shaded((-CHANGED_POINTS, GREY), (CHANGED_POINTS, ORANGE), below=ORANGE)]
        )
        .override_by_name("Not judged", [*unit("percentunit", 1), *shaded((SOME_TROUBLE, RED))])
    )


def fail_rate_panel(wide: int, high: int) -> timeseries.Panel:
    rate = f"max by (station) (framegate:fail_ratio:10m{{{STATIONS}}}%s)"
    return (
        plot(
            "Fail rate by station, against yesterday",
            "Fails among passes and fails of 10 minutes. Dashed: the same station at the same time yesterday. A "
            "step in either direction is the parts or the pictures of them.",
            "percentunit",
            wide=wide,
            high=high,
            decimals=1,
        )
        .with_target(over_time(rate % "", "{{station}}", "A"))
        .with_target(over_time(rate % " offset 1d", "{{station}} yesterday", "B"))
        .override_by_query("B", [dashed(), DynamicConfigValue("custom.lineWidth", 1)])
    )


def latency_panel(wide: int, high: int) -> timeseries.Panel:
    return (
        plot(
            "Verdict latency against the deadline",
            "Capture to decision: what the gate waits for. p50: half of all verdicts took no longer; p99, by "
            "station: 99 of 100. The red line is --deadline-s: older frames are not judged. Without a deadline there "
            "is none.",
            "s",
            wide=wide,
            high=high,
        )
        .with_target(over_time(latency(0.5, "le", "$__rate_interval"), "p50, all", "A"))
        .with_target(over_time(latency(0.99, "le, station", "$__rate_interval"), "p99 {{station}}", "B"))
        .with_target(over_time("min(framegate_deadline_seconds < Inf)", "deadline", "C"))
        .override_by_query("C", [colour(RED), dashed()])
    )


def lag_panel(wide: int, high: int) -> timeseries.Panel:
    return (
        plot(
            "Lag",
            "Age of the oldest frame that waits for its verdict, by consumer and worker. From 10 s on, for a "
            "minute or more, parts reach the gate before their verdicts.",
            "s",
            wide=wide,
            high=high,
            rows=False,
        )
        .thresholds(limits((LAG_S, RED)))
        .thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
        .with_target(over_time("max by (instance, worker) (framegate_lag_seconds)", "{{instance}} {{worker}}"))
    )
