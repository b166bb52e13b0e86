"""The checker that goes along finds what is put in by hand, whichever of frame and verdict comes first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import tests.faults.rolling
from tests.faults.checker import Expected, FrameRecord, VerdictRecord
from tests.faults.rolling import RollingCheck

if TYPE_CHECKING:
    from tests.faults.checker import Report

EXPECTED = {
    "old": {"good": Expected("pass", probability=0.25), "bad": Expected("none", "undecodable")},
    "new": {"good": Expected("fail", probability=0.75), "bad": Expected("none", "undecodable")},
}
FRAMES = [
    FrameRecord(number % 2, number // 2, "ab"[number % 2], f"f{number}", "bad" if number % 5 == 0 else "good")
    for number in range(20)
]


def verdict(frame: FrameRecord, number: int, judged_by: str = "old", **changes: Any) -> VerdictRecord:
    wanted = EXPECTED.get(judged_by, EXPECTED["old"])[frame.digest]
    document = {
        "verdict_id": f"{frame.partition}/{frame.offset}",
        "station": frame.station,
        "frame_id": frame.frame_id,
        "source": {"topic": "frames", "partition": frame.partition, "offset": frame.offset},
        "decision": wanted.decision,
        "cause": wanted.cause,
        "defect_probability": wanted.probability,
        "model": {"digest": judged_by},
    }
    return VerdictRecord(frame.partition, number, frame.station, document | changes)


def right(model: str = "old") -> list[VerdictRecord]:
    return [verdict(frame, number, model) for number, frame in enumerate(FRAMES)]


def checked(verdicts: list[VerdictRecord], frames: list[FrameRecord] | None = None, ahead: int = 3) -> Report:
    """Verdicts that come up to `ahead` frames before or behind their frames."""
    check = RollingCheck(EXPECTED, "frames")
    left = list(FRAMES if frames is None else frames)
    for number, one in enumerate(verdicts):
        while left and len(FRAMES) - len(left) < number + ahead:
            check.frame(left.pop(0))
        check.verdict(one)
    for frame in left:
        check.frame(frame)
    return check.finish()


@pytest.mark.parametrize("ahead", [-5, 0, 5])
@pytest.mark.parametrize("model", ["old", "new"])
def test_nothing_is_found_where_nothing_is(ahead: int, model: str) -> None:
    report = checked(right(model), ahead=ahead)
    assert report.clean, report.examples
    assert (report.frames, report.verdicts) == (20, 20)


def test_a_loss_is_found() -> None:
    report = checked([one for one in right() if one.place != (1, 4)])
    assert (report.lost, report.doubled, report.out_of_order, report.wrong) == (1, 0, 0, 0)
    assert report.examples == ["lost: frame 1/4 of station 'b'"]


@pytest.mark.parametrize("behind", [0, 9])
def test_a_double_is_found(behind: int) -> None:
    verdicts = right()
    verdicts.insert(7 + behind, replace(verdicts[6], offset=99))
    report = checked(verdicts)
    assert (report.lost, report.doubled, report.out_of_order, report.wrong) == (0, 1, 0, 0)


def test_a_swap_is_found() -> None:
    verdicts = right()
    verdicts[6], verdicts[8] = verdicts[8], verdicts[6]
    report = checked(verdicts)
    assert (report.lost, report.doubled, report.out_of_order, report.wrong) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("old", {"decision": "fail"}),
        ("old", {"defect_probability": 0.26}),
        ("old", {"frame_id": "another"}),
        ("old", {"model": {"digest": "new"}}),
        ("unknown", {}),
    ],
)
def test_what_is_wrong_is_found(model: str, changes: dict[str, Any]) -> None:
    verdicts = right()
    verdicts[6] = verdict(FRAMES[6], 6, model, **changes)
    report = checked(verdicts)
    assert (report.lost, report.doubled, report.out_of_order, report.wrong) == (0, 0, 0, 1)


def test_another_frames_id_and_a_verdict_without_a_frame_are_found() -> None:
    verdicts = right()
    verdicts[6] = verdict(FRAMES[6], 6, verdict_id="0/0")
    assert checked(verdicts).wrong == 1
    report = checked(right(), FRAMES[:-1])
    assert (report.wrong, report.lost) == (1, 0)
    assert "answers no frame" in report.examples[0]


def test_only_what_is_unanswered_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.faults.rolling, "IDS_REMEMBERED", 100)
    check = RollingCheck(EXPECTED, "frames")
    for offset in range(1000):
        frame = FrameRecord(0, offset, "a", f"f{offset}", "good")
        check.frame(frame)
        assert check.unanswered == 1
        check.verdict(verdict(frame, offset))
    assert check.unanswered == 0
    assert len(check._ids) == 100
    assert not check._answered[0].above
    assert check.finish().clean
