"""Prometheus' own tools, and the shipped rules as Python values."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "rules.yaml"
CONFIG = FOLDER / "prometheus.yaml"
TESTS = sorted((FOLDER / "tests").glob("*.yaml"))


def tool(name: str) -> str:
    """Where `prometheus` or `promtool` lies, on the path or in the environment; skips where it is on neither."""
    found = shutil.which(name) or shutil.which(name, path=Path(sys.prefix) / "bin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian, Ubuntu: the package prometheus)")
    return found


def promtool(*arguments: str | Path, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    """Run it, well or badly, and give what it said: of failed unit tests on standard error."""
    return subprocess.run(
        [tool("promtool"), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def groups() -> list[dict[str, Any]]:
    """The groups of rules."""
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return found


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """All rules of a kind, `alert` or `record`, by name."""
    return {rule[kind]: rule for group in groups() for rule in group["rules"] if kind in rule}


def metric_names(text: str) -> set[str]:
    """What is named of the product's metrics; a histogram's parts as the histogram."""
    names = set(re.findall(r"\bframegate_[a-z_]+", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def slug(heading: str) -> str:
    """A heading as Markdown readers link to it."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
