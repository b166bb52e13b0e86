"""The camera: its schedule on a clock set by hand, its folders, and its report; then the real command."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import count as counting
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from kafka import KafkaAdminClient
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from consumer.broker import EmbeddedBroker
from consumer.camera_report import CameraReport, SentFrame
from consumer.camera_settings import CameraSettings
from consumer.cli_camera import camera
from consumer.errors import BrokerError, SettingsError, TopicError
from consumer.events import Position
from consumer.frame_producer import KafkaFrameProducer
from consumer.pictures import Picture, folder_pictures, image_files
from consumer.station import expected_frames, publish, run_camera
from consumer.topics import ensure_topics
from consumer.wire import WireRecord, frame_from_record, rfc3339
from engine.errors import WorkError
from tests.frames_topic import read_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

WALL_S = 1_772_344_800.0
ROOT = Path(__file__).parents[2]


class Line:
    """Time and a broker, both by hand: sleeping is what moves the clock, and sending may take time."""

    def __init__(self, *, sending_s: dict[int, float] | None = None, error: BaseException | None = None) -> None:
        self.now_s = 500.0
        self.sent: list[tuple[float, WireRecord]] = []
        self.flushed = False
        self.silent = False
        self._sending_s = sending_s or {}
        self._error = error

    def clock(self) -> float:
        return self.now_s

    def wall_clock(self) -> float:
        return WALL_S + self.now_s - 500.0

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds

    def send(self, record: WireRecord, on_done: Callable[[BaseException | None], None]) -> None:
        self.sent.append((round(self.now_s - 500.0, 6), record))
        self.now_s += self._sending_s.get(len(self.sent) - 1, 0.0)
        if not self.silent:
            on_done(self._error)

    def flush(self) -> None:
        self.flushed = True

    def publish(self, streams: Mapping[str, Iterable[Picture]], rate_hz: float, **more: Any) -> CameraReport:
        ids = counting()
        more.setdefault("new_id", lambda: f"id{next(ids)}")
        return publish(
            streams, self, rate_hz=rate_hz, clock=self.clock, wall_clock=self.wall_clock, sleep=self.sleep, **more
        )

    def schedule(self) -> list[tuple[float, str]]:
        """(when, which station)."""
        return [(when, (record.key or b"").decode()) for when, record in self.sent]


def pictures(number: int, size: int = 3) -> list[Picture]:
    return [Picture(bytes([n % 256]) * size, "image/png", Path(f"{n}.png")) for n in range(number)]


def test_a_station_keeps_its_rate() -> None:
    line = Line()
    report = line.publish({"a": pictures(4)}, rate_hz=4.0)
    assert [when for when, _ in line.sent] == [0.0, 0.25, 0.5, 0.75]
    assert report == CameraReport(sent=4, failed=0, late=0, seconds=0.75, by_station={"a": 4}, errors={})
    assert line.flushed


def test_stations_take_turns_within_a_period() -> None:
    line = Line()
    line.publish({"a": pictures(2), "b": pictures(2)}, rate_hz=1.0)
    assert line.schedule() == [(0.0, "a"), (0.5, "b"), (1.0, "a"), (1.5, "b")]


def test_a_delay_does_not_add_up() -> None:
    line = Line(sending_s=dict.fromkeys(range(1000), 0.009))
    line.publish({"a": pictures(1000)}, rate_hz=100.0)
    assert line.sent[999][0] == pytest.approx(9.99), "frame 999 has its time, however long each took"


def test_late_frames_go_at_once_and_are_counted() -> None:
    line = Line(sending_s={0: 3.5})
    report = line.publish({"a": pictures(6)}, rate_hz=1.0)
    assert [when for when, _ in line.sent] == [0.0, 3.5, 3.5, 3.5, 4.0, 5.0]
    assert report.late == 2, "those due at 1 and 2 were more than a period late, the one due at 3 was not"


def test_rate_zero_waits_for_nothing_and_stations_still_alternate() -> None:
    line = Line()
    report = line.publish({"a": pictures(3), "b": pictures(2)}, rate_hz=0)
    assert line.schedule() == [(0.0, "a"), (0.0, "b"), (0.0, "a"), (0.0, "b"), (0.0, "a")]
    assert report.late == 0


def test_count_bounds_each_station_also_an_endless_one(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    line = Line()
    endless = folder_pictures(tmp_path, loop=True)
    report = line.publish({"a": endless, "b": pictures(1)}, rate_hz=10.0, count=3)
    assert report.by_station == {"a": 3, "b": 1}


def test_each_frame_says_who_and_when() -> None:
    line = Line()
    told: list[SentFrame] = []

    def on_sent(frame: SentFrame) -> None:
        told.append(frame)
        assert len(line.sent) == len(told) - 1, "a verdict must not come before its line"

    line.publish({"press-1": pictures(2)}, rate_hz=2.0, on_sent=on_sent)
    record = line.sent[1][1]
    frame = frame_from_record(
        Position("frames", 0, 1),
        key=record.key,
        value=record.value,
        headers=list(record.headers),
        timestamp_ms=None,
        now_s=WALL_S + 60,
    )
    assert (frame.station, frame.frame_id, frame.payload) == ("press-1", "id1", b"\x01\x01\x01")
    assert frame.captured_at_s == WALL_S + 0.5
    assert dict(record.headers)["content-type"] == b"image/png"
    assert told[1] == SentFrame("id1", "press-1", Path("1.png"), WALL_S + 0.5)


def test_ids_are_unique_over_runs() -> None:
    ids = set()
    for _ in range(2):
        line = Line()
        publish({"a": pictures(50)}, line, rate_hz=0)
        ids |= {dict(record.headers)["ce_id"] for _, record in line.sent}
    assert len(ids) == 100


def test_lost_frames_are_in_the_report() -> None:
    report = Line(error=TimeoutError()).publish({"a": pictures(3)}, rate_hz=0)
    assert (report.sent, report.failed, report.by_station, report.errors) == (0, 3, {"a": 0}, {"TimeoutError": 3})


def test_a_frame_without_an_answer_counts_as_lost() -> None:
    line = Line()
    line.silent = True
    report = line.publish({"a": pictures(3)}, rate_hz=0)
    assert (report.sent, report.failed, report.errors) == (0, 3, {"NotAcknowledged": 3})


def test_a_stop_ends_the_run_after_a_flush() -> None:
    line = Line()
    report = line.publish({"a": pictures(100)}, rate_hz=1.0, stop=lambda: line.now_s >= 503.0)
    assert report.sent == 3
    assert line.flushed


def test_a_sleep_that_returns_early_sends_nothing_early() -> None:
    line = Line()
    publish(
        {"a": pictures(2)},
        line,
        rate_hz=1.0,
        clock=line.clock,
        sleep=lambda seconds: line.sleep(max(seconds / 2, 1e-4)),
    )
    assert line.sent[1][0] == pytest.approx(1.0, abs=1e-3)
    assert line.sent[1][0] >= 1.0


def a_folder(tmp_path: Path) -> Path:
    (tmp_path / "fail").mkdir()
    for name in ("b.JPG", "a.png", "fail/c.tiff", "notes.txt", "index.json"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_a_folder_gives_its_images_in_the_order_of_their_names(tmp_path: Path) -> None:
    seen = [(picture.path, picture.content_type, picture.payload) for picture in folder_pictures(a_folder(tmp_path))]
    assert seen == [
        (tmp_path / "a.png", "image/png", b"a.png"),
        (tmp_path / "b.JPG", "image/jpeg", b"b.JPG"),
        (tmp_path / "fail/c.tiff", "image/tiff", b"fail/c.tiff"),
    ]


def test_one_file_is_published_whatever_its_suffix(tmp_path: Path) -> None:
    (picture,) = folder_pictures(a_folder(tmp_path) / "notes.txt")
    assert (picture.payload, picture.content_type) == (b"notes.txt", "application/octet-stream")


def test_a_shuffle_is_the_same_for_the_same_seed_and_new_in_every_round(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(b"x")

    def rounds(seed: int) -> list[list[Path | None]]:
        stream = folder_pictures(tmp_path, loop=True, shuffle_seed=seed)
        return [[next(stream).path for _ in range(20)] for _ in range(2)]

    assert rounds(1) == rounds(1)
    first, second = rounds(1)
    assert first != second
    assert set(first) == set(second) == set(image_files(tmp_path))
    assert rounds(2)[0] != first


def test_a_folder_that_is_not_there_or_empty_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not there"):
        folder_pictures(tmp_path / "no")
    with pytest.raises(SettingsError, match="has no images"):
        folder_pictures(tmp_path)


def test_a_file_that_goes_away_ends_the_run_after_a_flush(tmp_path: Path) -> None:
    stream = folder_pictures(a_folder(tmp_path))
    (tmp_path / "b.JPG").unlink()
    line = Line()
    with pytest.raises(WorkError, match=r"b\.JPG cannot be read any more"):
        publish({"a": stream}, line, rate_hz=0)
    assert line.flushed
    assert len(line.sent) == 1


def test_how_many_frames_a_run_will_send(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    streams = (("a", folder), ("b", folder / "fail"))
    assert expected_frames(CameraSettings("b:1", streams)) == 4
    assert expected_frames(CameraSettings("b:1", streams, count=2)) == 3
    assert expected_frames(CameraSettings("b:1", streams, count=9, loop=True)) == 18
    assert expected_frames(CameraSettings("b:1", streams, loop=True)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"streams": ()}, "no station"),
        ({"streams": (("a", Path()), ("a", Path()))}, "given twice"),
        ({"streams": (("", Path()),)}, "0 characters"),
        ({"streams": (("a" * 257, Path()),)}, "257 characters"),
        ({"streams": (("press-\udcff", Path()),)}, "not UTF-8"),
        ({"rate_hz": -1.0}, "rate"),
        ({"rate_hz": float("nan")}, "rate"),
        ({"rate_hz": float("inf")}, "rate"),
        ({"count": 0}, "count 0"),
    ],
)
def test_settings_that_no_camera_can_follow(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        CameraSettings(**{"bootstrap_servers": "b:1", "streams": (("a", Path()),), **changes})


# --- the bound on what is under way


class Client:
    """Stands for kafka-python's producer: its futures are settled by the test."""

    def __init__(self) -> None:
        self.open: list[tuple[Callable[[Any], Any], Callable[[BaseException], Any]]] = []
        self.refuse: BaseException | None = None

    def send(self, _topic: str, **_record: Any) -> Client:
        if self.refuse is not None:
            raise self.refuse
        return self

    def add_callback(self, settle: Callable[[Any], Any]) -> None:
        self._callback = settle

    def add_errback(self, settle: Callable[[BaseException], Any]) -> None:
        self.open.append((self._callback, settle))


