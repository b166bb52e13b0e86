from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.shares import percent, percent_up


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (0.00001, "0.001 %"),
        (0.000123, "0.012 %"),
        (0.0049, "0.49 %"),
        (0.0487, "4.9 %"),
        (0.05, "5 %"),
        (0.95, "95 %"),
        (0.999, "99.9 %"),
        (0.9996, "99.96 %"),
        (0.9999999, "99.99999 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_in_words(share: float, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (0.0487, "4.9 %"),
        (0.0441, "4.5 %"),
        (0.05963, "6 %"),
        (0.07, "7 %"),
        (0.1113, "11.2 %"),
        (0.000123, "0.013 %"),
        (0.99951, "99.951 %"),
        (1.0, "100 %"),
    ],
)
def test_an_upper_bound_is_never_rounded_down(share: float, words: str) -> None:
    assert percent_up(share) == words


@given(st.floats(1e-12, 1 - 1e-12))
def test_nothing_between_is_told_as_an_end_and_no_bound_is_below_its_share(share: float) -> None:
    assert 0 < float(percent(share).removesuffix(" %")) < 100
    assert float(percent_up(share).removesuffix(" %")) >= 100 * share * (1 - 1e-6)
