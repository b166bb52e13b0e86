"""The pages on connecting: what they say is run is run, what they link to is there, what they name exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from consumer.metrics import engine_metric_docs, metric_docs, supervisor_metric_docs
from tests.pages import PAGES, ROOT, blocks

NAMES = ["cameras.md", "kafka-connect.md", "security.md", "verdicts.md"]
TESTS = Path(__file__).parent


def calls() -> set[tuple[str, str]]:
    """(page, block) of every `block(PAGE, "name", ...)` in the tests of the pages."""
    found = set()
    for path in TESTS.glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        page = re.search(r'^PAGE = "(.*)"$', text, re.MULTILINE)
        for node in ast.walk(ast.parse(text)):
            if page and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "block":
                name = node.args[1]
                assert isinstance(name, ast.Constant), f"{path.name}: a block by a name that is not written there"
                found.add((page[1], str(name.value)))
    return found


def test_there_are_four_pages() -> None:
    assert sorted(path.name for path in PAGES.glob("*.md")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_run_or_says_that_it_is_not(name: str) -> None:
    found = blocks(PAGES / name)
    text = (PAGES / name).read_text(encoding="utf-8")
    assert len(found) == text.count("\n```") / 2, "every fence opens or closes a block that is understood"
    assert {one.mark for one in found if one.name is None} <= {"not-run"}
    run = [one.name for one in found if one.name is not None]
    assert len(run) == len(set(run)) >= 3
    assert {(name, one) for one in run} == {call for call in calls() if call[0] == name}
    for one in found:
        if one.name is None:
            near = one.before[-900:].lower() + text[text.index(one.text) + len(one.text) :][:120].lower()
            assert "not run" in near, f"{name}: the page does not say why {one.text[:40]!r} is not run"


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    text = (PAGES / name).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", text):
        page = PAGES / target if target else PAGES / name
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor[1:] in slugs, anchor


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_named_is_declared(name: str) -> None:
    named = set(re.findall(r"framegate_[a-z_]+", (PAGES / name).read_text(encoding="utf-8")))
    assert named <= {doc.name for doc in (*metric_docs(), *supervisor_metric_docs(), *engine_metric_docs())}


def test_every_option_of_the_camera_named_exists() -> None:
    command = [sys.executable, "-m", "framegate", "camera", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    text = (PAGES / "cameras.md").read_text(encoding="utf-8")
    lines = re.findall(r"framegate camera[^\n]*", text)
    options = {option for line in lines for option in re.findall(r"(--[a-z-]+)", line)}
    assert {"--watch", "--rate", "--resolution", "--part-pattern"} <= options
    for option in options:
        assert option in shown, option


def test_what_the_page_says_of_opencv_is_so() -> None:
    """Of the wheel that is pinned: another version may have been built otherwise, and then the page has to say so."""
    information = cv2.getBuildInformation()
    built = {name: re.search(rf"{name}:\s+(YES|NO)", information) for name in ("FFMPEG", "GStreamer", "v4l/v4l2")}
    assert {name: found and found[1] for name, found in built.items()} == {
        "FFMPEG": "YES",
        "GStreamer": "NO",
        "v4l/v4l2": "YES",
    }
