"""A camera for lines that have none yet: publishes a folder of images as one or several stations, at a rate.

A picture comes from any iterable of `Picture`, so that a video or an RTSP stream is one more generator; pacing,
identity and the report are the same for all. Times are arguments here: `publish` sleeps and reads clocks only through
what it is given.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import signal
import threading
import time
import uuid
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from consumer.errors import SettingsError
from consumer.frame_producer import KafkaFrameProducer
from consumer.topics import CONNECT_TIMEOUT_S
from consumer.wire import MAX_NAME_CHARS, WireRecord, frame_record, rfc3339
from engine.errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

CONTENT_TYPES = {
    ".bmp": "image/bmp",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}
"""What a folder's files are taken for; files with other suffixes are left out of a folder."""

UNKNOWN_CONTENT_TYPE = "application/octet-stream"

_LONGEST_SLEEP_S = 0.1
"""How late a signal may be noticed."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded image, before it is a frame.

    Attributes:
        path: where it came from; None for a live stream.
        part_id: the part in the picture, where the source knows it.
    """

    payload: bytes = field(repr=False)
    content_type: str = UNKNOWN_CONTENT_TYPE
    path: Path | None = None
    part_id: str | None = None


@dataclass(frozen=True, slots=True)
class SentFrame:
    """What is known of a frame when it is handed over: enough to pair its verdict with the truth."""

    frame_id: str
    station: str
    path: Path | None
    captured_at_s: float


