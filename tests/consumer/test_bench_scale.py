"""`framegate bench scale`: its keys, its picture, and what it says of the policy that is served."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

import framegate
from consumer.bench_scale import ENGINES, ScalePlan, bench_scale, capacity_per_s, policy_of
from consumer.cli_scale import drawing
from consumer.svg import Line, Panel, chart
from engine.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ScalePlan(frames=600, stations=(10, 400))


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return bench_scale(SMALL)


def test_the_engines_are_those_of_the_published_figures() -> None:
    assert {name: round(1 / cost.seconds(1)) for name, cost in ENGINES.items()} == {"L4": 332, "H100": 469}
    assert {name: round(1 / cost.per_image_s) for name, cost in ENGINES.items()} == {"L4": 12_882, "H100": 88_714}
    assert [policy_of(cost).max_size for cost in ENGINES.values()] == [64, 64]
    assert capacity_per_s(ENGINES["L4"]) == pytest.approx(64 / (64 / 12_882 + 1 / 332 - 1 / 12_882))


def test_every_run_is_there_and_the_same_again(result: dict[str, Any]) -> None:
    runs = {(row["engine"], row["stations"], row["arrivals"], row["policy"]) for row in result["scale"]}
    assert len(runs) == len(result["scale"]) == 2 * 2 * 2 * 2
    assert result == bench_scale(SMALL)
    assert result != bench_scale(ScalePlan(frames=600, stations=(10, 400), seed=2))


def test_where_more_comes_than_the_engine_can_do_no_latency_is_told(result: dict[str, Any]) -> None:
    over = [row for row in result["scale"] if not row["keeps_up"]]
    assert {(row["engine"], row["stations"]) for row in over} == {("L4", 400)}
    assert all(row["p99_ms"] is None for row in over)
    assert all(row["p99_ms"] > 0 for row in result["scale"] if row["keeps_up"])


def test_what_takes_what_is_there_is_no_slower_than_what_waits(result: dict[str, Any]) -> None:
    p99 = {(r["engine"], r["stations"], r["arrivals"], r["policy"]): r["p99_ms"] for r in result["scale"]}
    for engine, stations in (("L4", 10), ("H100", 10), ("H100", 400)):
        for arrivals in ("poisson", "bursty"):
            place = engine, stations, arrivals
            assert p99[(*place, "ours")] < p99[(*place, "fixed_delay")]
    assert all(row["p99_ratio"] > 0.9 and row["mean_ratio"] > 0.97 for row in result["waiting"])


def test_a_flood_costs_the_others_more_without_the_cap(result: dict[str, Any]) -> None:
    for row in result["flood"]:
        assert row["p99_ms_without"] < row["p99_ms"] < row["p99_ms_uncapped"]


def test_the_picture_has_every_line_that_has_points(result: dict[str, Any]) -> None:
    root = ET.fromstring(drawing(result))  # noqa: S314 - our own
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "takes what is there, bursty" in words
    assert "waits 5 ms or until it is full, poisson" in words
    assert words.count("capacity") == 2


def test_a_chart_draws_values_where_their_logarithm_is() -> None:
    text = chart([Panel("a < b", [Line("l", [(1, 1), (10, 10), (100, 100)], "red")])], x_label="x", y_label="y")
    drawn = [e.get("d") or "" for e in ET.fromstring(text).iter() if e.get("stroke") == "red"]  # noqa: S314 - our own
    (path,) = [steps for steps in drawn if steps.count("L") == 2]  # the other is the legend's
    first, middle, last = (tuple(map(float, step.split())) for step in path[1:].split("L"))
    assert middle == pytest.approx([(a + b) / 2 for a, b in zip(first, last, strict=True)])
    assert first[1] > last[1], "up is less in pixels"
    assert "a &lt; b" in text


@pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(1.0, float("inf"))]])
def test_what_has_no_logarithm_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(InputError, match="expected at least one, and values above 0"):
        chart([Panel("p", [Line("l", points, "red")])], x_label="x", y_label="y")


def test_the_command_prints_a_table_or_json_and_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("consumer.bench_scale.bench_scale", lambda _plan, _tick: bench_scale(SMALL))
    plot = tmp_path / "scale.svg"
    printed = CliRunner().invoke(framegate.cli, ["bench", "scale", "--json", "--plot", str(plot)])
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout)["engines"]["L4"]["largest_batch"] == 64
    assert plot.read_text(encoding="utf-8").startswith("<svg")
    table = CliRunner().invoke(framegate.cli, ["bench", "scale"]).output
    assert "L4           400  bursty    ours" in table
    assert "over" in table
    assert "Examples" in CliRunner().invoke(framegate.cli, ["bench", "scale", "--help"]).output
