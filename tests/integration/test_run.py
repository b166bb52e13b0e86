"""The consumer on real brokers, with an engine that costs nothing: delivery, order, stops, a broker that goes away."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from consumer.app import serve
from consumer.broker import EmbeddedBroker, is_embedded
from consumer.config import Settings
from consumer.errors import BrokerError, SettingsError, TopicError
from consumer.memory_io import BrightnessJudge
from consumer.pipeline import StoppedAtOnceError
from consumer.topics import check_topics, ensure_topics, producer_limits
from consumer.wire import parse_verdict
from engine.preprocess import preprocess
from engine.specs import ImageSpec
from tests.kafka_cluster import ApacheKafka, KafkaUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from consumer.pipeline import Pipeline
    from tests.kafka_cluster import RunningBroker

SPEC = ImageSpec(64, 64, max_pixels=10_000_000)
STATIONS = ("press-1", "press-2", "weld", "Prüfplatz 4", "paint")
PATIENCE_S = 60.0


def jpeg(tone: int) -> bytes:
    """A grey JPEG."""
    encoded, data = cv2.imencode(".jpg", np.full((120, 160, 3), tone, np.uint8))
    assert encoded
    return data.tobytes()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to happen."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.02)


class Line:
    """Topics of its own on a broker, a camera's producer, and a reader of what comes out."""

    def __init__(self, bootstrap_servers: str, mark: str, partitions: int = 3) -> None:
        """Make the topics; `mark` is what no other test has."""
        self.settings = Settings(
            bundle="not-looked-at",
            bootstrap_servers=bootstrap_servers,
            group=f"group-{mark}",
            frames_topic=f"frames-{mark}",
            verdicts_topic=f"verdicts-{mark}",
            dead_topic=f"dead-{mark}",
            batch_size=6,
            http_port=0,
            session_timeout_s=6.0,
            idle_exit_s=1.0,
        )
        ensure_topics(
            bootstrap_servers,
            partitions=partitions,
            replication=1,
            frames=self.settings.frames_topic,
            verdicts=self.settings.verdicts_topic,
            dead=self.settings.dead_topic,
        )
        self.producer = KafkaProducer(bootstrap_servers=bootstrap_servers, **producer_limits())
        self.exactly_once = not is_embedded(check_topics(bootstrap_servers, [self.settings.frames_topic]).cluster_id)
        self.sent = 0

    def send(self, station: str | None, payload: bytes | None) -> None:
        """Send one frame as a plain camera does: key and bytes."""
        key = None if station is None else station.encode()
        self.producer.send(self.settings.frames_topic, b"" if key is None and payload is None else payload, key=key)
        self.sent += 1

    def send_mixed(self, frames: int) -> None:
        """Frames of all stations, one in seven of them bad in its own way."""
        bad = (b"", b"not an image", jpeg(10)[:100], None)
        for number in range(frames):
            payload = bad[number // 7 % 4] if number % 7 == 6 else jpeg(number % 250)
            self.send(STATIONS[number % len(STATIONS)], payload)
        self.producer.flush(30)

    def read(self, topic: str, count: int, settle_s: float = 1.0) -> list[Any]:
        """Records of a topic: `count` of them, and whatever comes within `settle_s` after them."""
        reader = KafkaConsumer(
            bootstrap_servers=self.settings.bootstrap_servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            reader.assign([TopicPartition(topic, number) for number in reader.partitions_for_topic(topic)])
            records: list[Any] = []
            end_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < end_s:
                before = len(records)
                for batch in reader.poll(timeout_ms=int(settle_s * 1000)).values():
                    records += batch
                if len(records) >= count and len(records) == before:
                    break
            return records
        finally:
            reader.close()

    def verdicts(self) -> list[dict[str, Any]]:
        """Every verdict, as a program behind the topic reads them."""
        records = self.read(self.settings.verdicts_topic, self.sent)
        found = [parse_verdict(record.value) for record in records]
        for record, verdict in zip(records, found, strict=True):
            assert record.key.decode() == verdict["station"]
        return found

    def serve(self, **changes: Any) -> None:
        """Run the consumer here, until it ends."""
        serve(replace(self.settings, **changes), judge())

    def close(self) -> None:
        """Close the camera."""
        self.producer.close(timeout=5)


def judge() -> BrightnessJudge:
    """An engine that costs nothing behind the real decoder."""
    return BrightnessJudge(SPEC, partial(preprocess, spec=SPEC))


@pytest.fixture
def line(broker: RunningBroker, unique: str) -> Iterator[Line]:
    """A line on each broker there is."""
    line = Line(broker.bootstrap_servers, unique)
    yield line
    line.close()


def assert_in_order(verdicts: list[dict[str, Any]]) -> None:
    """Per station, and per partition of the frames, verdicts stand in the order of the frames."""
    lines: dict[tuple[str, int], list[int]] = defaultdict(list)
    for verdict in verdicts:
        lines[verdict["station"], verdict["source"]["partition"]].append(verdict["source"]["offset"])
    for offsets in lines.values():
        assert offsets == sorted(offsets)


def test_each_frame_has_one_verdict_in_order_whatever_it_is(line: Line) -> None:
    line.send_mixed(210)
    line.send(None, jpeg(20))
    line.send(None, None)
    line.send("large", noise := noisy_png(2000))
    line.send("too many pixels", noisy_png(10, sides=(4000, 4000)))
    line.producer.flush(30)
    assert len(noise) > 2**20, "above Kafka's own limit"
    line.serve()
    verdicts = line.verdicts()
    assert len(verdicts) == line.sent == 214
    assert len({verdict["verdict_id"] for verdict in verdicts}) == 214
    assert_in_order(verdicts)
    causes = [verdict["cause"] for verdict in verdicts if verdict["decision"] == "none"]
    assert sorted(set(causes)) == ["oversize", "undecodable"]
    assert causes.count("oversize") == 1
    assert len(causes) == 30 + 2
    by_station = {verdict["station"]: verdict for verdict in verdicts}
    assert by_station["large"]["decision"] in {"pass", "fail", "review"}
    assert {v["decision"] for v in verdicts if v["station"] == "unknown"} == {"pass", "none"}
    assert all(v["latency_ms"]["total"] >= 0 for v in verdicts)
    letters = [json.loads(record.value) for record in line.read(line.settings.dead_topic, len(causes))]
    assert sorted(letter["verdict_id"] for letter in letters) == sorted(
        verdict["verdict_id"] for verdict in verdicts if verdict["decision"] == "none"
    )


def test_a_frames_trace_context_goes_on_to_its_verdict_and_dead_letter(line: Line) -> None:
    sound = [
        ("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
        ("tracestate", b"plc=7"),
        ("baggage", b"lot=12"),
    ]
    malformed = [("traceparent", b"\xff not one"), ("tracestate", b"plc=7"), ("baggage", b"x" * 100_000)]
    for headers in (sound, malformed):
        for payload in (jpeg(20), b"not an image"):
            line.producer.send(line.settings.frames_topic, payload, key=b"press-1", headers=headers)
            line.sent += 1
    line.producer.flush(30)
    line.serve()
    names = {"traceparent", "tracestate", "baggage"}
    for topic, count in ((line.settings.verdicts_topic, 4), (line.settings.dead_topic, 2)):
        records = sorted(line.read(topic, count), key=lambda record: json.loads(record.value)["source"]["offset"])
        found = [[header for header in record.headers if header[0] in names] for record in records]
        assert found == [sound] * (count // 2) + [[]] * (count // 2)


def noisy_png(side: int, sides: tuple[int, int] | None = None) -> bytes:
    """A PNG that does not compress, or a plain one of other sides."""
    if sides is not None:
        image = np.zeros((*sides, 3), np.uint8)
    else:
        image = np.random.default_rng(1).integers(0, 255, (side, side), np.uint8)
    encoded, data = cv2.imencode(".png", image)
    assert encoded
    return data.tobytes()


def test_a_stop_in_the_middle_loses_and_doubles_nothing(line: Line) -> None:
    line.send_mixed(400)
    decoded = itertools.count(1)

    def stop_on_the_way(payload: bytes) -> Any:
        if next(decoded) == 100:
            os.kill(os.getpid(), signal.SIGTERM)
        return preprocess(payload, SPEC)

    serve(replace(line.settings, idle_exit_s=None), BrightnessJudge(SPEC, stop_on_the_way))
    first = len(line.read(line.settings.verdicts_topic, 100))
    assert 100 <= first < 400, "it was to stop on the way"
    line.serve()
    verdicts = line.verdicts()
    assert len(verdicts) == 400, "a clean stop commits all that it answered"
    assert len({verdict["verdict_id"] for verdict in verdicts}) == 400
    assert_in_order(verdicts)


def test_giving_up_loses_nothing_and_a_frame_judged_again_keeps_its_id(line: Line) -> None:
    line.send_mixed(200)
    decoded = itertools.count(1)

    def stop_twice(payload: bytes) -> Any:
        if next(decoded) == 60:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return preprocess(payload, SPEC)

    # Whether anything was left in hand when the second signal came is up to the machine.
    with suppress(StoppedAtOnceError):
        serve(replace(line.settings, idle_exit_s=None), BrightnessJudge(SPEC, stop_twice))
    line.serve()
    verdicts = line.verdicts()
    places = {(v["source"]["partition"], v["source"]["offset"]) for v in verdicts}
    assert len(places) == 200
    assert len({verdict["verdict_id"] for verdict in verdicts}) == 200
    if line.exactly_once:
        assert len(verdicts) == 200


@pytest.mark.kafka
def test_exactly_once_is_refused_on_a_broker_that_does_not_keep_it(embedded_broker: RunningBroker, unique: str) -> None:
    line = Line(embedded_broker.bootstrap_servers, unique)
    try:
        with pytest.raises(SettingsError, match=r"cannot be kept on the embedded broker, .* at-least-once here"):
            line.serve(delivery="exactly-once")
    finally:
        line.close()


def test_at_least_once_may_be_asked_for_anywhere(line: Line) -> None:
    line.send_mixed(70)
    line.serve(delivery="at-least-once")
    assert len(line.verdicts()) == 70


def test_a_second_consumer_joins_and_leaves_and_nothing_is_lost(line: Line) -> None:
    line.send_mixed(150)
    pipelines: list[Pipeline] = []
    failures: list[BaseException] = []

    def second() -> None:
        try:
            serve(
                replace(line.settings, idle_exit_s=None, http_port=None),
                judge(),
                on_ready=lambda pipeline, _: pipelines.append(pipeline),
            )
        except BaseException as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    def go_on_sending_then_leave() -> None:
        for _ in range(20):
            time.sleep(0.3)
            line.send_mixed(50)
        pipelines[0].stop()

    threads = [threading.Thread(target=second), threading.Thread(target=go_on_sending_then_leave)]
    for thread in threads:
        thread.start()
    line.serve(idle_exit_s=10.0)
    for thread in threads:
        thread.join(30)
    assert failures == []
    verdicts = line.verdicts()
    places = {(v["source"]["partition"], v["source"]["offset"]) for v in verdicts}
    assert len(places) == line.sent == 1150
    assert len({verdict["verdict_id"] for verdict in verdicts}) == line.sent
    if line.exactly_once:
        assert len(verdicts) == line.sent


def test_a_broker_that_is_not_there_is_an_error_soon(line: Line) -> None:
    began_s = time.monotonic()
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:9 "):
        line.serve(bootstrap_servers="127.0.0.1:9")
    assert time.monotonic() - began_s < 15


@pytest.mark.parametrize("topic", ["frames_topic", "verdicts_topic"])
def test_a_topic_that_is_not_there_is_an_error_and_is_not_made(line: Line, topic: str) -> None:
    for _ in range(2):
        with pytest.raises(TopicError, match="no-such-topic"):
            line.serve(**{topic: "no-such-topic"})


def test_without_a_topic_for_dead_letters_verdicts_go_on(line: Line, unique: str) -> None:
    line.send_mixed(70)
    line.serve(dead_topic=f"nowhere-{unique}")
    assert len(line.verdicts()) == 70


def status(url: str) -> int:
    """The status of one GET."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


class Guide(threading.Thread):
    """Leads a running consumer through a story, then stops it, also where the story breaks off."""

    def __init__(self, story: Callable[[str], None]) -> None:
        """`story` gets the address of metrics and health."""
        super().__init__()
        self._story = story
        self._pipeline: Pipeline | None = None
        self._address = ""
        self._error: BaseException | None = None
        self._over = threading.Event()

    def begin(self, pipeline: Pipeline, address: str | None) -> None:
        """For `on_ready`."""
        self._pipeline, self._address = pipeline, address or ""
        self.start()

    def run(self) -> None:
        """Tell the story."""
        try:
            self._story(self._address)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self._error = error
        finally:
            if self._pipeline is not None:
                self._pipeline.stop()
            # A broker that was started on this thread ends with it, and is needed until the consumer has ended.
            self._over.wait(PATIENCE_S)

    def finish(self) -> None:
        """The consumer has ended: let the thread end, and raise what broke the story off."""
        self._over.set()
        self.join()
        if self._error is not None:
            raise self._error


@pytest.mark.kafka
@pytest.mark.usefixtures("dropped_sockets")
def test_a_broker_that_is_gone_makes_it_not_ready_and_keeps_it_alive(unique: str) -> None:
    broker = EmbeddedBroker()
    broker.start()
    line = Line(broker.bootstrap_servers, unique)
    seen: dict[str, Any] = {}

    def story(address: str) -> None:
        until(lambda: status(f"{address}/ready") == 200)
        line.send_mixed(20)
        until(lambda: answered(address) == 20)
        broker.stop()
        until(lambda: status(f"{address}/ready") == 503)
        seen["live"] = status(f"{address}/live")
        seen["ready"] = [line for line in metrics(address).splitlines() if line.startswith("framegate_ready ")]

    guide = Guide(story)
    try:
        began_s = time.monotonic()
        # What was answered may or may not be committed when the broker went.
        with suppress(BrokerError):
            serve(replace(line.settings, idle_exit_s=None, drain_s=3.0), judge(), on_ready=guide.begin)
        guide.finish()
        assert seen["live"] == 200
        assert seen["ready"] == ["framegate_ready 0.0"]
        assert time.monotonic() - began_s < PATIENCE_S
    finally:
        line.close()
        broker.stop()


@pytest.mark.apache
@pytest.mark.slow
@pytest.mark.usefixtures("dropped_sockets")
def test_a_broker_that_comes_back_finds_every_frame_answered(unique: str, tmp_path: Path) -> None:
    cluster = ApacheKafka(1, tmp_path)
    try:
        cluster.start()
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    line = Line(cluster.bootstrap_servers, unique)

    def story(address: str) -> None:
        line.send_mixed(300)
        until(lambda: status(f"{address}/ready") == 200)
        cluster.kill_broker(1)
        until(lambda: status(f"{address}/ready") == 503)
        cluster.start_broker(1)
        line.send_mixed(300)
        until(lambda: status(f"{address}/ready") == 200)
        until(lambda: answered(address) >= 600)

    guide = Guide(story)
    try:
        serve(replace(line.settings, idle_exit_s=None), judge(), on_ready=guide.begin)
        verdicts = line.verdicts()
        guide.finish()
        assert len({verdict["verdict_id"] for verdict in verdicts}) == line.sent == 600
    finally:
        line.close()
        cluster.stop()


def answered(address: str) -> float:
    """Verdicts that the broker has taken, over all stations and decisions."""
    lines = [line for line in metrics(address).splitlines() if line.startswith("framegate_verdicts_total")]
    return sum(float(line.split()[-1]) for line in lines)


def metrics(address: str) -> str:
    """The metrics as Prometheus reads them."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:  # noqa: S310 - our own address
        text: str = answer.read().decode()
        return text
