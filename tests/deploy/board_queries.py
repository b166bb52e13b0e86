"""What the board asks Prometheus, where more than one panel asks it or it needs saying why."""

from __future__ import annotations

from tests.deploy.runbook_board import panel_of, sections

STATIONS = 'station=~"$station"'
LAG_S = 10
"""From here FramegateLagging fires."""

TROUBLE = 0.05
"""Share of a camera's pictures from which FramegateCameraTrouble fires."""

CHANGED_POINTS = 3
"""Percentage points of the fail rate from which FramegateFailRateStep fires."""

SOME_TROUBLE = 0.01
"""Share from which the board names the camera: somebody passes by with a cloth before the alert."""


def verdicts(matcher: str, window: str, *, offset: str = "") -> str:
    """How many verdicts of each station in a window; with `offset`, before."""
    match = f"{STATIONS}, {matcher}" if matcher else STATIONS
    return f"sum by (station) (increase(framegate_verdicts_total{{{match}}}[{window}]{offset}))"


def failed(window: str, *, offset: str = "") -> str:
    """The share of fails in the passes and fails of each station: what was not plainly judged is no fail."""
    judged = verdicts('decision=~"pass|fail"', window, offset=offset)
    fails = verdicts('decision="fail"', window, offset=offset)
    return f"{fails} / {judged}"


def latency(quantile: float, by: str, window: str) -> str:
    """Seconds from capture to decision that this share of the verdicts did not exceed."""
    return f"""histogram_quantile({quantile}, sum by ({by}) (
        rate(framegate_verdict_seconds_bucket{{{STATIONS}}}[{window}])))"""


CAMERAS = f"""max by (station, trouble) (
    framegate:camera_trouble:increase5m{{{STATIONS}}}
    / ignoring (trouble) group_left framegate:verdicts:increase5m > {SOME_TROUBLE}
    or label_replace(framegate_camera_fault{{{STATIONS}}} > 0, "trouble", "$1", "fault", "(.+)"))"""
"""Cameras with something wrong, and the share of their pictures that show it: all, where it is frozen or shifted."""

FIRING = 'ALERTS{alertstate="firing", alertname=~"Framegate.+"}'


def alerts_expr() -> str:
    """Each firing alert, its value the number of the panel that says what to do."""
    numbered = " or ".join(
        f'ALERTS{{alertstate="firing", alertname="{name}"}} * {panel_of(name)}' for name in sections()
    )
    return f"""max by (alertname, severity, station, what, instance, worker) (
        label_join({numbered}, "what", " ", "cause", "fault", "trouble", "reason"))"""
