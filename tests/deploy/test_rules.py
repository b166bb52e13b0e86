"""The shipped alert rules: sound, tested by promtool, explained in the runbook, and about metrics that there are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import pytest
import yaml

from consumer.events import Cause
from consumer.metrics import engine_metric_docs, metric_docs, supervisor_metric_docs
from tests.deploy.prometheus import (
    CONFIG,
    FOLDER,
    ROOT,
    RULES,
    TESTS,
    metric_names,
    promtool,
    rules,
)

if TYPE_CHECKING:
    from pathlib import Path

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
DOCS = {doc.name: doc for doc in (*metric_docs(), *supervisor_metric_docs(), *engine_metric_docs())}
ALERTS = rules("alert")
RECORDS = rules("record")
RECORD_NAME = re.compile(r"framegate:[a-z_]+(?::[a-z0-9_]+)?")
FIRING = 'sum without (alertstate, job, severity) (ALERTS{alertstate="firing"})'
"""Whatever fires, with all that tells it from another."""

EXPECTED = {
    "lag in seconds": "FramegateLagging",
    "a station gone silent": "FramegateStationSilent",
    "deadline misses": "FramegateDeadlineMissed",
    "none verdicts": "FramegateNoneVerdicts",
    "fail-rate step per station": "FramegateFailRateStep",
    "dead letters": "FramegateDeadLetters",
    "stuck consumer": "FramegateStuck",
    "batch fill collapsed": "FramegateBatchFillCollapsed",
    "drift": "FramegateDrift",
    "camera health": "FramegateCameraFault",
    "clock skew": "FramegateClockSkew",
    "reload failed": "FramegateReloadRefused",
    "transactions failing": "FramegateTransactionsFailing",
    "shadow flip rate": "FramegateShadowFlips",
}
"""What a plant has to be told of."""


def test_the_rules_are_sound() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_sound_and_reads_the_rules() -> None:
    done = promtool("check", "config", CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in done.stdout


def test_the_configuration_scrapes_as_often_as_the_rules_need_under_the_name_they_ask_for() -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert config["global"]["scrape_interval"] == config["global"]["evaluation_interval"] == "15s"
    (job,) = config["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}}' in ALERTS["FramegateDown"]["expr"]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool(path: Path) -> None:
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_that_a_plant_has_to_be_told_of_has_its_alert() -> None:
    assert set(EXPECTED.values()) <= set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_what_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}, "the last is test_runbook.py's"


@pytest.mark.parametrize("path", [RULES, ROOT / "docs" / "runbook.md", *TESTS], ids=lambda path: path.stem)
def test_every_metric_named_is_the_products(path: Path) -> None:
    named = metric_names(path.read_text(encoding="utf-8"))
    assert named
    assert named <= set(DOCS)


def test_every_record_is_used_and_every_one_used_is_there() -> None:
    expressions = " ".join(rule["expr"] for rule in (*ALERTS.values(), *RECORDS.values()))
    assert set(RECORD_NAME.findall(expressions)) == set(RECORDS)
    assert set(RECORD_NAME.findall(RUNBOOK)) <= set(RECORDS)


def test_the_unit_tests_series_have_the_labels_of_the_products_metrics() -> None:
    """Beside what Prometheus and several workers add: else they would prove rules for metrics that nobody has."""
    for path in TESTS:
        for series in re.findall(r"series: (framegate_[a-z_]+)\{([^}]*)\}", path.read_text(encoding="utf-8")):
            name, labels = re.sub(r"_(sum|count)$", "", series[0]), set(re.findall(r"(\w+)=", series[1]))
            doc = DOCS[name] if name in DOCS else DOCS[series[0]]
            assert labels - {"job", "instance", "worker"} == set(doc.labels) - {"worker"}, (path.name, series)


FILES = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in TESTS]


def test_series_are_text_to_every_reader_of_yaml() -> None:
    """`0x80` is 81 zeros to promtool and 128 to YAML 1.1."""
    for file in FILES:
        for group in file["tests"]:
            assert all(isinstance(series["values"], str) for series in group["input_series"]), group["name"]


def cases() -> list[tuple[str, dict[str, Any]]]:
    """(name, test group) of all unit tests."""
    return [(group["name"], group) for file in FILES for group in file["tests"]]


def files_about(name: str) -> list[dict[str, Any]]:
    """The files of unit tests that have some about this alert."""
    return [file for file in FILES if any(group["name"].startswith(f"{name}:") for group in file["tests"])]


@pytest.mark.parametrize("name", ALERTS)
def test_promtool_sees_each_alert_fire_alone_clear_and_keep_silent_just_below(name: str) -> None:
    fires = [group for title, group in cases() if title.startswith(f"{name}: fires and clears")]
    below = [group for title, group in cases() if title.startswith(f"{name}: just below")]
    assert fires
    assert below
    for group in fires:
        queries = group["promql_expr_test"]
        assert {query["expr"] for query in queries} == {FIRING}
        told = [{sample["labels"].split('"')[1] for sample in query.get("exp_samples", ())} for query in queries]
        assert {name} in told
        assert set().union(*told) == {name}, "and no other"
        assert told[-1] == set(), "and it clears"
    for group in below:
        queries = group["promql_expr_test"]
        assert {query["expr"] for query in queries} == {FIRING}
        assert not queries[-1].get("exp_samples")


def test_each_cause_of_a_none_has_one_alert() -> None:
    matchers = {
        name: re.findall(r'framegate:station_none:ratio5m\{cause(=|=~|!~)"([^"]+)"\}', alert["expr"])
        for name, alert in ALERTS.items()
    }
    for cause in get_args(Cause):
        told = [name for name, found in matchers.items() if any(_matches(cause, *matcher) for matcher in found)]
        if cause == "camera_fault":  # by its gauge, which is over when the fault is
            assert told == []
        else:
            assert len(told) == 1, f"{cause}: {told}"


def _matches(value: str, operator: str, pattern: str) -> bool:
    return (re.fullmatch(pattern, value) is not None) is not (operator == "!~")


@pytest.mark.parametrize("name", ALERTS)
def test_what_an_alert_says_names_what_it_is_about(name: str, tmp_path: Path) -> None:
    """As Prometheus renders it, for each that fires in the unit tests."""
    told = _rendered(name, tmp_path)
    assert told
    for labels, texts in told:
        summary = texts["summary"]
        for label in ("station", "cause", "fault", "trouble", "worker", "instance"):
            if label in labels and (label, name) != ("cause", "FramegateDeadlineMissed"):
                assert labels[label] in summary, (label, summary)
        for annotation in texts.values():
            assert not re.search(r"\{\{|<no value>|<error|%!|NaN", annotation), annotation
            assert annotation == annotation.strip()


def _rendered(name: str, folder: Path) -> list[tuple[dict[str, str], dict[str, str]]]:
    """(labels, annotations) as promtool has them: it tells them of an alert that was expected to be another."""
    file, group = next(
        (file, group)
        for file in files_about(name)
        for group in file["tests"]
        if group["name"].startswith(f"{name}: fires and clears")
    )
    at = next(query["eval_time"] for query in group["promql_expr_test"] if query.get("exp_samples"))
    asked = {"alertname": name, "eval_time": at, "exp_alerts": [{"exp_labels": {"no": "such"}}]}
    tests = [{**group, "promql_expr_test": [], "alert_rule_test": [asked]}]
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({**file, "rule_files": [str(RULES)], "tests": tests}), encoding="utf-8")
    done = promtool("test", "rules", path)
    got = (done.stdout + done.stderr).partition("got:")[2]
    pairs = re.findall(r"Labels:\{(.*)\}\n\s*Annotations:\{(.*)\}", got)
    return [(_unquoted(labels), _unquoted(annotations)) for labels, annotations in pairs]


def _unquoted(text: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', text))


COMPARISON = re.compile(r"(?<=[<>] )(\d+(?:\.\d+)?)")


def moved() -> list[tuple[str, int, float]]:
    """(alert, which of its numbers, factor): every threshold a quarter nearer, and far away."""
    return [
        (name, number, factor)
        for name, alert in ALERTS.items()
        for number, found in enumerate(COMPARISON.finditer(alert["expr"]))
        for factor in ((0.75, 1000.0) if alert["expr"][found.start() - 2] == ">" else (1.25, 0.001))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number", "factor"), moved())
def test_a_threshold_that_moves_is_noticed(name: str, number: int, factor: float, tmp_path: Path) -> None:
    """The unit tests are tests: each number that decides is held from both sides."""
    text = RULES.read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    for group in document["groups"]:
        for rule in group["rules"]:
            if rule.get("alert") == name:
                found = list(COMPARISON.finditer(rule["expr"]))[number]
                value = float(found[1]) * factor if float(found[1]) else (1e9 if factor > 1 else -1.0)
                rule["expr"] = rule["expr"][: found.start()] + f"{value:g}" + rule["expr"][found.end() :]
    assert noticed(document, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, alert in ALERTS.items() if "for" in alert])
@pytest.mark.parametrize("duration", ["0s", "3h"])
def test_a_duration_that_moves_is_noticed(name: str, duration: str, tmp_path: Path) -> None:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in document["groups"]:
        for rule in group["rules"]:
            if rule.get("alert") == name:
                rule["for"] = duration
    assert noticed(document, name, tmp_path)


SHARED = ({"FramegateLagging", "FramegateBatchFillCollapsed"},)
"""Alerts that share one fault out among them: a number that moves may show in the other one's tests."""


