"""Dead letters: bounded, best effort, counted, and never a trouble to the one who brings them."""

from __future__ import annotations

import gc
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from kafka.future import Future
from prometheus_client import CollectorRegistry

from consumer.dead_letter import DeadLetterBox
from consumer.events import DeadLetter, Frame, Position
from consumer.metrics import Metrics

if TYPE_CHECKING:
    from consumer.wire import WireRecord


class Topic:
    """Keeps what is sent, and kafka-python's own futures for the test to settle."""

    def __init__(self) -> None:
        self.records: list[WireRecord] = []
        self.futures: list[Any] = []

    def send(self, record: WireRecord) -> Any:
        self.records.append(record)
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


@pytest.fixture
def topic() -> Topic:
    return Topic()


def a_letter(offset: int = 0, error: str = "cut off") -> DeadLetter:
    frame = Frame(Position("frames", 0, offset), "press-1", f"f{offset}", bytes(bytearray(b"image")), 100.0, 100.5)
    return DeadLetter("v", frame, "undecodable", error, 101.0)


def counted(registry: CollectorRegistry) -> dict[str, float | None]:
    """What was delivered and what was lost, by reason."""
    lost = {
        reason: registry.get_sample_value("framegate_dead_letter_errors_total", {"reason": reason})
        for reason in ("full", "send", "delivery")
    }
    return {"delivered": registry.get_sample_value("framegate_dead_letters_total", {"cause": "undecodable"}), **lost}


def test_a_letter_is_counted_when_the_broker_has_it(
    registry: CollectorRegistry, metrics: Metrics, topic: Topic
) -> None:
    box = DeadLetterBox(topic.send, group="g", metrics=metrics)
    assert box.put(a_letter())
    assert (box.outstanding, counted(registry)["delivered"]) == (1, 0)
    topic.futures[0].success("metadata")
    assert box.outstanding == 0
    assert counted(registry) == {"delivered": 1, "full": 0, "send": 0, "delivery": 0}
    value = topic.records[0].value
    assert value is not None
    assert json.loads(value)["cause"] == "undecodable"
    assert ("ce_source", b"/framegate/g") in topic.records[0].headers


def test_what_the_broker_refuses_is_counted_and_makes_room(
    registry: CollectorRegistry, metrics: Metrics, topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    box = DeadLetterBox(topic.send, group="g", metrics=metrics, limit_outstanding=1)
    for offset in range(3):
        assert box.put(a_letter(offset))
        topic.futures[-1].failure(TimeoutError("too slow"))
    assert counted(registry) == {"delivered": 0, "full": 0, "send": 0, "delivery": 3}
    assert [record.levelname for record in caplog.records] == ["WARNING"], "a missing topic is news once"
    assert "too slow" in caplog.text


def test_a_stuck_topic_piles_nothing_up(registry: CollectorRegistry, metrics: Metrics, topic: Topic) -> None:
    box = DeadLetterBox(topic.send, group="g", metrics=metrics, limit_outstanding=2)
    assert [box.put(a_letter(offset)) for offset in range(5)] == [True, True, False, False, False]
    assert len(topic.records) == box.outstanding == 2
    assert counted(registry)["full"] == 3
    topic.futures[0].success("metadata")
    assert box.put(a_letter(9))


def test_a_client_that_raises_never_reaches_the_pipeline(registry: CollectorRegistry, metrics: Metrics) -> None:
    def broken(_record: WireRecord) -> Any:
        msg = "no metadata"
        raise RuntimeError(msg)

    box = DeadLetterBox(broken, group="g", metrics=metrics)
    assert not box.put(a_letter())
    assert box.outstanding == 0
    assert counted(registry) == {"delivered": 0, "full": 0, "send": 1, "delivery": 0}


def test_a_letter_that_cannot_be_written_never_reaches_the_pipeline(
    registry: CollectorRegistry, metrics: Metrics, topic: Topic
) -> None:
    letter = a_letter()
    broken = DeadLetter(letter.verdict_id, letter.frame, letter.cause, letter.error, at_s=float("nan"))
    assert not DeadLetterBox(topic.send, group="g", metrics=metrics).put(broken)
    assert counted(registry)["send"] == 1


def test_a_sink_that_delivers_at_once(registry: CollectorRegistry, metrics: Metrics) -> None:
    box = DeadLetterBox(lambda _record: None, group="g", metrics=metrics)
    assert box.put(a_letter())
    assert (box.outstanding, counted(registry)["delivered"]) == (0, 1)


def test_a_letter_under_way_does_not_keep_its_image(metrics: Metrics, topic: Topic) -> None:
    letter = a_letter()
    image = letter.frame.payload
    before = sys.getrefcount(image)
    box = DeadLetterBox(topic.send, group="g", metrics=metrics)
    assert box.put(letter)
    del letter
    gc.collect()
    assert box.outstanding == 1
    assert sys.getrefcount(image) < before, "64 letters under way would hold 64 frames"
