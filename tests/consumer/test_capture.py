"""Real streams and videos through OpenCV: RTSP over TCP with Motion JPEG and H.264, Motion JPEG over HTTP, files."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from consumer import video
from consumer.broker import free_port
from consumer.camera_sources import CameraSource, source_of
from consumer.capture import connecting, video_pictures
from consumer.errors import SettingsError
from consumer.video import CaptureError, NewestPicture
from engine.errors import WorkError
from tests.rtsp_server import HOST, JpegCamera, RtspServer, stamp_of, stamped_picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer.pictures import Picture

WAIT_S = 60.0
PASSWORD = "s3cret"
FRESH_S = 2.0
"""Far above the few milliseconds that it takes, for machines that do much else; a backlog grows beyond any bound."""

pytestmark = pytest.mark.slow


def watch(url: str, *, start_timeout_s: float = 60.0) -> NewestPicture:
    source = source_of(url, watch=False)
    return NewestPicture(source.name, connecting(source, jpeg_quality=95), start_timeout_s=start_timeout_s)


def taken(source: NewestPicture) -> Picture:
    end_s = time.monotonic() + WAIT_S
    while (picture := source.take()) is None:
        assert time.monotonic() < end_s
        time.sleep(0.005)
    return picture


def age_s(picture: Picture) -> float:
    """From when the picture was made until it was in hand, read out of the picture."""
    assert picture.captured_at_s is not None
    return picture.captured_at_s - stamp_of(picture.payload)


def test_rtsp_with_a_password_gives_pictures_of_now_also_after_the_server_was_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(video, "LONGEST_WAIT_S", 1.0)
    server = RtspServer(free_port(), user="line", password=PASSWORD)
    url = server.url.replace("rtsp://", "rtsp://line:s3cret@")
    with JpegCamera(server), watch(url) as source:
        with server:
            first, second = taken(source), taken(source)
            assert 0 <= age_s(first) < FRESH_S
            assert stamp_of(second.payload) > stamp_of(first.payload)
            time.sleep(1.0)  # nobody asks: what comes meanwhile must not be waiting
            assert 0 <= age_s(taken(source)) < FRESH_S
        with server:
            back = taken(source)
            while stamp_of(back.payload) < stamp_of(second.payload) + 1.0:
                back = taken(source)
            assert 0 <= age_s(back) < FRESH_S
    assert server.played == 2
    assert server.udp_refused == 0, "TCP was asked for first"
    assert "s3cret" not in caplog.text
    assert "gives pictures" in caplog.text


def test_a_wrong_password_is_said_after_a_while() -> None:
    server = RtspServer(free_port(), user="line", password=PASSWORD)
    with server, watch(server.url.replace("rtsp://", "rtsp://line:wr0ng@"), start_timeout_s=0.5) as source:
        words = r"gave no picture within 0.5 s: .*see its address, user and password"
        with pytest.raises(WorkError, match=words) as said:
            taken(source)
    assert "wr0ng" not in str(said.value)


@contextlib.contextmanager
def h264(folder: Path) -> Iterator[RtspServer]:
    """A server that gives what an ffmpeg sends it: H.264 as cameras have it, of a moving test picture."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("H.264 is made by the program ffmpeg: none on the PATH")
    described = folder / "sdp"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        packets.bind((HOST, 0))
        packets.settimeout(0.2)
        port = packets.getsockname()[1]
        made = ["-re", "-f", "lavfi", "-i", "testsrc=size=640x480:rate=20", "-c:v", "libx264", "-g", "20"]
        fast = ["-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p"]
        sent = ["-f", "rtp", "-sdp_file", str(described), f"rtp://{HOST}:{port}?pkt_size=1400"]
        process = subprocess.Popen(
            ["nice", "-n", "19", ffmpeg, "-loglevel", "error", *made, *fast, *sent], stdin=subprocess.DEVNULL
        )
        over = threading.Event()
        server = RtspServer(free_port())

        def relay() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    server.send(packets.recv(65_536))

        thread = threading.Thread(target=relay)
        try:
            end_s = time.monotonic() + WAIT_S
            while not described.exists() or "a=fmtp" not in described.read_text():
                assert process.poll() is None
                assert time.monotonic() < end_s
                time.sleep(0.05)
            lines = [line for line in described.read_text().splitlines() if not line.startswith(("SDP:", "c="))]
            media = next(number for number, line in enumerate(lines) if line.startswith("m=video"))
            lines[media] = "m=video 0 RTP/AVP 96"
            server.sdp = "\r\n".join([*lines, "a=control:track0", ""])
            thread.start()
            with server:
                yield server
        finally:
            over.set()
            if thread.is_alive():
                thread.join()
            process.terminate()
            process.wait(20)


def test_rtsp_with_h264(tmp_path: Path) -> None:
    with h264(tmp_path) as server, watch(server.url) as source:
        first, second = taken(source), taken(source)
    pictures = [cv2.imdecode(np.frombuffer(one.payload, np.uint8), cv2.IMREAD_COLOR) for one in (first, second)]
    assert [picture.shape for picture in pictures if picture is not None] == [(480, 640, 3)] * 2
    assert first.payload != second.payload


class _Mjpeg(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                data = cv2.imencode(".jpg", stamped_picture(time.time()))[1].tobytes()
                head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mjpeg() -> Iterator[str]:
    with ThreadingHTTPServer((HOST, 0), _Mjpeg) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield f"http://{HOST}:{server.server_port}/mjpeg"
        server.shutdown()


def test_motion_jpeg_over_http(mjpeg: str) -> None:
    with watch(mjpeg) as source:
        assert 0 <= age_s(taken(source)) < FRESH_S
        time.sleep(0.5)
        assert 0 <= age_s(taken(source)) < FRESH_S


def test_a_video_gives_its_pictures_in_order_and_again(tmp_path: Path) -> None:
    path = tmp_path / "line.avi"
    write_video(path, [10.0, 20.0, 30.0])
    (once,) = [list(video_pictures(path, jpeg_quality=95))]
    assert [stamp_of(picture.payload) for picture in once] == [10.0, 20.0, 30.0]
    assert {(picture.path, picture.content_type) for picture in once} == {(path, "image/jpeg")}
    endless = video_pictures(path, jpeg_quality=95, loop=True)
    assert [stamp_of(next(endless).payload) for _ in range(5)] == [10.0, 20.0, 30.0, 10.0, 20.0]


def write_video(path: Path, stamps: list[float]) -> None:
    picture = stamped_picture(0.0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, picture.shape[1::-1])
    assert writer.isOpened()
    for stamp in stamps:
        writer.write(stamped_picture(stamp))
    writer.release()


def test_quality_is_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "line.avi"
    write_video(path, [12_345.678])
    small, large = (len(next(video_pictures(path, jpeg_quality=quality)).payload) for quality in (10, 95))
    assert small < large


@pytest.mark.parametrize(
    ("content", "words"), [(None, "is not there"), (b"no video", "no picture that can be decoded")]
)
def test_a_video_that_is_none_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "line.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        video_pictures(path, jpeg_quality=95)


def test_a_device_is_asked_for_by_its_name() -> None:
    connect = connecting(CameraSource("device", "/dev/video4242"), jpeg_quality=95, size_px=(640, 480))
    with pytest.raises(CaptureError, match="cannot be opened"):
        connect()


def test_a_pipeline_without_gstreamer_is_refused_with_the_way_out() -> None:
    if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(SettingsError, match=r"built without GSTREAMER.*a folder and give that with --watch"):
        connecting(CameraSource("pipeline", "videotestsrc ! appsink"), jpeg_quality=95)