def a_record(size: int) -> WireRecord:
    return WireRecord(b"a", b"x" * size, [], None)


def test_a_frame_waits_for_room_and_a_large_one_goes_alone() -> None:
    client = Client()
    producer = KafkaFrameProducer("b:1", "frames", limit_outstanding_bytes=100)
    producer._producer = client
    fates: list[BaseException | None] = []
    producer.send(a_record(60), fates.append)
    thread = threading.Thread(target=producer.send, args=(a_record(1000), fates.append), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive(), "1000 bytes beside 60 are more than the limit"
    client.open[0][0]("metadata")
    thread.join(5)
    assert not thread.is_alive(), "a frame larger than all the room must not wait for ever"
    client.open[1][1](KafkaTimeoutError("expired"))
    producer.send(a_record(100), fates.append)  # a lost frame gave its room back
    assert fates == [None, KafkaTimeoutError("expired")]


def test_a_frame_that_the_client_refuses_is_a_lost_frame_not_an_exception() -> None:
    client = Client()
    client.refuse = MessageSizeTooLargeError("18 MB")
    producer = KafkaFrameProducer("b:1", "frames", limit_outstanding_bytes=10)
    producer._producer = client
    fates: list[BaseException | None] = []
    producer.send(a_record(10), fates.append)
    producer.send(a_record(10), fates.append)  # would wait for ever if the first kept its room
    assert [type(fate) for fate in fates] == [MessageSizeTooLargeError] * 2


# --- the command


def run_cli(*arguments: str) -> Any:
    """Run the verb in this process; errors raised on purpose stay exceptions."""
    return CliRunner().invoke(camera, arguments)


def test_help_has_an_example() -> None:
    result = run_cli("--help")
    assert result.exit_code == 0
    assert "framegate camera images/ --station press-1" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--station", "a"), "has no images: give SOURCE"),
        (("--station", "a="), "names no folder"),
        (("no-such-folder", "--station", "a"), "is not there"),
        ((".", "--station", "a", "--station", "a"), "given twice"),
    ],
)
def test_wrong_usage_is_bad_input(arguments: tuple[str, ...], words: str) -> None:
    result = run_cli(*arguments)
    assert isinstance(result.exception, SettingsError)
    assert result.exception.exit_code == 2
    assert words in str(result.exception)


