"""What the demo counts."""

from __future__ import annotations

from typing import Any

from consumer.demo_tally import Tally, Truth, auroc


def verdict(
    frame: str, decision: str, probability: float | None, *, station: str = "a", total: float = 10.0
) -> dict[str, Any]:
    latency = {"total": total, "inference": 2.0, "classify": None}
    return {
        "frame_id": frame,
        "station": station,
        "decision": decision,
        "defect_probability": probability,
        "latency_ms": latency,
    }


TRUTH = {
    "1": Truth("a", is_defect=False),
    "2": Truth("a", is_defect=True, kind="dent", difficulty="hard"),
    "3": Truth("b", is_defect=True, kind="dent", difficulty="obvious"),
    "4": Truth("b", is_defect=False),
}


def full() -> Tally:
    tally = Tally()
    tally.add(verdict("1", "pass", 0.1, total=10))
    tally.add(verdict("2", "pass", 0.2, total=20))
    tally.add(verdict("3", "none", None, station="b", total=30))
    tally.add(verdict("4", "review", 0.4, station="b", total=40))
    return tally


def test_review_and_none_count_as_not_passed() -> None:
    summary = full().summary(TRUTH, 12.34)
    assert summary["decisions"] == {"pass": 2, "fail": 0, "review": 1, "none": 1}
    assert summary["accuracy"] == 0.5  # 1 and 3 are right
    assert summary["recall"] == 0.5
    assert summary["recall_by_difficulty"] == {
        "hard": {"recall": 0.0, "defects": 1},
        "obvious": {"recall": 1.0, "defects": 1},
    }
    assert summary["recall_by_kind"]["dent"] == {"recall": 0.5, "defects": 2}
    assert summary["good_passed"] == 0.5
    assert summary["auroc"] == 0.75  # the frame without a probability ranks as a sure defect
    assert summary["seconds"] == 12.3


def test_a_second_verdict_of_a_frame_is_not_hidden() -> None:
    tally = full()
    tally.add(verdict("1", "fail", 0.9))
    summary = tally.summary(TRUTH, 1)
    assert (summary["frames"], summary["verdicts"], summary["repeated"]) == (4, 5, 1)
    assert summary["decisions"]["pass"] == 2


def test_frames_without_a_verdict_are_named() -> None:
    tally = Tally()
    tally.add(verdict("1", "pass", 0.1))
    assert tally.missing(TRUTH) == ["2", "3", "4"]
    assert tally.summary(TRUTH, 1)["verdicts"] == 1


def test_percentiles_by_stage_and_station() -> None:
    tally = full()
    assert tally.percentiles()["total"] == {"p50": 25.0, "p99": 39.7}
    assert tally.percentiles("a")["total"] == {"p50": 15.0, "p99": 19.9}
    assert "classify" not in tally.percentiles()  # a stage that no frame reached


def test_auroc_needs_both_classes() -> None:
    assert auroc([True, True], [0.1, 0.2]) is None
    assert auroc([False, True], [0.1, 0.2]) == 1.0
