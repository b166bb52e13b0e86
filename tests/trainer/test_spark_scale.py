"""What ten million images would take: the function, and that docs/spark.md says what it gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.spark_scale import Rates, estimate, table, told

ROOT = Path(__file__).resolve().parents[2]
RATES = Rates("drawn", "a machine", "2026-01-01", 0.02, 0.1, 30, 0.001, 100_000, 50_000, 3e8, 1000, 200, 0.02, 0.03)


def test_the_executors_share_the_images_and_the_tasks() -> None:
    got = estimate(RATES, 1_000_000, 10, 4)
    assert got.featurize_s == pytest.approx((1_000_000 * 0.02 + 5000 * 0.1) / 40)
    assert got.core_hours == pytest.approx(20_500 / 3600)
    assert got.take_s == pytest.approx(1000)
    assert got.total_s == pytest.approx(30 + 1000)  # the driver is slower than forty cores
    assert got.shared_bytes == got.driver_disk_bytes == 1e11
    assert got.driver_bytes == 1e9
    assert got.executor_bytes == pytest.approx(1.2e9)
    assert got.read_mbit_s == pytest.approx(1_000_000 * 50_000 * 8 / 1e6 / got.featurize_s)
    assert estimate(RATES, 1_000_000, 1, 4).total_s == pytest.approx(30 + 20_500 / 4)


def test_a_task_is_not_shared_out() -> None:
    assert estimate(RATES, 200, 10, 4).featurize_s == pytest.approx(200 * 0.02 + 0.1)


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_nothing_is_estimated_of_nothing(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate(RATES, *wrong)


def test_the_page_says_what_the_function_gives() -> None:
    page = (ROOT / "docs" / "spark.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs" / "spark_rates.json").read_text(encoding="utf-8"))
    clusters = tuple((executors, cores) for executors, cores in found["clusters"])
    for each in found["rates"]:
        rates = Rates(**each)
        assert told(rates) in page
        assert table(rates, found["images"], clusters) in page
