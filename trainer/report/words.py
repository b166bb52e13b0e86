"""The report's words: the verdict, what was not proved, and figures as people read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.bounds import at_most
from trainer.operating_point import Costs
from trainer.report.curves import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.report.curves import Interval
    from trainer.report.data import Acceptance
    from trainer.report.tables import Confusion, Share

FEW_GROUPS = 5
_SPACE = "\u202f"
"""Narrow and unbreakable: a figure and its unit stay in one line."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the page says first.

    Attributes:
        level: `shown`, `open` or `not_shown`.
        headline: one line.
        why: sentences.
    """

    level: str
    headline: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expense:
    """What 1,000 parts of the line cost, in the unit of the costs.

    Attributes:
        measured: with the shares that were seen among the images held out.
        at_worst: with escapes and false rejects at their exact upper bounds.
        plain: rules that need no model -> what they cost.
    """

    measured: float
    at_worst: float
    plain: dict[str, float]

    @property
    def best_plain(self) -> tuple[str, float]:
        """The cheapest rule that needs no model."""
        return min(self.plain.items(), key=lambda rule: rule[1])


def escapes_at_most(about: Mapping[str, Any], found: Confusion) -> float:
    """Upper bound on the share of defects that pass.

    Where the operating point was set by a bound it was set by looking at these very defects; then what counts is what
    was allowed beforehand, not what was seen afterwards.
    """
    told = about.get("operating_point") or {}
    return max(found.escapes.at_most, float(told.get("escape_rate_at_most") or 0) if told.get("by") == "bound" else 0.0)


def expense(about: Mapping[str, Any], found: Confusion, defect_rate: float) -> Expense | None:
    """What the operating point costs; None where the images are of one class."""
    escapes, rejects, costs = found.escapes, found.false_rejects, costs_of(about)
    if not escapes.among or not rejects.among:
        return None
    reviewed = [side["review"].events / side["review"].among for side in (found.defect, found.good)]

    def cost(escaped: float, rejected: float) -> float:
        of_defects = costs.escape * escaped + costs.review * reviewed[0]
        of_good = costs.false_reject * rejected + costs.review * reviewed[1]
        return PARTS * (defect_rate * of_defects + (1 - defect_rate) * of_good)

    plain = {
        "pass everything": PARTS * defect_rate * costs.escape,
        "reject everything": PARTS * (1 - defect_rate) * costs.false_reject,
    }
    if costs.review:
        plain["look at every part"] = PARTS * costs.review
    measured = cost(escapes.events / escapes.among, rejects.events / rejects.among)
    return Expense(measured, cost(escapes_at_most(about, found), rejects.at_most), plain)


def verdict(acceptance: Acceptance, found: Confusion, auroc: Interval | None, spent: Expense | None) -> Verdict:
    """Whether the model may be used, from the images held out alone.

    It must be better than chance. Then a bound on escapes that was asked for decides; where none was, the model is
    shown to be worth using where it costs less than the best rule that needs no model even with escapes and false
    rejects at their exact upper bounds, at costs and at a defect rate that somebody has given.
    """
    if auroc is None or spent is None:
        return _without_a_class(found)
    why = (_ranking(auroc), _costs(spent))
    if auroc.low <= 0.5:  # noqa: PLR2004 - chance
        return Verdict(
            "not_shown",
            "Not shown to work: it may be no better than guessing",
            (why[0], "Guessing reaches 50 %, and the interval includes that. Do not put a reject gate behind it."),
        )
    told = acceptance.about.get("operating_point") or {}
    asked = told.get("max_escape_rate")
    if asked is not None:
        at = f"at most {percent(asked)} of defects pass, at {percent(told['confidence'])} confidence"
        if told.get("proved"):
            return Verdict("shown", f"Usable: {at}", why)
        return Verdict("not_shown", f"Not proved, though it was asked for: {at}", why)
    return _by_costs(acceptance.about, spent, why)


def _by_costs(about: Mapping[str, Any], spent: Expense, why: tuple[str, ...]) -> Verdict:
    if spent.measured >= spent.best_plain[1]:
        doubt = "Either the model is too weak, or the costs and the defect rate are not the line's."
        return Verdict("not_shown", "Not worth using at these costs", (*why, doubt))
    if spent.at_worst >= spent.best_plain[1]:
        more = "More images of groups that were never trained on would settle it."
        return Verdict("open", "It works on what was held out, but too little was held out to prove it", (*why, more))
    if costs_of(about) == Costs() or not about.get("defect_rate_given"):
        missing = (
            "The costs or the defect rate of your line were not given, so this holds for assumed ones. Train again "
            "with --defect-rate and the --cost options, or ask for a bound, to have it settled."
        )
        return Verdict("open", "It works on parts it never saw; whether it pays on your line is open", (*why, missing))
    return Verdict("shown", "Usable: it pays, even with its mistakes at their upper bounds", why)


def _ranking(auroc: Interval) -> str:
    return (
        "Of a defect and a good part, neither ever seen before, it calls the defect the worse one in "
        f"{percent(auroc.value)} of the cases ({percent(auroc.low)} to {percent(auroc.high)})."
    )


def _costs(spent: Expense) -> str:
    rule, price = spent.best_plain
    return (
        f"At these costs and this defect rate 1,000 parts cost {amount(spent.measured)} as measured, "
        f"{amount(spent.at_worst)} with escapes and false rejects at their upper bounds; the best rule without a model "
        f"({rule}) costs {amount(price)}."
    )


def _without_a_class(found: Confusion) -> Verdict:
    if not found.escapes.among:
        return Verdict(
            "open",
            "Nothing is proved about defects: none were there to be held out",
            (
                f"Good parts that failed: {counted(found.false_rejects)}.",
                "How many defects would pass is unknown. Let people check what it passes until defects were seen.",
            ),
        )
    return Verdict(
        "open",
        "Nothing is proved about good parts: none were there to be held out",
        (f"Defects that passed: {counted(found.escapes)}.",),
    )


def limits(acceptance: Acceptance, found: Confusion, between: tuple[float, float] | None) -> list[str]:
    """What the report does not prove, most important first; `between` are the groups' lowest and highest AUROC."""
    told = [
        *_on_defects(found),
        *_on_the_bound(acceptance),
        *_on_groups(acceptance, between),
        *_on_the_line(acceptance),
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
    best = percent(at_most(0, defects))
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


def _on_the_line(acceptance: Acceptance) -> list[str]:
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
    checks = about.get("camera_checks", {})
    off = [name for name, state in checks.items() if str(state).startswith("off")]
    if off:
        told.append(f"The camera check {' and '.join(repr(name) for name in off)} is off: these images cannot tell.")
    return told


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
    return f"{seen} of {share.among}{part} (at most {percent(share.at_most)})"


def percent(share: float) -> str:
    """`4.9 %`; small shares keep two digits, and nothing above 0 is told as 0."""
    value = 100 * share
    if 0 < value < 0.01:  # noqa: PLR2004 - the smallest that is told
        return f"<{_SPACE}0.01{_SPACE}%"
    digits = 0 if value >= 99.95 or value == 0 else 1 if value >= 1 else 2  # noqa: PLR2004
    text = f"{value:.{digits}f}"
    return f"{text}{_SPACE}%"


def figure(value: float) -> str:
    """An area below a curve, to three digits."""
    return f"{value:.3f}"


def amount(value: float) -> str:
    """A cost: whole where it is large, with thousands apart."""
    return f"{value:,.0f}".replace(",", _SPACE) if abs(value) >= 100 else f"{value:.1f}"  # noqa: PLR2004
