"""The page on cameras: its commands as they stand there, against the embedded broker, and kills in between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consumer.broker import free_port
from consumer.topics import ensure_topics
from tests.consumer.test_capture import mjpeg, write_video
from tests.frames_topic import read_frames
from tests.pages import block, commands
from tests.rtsp_server import HOST, JpegCamera, RtspServer, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer.events import Frame
    from tests.kafka_cluster import RunningBroker

PAGE = "cameras.md"
PASSWORD = "s3cret"
WAIT_S = 60.0

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
__all__ = ["mjpeg"]


class Page:
    """A folder in which a page's commands run, with a topic of its own."""

    def __init__(self, folder: Path, bootstrap_servers: str, topic: str) -> None:
        self.folder = folder
        self.topic = topic
        self._servers = bootstrap_servers
        self.environment = {
            **commands(folder / "bin"),
            "FRAMEGATE_BOOTSTRAP_SERVERS": bootstrap_servers,
            "FRAMEGATE_FRAMES_TOPIC": topic,
        }

    def start(self, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-ec", script],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def running(self, script: str) -> Iterator[subprocess.Popen[str]]:
        """Run it meanwhile; what is left of it is killed."""
        process = self.start(script)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()

    def run(self, script: str) -> str:
        process = self.start(script)
        output, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, output
        return output

    def end(self, process: subprocess.Popen[str]) -> str:
        """Ctrl-C; what it said."""
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=WAIT_S)
        return output

    def frames(self, station: str, expected: int) -> list[Frame]:
        return read_frames(self._servers, {station}, expected, topic=self.topic, partitions=1)


@pytest.fixture
def page(tmp_path: Path, embedded_broker: RunningBroker, unique: str) -> Page:
    topics = {name: f"{name}-{unique}" for name in ("frames", "verdicts", "dead")}
    ensure_topics(embedded_broker.bootstrap_servers, partitions=1, replication=1, **topics)  # type: ignore[arg-type]
    return Page(tmp_path, embedded_broker.bootstrap_servers, topics["frames"])


def until(condition: object, process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + WAIT_S
    assert callable(condition)
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_replay(page: Page) -> None:
    (page.folder / "images").mkdir()
    for number in range(3):
        (page.folder / "images" / f"{number}.jpg").write_bytes(bytes([number]))
    assert "3 frames sent" in page.run(block(PAGE, "replay"))
    assert [frame.payload for frame in page.frames("press-1", 3)] == [b"\x00", b"\x01", b"\x02"]


def test_watch(page: Page) -> None:
    drop, done = page.folder / "drop", page.folder / "drop" / "done"
    with page.running(block(PAGE, "watch")) as process:
        until(done.is_dir, process)
        for number in range(3):
            (drop / f"A-{number}_left.jpg").write_bytes(b"%d" % number)
        until(lambda: len(list(done.iterdir())) == 3, process)
        assert "3 frames sent" in page.end(process)
    frames = page.frames("press-1", 3)
    assert [(frame.payload, frame.part_id) for frame in frames] == [(b"%d" % n, f"A-{n}") for n in range(3)]
    lines = [json.loads(line) for line in (page.folder / "sent.jsonl").read_text().splitlines()]
    assert [line["frame_id"] for line in lines] == [frame.frame_id for frame in frames]
    assert not any(frame.skewed for frame in frames)


def test_a_watch_that_is_killed_loses_nothing_and_doubles_only_what_was_under_way(page: Page) -> None:
    drop, done = page.folder / "drop", page.folder / "drop" / "done"
    script = block(PAGE, "watch") + " --settle-s 0"
    script = script.replace("\n --settle-s", " --settle-s")
    names = [f"A-{number}_x.jpg" for number in range(60)]
    written = iter(names)

    def write(count: int) -> None:
        for _ in range(count):
            name = next(written)
            (drop / f".{name}").write_bytes(name.encode())
            (drop / f".{name}").rename(drop / name)

    for kill in range(3):
        with page.running(script) as process:
            until(done.is_dir, process)
            before = len(list(done.iterdir()))
            write(15)
            until(lambda start=before: len(list(done.iterdir())) > start + kill, process)  # noqa: B023 - called at once
    with page.running(script) as process:
        write(15)
        until(lambda: len(list(done.iterdir())) == len(names), process)
        page.end(process)
    frames = page.frames("press-1", len(names))
    ids = {frame.frame_id: frame.payload for frame in frames}
    assert sorted(ids.values()) == sorted(name.encode() for name in names), "each image, one id for each"
    first_come = list(dict.fromkeys(frame.payload for frame in frames))
    assert first_come == [name.encode() for name in names], "in the order of arrival"


def test_rtsp(page: Page) -> None:
    (page.folder / "camera-password").write_text(f"{PASSWORD}\n")
    server = RtspServer(free_port(), user="line", password=PASSWORD)
    script = block(PAGE, "rtsp", {"10.0.0.21:554/stream": server.url.removeprefix("rtsp://")})
    with server, JpegCamera(server):
        output = page.run(script.rstrip() + " --count 4")
    frames = page.frames("press-1", 4)
    stamps = [stamp_of(frame.payload) for frame in frames]
    assert stamps == sorted(set(stamps))
    assert "4 frames sent" in output
    assert PASSWORD not in output


def test_http(page: Page, mjpeg: str) -> None:
    script = block(PAGE, "http", {"http://10.0.0.22/mjpeg": mjpeg})
    page.run(script.rstrip() + " --count 2")
    assert all(stamp_of(frame.payload) > 0 for frame in page.frames("press-2", 2))


def test_video(page: Page) -> None:
    write_video(page.folder / "shift.avi", [1.0, 2.0, 3.0])
    assert "3 frames sent" in page.run(block(PAGE, "video"))
    assert [stamp_of(frame.payload) for frame in page.frames("press-1", 3)] == [1.0, 2.0, 3.0]


def test_gstreamer(page: Page) -> None:
    page.environment["PATH"] = f"{Path(os.sys.executable).parent}:{page.environment['PATH']}"  # type: ignore[attr-defined]
    assert page.run(block(PAGE, "gstreamer")) == "GStreamer: False\n"
    process = page.start("framegate camera 'aravissrc ! appsink' --station press-1")
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert len(output.splitlines()) == 1


def test_ffmpeg(page: Page) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("the block needs the program ffmpeg: none on the PATH")
    (page.folder / "drop").mkdir()
    server = RtspServer(free_port())
    script = block(PAGE, "ffmpeg", {"rtsp://10.0.0.21:554/stream": server.url})
    with server, JpegCamera(server), page.running(script) as process:
        until(lambda: len(list((page.folder / "drop" / "done").glob("*.jpg"))) >= 3, process)
        page.end(process)
    stamps = [stamp_of(frame.payload) for frame in page.frames("press-1", 3)]
    assert stamps == sorted(set(stamps))
    assert HOST in server.url


def test_one_clear_line_for_what_cannot_be_watched(page: Page) -> None:
    for arguments, status in ((["no-such-folder", "--watch"], 2), (["rtsp://127.0.0.1:1/x", "--watch"], 2)):
        process = page.start(f"framegate camera {' '.join(arguments)} --station a")
        output, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == status
        assert len(output.splitlines()) == 1, output
        assert output.startswith("framegate: error: ")
