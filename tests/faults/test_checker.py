"""The checker finds what is put in by hand, in lists and in real topics, and nothing where there is nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaProducer

from consumer.topics import ensure_topics
from tests.faults.checker import (
    Expected,
    FrameRecord,
    VerdictRecord,
    check,
    digest_of,
    read_frames,
    read_verdicts,
    stable_ends,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.kafka_cluster import RunningBroker

GOOD, BAD = b"a good part", b"no image"
EXPECTED = {
    digest_of(GOOD): Expected("pass", probability=0.25),
    digest_of(BAD): Expected("none", "undecodable"),
    digest_of(None): Expected("none", "undecodable"),
}
STATIONS = ("a", "b", "c")


def log() -> list[FrameRecord]:
    """Three stations in two partitions, a bad frame among each one's."""
    frames = []
    for number in range(30):
        value = (GOOD, GOOD, BAD, None)[number // 3 % 4]
        station, partition = STATIONS[number % 3], number % 3 % 2
        frames.append(
            FrameRecord(partition, number // 3 * 2 + number % 3 // 2, station, f"f{number}", digest_of(value))
        )
    return frames


def document(frame: FrameRecord, topic: str = "frames") -> dict[str, Any]:
    """The right answer."""
    wanted = EXPECTED[frame.digest]
    return {
        "verdict_id": f"{frame.partition}/{frame.offset}",
        "station": frame.station,
        "frame_id": frame.frame_id,
        "source": {"topic": topic, "partition": frame.partition, "offset": frame.offset},
        "decision": wanted.decision,
        "cause": wanted.cause,
        "defect_probability": wanted.probability,
    }


def answers(frames: list[FrameRecord]) -> list[VerdictRecord]:
    """The right verdicts, in the frames' order, each station in one partition."""
    return [
        VerdictRecord(ord(frame.station) % 2, number, frame.station, document(frame))
        for number, frame in enumerate(frames)
    ]


def say(verdict: VerdictRecord, **said: object) -> VerdictRecord:
    """The same verdict, saying something else."""
    return replace(verdict, document={**verdict.document, **said})


def found(frames: list[FrameRecord], verdicts: list[VerdictRecord]) -> tuple[int, int, int, int]:
    """Lost, doubled, out of order, wrong."""
    report = check(frames, verdicts, EXPECTED, "frames")
    assert report.clean is (not report.examples)
    return report.lost, report.doubled, report.out_of_order, report.wrong


def test_a_clean_log_is_clean() -> None:
    frames = log()
    report = check(frames, answers(frames), EXPECTED, "frames")
    assert (report.frames, report.verdicts, report.clean) == (30, 30, True)


def test_a_loss_a_double_and_a_swap_are_found() -> None:
    frames = log()
    right = answers(frames)
    assert found(frames, right[:7] + right[8:]) == (1, 0, 0, 0)
    assert found(frames, [*right, right[4]]) == (0, 1, 0, 0)
    swapped = [*right[:9], right[12], right[10], right[11], right[9], *right[13:]]  # two of one station
    assert right[9].key == right[12].key
    assert found(frames, swapped) == (0, 0, 1, 0)
    other_stations = [*right[:9], right[10], right[9], *right[11:]]
    assert found(frames, other_stations) == (0, 0, 0, 0), "between stations there is no order"


def test_a_verdict_that_was_given_twice_and_late_is_one_double_and_no_disorder() -> None:
    frames = log()
    right = answers(frames)
    assert found(frames, [*right, right[0]]) == (0, 1, 0, 0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda verdict: say(verdict, decision="fail"),
        lambda verdict: say(verdict, decision="none", cause="undecodable", defect_probability=None),
        lambda verdict: say(verdict, defect_probability=0.26),
        lambda verdict: say(verdict, defect_probability=None),
        lambda verdict: say(verdict, defect_probability=float("nan")),
        lambda verdict: say(verdict, station="b"),
        lambda verdict: say(verdict, frame_id="f99"),
        lambda verdict: say(verdict, verdict_id="0/2"),
        lambda verdict: say(verdict, source={**verdict.document["source"], "topic": "others"}),
        lambda verdict: replace(verdict, key="b"),
    ],
)
def test_a_wrong_answer_is_found(spoil: Callable[[VerdictRecord], VerdictRecord]) -> None:
    frames = log()
    right = answers(frames)
    assert right[0].document["decision"] == "pass"
    *_, wrong = found(frames, [spoil(right[0]), *right[1:]])
    assert wrong == 1


def test_an_answer_to_a_frame_that_is_not_there_is_wrong() -> None:
    frames = log()
    stray = say(answers(frames)[3], source={"topic": "frames", "partition": 0, "offset": 999}, verdict_id="new")
    assert found(frames, [*answers(frames), stray]) == (0, 0, 0, 1)


def test_a_frame_of_unknown_bytes_is_never_taken_for_right() -> None:
    frames = [replace(log()[0], digest="f" * 64)]
    verdicts = [VerdictRecord(0, 0, "a", document(log()[0]))]
    assert found(frames, verdicts) == (0, 0, 0, 1)


def test_a_station_whose_verdicts_lie_in_two_partitions_has_no_order() -> None:
    frames = log()
    right = answers(frames)
    assert found(frames, [*right[:-1], replace(right[-1], partition=1 - right[-1].partition)]) == (0, 0, 1, 0)


class Topics:
    """Real ones, filled by hand."""

    def __init__(self, broker: RunningBroker, mark: str) -> None:
        self.servers = broker.bootstrap_servers
        self.frames, self.verdicts = f"frames-{mark}", f"verdicts-{mark}"
        ensure_topics(
            self.servers, partitions=2, replication=1, frames=self.frames, verdicts=self.verdicts, dead=f"dead-{mark}"
        )
        self.producer = KafkaProducer(bootstrap_servers=self.servers, transactional_id=mark)
        self.producer.init_transactions()

    def send(self, topic: str, key: bytes, value: bytes | None, headers: Mapping[str, bytes]) -> None:
        self.producer.send(topic, value, key=key, headers=list(headers.items()), partition=key[0] % 2).get(10)

    def report(self) -> tuple[int, int, int, int, int]:
        report = check(
            read_frames(self.servers, self.frames), read_verdicts(self.servers, self.verdicts), EXPECTED, self.frames
        )
        return report.frames, report.lost, report.doubled, report.out_of_order, report.wrong


@pytest.mark.slow
def test_in_real_topics_only_what_is_committed_counts_and_an_open_transaction_is_waited_for(
    apache_kafka: RunningBroker, unique: str
) -> None:
    topics = Topics(apache_kafka, unique)
    producer = topics.producer
    values = [GOOD, None, BAD, GOOD, b""]
    expected_empty = {digest_of(b""): Expected("none", "undecodable")}
    producer.begin_transaction()
    for number, value in enumerate(values):
        topics.send(topics.frames, b"a", value, {"ce_id": b"f%d" % number} if number else {})
    producer.commit_transaction()
    frames = read_frames(topics.servers, topics.frames)
    assert [frame.offset for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[0].frame_id == f"{topics.frames}-1-0"
    assert frames[4].digest in expected_empty
    right = [
        json.dumps(document(frame, topics.frames)).encode() if frame.digest in EXPECTED else None for frame in frames
    ]

    def publish(*numbers: int, commit: bool) -> None:
        producer.begin_transaction()
        for number in numbers:
            topics.send(topics.verdicts, b"a", right[number], {})
        if commit:
            producer.commit_transaction()
        else:
            producer.abort_transaction()

    publish(0, 1, commit=True)
    publish(2, 3, commit=False)
    assert topics.report() == (5, 3, 0, 0, 0), "what was aborted was never said"
    publish(3, 2, commit=True)
    assert topics.report() == (5, 1, 0, 1, 0)
    publish(0, commit=True)
    assert topics.report() == (5, 1, 1, 1, 0)
    producer.begin_transaction()
    topics.send(topics.verdicts, b"a", right[1], {})
    with pytest.raises(TimeoutError, match="open transaction"):
        stable_ends(topics.servers, topics.verdicts, 1.0)
    producer.commit_transaction()
    assert topics.report() == (5, 1, 2, 1, 0)
    producer.close(timeout=5)
