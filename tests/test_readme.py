"""What the README says exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from consumer.metrics import engine_metric_docs, metric_docs, supervisor_metric_docs
from framegate import VERBS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_metric_named_is_declared() -> None:
    named = set(re.findall(r"framegate_[a-z_]+", README))
    declared = {doc.name for doc in (*metric_docs(), *supervisor_metric_docs(), *engine_metric_docs())}
    assert len(named) > 5
    assert named <= declared


def test_the_verdict_shown_has_the_keys_of_the_schema() -> None:
    shown = json.loads(re.search(r"```json\n(.*?)```", README, re.DOTALL).group(1))  # type: ignore[union-attr]
    schema = json.loads((ROOT / "consumer" / "verdict.schema.json").read_text(encoding="utf-8"))
    assert set(shown) <= set(schema["properties"])
    assert set(shown["latency_ms"]) == set(schema["properties"]["latency_ms"]["properties"])


def test_every_verb_and_option_named_exists() -> None:
    commands = re.findall(rf"framegate ((?:{'|'.join(VERBS)})\b[^\n`]*)", README)
    assert {command.split()[0] for command in commands} >= {
        "train",
        "run",
        "camera",
        "broker",
        "score",
        "verify",
        "data",
    }
    options = {(command.split()[0], option) for command in commands for option in re.findall(r"(--[a-z-]+)", command)}
    for verb, option in sorted(options):
        assert option in _help(verb), f"{verb} has no {option}"


def _help(verb: str) -> str:
    words = {
        "bench": [["bench", "engine"]],
        "data": [["data", "render"], ["data", "fetch"]],
        "topics": [["topics"], ["topics", "create"]],
    }.get(verb, [[verb]])
    return "".join(
        subprocess.run(
            [sys.executable, "-m", "framegate", *line, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for line in words
    )


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    text = _help(verb)
    assert "Usage: " in text
    assert "Example" in text


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target
