"""Arrays -> charts as SVG text. The only file that imports matplotlib; pure: the same input, the same text.

The SVG goes inline into a page: colours are the page's own custom properties, so a chart follows light, dark and print;
text stays text, in the page's font; ids are the chart's own, so that charts do not reach into each other. What a colour
says is also said by a line's style, a marker, a hatch or a word.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from trainer.report.curves import HIGHEST, LOWEST, log_odds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from engine.prediction import OperatingPoint
    from trainer.report.curves import Band, CalibrationCurve

# Stand-ins that matplotlib draws with, each replaced by a custom property of the page.
INK, QUIET, RULE, FIRST, SECOND, GOOD, DEFECT, REVIEW, PAPER = (f"#0102{number:02x}" for number in range(16, 25))
_PROPERTIES = {
    INK: "--ink",
    QUIET: "--quiet",
    RULE: "--rule",
    FIRST: "--first",
    SECOND: "--second",
    GOOD: "--good",
    DEFECT: "--defect",
    REVIEW: "--review",
    PAPER: "--paper",
}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.usetex": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "hatch.color": PAPER,
    "hatch.linewidth": 1.0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
_SIZE_IN = (4.7, 3.5)
"""So wide that its words are as large as the page's on a phone, where it fills the width."""

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
_ODDS_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


def roc_chart(bands: Sequence[tuple[str, Band]], *, name: str, alt: str) -> str:
    """Defects caught over good parts called defects, for one or two sets of images."""
    with _styled(name):
        figure, axes = _figure()
        _draw_bands(axes, bands)
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("dotted: pure chance", (0.99, 0.02), color=QUIET, fontsize=9, ha="right")
        _shares(axes, "good parts called defects", "defects called defects")
        return _svg(figure, name, alt)