@dataclass(frozen=True, slots=True)
class CameraReport:
    """What became of a run.

    Attributes:
        sent: frames the broker acknowledged.
        failed: frames it did not: lost, as far as the camera knows.
        late: frames handed over more than one period after their time.
        seconds: from the first frame's time to the last acknowledgement.
        by_station: acknowledged frames of every station.
        errors: why frames failed -> how many.
    """

    sent: int
    failed: int
    late: int
    seconds: float
    by_station: dict[str, int]
    errors: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """What `framegate camera` is told.

    Attributes:
        streams: (station, folder or file) for every station.
        rate_hz: frames a second of each station; 0 is as fast as the broker takes them.
        count: most frames of each station; None for all of the folder.
        loop: begin again at the folder's end, until `count` or a stop.
        shuffle_seed: a new order in every round, the same for the same seed; None keeps the order of the names.
        sent_path: where to write one JSON line for each frame; None writes none.
        connect_timeout_s: how long to wait for the broker.
        client: the Kafka client's TLS and SASL settings; hidden from logs.
    """

    bootstrap_servers: str
    streams: tuple[tuple[str, Path], ...]
    topic: str = "frames"
    rate_hz: float = 5.0
    count: int | None = None
    loop: bool = False
    shuffle_seed: int | None = None
    sent_path: Path | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse what no camera can do."""
        if not self.streams:
            msg = "no station given: expected at least one; name it with --station"
            raise SettingsError(msg)
        for station, _source in self.streams:
            _require_station(station)
        twice = sorted(name for name, times in Counter(name for name, _ in self.streams).items() if times > 1)
        if twice:
            msg = f"station {', '.join(twice)} is given twice: expected each once; give each camera its own name"
            raise SettingsError(msg)
        if not (math.isfinite(self.rate_hz) and self.rate_hz >= 0):
            msg = f"rate {self.rate_hz} is no number of frames a second: expected 0 (as fast as it goes) or more"
            raise SettingsError(msg)
        if self.count is not None and self.count < 1:
            msg = f"count {self.count} sends nothing: expected at least 1 frame"
            raise SettingsError(msg)


class FrameProducer(Protocol):
    """Where frames go.

    Promised: frames of one station arrive in the order given. Not promised: that `send` returns at once; it waits
    where too much is under way.
    """

    def send(self, record: WireRecord, on_done: Callable[[BaseException | None], None]) -> None:
        """Begin to send one frame.

        `on_done` is called once, on any thread: with None when the frame is stored, with the error when it is lost.
        A frame that fails is never raised.
        """

    def flush(self) -> None:
        """Wait until every frame is stored or lost."""


class _Tally:
    """Counts what became of frames; called from the producer's threads."""

    def __init__(self, stations: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._by_station = dict.fromkeys(stations, 0)
        self._errors: Counter[str] = Counter()
        self._attempted = 0
        self.late = 0

    def attempt(self, station: str) -> Callable[[BaseException | None], None]:
        """One more frame is handed over; the answer takes its fate."""
        with self._lock:
            self._attempted += 1
        return lambda error: self._settle(station, error)

    def _settle(self, station: str, error: BaseException | None) -> None:
        with self._lock:
            if error is None:
                self._by_station[station] += 1
            else:
                self._errors[type(error).__name__] += 1

    def report(self, seconds: float) -> CameraReport:
        """The sum; a frame without a fate counts as lost."""
        with self._lock:
            sent = sum(self._by_station.values())
            errors = dict(self._errors)
            silent = self._attempted - sent - sum(errors.values())
            if silent > 0:
                errors["NotAcknowledged"] = silent
            return CameraReport(sent, self._attempted - sent, self.late, seconds, dict(self._by_station), errors)


def publish(
    streams: Mapping[str, Iterable[Picture]],
    producer: FrameProducer,
    *,
    rate_hz: float,
    count: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
    stop: Callable[[], bool] = lambda: False,
    on_sent: Callable[[SentFrame], None] = lambda _frame: None,
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> CameraReport:
    """Publish every stream at `rate_hz` until all have ended, and wait for the broker's answers.

    The schedule is absolute: frame n of a station is due at start + n / rate, so no delay adds up. A frame whose time
    has passed is sent at once. Stations take turns within a period, for cameras of a line do not fire together.

    Args:
        streams: station -> its pictures.
        producer: where frames go.
        rate_hz: frames a second of each station; 0 does not wait.
        count: most frames of each station.
        clock: monotonic seconds.
        wall_clock: epoch seconds; read when a frame's time has come, which is its capture time.
        sleep: waits for seconds; may return early.
        stop: asked before each frame; True ends the run, after what was handed over is answered.
        on_sent: told of each frame just before it is handed over, so that no verdict can come first.
        new_id: a new frame id.

    Returns:
        The report; also where frames were lost.
    """
    tally = _Tally(streams)
    start_s = clock()
    try:
        for station, picture, late in _paced(streams, rate_hz, count, start_s, clock=clock, sleep=sleep, stop=stop):
            captured_at_s = wall_clock()
            frame_id = new_id()
            tally.late += late
            on_sent(SentFrame(frame_id, station, picture.path, captured_at_s))
            record = frame_record(
                station=station,
                payload=picture.payload,
                frame_id=frame_id,
                captured_at_s=captured_at_s,
                part_id=picture.part_id,
                content_type=picture.content_type,
            )
            producer.send(record, tally.attempt(station))
    finally:
        producer.flush()
    return tally.report(clock() - start_s)


def image_files(source: Path) -> list[Path]:
    """The images of a folder and its subfolders in the order of their names, or the one file that `source` is.

    Raises:
        SettingsError: nothing is there, or no image.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        msg = f"{source} is not there: expected a folder of images or one image"
        raise SettingsError(msg)
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in CONTENT_TYPES and path.is_file())
    if not files:
        msg = f"{source} has no images: expected files that end in {', '.join(sorted(CONTENT_TYPES))}"
        raise SettingsError(msg)
    return files


def folder_pictures(source: Path, *, loop: bool = False, shuffle_seed: int | None = None) -> Iterator[Picture]:
    """Pictures of a folder, read one by one as they are asked for.

    Args:
        source: a folder of images, or one file, whatever its suffix.
        loop: begin again at the end.
        shuffle_seed: as in `CameraSettings`.

    Raises:
        SettingsError: at once, where there is no image.
        WorkError: later, where a file has gone.
    """
    return _read_rounds(image_files(source), loop=loop, shuffle_seed=shuffle_seed)


def expected_frames(settings: CameraSettings) -> int | None:
    """How many frames a run will send if nothing stops it; None where it has no end."""
    if settings.loop and settings.count is None:
        return None
    limit = math.inf if settings.count is None else settings.count
    sizes = [math.inf if settings.loop else len(image_files(source)) for _station, source in settings.streams]
    return int(sum(min(size, limit) for size in sizes))


def run_camera(
    settings: CameraSettings,
    *,
    stop: threading.Event | None = None,
    on_sent: Callable[[SentFrame], None] | None = None,
) -> CameraReport:
    """Publish folders to Kafka as `settings` say. SIGTERM and SIGINT end the run after a flush.

    Args:
        settings: what to publish, and where.
        stop: ends the run when set; signals set it too, where this is the main thread.
        on_sent: told of each frame just before it is handed over.

    Raises:
        SettingsError: a folder without images, a manifest that cannot be written.
        BrokerError: the broker is not there. A frame that is lost is in the report instead.
        TopicError: the topic is not there.
        WorkError: a file has gone since the start.
    """
    stopping = stop or threading.Event()
    streams = {
        station: folder_pictures(source, loop=settings.loop, shuffle_seed=_station_seed(settings.shuffle_seed, index))
        for index, (station, source) in enumerate(settings.streams)
    }
    with ExitStack() as stack:
        signalled = stack.enter_context(_signals())
        write_line = stack.enter_context(_manifest(settings.sent_path))

        def note(frame: SentFrame) -> None:
            write_line(frame)
            if on_sent is not None:
                on_sent(frame)

        producer = stack.enter_context(
            KafkaFrameProducer(
                settings.bootstrap_servers,
                settings.topic,
                client=settings.client,
                connect_timeout_s=settings.connect_timeout_s,
            )
        )
        return publish(
            streams,
            producer,
            rate_hz=settings.rate_hz,
            count=settings.count,
            sleep=lambda seconds: stopping.wait(min(seconds, _LONGEST_SLEEP_S)),
            stop=lambda: bool(signalled) or stopping.is_set(),
            on_sent=note,
        )


def _paced(
    streams: Mapping[str, Iterable[Picture]],
    rate_hz: float,
    count: int | None,
    start_s: float,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    stop: Callable[[], bool],
) -> Iterator[tuple[str, Picture, bool]]:
    """(station, picture, whether it is late), each at its time."""
    period_s = 1.0 / rate_hz if rate_hz > 0 else 0.0
    pictures = {station: iter(stream) for station, stream in streams.items()}
    # (due, number of the frame, number of the station, station, picture): at rate 0 all are due at once and stations
    # alternate. Each picture is in hand before its time, so that reading it delays nothing and an end is known at once.
    due: list[tuple[float, int, int, str, Picture]] = []

    def plan(number: int, index: int, station: str) -> None:
        picture = next(pictures[station], None) if count is None or number < count else None
        if picture is not None:
            first_s = start_s + period_s * index / len(pictures)
            heapq.heappush(due, (first_s + number * period_s, number, index, station, picture))

    for index, station in enumerate(pictures):
        plan(0, index, station)
    while due and not stop():
        due_s, number, index, station, picture = heapq.heappop(due)
        while (wait_s := due_s - clock()) > 0 and not stop():
            sleep(wait_s)
        if stop():
            return
        yield station, picture, period_s > 0 and clock() - due_s > period_s
        plan(number + 1, index, station)


def _read_rounds(files: list[Path], *, loop: bool, shuffle_seed: int | None) -> Iterator[Picture]:
    """Read the files round by round."""
    order = None if shuffle_seed is None else random.Random(shuffle_seed)  # noqa: S311 - an order, not a secret
    while True:
        for path in files if order is None else order.sample(files, len(files)):
            try:
                payload = path.read_bytes()
            except OSError as error:
                msg = f"image {path} cannot be read any more: {error.strerror}; leave the folder alone meanwhile"
                raise WorkError(msg) from error
            yield Picture(payload, CONTENT_TYPES.get(path.suffix.lower(), UNKNOWN_CONTENT_TYPE), path)
        if not loop:
            return


def _station_seed(seed: int | None, index: int) -> int | None:
    """Another order for each station."""
    return None if seed is None else seed * 1_000_003 + index


def _require_station(station: str) -> None:
    """Refuse a name that would not come out of the topic as it went in."""
    try:
        station.encode()
    except UnicodeEncodeError as error:
        msg = f"station {station!r} is not UTF-8: expected a readable name"
        raise SettingsError(msg) from error
    if not station or len(station) > MAX_NAME_CHARS:
        msg = f"station name has {len(station)} characters: expected 1 to {MAX_NAME_CHARS}"
        raise SettingsError(msg)


@contextmanager
def _manifest(path: Path | None) -> Iterator[Callable[[SentFrame], None]]:
    """A function that writes one JSON line for a frame, at once; or does nothing."""
    if path is None:
        yield lambda _frame: None
        return
    try:
        # Line by line: who reads along must find a frame here before its verdict.
        file = path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        msg = f"list of sent frames {path} cannot be written: {error.strerror}; choose another place for --sent"
        raise SettingsError(msg) from error
    with file:

        def write(frame: SentFrame) -> None:
            line = {
                "frame_id": frame.frame_id,
                "station": frame.station,
                "path": None if frame.path is None else str(frame.path),
                "captured_at": rfc3339(frame.captured_at_s),
            }
            file.write(json.dumps(line) + "\n")

        yield write


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGTERM and SIGINT that came meanwhile; only the main thread may ask for that.

    The handler appends to a list and touches no lock: it runs on the thread it interrupts, which may hold the lock of
    the very event that it would set.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {
        number: signal.signal(number, lambda got, _stack: came.append(got))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
