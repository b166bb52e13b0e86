"""The Grafana board: committed as the code makes it, and every query on it finds something in a real Prometheus."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest

from consumer.metrics import engine_metric_docs, metric_docs, supervisor_metric_docs
from tests.deploy.board import FOLDER, files
from tests.deploy.board_queries import CHANGED_POINTS, LAG_S, TROUBLE
from tests.deploy.history import DEADLINE_S, DIGESTS, NOW_S, STATIONS, STEP_S, firing, history, server
from tests.deploy.prometheus import ROOT, metric_names, rules, tool
from tests.deploy.runbook_board import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deploy.live_prometheus import Server

BOARD = json.loads((FOLDER / "framegate.json").read_text(encoding="utf-8"))
RUNBOOK = json.loads((FOLDER / "runbook.json").read_text(encoding="utf-8"))
PANELS = {panel["title"]: panel for panel in BOARD["panels"]}
TARGETS = {f"{title}, {target['refId']}": target for title, panel in PANELS.items() for target in panel["targets"]}
SCREEN_ROWS = 28
"""Of 38 px each, on a wall of 1080 px."""

Series = list[tuple[dict[str, str], list[float]]]
"""(labels, values over time) of each."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for name in ("prometheus", "promtool"):
        tool(name)
    folder = tmp_path_factory.mktemp("history")
    history(folder, metric_names(json.dumps(BOARD)))
    with server(folder) as running:
        yield running


def asked(prometheus: Server, name: str, stations: str = ".*") -> Series:
    """What a query finds, as Grafana asks it for the last hour."""
    target = TARGETS[name]
    filled = {"station": stations, "__rate_interval": "1m"}
    expr = re.sub(r"\$([a-z_]{2,})", lambda found: filled[found[1]], target["expr"])
    if target.get("instant"):
        found = prometheus.ask("query", query=expr, time=str(NOW_S))["result"]
        return [(each["metric"], [float(each["value"][1])]) for each in found]
    found = prometheus.ask("query_range", query=expr, start=str(NOW_S - 3600), end=str(NOW_S), step=str(STEP_S))
    return [(each["metric"], [float(value) for _, value in each["values"]]) for each in found["result"]]


def newest(series: Series, *labels: str) -> dict[str, float]:
    """The last values, by these labels."""
    return {" ".join(each[label] for label in labels): values[-1] for each, values in series}


def test_what_is_committed_is_what_the_code_makes() -> None:
    for path, content in files().items():
        assert path.read_text(encoding="utf-8") == content, "run: .venv/bin/python -m tests.deploy.board"
    assert set(files()) == set(FOLDER.glob("*.json"))


def test_it_is_of_the_grafana_that_is_run() -> None:
    """Grafana 11.6 writes schema 41; a later one would not be read."""
    assert {board["schemaVersion"] for board in (BOARD, RUNBOOK)} == {41}
    assert "grafana/grafana:11.6." in (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")


def test_it_asks_the_datasource_that_is_provisioned() -> None:
    provisioned = (FOLDER / "provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8")
    uids = re.findall(r'"datasource": \{\s+"type": "prometheus",\s+"uid": "(\w+)"', json.dumps(BOARD, indent=1))
    assert len(uids) > len(TARGETS)
    for uid in set(uids):
        assert f"uid: {uid}\n" in provisioned


def test_times_are_those_of_a_shift() -> None:
    assert (BOARD["time"], BOARD["refresh"]) == ({"from": "now-1h", "to": "now"}, "10s")


@pytest.mark.parametrize("panel", [*BOARD["panels"], *RUNBOOK["panels"]], ids=lambda panel: panel["title"])
def test_a_panel_has_a_title_and_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    if panel["type"] == "text":
        assert panel["options"]["content"]
        return
    assert panel["description"].endswith(".")
    assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "timeseries":
        assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("board", [BOARD, RUNBOOK], ids=["line", "runbook"])
def test_panels_fill_the_grid_without_overlap(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))


def test_what_is_asked_first_is_on_the_first_screen_from_top_to_bottom() -> None:
    order = [
        "Parts per minute, by station and decision",
        "Fail rate by station, against yesterday",
        "Verdict latency against the deadline",
        "Lag",
        "Cameras that need cleaning",
        "Alerts that fire",
    ]
    shown = [(panel["gridPos"]["y"], panel["gridPos"]["x"], panel["title"], panel) for panel in BOARD["panels"]]
    shown.sort(key=lambda place: place[:2])
    titles = [title for _, _, title, panel in shown if panel["type"] != "stat" and title in order]
    assert titles == order
    for title in order:
        place = PANELS[title]["gridPos"]
        assert place["y"] + place["h"] <= SCREEN_ROWS


def test_every_metric_named_is_the_products_or_a_rules() -> None:
    text = json.dumps(BOARD)
    declared = {doc.name for doc in (*metric_docs(), *supervisor_metric_docs(), *engine_metric_docs())}
    recorded = set(re.findall(r"framegate:[a-z_]+:[a-z0-9]+", text))
    assert metric_names(text) <= declared
    assert recorded
    assert recorded <= set(rules("record"))


def test_what_is_known_by_station_is_asked_for_the_chosen_ones() -> None:
    by_station = [doc.name for doc in metric_docs() if "station" in doc.labels]
    names = re.compile(rf"\b(?:{'|'.join(by_station)})(?:_bucket)?\b(.{{0,21}})")
    found = [rest for target in TARGETS.values() for rest in names.findall(target["expr"])]
    assert len(found) > 10
    assert {rest[:20] for rest in found} == {'{station=~"$station"'}


