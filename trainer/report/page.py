"""The acceptance report as files: `index.html`, one page that needs nothing else, and `report.json`."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from trainer.report import charts, words
from trainer.report.findings import find, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.report.data import Acceptance, Picture
    from trainer.report.findings import Evidence, Findings

PAGE, FIGURES = "index.html", "report.json"
MOST_LISTED = 20
MOST_NAMES = 40
_KEPT = "\n\u00a0\u202f"
"""Not printable by Python's word, and harmless."""

_MOST_TOLD = 400
_LEARNED = ("images", "auroc", "low", "high")
_WHY = {
    "escape": ("Defects that passed", "the furthest on the wrong side first"),
    "false_reject": ("Good parts that failed", "the furthest on the wrong side first"),
    "near": ("Nearest calls", "judged rightly or sent to review; the nearest to the threshold first"),
}


@dataclass(frozen=True, slots=True)
class Listed:
    """The first of a list that may be long."""

    shown: tuple[Any, ...]
    more: int

    @classmethod
    def of(cls, values: Sequence[Any], most: int = MOST_LISTED, total: int | None = None) -> Listed:
        """What a page has room for; `total` where the values are the first of more."""
        return cls(tuple(values[:most]), max(total or 0, len(values)) - len(values[:most]))


@dataclass(frozen=True, slots=True)
class Learning:
    """The learning curve's points, and what it says in words."""

    points: tuple[Mapping[str, float], ...]
    says: str | None


def report_files(acceptance: Acceptance) -> dict[str, bytes]:
    """Name -> content, for `write_bundle`; the same input gives the same bytes."""
    findings = find(acceptance)
    figures = json.dumps(to_json(acceptance, findings), indent=1, allow_nan=False)
    return {PAGE: page(acceptance, findings).encode(), FIGURES: figures.encode() + b"\n"}


