"""Charts: the same input gives the same text, well formed, in the page's own colours, reaching for nothing outside."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from engine.prediction import OperatingPoint
from tests.acceptance import judged
from trainer.operating_point import Costs
from trainer.report import charts
from trainer.report.curves import calibration_curve, cost_curve, curves, histogram

if TYPE_CHECKING:
    from collections.abc import Callable

POINT = OperatingPoint(0.3, (0.1, 0.5))
NO_BAND = OperatingPoint(0.3, (0.3, 0.3))
ALT = 'area <0.9> & "more"'


@functools.cache
def draw(name: str) -> str:
    return draw_anew(name)


def draw_anew(name: str) -> str:
    images = judged()
    found = curves(images)
    edges, good = histogram(images.probability[~images.defect])
    _, defects = histogram(images.probability[images.defect])
    plain = [("pass everything", 900.0), ("reject everything", 610.0), ("look at every part", 600.0)]
    x = np.array([10.0, 20.0, 40.0])
    drawn: dict[str, Callable[[], str]] = {
        "roc": lambda: charts.roc_chart([("held out", found.roc), ("all", found.roc)], name=name, alt=ALT),
        "precision": lambda: charts.precision_recall_chart([("all", found.precision_recall)], 0.4, name=name, alt=ALT),
        "calibration": lambda: charts.calibration_chart(calibration_curve(images), name=name, alt=ALT),
        "histogram": lambda: charts.histogram_chart(good, defects, edges, POINT, name=name, alt=ALT),
        "empty": lambda: charts.histogram_chart(good * 0, good * 0, edges, NO_BAND, name=name, alt=ALT),
        "cost": lambda: charts.cost_chart(cost_curve(images, Costs(), 0.4), POINT, 90.0, plain, name=name, alt=ALT),
        "learning": lambda: charts.learning_chart(x, x / 50, x / 60, x / 45, name=name, alt=ALT),
    }
    return drawn[name]()


NAMES = ("roc", "precision", "calibration", "histogram", "empty", "cost", "learning")


@pytest.mark.parametrize("name", NAMES)
def test_a_chart_is_the_same_again_and_can_be_read_by_who_cannot_see_it(name: str) -> None:
    text = draw(name)
    assert text == draw_anew(name)
    root = ET.fromstring(text)  # noqa: S314 - our own
    assert root.attrib["aria-label"] == ALT
    assert root.attrib["role"] == "img"
    assert next(iter(root)).text == ALT
    assert "<text" in text  # words stay words


@pytest.mark.parametrize("name", NAMES)
def test_a_chart_reaches_for_nothing_and_has_no_colour_of_its_own(name: str) -> None:
    text = draw(name)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "://" not in without_namespaces
    assert not re.search(r"#[0-9a-fA-F]{6}\b", text)
    own = {"none", *(f"var({word})" for word in charts._PROPERTIES.values())}
    colours = {word for word in re.findall(r"(?:fill|stroke): ([^;\"]+)", text) if not word.startswith("url(#")}
    assert len(colours) > 2
    assert colours <= own
    assert "font:" not in text  # the page's font


def test_charts_on_one_page_share_no_ids() -> None:
    ids = [own for name in NAMES for own in re.findall(r' id="([^"]*)"', draw(name))]
    assert ids
    assert len(ids) == len(set(ids))
    for name in NAMES:
        text = draw(name)
        for reference in re.findall(r'(?:url\(#|href="#)([^")]+)', text):
            assert f' id="{reference}"' in text


def test_the_operating_point_is_named() -> None:
    text = draw("cost")
    assert all(word in text for word in (">threshold<", ">review<", ">pass everything<", ">look at every part<"))
    assert ">review<" not in draw("empty")


def test_matplotlib_waits_until_a_report_is_made() -> None:
    code = "import sys, trainer.train; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
