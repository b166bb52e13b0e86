"""The page and its figures: well formed, reaching for nothing, unharmed by strangers' names, honest where data lack."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engine.prediction import OperatingPoint
from tests.acceptance import acceptance, judged, only
from trainer.report.page import FIGURES, PAGE, report_files

if TYPE_CHECKING:
    from trainer.report.data import Acceptance

EVIL = "<script>alert(1)</script>\"'>&\u202e\x07\udcff{{7*7}}"
VOID = {"meta", "img", "br", "path", "circle", "rect", "use"}
SECTIONS = (
    "limits",
    "decisions",
    "ranking",
    "calibration",
    "costs",
    "breakdowns",
    "pictures",
    "data",
    "learning",
    "making",
    "signature",
)


class Reader(HTMLParser):
    """Reads a page strictly: every tag closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"{tag} closes something else at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def read(whole: Acceptance) -> Reader:
    return Reader(report_files(whole)[PAGE].decode())


@pytest.fixture(scope="module")
def page() -> Reader:
    return read(acceptance())


def test_the_same_input_gives_the_same_bytes() -> None:
    assert report_files(acceptance()) == report_files(acceptance())


def test_every_section_is_there_with_its_heading_and_can_be_reached(page: Reader) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [own["id"] for own in page.all("section")] == list(SECTIONS)
    assert {own["href"] for own in page.all("a")} == {f"#{name}" for name in SECTIONS}
    labels = {own["aria-labelledby"] for tag, own in page.tags if "aria-labelledby" in own}
    assert labels <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_nothing_outside_is_reached_for(page: Reader) -> None:
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name.startswith("xmlns"):
                continue
            assert "//" not in (value or "") or name == "src"
            if name in {"src", "href"}:
                assert (value or "").startswith(("data:image/jpeg;base64,", "#"))
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    css = report_files(acceptance())[PAGE].decode().split("<style>")[1].split("</style>")[0]
    assert "@import" not in css
    assert "url(" not in css
    policy = next(own for own in page.all("meta") if own.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none';")


def test_pictures_charts_and_tables_can_be_read_by_who_cannot_see_them(page: Reader) -> None:
    images = page.all("img")
    assert len(images) == 5
    assert all(own["alt"] and own["width"] and own["height"] for own in images)
    drawn = [own for own in page.all("svg") if own.get("class") == "chart"]
    assert len(drawn) == 6
    assert all(own["role"] == "img" and own["aria-label"] for own in drawn)
    assert all(own.get("scope") in {"col", "row"} for own in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_names_of_strangers_are_shown_and_not_obeyed() -> None:
    whole = acceptance(
        prefix=EVIL,
        about={
            "source": EVIL,
            "notes": [EVIL],
            "skipped": [[EVIL, EVIL]],
            "duplicates": {"copies": [[EVIL, EVIL]], "contradictions": [[EVIL, EVIL]]},
            "near_duplicates": {"says": EVIL},
            "learning_curve": {"points": [], "says": EVIL},
            "camera_checks": {EVIL: EVIL},
            "steps_s": {EVIL: 1.0},
            "chosen": {"candidates": [], "not_tried": [{"why": EVIL}]},
            "operating_point": {"words": [EVIL]},
        },
        settings={EVIL: EVIL},
    )
    whole = replace(
        whole, bundle=replace(whole.bundle, classes=replace(whole.bundle.classes, passed=EVIL, failed=EVIL))
    )
    files = report_files(whole)
    read_back = Reader(files[PAGE].decode())
    assert not read_back.all("script")
    assert "<script>alert(1)</script>" in read_back.words  # as text
    assert "{{7*7}}" in read_back.words
    assert "49" not in read_back.words.split("{{7*7}}")[0][-20:]
    assert not any(char in files[PAGE].decode() for char in "\u202e\x07\udcff")
    assert "\\u202e\\u0007\\udcff" in read_back.words
    assert json.loads(files[FIGURES])["about"]["source"] == EVIL


def test_the_figures_are_there_for_machines_too() -> None:
    whole = acceptance()
    figures = json.loads(report_files(whole)[FIGURES])
    held = figures["held_out"]
    assert figures["model"]["digest"] == whole.bundle.digest
    assert held["images"] == 60
    assert held["confusion"]["defect"]["pass"]["among"] == held["defects"] == int(whole.held.defect.sum())
    assert held["curves"]["auroc"]["low"] <= held["curves"]["auroc"]["value"] <= held["curves"]["auroc"]["high"]
    assert len(figures["all_images"]["calibration"]["bins"]) == 15
    assert len(held["cost"]["x"]) == len(held["cost"]["low"])
    assert set(figures["by"]) == {"group"}
    assert figures["verdict"]["headline"]
    assert figures["about"]["seed"] == 3


def test_no_share_of_mistakes_is_told_without_its_bound(page: Reader) -> None:
    passed = page.words.split("Decisions at the operating point")[1]
    assert re.search(r"0 of \d+\s+at most \d", passed)
    assert "none of" in page.words
    assert not re.search(r"\b0 of \d+\s+(?!at most|<)\D", passed.split("The bins")[0])


def test_good_parts_alone_make_a_page_that_says_what_is_unknown() -> None:
    held = only(judged(), defects=False)
    page = read(acceptance(held=held, everything=None, pictures=(), doubtful=(), about={"mode": "good-only"}))
    for words in (
        "Nothing is proved about defects",
        "no defect was held out",
        "No curve can be drawn",
        "This cannot be said",
    ):
        assert words in page.words
    assert [own["id"] for own in page.all("section")] == list(SECTIONS)


def test_defects_that_were_only_judged_are_told_without_probabilities_and_costs() -> None:
    about = {
        "mode": "good-only",
        "false_rejects": {
            "held_out_good_parts": 40,
            "false_rejects": 0,
            "false_reject_at_most": 0.001,
            "confidence": 0.95,
            "meaning": "the number is no probability",
        },
    }
    held = judged(60)
    held = replace(held, decision=np.where(held.defect, held.decision, "fail"))
    page = read(acceptance(held=held, everything=None, pictures=(), doubtful=(), about=about))
    for words in (
        "It tells these defects from good parts; what it does with others is open",
        "A part fails from a number of 0.",
        "40 good parts that were trained on, each judged by a model of other groups: 0 of them would fail",
        "Of the good parts held out 100",
        "This cannot be said",
        "Costs cannot be told",
    ):
        assert words in page.words
    assert "--defect-rate" not in page.words.split("Signature")[0]
    assert "cost" not in {own.get("id") for own in page.all("svg")}


def test_a_bundle_that_tells_nothing_of_itself_makes_a_page() -> None:
    whole = acceptance(everything=None, pictures=(), doubtful=(), used_groups=(), held_groups=(), settings={})
    page = read(replace(whole, bundle=replace(whole.bundle, about={})))
    for words in (
        "No learning curve was measured",
        "Near-duplicates were not looked for",
        "No pictures were kept",
        "It was not recorded",
        "Nothing was compared",
    ):
        assert words in page.words


def test_lists_are_bounded() -> None:
    many = [[f"bad/{index}.jpg", "broken"] for index in range(5000)]
    pairs = [[f"a/{index}.jpg", f"b/{index}.jpg"] for index in range(5000)]
    whole = acceptance(
        about={"skipped": many, "duplicates": {"copies": pairs, "contradictions": pairs}},
        held_groups=tuple(map(str, range(3000))),
    )
    text = report_files(whole)[PAGE]
    assert len(text) < len(report_files(acceptance())[PAGE]) + 20_000
    assert "5000 files could not be used" in Reader(text.decode()).words


@pytest.mark.parametrize("shape", [{"points": [], "says": "too few."}, [], None, {"curve": [{"images": 1}]}])
def test_a_learning_curve_of_any_kind_is_told_or_not(shape: object) -> None:
    page = read(acceptance(about={"learning_curve": shape}))
    told = isinstance(shape, dict) and "says" in shape
    assert ("Too few." in page.words) == told
    assert ("No learning curve was measured" in page.words) != told


def test_an_image_per_group_makes_no_table_of_groups() -> None:
    images = judged(60, groups=60)
    alone = replace(images, groups=np.arange(60), columns={"group": images.names})
    page = read(acceptance(held=alone, everything=None))
    assert "No breakdown can be made" in page.words


def test_what_the_bundle_tells_is_what_the_page_says() -> None:
    told: dict[str, Any] = {
        "refined": {"new": 7, "relabelled": 2, "before": {"auroc": 0.875}},
    }
    told["duplicates"] = {"copies": [["a", "b"]], "copies_total": 70, "contradictions": [], "contradictions_total": 0}
    whole = acceptance(about=told)
    head = replace(whole.bundle.head, stations={"press-1": OperatingPoint(0.25, (0.125, 0.5))})
    page = read(replace(whole, bundle=replace(whole.bundle, head=head)))
    for words in (
        "70 files are byte-for-byte copies",
        "and 69 more",
        "press-1",
        "12.5",
        "7 new images, 2 labels changed",
    ):
        assert words in page.words
    assert "AUROC of 0.875" in page.words
