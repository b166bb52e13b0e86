"""The runbook: tied to the alerts both ways, and what it tells people to type and to look for is there."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

import click
import pytest
import yaml

from framegate import VERBS
from tests.deploy.prometheus import ROOT, RULES, metric_names, promtool, rules, slug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
ALERTS = rules("alert")
SILENT = "FramegateStationSilent"
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]}


def test_each_alert_has_its_section_and_each_section_its_alert() -> None:
    assert sorted(SECTIONS) == sorted(ALERTS)
    assert len(SECTIONS) == len(re.findall(r"^## ", RUNBOOK, re.MULTILINE)), "each once"


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_says_what_it_means_what_to_look_at_and_what_to_do(name: str) -> None:
    for part in ("**For the line.**", "**Look at.**", "**Do.**"):
        assert SECTIONS[name].count(part) == 1, part
    path, _, anchor = ALERTS[name]["annotations"]["runbook"].partition("#")
    assert (ROOT / path).read_text(encoding="utf-8") == RUNBOOK
    assert anchor == slug(name)


def test_links_lead_somewhere() -> None:
    headings = {slug(heading) for heading in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / "docs" / path).exists(), target
        assert path or anchor in headings, target


def queries() -> list[str]:
    """What is to be typed into Prometheus: indented lines, and what stands between backticks with brackets."""
    blocks = [line.strip() for line in RUNBOOK.splitlines() if line.startswith("    ")]
    inline = [text for text in re.findall(r"`([^`]+)`", RUNBOOK.replace("\n", " ")) if re.search(r"[({\[]", text)]
    return [text for text in (*blocks, *inline) if metric_names(text) and not text.startswith("curl")]


def test_every_query_is_one(tmp_path: Path) -> None:
    """To promtool, beside no data at all: it parses them, and they find nothing, or the 0 that they have for that."""
    told = [query.replace("STATION", "press-1") for query in queries()]
    assert len(told) > 20
    zero = [{"labels": "{}", "value": 0}]
    ask(
        tmp_path / "queries.yaml",
        [],
        [{"expr": query, "eval_time": "1m", "exp_samples": zero if "or vector(0)" in query else []} for query in told],
    )


def test_a_silent_station_is_seen_when_its_gauge_has_gone_with_its_consumer(tmp_path: Path) -> None:
    age, others = (
        query.partition(" #")[0].replace("STATION", "press-1") for query in queries() if query in SECTIONS[SILENT]
    )
    labels = '{station="press-1", worker="0"}'
    ask(
        tmp_path / "silent.yaml",
        [
            {"series": f"framegate_last_verdict_timestamp_seconds{labels}", "values": "0x4 stale"},
            {"series": f"framegate_frames_total{labels}", "values": "0+60x4 stale"},
        ],
        [
            {"expr": age, "eval_time": "4m", "exp_samples": [{"labels": "{}", "value": 240}]},
            {"expr": age, "eval_time": "30m", "exp_samples": [{"labels": "{}", "value": 1800}]},
            {"expr": others, "eval_time": "4m", "exp_samples": [{"labels": "{}", "value": 1}]},
            {"expr": others, "eval_time": "30m", "exp_samples": [{"labels": "{}", "value": 0}]},
        ],
    )


def ask(path: Path, series: list[dict[str, str]], asked: list[dict[str, object]]) -> None:
    """Have promtool ask these of these series."""
    test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [test]}), encoding="utf-8")
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_and_verb_named_exists() -> None:
    known = {option for verb in ("run", "topics", "camera", "train") for option in _options(_command(verb))}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", RUNBOOK))
    others = {"--bootstrap-server", "--topic", "--from-beginning", "--pid", "--namespace"}  # Kafka's, py-spy, kubectl
    assert named - others
    assert named - others <= known
    assert set(re.findall(r"`framegate ([a-z]+)", RUNBOOK)) <= set(VERBS)


def _command(verb: str) -> click.Command:
    module, attribute = VERBS[verb]
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def _options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from _options(below)


LOGGED = {
    "the source is not ready": ("the source is %s", "not ready: "),
    "engine warm after": ("engine warm after ",),
    "died": ("%s died: ",),
    "hangs and is killed": ("%s hangs and is killed: ",),
    "verdicts were given up and their frames are judged again": (
        " verdicts were given up and their frames are judged again: ",
    ),
    "dead letter of": ("dead letter of %s lost ",),
    "the engine failed on a frame": ("the engine failed on a frame: ",),
    "is shifted: the scene lies": ("camera of station %r is %s: ", "the scene lies "),
    "reload refused, and the models of before go on": ("reload refused, and the models of before go on: ",),
}
"""What the runbook quotes, and the lines of the source that say so."""


@pytest.mark.parametrize("quoted", LOGGED)
def test_what_is_to_be_looked_for_in_the_log_is_said_there(quoted: str) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "consumer").glob("*.py")))
    assert quoted in " ".join(RUNBOOK.split())
    for said in LOGGED[quoted]:
        assert said in sources
