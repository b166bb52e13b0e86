"""Shares in words: the same figure reads alike on the terminal, in a bundle and in the report."""

from __future__ import annotations

import math

_NOISE_DIGITS = 6
"""What binary fractions add to a number of decimals is rounded away before it is rounded up: .07 is 7 %, not 7.1 %."""


def percent(share: float, space: str = " ") -> str:
    """A share from 0 to 1 in words: 4.9 %. Nothing above 0 is told as 0, and nothing below 1 as 100 %."""
    value = 100 * share
    return _told(value, _decimals(value)) + f"{space}%"


def percent_up(share: float, space: str = " ") -> str:
    """An upper bound as `percent`, but never below it: .1113 is at most 11.2 %."""
    value = min(100.0, 100 * share)
    decimals = _decimals(value)
    steps = 10**decimals
    return _told(math.ceil(round(value * steps, _NOISE_DIGITS)) / steps, decimals) + f"{space}%"


def _told(value: float, decimals: int) -> str:
    """Without the zeros at its end."""
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def _decimals(value: float) -> int:
    """Of a number of per cent: one, and two that count where that would round to 0 or to 100."""
    to_the_end = min(value, 100 - value)
    return max(1, 1 - math.floor(math.log10(to_the_end))) if to_the_end > 0 else 0
