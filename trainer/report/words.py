"""The report's words: what was not proved, and figures as people read them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer import shares
from trainer.bounds import at_most
from trainer.operating_point import Costs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.report.data import Acceptance
    from trainer.report.tables import Confusion, Share

FEW_GROUPS = 5
_SPACE = "\u202f"
"""Narrow and unbreakable: a figure and its unit stay in one line."""

percent = partial(shares.percent, space=_SPACE)
percent_up = partial(shares.percent_up, space=_SPACE)


def limits(acceptance: Acceptance, found: Confusion, between: tuple[float, float] | None) -> list[str]:
    """What the report does not prove, most important first; `between` are the groups' lowest and highest AUROC."""
    told = [
        *_on_defects(found),
        *_on_the_bound(acceptance),
        *_on_groups(acceptance, between),
        *(_on_good_parts if acceptance.is_good_only else _on_the_line)(acceptance, found),
        *_on_labels(acceptance),
    ]
    return [
        *told,
        *_on_the_choice(acceptance),
        (
            "Kinds of defects, parts, light and cameras that these images do not show were not tested. Images unlike "
            "all of them are sent to review, not passed, as far as they can be recognized."
        ),
        "A heat map shows where the evidence lies. It does not outline the defect and proves nothing about its cause.",
    ]


def _on_the_choice(acceptance: Acceptance) -> list[str]:
    chosen = acceptance.about.get("chosen", {})
    told = []
    if chosen.get("candidates"):
        told.append(
            "The recipe was chosen on the images that were trained on. The images held out decided nothing; the "
            "figures over all images are a little too good for that reason."
        )
    elif chosen.get("not_tried"):
        told.append("With so few images nothing was compared: input size, network and recipe are what usually serves.")
    return told


def _on_defects(found: Confusion) -> list[str]:
    defects = found.escapes.among
    if not defects:
        return ["No defect was held out: the share of defects that would pass is unknown."]
    best = percent_up(at_most(0, defects))
    return [f"{defects} defects were held out: even without a single mistake so few show no less than {best} escapes."]


def _on_the_bound(acceptance: Acceptance) -> list[str]:
    if (acceptance.about.get("operating_point") or {}).get("by") != "bound":
        return []
    told = (
        "The threshold was set by looking at the defects held out. The bound on escapes allows for that; the other "
        "figures at this threshold are a little too good for that reason."
    )
    return [told]


def _on_groups(acceptance: Acceptance, between: tuple[float, float] | None) -> list[str]:
    groups = len(np.unique(acceptance.held.groups))
    if not acceptance.held_groups:
        if "near_duplicates" in acceptance.about:
            return [
                (
                    "No groups were given. Images that look nearly the same were kept together; that finds copies of a "
                    "picture, but not all pictures of one board or day."
                )
            ]
        return [
            (
                "No groups were given, so images of one part may lie on both sides of the split; then the figures are "
                "too good."
            )
        ]
    told = (
        "The exact bounds count every image as a trial of its own. Images of one group resemble each other, so a new "
        f"group may do worse than the bounds say; {groups} groups were held out."
    )
    if groups < FEW_GROUPS:
        told += " That is too few to say how much groups differ."
    if between is not None:
        told += f" From group to group of all images the AUROC ran from {figure(between[0])} to {figure(between[1])}."
    return [told]


def _on_good_parts(acceptance: Acceptance, found: Confusion) -> list[str]:
    told = ["No defect was trained on: the number of a part is no probability, and nothing is told in costs."]
    set_on = acceptance.about.get("false_rejects", {}).get("false_reject_at_most")
    rejects = found.false_rejects
    if set_on is not None and rejects.among and rejects.events / rejects.among > set_on:
        told.append(
            f"Of the good parts held out {percent(rejects.events / rejects.among)} failed, more than the "
            f"{percent(set_on)} that the threshold was set for: groups differ. Add good parts of more groups."
        )
    return told + _on_camera_checks(acceptance.about)


def _on_the_line(acceptance: Acceptance, _: Confusion) -> list[str]:
    about, rate = acceptance.about, percent(acceptance.bundle.defect_rate)
    if about.get("defect_rate_given"):
        told = [f"The defect rate of {rate} was given, not measured. Probabilities and costs stand and fall with it."]
    else:
        told = [
            (
                "No defect rate was given: probabilities and costs hold for the training images' own share of "
                f"defects, {rate}. A line rarely has so many. Train again with --defect-rate."
            )
        ]
    if costs_of(about) == Costs():
        told.append("The costs are the built-in ones. Give yours: --cost-escape, --cost-false-reject, --cost-review.")
    return told + _on_camera_checks(about)


def _on_camera_checks(about: Mapping[str, Any]) -> list[str]:
    checks = about.get("camera_checks", {})
    off = [name for name, state in checks.items() if str(state).startswith("off")]
    if not off:
        return []
    return [f"The camera check {' and '.join(repr(name) for name in off)} is off: these images cannot tell."]


def _on_labels(acceptance: Acceptance) -> list[str]:
    told = [note for note in acceptance.about.get("notes", []) if note.startswith("ATTENTION")]
    if acceptance.doubtful:
        told.append(
            f"Labels are taken as the truth. {len(acceptance.doubtful)} are worth a second look, see the pictures; a "
            "wrong label counts as a mistake of the model, or hides one."
        )
    return told


def costs_of(about: Mapping[str, Any]) -> Costs:
    """The costs that a bundle tells of."""
    return Costs(**about["costs"]) if "costs" in about else Costs()


def counted(share: Share) -> str:
    """`3 of 60, 5 % (at most 12 %)`: never a share alone, and no 0 % without its bound."""
    if not share.among:
        return "none were there"
    seen = "none" if not share.events else str(share.events)
    part = f", {percent(share.events / share.among)}" if share.events else ""
    return f"{seen} of {share.among}{part} (at most {percent_up(share.at_most)})"


def figure(value: float) -> str:
    """An area below a curve, to three digits."""
    return f"{value:.3f}"


def amount(value: float) -> str:
    """A cost: whole where it is large, with thousands apart."""
    return f"{value:,.0f}".replace(",", _SPACE) if abs(value) >= 100 else f"{value:.1f}"  # noqa: PLR2004