def precision_recall_chart(bands: Sequence[tuple[str, Band]], share: float, *, name: str, alt: str) -> str:
    """Precision over defects caught; `share` of defects among the images is what pure chance would reach."""
    with _styled(name):
        figure, axes = _figure()
        _draw_bands(axes, bands)
        axes.axhline(share, color=QUIET, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("pure chance", (0.02, min(share + 0.015, 0.94)), color=QUIET, fontsize=9)
        _shares(axes, "defects called defects", "defects among what is called so")
        return _svg(figure, name, alt)


def calibration_chart(curve: CalibrationCurve, *, name: str, alt: str) -> str:
    """Share of defects over predicted probability, with each bin's exact interval."""
    with _styled(name):
        figure, axes = _figure()
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("dotted: exactly as predicted", (0.99, 0.02), color=QUIET, fontsize=9, ha="right")
        predicted = [each.predicted for each in curve.bins]
        ends = [each.low for each in curve.bins], [each.high for each in curve.bins]
        axes.vlines(predicted, *ends, FIRST, linewidth=1.6)
        axes.plot(predicted, [each.observed for each in curve.bins], "o", color=FIRST, markersize=5.5)
        _shares(axes, "predicted probability of a defect", "share that were defects")
        return _svg(figure, name, alt)


def histogram_chart(
    good: np.ndarray, defects: np.ndarray, edges: np.ndarray, point: OperatingPoint, *, name: str, alt: str
) -> str:
    """Images of each class over the probability; (k,) counts and (k + 1,) edges in log odds."""
    with _styled(name):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        width = np.diff(edges)
        for axes, counts, colour, hatch, word in (
            (upper, defects, DEFECT, "////", "defects"),
            (lower, good, GOOD, "", "good parts"),
        ):
            axes.bar(edges[:-1], counts, width, align="edge", color=colour, hatch=hatch, edgecolor=PAPER, linewidth=0.6)
            axes.set_ylim(0, max(1.0, 1.25 * float(counts.max(initial=0))))
            axes.set_ylabel(word)
            axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
            _mark_point(axes, point, words=axes is upper)
        _odds_axis(lower, "predicted probability of a defect")
        return _svg(figure, name, alt)


def cost_chart(
    band: Band, point: OperatingPoint, at_point: float, plain: Sequence[tuple[str, float]], *, name: str, alt: str
) -> str:
    """Cost of 1,000 parts over the threshold.

    Args:
        band: x in log odds.
        point: threshold and review band that were chosen.
        at_point: cost with these, reviews among it.
        plain: rules that need no model, with what they cost.
        name: of the chart, for its ids.
        alt: what it shows, for who cannot see it.
    """
    with _styled(name):
        figure, axes = _figure()
        axes.fill_between(band.grid, band.low, band.high, color=FIRST, alpha=0.18, linewidth=0)
        axes.plot(band.x, band.y, color=FIRST)
        top = 1.12 * max(float(band.y.max()), at_point, *(cost for _, cost in plain))
        styles = ((0, (4, 2)), (0, (1, 2)), (0, (6, 2, 1, 2)))
        above = np.inf
        for (word, cost), style in zip(sorted(plain, key=lambda rule: -rule[1]), styles, strict=False):
            axes.axhline(cost, color=QUIET, linewidth=1, linestyle=style)
            place = (
                cost + 0.01 * top if cost + 0.08 * top < above else cost - 0.06 * top
            )  # below, where lines lie close
            under = {"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.6}
            axes.annotate(word, (LOWEST, place), color=QUIET, fontsize=8.5, bbox=under)
            above = place
        axes.set_ylim(0, top)
        _mark_point(axes, point, words=True)
        place = float(log_odds(np.array([point.threshold]))[0])
        axes.plot([place], [at_point], "D", color=INK, markersize=6)
        _odds_axis(axes, "threshold: failed from this probability on")
        axes.set_ylabel("cost of 1,000 parts")
        return _svg(figure, name, alt)


def learning_chart(
    images: np.ndarray, value: np.ndarray, low: np.ndarray, high: np.ndarray, *, name: str, alt: str
) -> str:
    """AUROC over the number of images that were trained on."""
    with _styled(name):
        figure, axes = _figure()
        axes.fill_between(images, low, high, color=FIRST, alpha=0.18, linewidth=0)
        axes.plot(images, value, "o-", color=FIRST, markersize=5)
        bottom = min(0.95, float(np.min(low)) - 0.02)
        axes.set_ylim(max(0.0, bottom), 1.005)
        axes.set_xlim(0, 1.05 * float(images.max()))
        axes.set_xlabel("images trained on")
        axes.set_ylabel("AUROC on other groups")
        axes.grid(visible=True)
        return _svg(figure, name, alt)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    return figure, figure.subplots()


def _draw_bands(axes: Axes, bands: Sequence[tuple[str, Band]]) -> None:
    """Solid, then dashed; each with its band."""
    for (word, band), colour, style in zip(bands, (FIRST, SECOND), ("-", (0, (4, 1.5))), strict=False):
        axes.fill_between(band.grid, band.low, band.high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(band.x, band.y, color=colour, linestyle=style, label=word)
    axes.figure.legend(loc="outside upper left", ncols=2, handlelength=2.6, borderpad=0.1)


def _shares(axes: Axes, x_words: str, y_words: str) -> None:
    axes.set_xlim(-0.015, 1.015)
    axes.set_ylim(-0.015, 1.015)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.set_xlabel(x_words)
    axes.set_ylabel(y_words)
    axes.grid(visible=True)
    axes.set_axisbelow(True)


def _odds_axis(axes: Axes, words: str) -> None:
    places = log_odds(np.array(_ODDS_TICKS))
    axes.set_xlim(LOWEST - 0.2, HIGHEST + 0.2)
    axes.set_xticks(places, [f"{100 * tick:g} %" for tick in _ODDS_TICKS])
    axes.set_xlabel(words)


def _mark_point(axes: Axes, point: OperatingPoint, *, words: bool) -> None:
    """The review band as a hatched strip, the threshold as a line."""
    low, high = log_odds(np.array(point.review_band))
    place = float(log_odds(np.array([point.threshold]))[0])
    if low < high:
        axes.axvspan(low, high, facecolor=REVIEW, alpha=0.22, linewidth=0, zorder=0)
    axes.axvline(place, color=INK, linewidth=1.2, linestyle=(0, (5, 2)))
    if words:
        top = axes.get_ylim()[1]
        if low < high:
            axes.annotate("review", (high + 0.1, top), color=INK, fontsize=8.5, va="top")
        axes.annotate("threshold", (min(low, place) - 0.1, top), color=INK, fontsize=8.5, va="top", ha="right")


def _styled(name: str) -> Any:
    style: Any = {**_STYLE, "svg.hashsalt": name}  # its keys are typed one by one
    return mpl.rc_context(style)


_PROLOGUE = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(url\(#|href="#)([^")]+)')
_OPENING = re.compile(r"<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_FONT = re.compile(r"font: ([0-9.]+)px [^;\"]*;?")


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as it goes into a page."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = _METADATA.sub("", _PROLOGUE.sub("", buffer.getvalue(), count=1))
    used = {match[2] for match in _REFERENCE.finditer(text)}
    text = _ID.sub(lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
    text = _REFERENCE.sub(lambda match: f"{match[1]}{name}-{match[2]}", text)
    text = text.replace("xlink:href", "href")  # as SVG 2 has it: no namespace to declare
    for colour, own in _PROPERTIES.items():
        text = text.replace(colour, f"var({own})")
    text = _FONT.sub(r"font-size: \1px;", text)
    opening = f'<svg class="chart" role="img" aria-label={quoteattr(alt)} viewBox="\\1">'
    return _OPENING.sub(lambda match: match.expand(opening) + f"<title>{escape(alt)}</title>", text, count=1).strip()