def noticed(document: dict[str, Any], name: str, folder: Path) -> bool:
    """Whether the unit tests about this alert fail with these rules; what it does not need is left out to save time."""
    about = next((shared for shared in SHARED if name in shared), {name})
    for group in document["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") in about or "record" in rule]
    needed = _needed(document, about)
    for group in document["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("record", name) in {*needed, name}]
    document["groups"] = [group for group in document["groups"] if group["rules"]]
    (folder / "rules.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for number, file in enumerate(files_about(name)):
        tests = [group for group in file["tests"] if group["name"].partition(":")[0] in about]
        path = folder / f"tests-{number}.yaml"
        path.write_text(yaml.safe_dump({**file, "rule_files": ["rules.yaml"], "tests": tests}), encoding="utf-8")
        done = promtool("test", "rules", path, cwd=folder)
        assert done.returncode == 0 or "got:" in done.stdout + done.stderr, done.stdout + done.stderr
        if done.returncode:
            return True
    return False


def _needed(document: dict[str, Any], alerts: set[str]) -> set[str]:
    """The records that these alerts stand on."""
    expressions = {
        rule.get("alert", rule.get("record")): rule["expr"] for group in document["groups"] for rule in group["rules"]
    }
    found, open_names = set(), [*alerts]
    while open_names:
        for record in RECORD_NAME.findall(expressions[open_names.pop()]):
            if record not in found:
                found.add(record)
                open_names.append(record)
    return found


@pytest.mark.parametrize("name", ALERTS)
def test_the_rules_as_they_are_pass_what_a_moved_number_must_not(name: str, tmp_path: Path) -> None:
    assert not noticed(yaml.safe_load(RULES.read_text(encoding="utf-8")), name, tmp_path)


def test_the_folder_holds_no_python() -> None:
    assert not list(FOLDER.rglob("*.py"))