def page(acceptance: Acceptance, findings: Findings) -> str:
    """The page as HTML. Names in it come from strangers: everything is escaped, and nothing in it may load or run."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {
        "percent": words.percent,
        "percent_up": words.percent_up,
        "figure": words.figure,
        "amount": words.amount,
        "counted": words.counted,
        "jpeg": _data_uri,
        "moment": _moment,
        "sentence": _sentence,
    }
    return environment.get_template("page.html").render(_view(acceptance, findings))


def _view(acceptance: Acceptance, findings: Findings) -> dict[str, Any]:
    about = acceptance.about
    return {
        "bundle": acceptance.bundle,
        "about": about,
        "acceptance": acceptance,
        "findings": findings,
        "charts": {name: Markup(svg) for name, svg in _charts(acceptance, findings).items()},  # noqa: S704 - our own
        "galleries": _galleries(acceptance.pictures),
        "costs": words.costs_of(about),
        "held_groups": Listed.of(acceptance.held_groups, MOST_NAMES),
        "used_groups": Listed.of(acceptance.used_groups, MOST_NAMES),
        "skipped": Listed.of(about.get("skipped", [])),
        "copies": _of_duplicates(about, "copies"),
        "contradictions": _of_duplicates(about, "contradictions"),
        "learning": _learning(about),
        "refined": _refined(about),
        "near_duplicates": _near_duplicates(about),
        "css": Markup(_style()),  # noqa: S704 - our own
    }


def _charts(acceptance: Acceptance, findings: Findings) -> dict[str, str]:
    """Those that the data allow."""
    drawn = {}
    widest, point = findings.widest, findings.point
    sets = _sets(findings)
    both = [(name, evidence.curves) for name, evidence in sets if evidence.curves]
    if both:
        drawn["roc"] = charts.roc_chart(
            [(name, found.roc) for name, found in both],
            name="roc",
            alt="Share of defects caught over the share of good parts called defects. "
            + ", ".join(f"{name}: area {words.figure(found.auroc.value)}" for name, found in both),
        )
        drawn["precision"] = charts.precision_recall_chart(
            [(name, found.precision_recall) for name, found in both],
            findings.held.defects / findings.held.images,
            name="precision",
            alt="Share of real defects among what is called a defect, over the share of defects caught. "
            + ", ".join(f"{name}: area {words.figure(found.average_precision.value)}" for name, found in both),
        )
    if widest.calibration:
        drawn["calibration"] = charts.calibration_chart(
            widest.calibration,
            name="calibration",
            alt=f"Share of defects over predicted probability in {len(widest.calibration.bins)} bins; "
            f"mean distance {words.percent(widest.calibration.error)}",
        )
    drawn["histogram"] = charts.histogram_chart(
        widest.histogram.good,
        widest.histogram.defects,
        widest.histogram.edges,
        point,
        name="histogram",
        alt="How many defects and how many good parts got which probability, with threshold and review band",
    )
    if widest.cost is not None and widest.spent is not None:
        drawn["cost"] = charts.cost_chart(
            widest.cost,
            point,
            widest.spent.measured,
            list(widest.spent.plain.items()),
            name="cost",
            alt=f"Cost of 1,000 parts over the threshold; {words.amount(widest.spent.measured)} at the chosen point",
        )
    learning = _learning(acceptance.about).points
    if len(learning) > 1:
        columns = [np.array([row[key] for row in learning], float) for key in _LEARNED]
        drawn["learning"] = charts.learning_chart(
            *columns, name="learning", alt="AUROC on other groups over the number of images trained on"
        )
    return drawn


def _sets(findings: Findings) -> list[tuple[str, Evidence]]:
    found = [("held out", findings.held)]
    if findings.everything is not None:
        found.append(("all images", findings.everything))
    return found


def _learning(about: Mapping[str, Any]) -> Learning:
    """What a bundle tells of its learning curve, points that lack something left out."""
    value = about.get("learning_curve") or {}
    points = next((part for part in value.values() if isinstance(part, list)), []) if isinstance(value, dict) else value
    says = value.get("says") if isinstance(value, dict) else None
    whole = [point for point in points if all(isinstance(point.get(key), int | float) for key in _LEARNED)]
    return Learning(tuple(whole), says)


def _of_duplicates(about: Mapping[str, Any], kind: str) -> Listed:
    """Copies or contradictions; the bundle itself names only the first of many."""
    told = about.get("duplicates", {})
    return Listed.of(told.get(kind, []), total=told.get(f"{kind}_total"))


def _refined(about: Mapping[str, Any]) -> str | None:
    """What the earlier bundle did on the same images, where there was one."""
    told = about.get("refined")
    if not told:
        return None
    auroc = told.get("before", {}).get("auroc")
    before = "" if auroc is None else f"; the earlier one has an AUROC of {words.figure(auroc)} on the images held out"
    return f"{told.get('new', 0)} new images, {told.get('relabelled', 0)} labels changed{before}"


def _near_duplicates(about: Mapping[str, Any]) -> str | None:
    """In a sentence, where they were looked for."""
    value = about.get("near_duplicates")
    if not value:
        return None
    if isinstance(value, dict) and "says" in value:
        return str(value["says"])
    return f"Near-duplicates were kept on one side of the split: {json.dumps(value, ensure_ascii=False)[:_MOST_TOLD]}"


def _galleries(pictures: Sequence[Picture]) -> list[tuple[str, str, list[Picture]]]:
    found = [(title, order, [each for each in pictures if each.why == why]) for why, (title, order) in _WHY.items()]
    return [gallery for gallery in found if gallery[2]]


def _moment(text: str) -> str:
    """`2026-01-02T03:04:05+00:00` as people read it."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00$", r"\1 at \2 UTC", text)


def _sentence(text: str) -> str:
    """Words from the log, with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _printable(value: Any) -> Any:
    """Control characters, lone surrogates and marks that turn the writing direction are shown, not obeyed."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(char if char.isprintable() or char in _KEPT else f"\\u{ord(char):04x}" for char in value)


def _style() -> str:
    source = jinja2.PackageLoader("trainer.report").get_source(jinja2.Environment(autoescape=True), "style.css")
    return source[0]
