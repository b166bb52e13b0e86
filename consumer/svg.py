"""Line charts on logarithmic axes as SVG text: the one kind of picture that a bench needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH_PX, HEIGHT_PX, LEFT_PX, TOP_PX, GAP_PX, FOOT_PX = 400, 280, 64, 36, 72, 50
LEGEND_ROW_PX = 18


@dataclass(frozen=True, slots=True)
class Line:
    """One line: points (x, y), both above 0, with a name, a colour and, where wanted, dashes."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines on one pair of axes. `until`: a mark on the x axis with its words, such as a limit."""

    title: str
    lines: Sequence[Line]
    until: tuple[float, str] | None = None


def chart(panels: Sequence[Panel], *, x_label: str, y_label: str) -> str:
    """An SVG document: panels side by side on the same axes, a legend of the first one's lines below.

    Raises:
        InputError: nothing to draw, or a value that has no logarithm.
    """
    points = [point for panel in panels for line in panel.lines for point in line.points]
    if not points or not all(value > 0 and math.isfinite(value) for point in points for value in point):
        msg = f"a chart on logarithmic axes of {len(points)} points: expected at least one, and values above 0"
        raise InputError(msg)
    marks = [(panel.until[0], 1.0) for panel in panels if panel.until]
    axes = _Axes(_decades([x for x, _ in [*points, *marks]]), _decades([y for _, y in points]))
    legend = panels[0].lines
    width = LEFT_PX + len(panels) * (WIDTH_PX + GAP_PX)
    height = TOP_PX + HEIGHT_PX + FOOT_PX + LEGEND_ROW_PX * len(legend) + 10
    body = [
        text
        for at, panel in enumerate(panels)
        for text in axes.panel(panel, LEFT_PX + at * (WIDTH_PX + GAP_PX), x_label)
    ]
    middle = TOP_PX + HEIGHT_PX / 2
    body.append(_text(16, middle, y_label, f' text-anchor="middle" transform="rotate(-90 16 {middle:g})"'))
    for row, line in enumerate(legend):
        y = TOP_PX + HEIGHT_PX + FOOT_PX + LEGEND_ROW_PX * row + 8
        body += [_path([(LEFT_PX, y), (LEFT_PX + 36, y)], line), _text(LEFT_PX + 44, y + 4, line.name)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Exponents of ten between which all lie; one whole decade at least."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


@dataclass(frozen=True, slots=True)
class _Axes:
    """From values to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def panel(self, panel: Panel, left: float, x_label: str) -> Iterator[str]:
        bottom = TOP_PX + HEIGHT_PX
        yield _text(left + WIDTH_PX / 2, TOP_PX - 14, panel.title, ' text-anchor="middle" font-weight="bold"')
        for value in _ticks(self.x):
            (at, _), anchor = self._at(left, value, 10 ** self.y[0]), ' text-anchor="middle"'
            yield f'<path d="M{at:.1f} {TOP_PX}V{bottom}" stroke="#ddd"/>'
            yield _text(at, bottom + 16, f"{value:g}", anchor)
        for value in _ticks(self.y):
            _, at = self._at(left, 10 ** self.x[0], value)
            yield f'<path d="M{left} {at:.1f}h{WIDTH_PX}" stroke="#ddd"/>'
            yield _text(left - 6, at + 4, f"{value:g}", ' text-anchor="end"')
        yield f'<rect x="{left}" y="{TOP_PX}" width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="none" stroke="#444"/>'
        yield _text(left + WIDTH_PX / 2, bottom + 36, x_label, ' text-anchor="middle"')
        if panel.until is not None:
            at, _ = self._at(left, panel.until[0], 10 ** self.y[0])
            yield f'<path d="M{at:.1f} {TOP_PX}V{bottom}" stroke="#888" stroke-dasharray="2 3"/>'
            yield _text(at + 4, TOP_PX + 14, panel.until[1], ' fill="#666"')
        for line in panel.lines:
            yield _path([self._at(left, x, y) for x, y in line.points], line)

    def _at(self, left: float, x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * WIDTH_PX, TOP_PX + HEIGHT_PX * (1 - up)


def _ticks(decades: tuple[float, float]) -> Iterator[float]:
    """1, 2, 5 of each decade."""
    for decade in range(int(decades[0]), int(decades[1]) + 1):
        for digit in (1, 2, 5):
            if decade < decades[1] or digit == 1:
                yield digit * 10.0**decade


def _path(points: Sequence[tuple[float, float]], line: Line) -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    return f'<path d="M{steps}" fill="none" stroke="{line.colour}" stroke-width="2"{dashes}/>'


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{more}>{escape(text)}</text>'
