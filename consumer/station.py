"""A camera: publishes a folder, a video or what live cameras give, as one or several stations, at a rate.

Recorded pictures come from any iterable of `Picture` and are paced here; live ones come when they come, see
`consumer.live`. Identity and the report are the same for all. Times are arguments: `publish` sleeps and reads clocks
only through what it is given.
"""

from __future__ import annotations

import heapq
import json
import math
import signal
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from consumer.camera_report import CameraReport, FrameProducer, SentFrame, Tally
from consumer.drop_folder import DropFolder
from consumer.errors import SettingsError
from consumer.frame_producer import KafkaFrameProducer
from consumer.live import publish_live
from consumer.pictures import Picture, folder_pictures, image_files, record_of
from consumer.video import NewestPicture
from consumer.wire import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from consumer.camera_settings import CameraSettings
    from consumer.camera_sources import CameraSource
    from consumer.live import LiveSource

_LONGEST_SLEEP_S = 0.1
"""How late a signal may be noticed."""


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
    tally = Tally(streams)
    start_s = clock()
    try:
        for station, picture, late in _paced(streams, rate_hz, count, start_s, clock=clock, sleep=sleep, stop=stop):
            captured_at_s = wall_clock()
            frame = SentFrame(new_id(), station, picture.path, captured_at_s)
            tally.late += late
            on_sent(frame)
            producer.send(record_of(frame, picture), tally.attempt(station))
    finally:
        producer.flush()
    return tally.report(clock() - start_s)


def expected_frames(settings: CameraSettings) -> int | None:
    """How many frames a run will send if nothing stops it; None where it has no end, or none that is known."""
    sources = settings.sources.values()
    if settings.count is None and (settings.loop or any(source.kind != "files" for source in sources)):
        return None
    limit = math.inf if settings.count is None else settings.count
    endless = settings.loop or settings.live
    sizes = [math.inf if endless or source.kind == "video" else len(image_files(source.path)) for source in sources]
    return int(sum(min(size, limit) for size in sizes))


def run_camera(
    settings: CameraSettings,
    *,
    stop: threading.Event | None = None,
    on_sent: Callable[[SentFrame], None] | None = None,
) -> CameraReport:
    """Publish to Kafka as `settings` say. SIGTERM and SIGINT end the run after a flush.

    Args:
        settings: what to publish, and where.
        stop: ends the run when set; signals set it too, where this is the main thread.
        on_sent: told of each frame just before it is handed over.

    Raises:
        SettingsError: a folder without images, a source that cannot be read here, a manifest that cannot be written.
        BrokerError: the broker is not there, or takes nothing any more. A frame that is lost is in the report instead.
        TopicError: the topic is not there.
        WorkError: a file has gone since the start, or a live camera never gave a picture.
    """
    stopping = stop or threading.Event()
    with ExitStack() as stack:
        signalled = stack.enter_context(_signals())
        run: Callable[..., CameraReport]
        if settings.live:
            run = partial(publish_live, _live_sources(settings, stack))
        else:
            run = partial(publish, _recorded(settings))
        write_line = stack.enter_context(_manifest(settings.sent_path, goes_on=settings.watch))

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
        return run(
            producer,
            rate_hz=settings.paced_hz,
            count=settings.count,
            sleep=lambda seconds: stopping.wait(min(seconds, _LONGEST_SLEEP_S)),
            stop=lambda: bool(signalled) or stopping.is_set(),
            on_sent=note,
        )


def _recorded(settings: CameraSettings) -> dict[str, Iterator[Picture]]:
    """The pictures of every station, from files."""
    return {
        station: _recorded_pictures(source, settings, _station_seed(settings.shuffle_seed, index))
        for index, (station, source) in enumerate(settings.sources.items())
    }


def _recorded_pictures(source: CameraSource, settings: CameraSettings, seed: int | None) -> Iterator[Picture]:
    """The pictures of one station, from files."""
    if source.kind == "files":
        return folder_pictures(source.path, loop=settings.loop, shuffle_seed=seed, part_pattern=settings.part_pattern)
    from consumer.capture import video_pictures  # noqa: PLC0415 - images need no OpenCV, and it loads slowly

    return video_pictures(source.path, jpeg_quality=settings.jpeg_quality, loop=settings.loop)


def _live_sources(settings: CameraSettings, stack: ExitStack) -> dict[str, LiveSource]:
    """What every station is asked for pictures; threads that read end with the stack."""
    return {station: _live_source(source, settings, stack) for station, source in settings.sources.items()}


def _live_source(source: CameraSource, settings: CameraSettings, stack: ExitStack) -> LiveSource:
    """What one station is asked for pictures."""
    if source.kind == "drop":
        return DropFolder(
            source.path,
            done=settings.done_path,
            delete=settings.delete,
            settle_s=settings.settle_s,
            part_pattern=settings.part_pattern,
        )
    from consumer.capture import connecting  # noqa: PLC0415 - a folder needs no OpenCV, and it loads slowly

    connect = connecting(source, jpeg_quality=settings.jpeg_quality, size_px=settings.size_px)
    return stack.enter_context(NewestPicture(source.name, connect, start_timeout_s=settings.start_timeout_s))


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


def _station_seed(seed: int | None, index: int) -> int | None:
    """Another order for each station."""
    return None if seed is None else seed * 1_000_003 + index


@contextmanager
def _manifest(path: Path | None, *, goes_on: bool) -> Iterator[Callable[[SentFrame], None]]:
    """A function that writes one JSON line for a frame, at once, behind those of before or anew; or does nothing."""
    if path is None:
        yield lambda _frame: None
        return
    try:
        # Line by line: who reads along must find a frame here before its verdict.
        file = path.open("a" if goes_on else "w", encoding="utf-8", buffering=1)
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
