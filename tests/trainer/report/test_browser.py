"""The report of a real bundle in a real browser: everything shows, nothing complains, and it prints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from engine.bundle import open_bundle, read_report
from tests.browser import opened
from trainer.rendered import render_line
from trainer.report.page import FIGURES, PAGE
from trainer.settings import TrainSettings
from trainer.train import train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.browser, pytest.mark.slow]

_BOXES = """() => [...document.querySelectorAll('svg.chart, img')].map(each => {
    const box = each.getBoundingClientRect();
    return {kind: each.tagName.toLowerCase(), width: box.width, height: box.height,
            own: each.naturalWidth ?? 1, visible: each.checkVisibility()};
})"""
_WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered line, trained in seconds."""
    folder = tmp_path_factory.mktemp("line")
    render_line(folder / "set", per_station=20, lots=6, defect_share=0.4, seed=1)
    train(TrainSettings(str(folder / "set"), folder / "bundle.zip", size_px=(128, 96), taps=(2, 4)))
    return folder / "bundle.zip"


@pytest.fixture(scope="module")
def report(trained: Path) -> Path:
    place = trained.parent / PAGE
    place.write_bytes(read_report(trained, PAGE))
    return place


@pytest.mark.parametrize(
    "screen",
    [
        {"viewport": {"width": 1200, "height": 900}},
        {"viewport": {"width": 360, "height": 780}, "color_scheme": "dark"},
    ],
    ids=["desk", "phone, dark"],
)
def test_every_chart_and_picture_shows_without_a_complaint(
    report: Path, tmp_path: Path, screen: dict[str, Any]
) -> None:
    with opened(report, tmp_path / "profile", **screen) as found:
        boxes = found.page.evaluate(_BOXES)
        assert {box["kind"] for box in boxes} == {"svg", "img"}
        assert sum(box["kind"] == "svg" for box in boxes) >= 5
        assert sum(box["kind"] == "img" for box in boxes) >= 30  # 24 held out at most, each of them twice
        assert all(box["visible"] and box["width"] > 20 and box["height"] > 20 and box["own"] > 0 for box in boxes), (
            boxes
        )
        assert found.page.locator("section h2").count() == 11
        assert found.page.evaluate(_WIDER) <= 0  # nothing but tables scrolls sideways
        assert found.complaints == []


def test_it_prints_on_some_pages(report: Path, tmp_path: Path) -> None:
    with opened(report, tmp_path / "profile") as found:
        printed = found.page.pdf(prefer_css_page_size=True)
        assert found.complaints == []
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 16


def test_the_report_is_of_that_bundle_and_small(trained: Path) -> None:
    bundle = open_bundle(trained)
    page = read_report(trained, PAGE).decode()
    assert bundle.digest in page
    assert f'"digest": "{bundle.digest}"' in read_report(trained, FIGURES).decode()
    assert 100_000 < len(page) < 4_000_000
    assert {"featurize", "fit", "validate", "evaluate"} <= set(bundle.about["steps_s"])
