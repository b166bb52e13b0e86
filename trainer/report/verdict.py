"""What the report says first: whether the model may be used, and what its decisions cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.operating_point import Costs
from trainer.report.curves import PARTS
from trainer.report.words import amount, costs_of, counted, percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.report.curves import Interval
    from trainer.report.data import Acceptance
    from trainer.report.tables import Confusion


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
    if acceptance.is_good_only and auroc is not None:
        return _of_good_parts(found, auroc)
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


def _of_good_parts(found: Confusion, auroc: Interval) -> Verdict:
    """Of a model that was trained on good parts alone, where defects were there to judge it by.

    They cannot show it usable: which defects come is what such a line does not know.
    """
    if auroc.low <= 0.5:  # noqa: PLR2004 - chance
        doubt = "Guessing reaches 50 %, and the interval includes that. Do not put a reject gate behind it."
        return Verdict("not_shown", "Not shown to tell these defects from good parts", (_ranking(auroc), doubt))
    why = (
        _ranking(auroc),
        f"Good parts that failed: {counted(found.false_rejects)}. Defects that passed: {counted(found.escapes)}.",
        (
            "It was trained on good parts alone. What other kinds of defects do is unknown: let people check what it "
            "passes, and train on both classes once defects were seen."
        ),
    )
    return Verdict("open", "It tells these defects from good parts; what it does with others is open", why)


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