# --- on a real broker


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        ensure_topics(running.bootstrap_servers, partitions=4, replication=1)
        yield running


RUN = """
import sys
from consumer.cli_camera import camera
from engine.errors import FramegateError
try:
    camera(sys.argv[1:], standalone_mode=False)
except FramegateError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start_camera(*arguments: str) -> subprocess.Popen[str]:
    """The verb in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], cwd=ROOT, text=True, stdout=PIPE, stderr=PIPE)


@pytest.mark.kafka
@pytest.mark.slow
def test_what_the_command_sends_is_what_the_topic_holds(broker: EmbeddedBroker, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        (images / f"{number}.png").write_bytes(bytes([number]) * 70_000)
    (images / "5.bmp").write_bytes(b"B" * 16 * 1024 * 1024)  # the largest image that is meant to pass
    arguments = [
        "--bootstrap-servers",
        broker.bootstrap_servers,
        "--rate",
        "50",
        "--sent",
        str(tmp_path / "sent.jsonl"),
    ]
    process = start_camera(str(images), "--station", "press-1", "--station", "press-2", "--json", *arguments)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    report = json.loads(output)
    assert (report["sent"], report["failed"], report["by_station"]) == (12, 0, {"press-1": 6, "press-2": 6})

    lines = [json.loads(line) for line in (tmp_path / "sent.jsonl").read_text(encoding="utf-8").splitlines()]
    frames = read_frames(broker.bootstrap_servers, {"press-1", "press-2"}, len(lines))
    for station in ("press-1", "press-2"):
        sent = [line for line in lines if line["station"] == station]
        got = [frame for frame in frames if frame.station == station]
        assert [frame.frame_id for frame in got] == [line["frame_id"] for line in sent], "in order per station"
        assert [frame.payload for frame in got] == [Path(line["path"]).read_bytes() for line in sent]
        assert [rfc3339(frame.captured_at_s) for frame in got] == [line["captured_at"] for line in sent]
        assert not any(frame.skewed for frame in got)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_frame_over_the_limit_is_lost_alone_and_the_command_fails(broker: EmbeddedBroker, tmp_path: Path) -> None:
    for name, size in (("1.png", 10), ("2.bmp", 17 * 1024 * 1024), ("3.png", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    servers = broker.bootstrap_servers
    process = start_camera(str(tmp_path), "--station", "a", "--rate", "0", "--json", "--bootstrap-servers", servers)
    output, errors = process.communicate(timeout=60)
    report = json.loads(output)
    assert (report["sent"], report["failed"], report["errors"]) == (2, 1, {"MessageSizeTooLargeError": 1})
    assert process.returncode == 1
    assert f"1 of 3 frames were not acknowledged by {servers} (MessageSizeTooLargeError x 1)" in errors


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_everything_delivered(
    broker: EmbeddedBroker, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    sent = tmp_path / "sent.jsonl"
    process = start_camera(
        str(tmp_path), "--station", f"signal-{number}", "--rate", "20", "--loop", "--json", "--sent", str(sent),
        "--bootstrap-servers", broker.bootstrap_servers,
    )  # fmt: skip
    deadline_s = time.monotonic() + 30
    while not (sent.exists() and sent.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    report = json.loads(output)
    lines = [json.loads(line) for line in sent.read_text(encoding="utf-8").splitlines()]
    frames = read_frames(broker.bootstrap_servers, {f"signal-{number}"}, len(lines))
    assert (report["sent"], report["failed"]) == (len(lines), 0)
    assert [frame.frame_id for frame in frames] == [line["frame_id"] for line in lines]


@pytest.mark.kafka
@pytest.mark.slow
def test_a_topic_that_is_not_there_is_named_and_not_made(broker: EmbeddedBroker, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    settings = CameraSettings(broker.bootstrap_servers, (("a", tmp_path),), topic="no-such-topic")
    with pytest.raises(TopicError, match="no-such-topic"):
        run_camera(settings)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        assert "no-such-topic" not in admin.list_topics()
    finally:
        admin.close()


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = CameraSettings(address, (("a", tmp_path),), connect_timeout_s=0.5)
        with pytest.raises(BrokerError, match=address):
            run_camera(settings)


def test_a_broker_address_that_is_none_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:abc"):
        run_camera(CameraSettings("127.0.0.1:abc", (("a", tmp_path),)))


BROKER_DIES = """
import itertools, json, logging
from consumer.broker import EmbeddedBroker
from consumer.frame_producer import KafkaFrameProducer
from consumer.pictures import Picture
from consumer.station import publish
from consumer.topics import ensure_topics
logging.getLogger("kafka").setLevel(logging.CRITICAL)
broker = EmbeddedBroker()
broker.start()
ensure_topics(broker.bootstrap_servers, partitions=1, replication=1)
def pictures():
    for number in itertools.count():
        if number == 5:
            producer.flush()
            broker.stop()
        if number == 8:
            return
        yield Picture(b"x")
where = broker.bootstrap_servers
with KafkaFrameProducer(where, "frames", delivery_timeout_s=2, limit_outstanding_bytes=2) as producer:
    print(json.dumps(publish({"a": pictures()}, producer, rate_hz=0).to_json()))
"""


@pytest.mark.kafka
@pytest.mark.slow
def test_a_broker_that_dies_costs_frames_and_says_so() -> None:
    # A process of its own: kafka-python leaves an open socket behind for every reconnect that fails.
    command = [sys.executable, "-c", BROKER_DIES]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60, check=True)
    report = json.loads(done.stdout)
    assert (report["sent"], report["failed"], report["errors"]) == (5, 3, {"KafkaTimeoutError": 3})
