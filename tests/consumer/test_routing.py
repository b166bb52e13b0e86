"""Which bundle judges which station: the file, what it overrides, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.errors import SettingsError
from consumer.routing import Routing, Rule, one_bundle, parse_routing, read_routing
from engine.heads import decide
from engine.prediction import OperatingPoint
from engine.specs import ImageSpec, Region

FILE = Path("plant", "routes.toml")

WHOLE = """
[[route]]
station = "press-1"
bundle = "housings"
roi = [0.25, 0.1, 0.75, 0.9]
threshold = 0.4
review_band = [0.3, 0.5]

[[route]]
station = "press-*"
bundle = "/abs/housings.zip@sha256:00"

[[route]]
station = "weld"
threshold = 1
"""


def parse(text: str, default: str | None = "own") -> Routing:
    return parse_routing(text, FILE, default)


def test_the_first_route_that_matches_serves() -> None:
    routing = parse(WHOLE)
    first = routing.rule("press-1")
    assert first == Rule("press-1", "plant/housings", Region(0.25, 0.1, 0.75, 0.9), 0.4, (0.3, 0.5))
    assert routing.rule("press-10") == Rule("press-*", "/abs/housings.zip@sha256:00")
    assert routing.rule("weld") == Rule("weld", "own", threshold=1.0)
    assert routing.rule("Weld") == Rule("*", "own"), "upper and lower case differ"


def test_without_a_default_other_stations_have_nobody() -> None:
    routing = parse('[[route]]\nstation = "a[12]?"\nbundle = "x"\n', default=None)
    assert [routing.rule(name) is not None for name in ("a1b", "a2/", "a3b", "a1", "")] == [True, True] + [False] * 3


def test_one_bundle_is_for_all() -> None:
    assert one_bundle("b").rule("whatever\nit is") == Rule("*", "b")


def test_a_rule_changes_only_what_it_names() -> None:
    spec, point = ImageSpec(96, 64, Region(0.5, 0, 1, 1)), OperatingPoint(0.5, (0.3, 0.6))
    plain = Rule("a", "b")
    assert plain.image_spec(spec) is spec
    assert plain.operating_point(point) is point
    assert Rule("a", "b", Region(0, 0, 0.5, 1)).image_spec(spec) == ImageSpec(96, 64, Region(0, 0, 0.5, 1))
    assert Rule("a", "b", threshold=0.4).operating_point(point) == OperatingPoint(0.4, (0.3, 0.6))
    assert Rule("a", "b", review_band=(0.5, 0.5)).operating_point(point) == OperatingPoint(0.5, (0.5, 0.5))


def test_a_threshold_outside_the_band_is_refused_for_it_would_pass_what_is_worse_than_what_is_looked_at() -> None:
    with pytest.raises(
        SettingsError, match=r"'a' puts threshold 0\.9 outside the review band 0\.3 to 0\.6 of bundle b"
    ):
        Rule("a", "b", threshold=0.9).operating_point(OperatingPoint(0.5, (0.3, 0.6)))
    assert Rule("a", "b", threshold=0.9).operating_point(OperatingPoint(0.5, (0.5, 0.5))).threshold == 0.9


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=2), st.floats(0, 1), st.floats(0, 1))
def test_whatever_is_accepted_decides_in_the_order_of_the_probability(
    threshold: float, band: list[float], lower: float, higher: float
) -> None:
    low, high = sorted(band)
    try:
        point = Rule("a", "b", threshold=threshold, review_band=(low, high)).operating_point(
            OperatingPoint(0.5, (0.5, 0.5))
        )
    except SettingsError:
        return
    lower, higher = sorted((lower, higher))
    severity = {"pass": 0, "review": 1, "fail": 2}
    decisions = [decide(p, point, None).decision for p in (lower, higher)]
    assert severity[decisions[0]] <= severity[decisions[1]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("route = ", "is not TOML"),
        ("", "has no such table: expected one or more [[route]] tables"),
        ("[route]\nstation = 'a'", "has no such table"),
        ("route = [1]", "has no such table"),
        ("x = 1\n[[route]]\nstation = 'a'", "has the unknown key 'x'"),
        ("[[route]]\nbundle = 'b'", "route 1, has station None"),
        ("[[route]]\nstation = ''", "route 1, has station ''"),
        (
            "[[route]]\nstation = 'a'\nroy = 1",
            "route 1, has the unknown key 'roy': expected some of station, bundle, roi",
        ),
        ("[[route]]\nstation = 'a'\nbundle = 3", "(station 'a'), has bundle 3: expected a folder or zip"),
        ("[[route]]\nstation = 'a'\nroi = [0, 0, 1]", "has an unusable roi: got [0, 0, 1]"),
        ("[[route]]\nstation = 'a'\nroi = [0, 0, 1, true]", "has an unusable roi"),
        ("[[route]]\nstation = 'a'\nroi = [0.5, 0, 0.5, 1]", "has an unusable roi: region of interest"),
        ("[[route]]\nstation = 'a'\nthreshold = 1.5", "has threshold 1.5: expected a number from 0 to 1"),
        ("[[route]]\nstation = 'a'\nthreshold = nan", "has threshold nan"),
        ("[[route]]\nstation = 'a'\nthreshold = true", "has threshold True"),
        ("[[route]]\nstation = 'a'\nreview_band = [0.6, 0.4]", "has review_band [0.6, 0.4]: expected [low, high]"),
        ("[[route]]\nstation = 'a'\nreview_band = 0.5", "has review_band 0.5"),
        ("[[route]]\nstation = 'a'\n[[route]]\nstation = 'a'", "route 2, is for station 'a' again"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_error(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        parse(text)
    assert str(caught.value).startswith("rout")
    assert str(FILE) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_route_without_a_bundle_needs_a_default() -> None:
    with pytest.raises(SettingsError, match=r"\(station 'a'\), has no bundle: expected a folder or zip, or --bundle"):
        parse("[[route]]\nstation = 'a'", default=None)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_routing(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="cannot be read: not UTF-8"):
        read_routing(tmp_path / "latin.toml")


def test_bundles_lie_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text("[[route]]\nstation = 'Prüfplatz *'\nbundle = 'b'\n", encoding="utf-8")
    rule = read_routing(file).rule("Prüfplatz 4")
    assert rule is not None
    assert rule.bundle == str(tmp_path / "b")
