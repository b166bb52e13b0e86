"""Searches that are answered together: each ends where it would alone, and an error reaches whoever asked for them."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.optimize import minimize

from trainer.lockstep import minimize_together

if TYPE_CHECKING:
    from collections.abc import Sequence

GOALS = np.array([[1.0, -2.0], [30.0, 4.0], [0.0, 0.0]])
CURVES = np.array([1.0, 50.0, 3.0])
START = np.zeros(2)
OPTIONS = {"maxiter": 100, "gtol": 1e-8}


def valley(number: int, at: np.ndarray) -> tuple[float, np.ndarray]:
    """A quartic around its own goal."""
    off = at - GOALS[number]
    return float(CURVES[number] * (off**4).sum() + (off**2).sum()), 4 * CURVES[number] * off**3 + 2 * off


def test_each_search_ends_where_it_would_alone() -> None:
    rounds: list[list[int]] = []

    def values(which: Sequence[int], arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rounds.append(list(which))
        losses, gradients = zip(*(valley(*each) for each in zip(which, arguments, strict=True)), strict=True)
        return np.array(losses), np.stack(gradients)

    found = minimize_together(START, values, count=3, options=OPTIONS)
    for number, result in enumerate(found):
        alone = minimize(lambda at, n=number: valley(n, at), START, jac=True, method="L-BFGS-B", options=OPTIONS)
        assert (result.x == alone.x).all()
        assert result.nfev == alone.nfev
        assert sum(number in which for which in rounds) == alone.nfev
    assert rounds[0] == [0, 1, 2]
    assert all(set(later) <= set(earlier) for earlier, later in pairwise(rounds))


def test_what_goes_wrong_is_raised_and_no_thread_is_left() -> None:
    before = threading.active_count()

    def values(which: Sequence[int], _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise ZeroDivisionError(str(which))

    with pytest.raises(ZeroDivisionError, match=r"\[0, 1\]"):
        minimize_together(START, values, count=2, options=OPTIONS)
    assert threading.active_count() == before