def test_colours_change_where_alerts_fire() -> None:
    alerts = rules("alert")
    limits = {
        "FramegateLagging": LAG_S,
        "FramegateCameraTrouble": TROUBLE,
        "FramegateFailRateStep": CHANGED_POINTS / 100,
    }
    for name, limit in limits.items():
        assert f"> {limit}" in alerts[name]["expr"]


@pytest.mark.slow
@pytest.mark.parametrize("stations", [".*", "press-1"], ids=["all stations", "one station"])
@pytest.mark.parametrize("name", TARGETS)
def test_every_query_finds_something_and_of_no_other_station(prometheus: Server, name: str, stations: str) -> None:
    found = asked(prometheus, name, stations)
    assert any(not math.isnan(value) for _, values in found for value in values), TARGETS[name]["expr"]
    if stations != ".*" and not name.startswith("Alert"):  # these are told of all stations
        assert {labels["station"] for labels, _ in found if "station" in labels} <= {stations}


@pytest.mark.slow
def test_the_stations_to_choose_from(prometheus: Server) -> None:
    (variable,) = BOARD["templating"]["list"]
    assert (variable["name"], variable["multi"], variable["includeAll"]) == ("station", True, True)
    metric, label = re.findall(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])[0]
    assert set(prometheus.ask(f"label/{label}/values", **{"match[]": metric})) == set(STATIONS)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_line(prometheus: Server) -> None:
    """What `history` says of each: 40 frames a minute, a tenth of one station's blurred, one in fifty no image."""
    table = "Each station, this hour against yesterday"
    parts = newest(asked(prometheus, f"{table}, A"), "station")
    assert parts == pytest.approx(dict.fromkeys(STATIONS, 40), rel=0.02)
    today, yesterday, change = (newest(asked(prometheus, f"{table}, {ref}"), "station") for ref in "BCD")
    assert today["mould-2"] == pytest.approx(yesterday["mould-2"], abs=0.005)
    assert today["press-1"] > 1.7 * yesterday["press-1"]
    assert change == pytest.approx({each: 100 * (today[each] - yesterday[each]) for each in STATIONS}, abs=1e-6)
    assert newest(asked(prometheus, f"{table}, E"), "station") == pytest.approx(
        dict.fromkeys(STATIONS, 0.02), abs=0.002
    )
    rates = newest(asked(prometheus, "Fail rate by station, against yesterday, A"), "station")
    assert rates == pytest.approx(today, abs=0.03)
    before = newest(asked(prometheus, "Fail rate by station, against yesterday, B"), "station")
    assert before == pytest.approx(yesterday, abs=0.03)


@pytest.mark.slow
def test_latency_is_drawn_against_the_deadline(prometheus: Server) -> None:
    title = "Verdict latency against the deadline"
    ((_, half),), ((_, deadline),) = asked(prometheus, f"{title}, A"), asked(prometheus, f"{title}, C")
    slow = newest(asked(prometheus, f"{title}, B"), "station")
    assert half[-1] < 0.1, "19 of 20 took 80 ms"
    assert all(0.5 < value <= 1 for value in slow.values()), "and one 900 ms"
    assert set(deadline) == {DEADLINE_S}


@pytest.mark.slow
def test_cameras_are_named_with_what_is_wrong(prometheus: Server) -> None:
    found = newest(asked(prometheus, "Cameras that need cleaning, A"), "station", "trouble")
    assert found == pytest.approx({"press-1 blurred": 0.08, "cast-3 frozen": 1}, abs=0.02)
    assert newest(asked(prometheus, "Cameras to see to, A")) == {"": 2}


@pytest.mark.slow
def test_each_worker_has_its_digest_and_its_last_reload(prometheus: Server) -> None:
    found = newest(asked(prometheus, "Model in use, by worker, A"), "worker", "digest")
    assert found == {f"0 {DIGESTS['0']}": 1, f"1 {DIGESTS['1']}": 0}


@pytest.mark.slow
def test_each_alert_leads_to_its_section_of_the_runbook(prometheus: Server) -> None:
    titles = {panel["id"]: panel["title"] for panel in RUNBOOK["panels"]}
    found = newest(asked(prometheus, "Alerts that fire, A"), "alertname")
    assert {name: titles[int(number)] for name, number in found.items()} == {name: name for name in rules("alert")}
    what = {
        labels["alertname"]: labels.get("what", "").strip() for labels, _ in asked(prometheus, "Alerts that fire, A")
    }
    assert what["FramegateDeadLetters"] == "undecodable"
    assert what["FramegateCameraFault"] == "frozen"
    assert newest(asked(prometheus, "Alerts, A")) == {"": len(firing())}
    assert f"/d/{RUNBOOK['uid']}?viewPanel=${{__value.raw}}" in json.dumps(PANELS["Alerts that fire"])


def test_the_runbooks_board_holds_all_of_it_and_its_links_lead_somewhere() -> None:
    told = " ".join(panel["options"]["content"] for panel in RUNBOOK["panels"])
    assert "$" not in told, "Grafana would take it for a variable"
    ids = {panel["id"] for panel in RUNBOOK["panels"]}
    links = re.findall(r"\]\(([^)]+)\)", told)
    assert len(links) > 5
    for link in links:
        found = re.fullmatch(rf"d/{RUNBOOK['uid']}\?viewPanel=(\d+)", link)
        assert found is not None, link
        assert int(found[1]) in ids
    page = PAGE.read_text(encoding="utf-8")
    words = {word for word in re.findall(r"\w+", re.sub(r"\]\([^)]+\)", "", page)) if len(word) > 3}
    shown = set(re.findall(r"\w+", told)) | {panel["title"] for panel in RUNBOOK["panels"]}
    assert words <= shown
