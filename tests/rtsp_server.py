"""An RTSP camera for tests: a server on loopback that gives Motion JPEG (RFC 2435), or the RTP packets of an ffmpeg.

Over TCP, interleaved (RFC 2326, 10.12), as `framegate camera` asks for. The client is FFmpeg's own, inside OpenCV. Each
picture of the JPEG camera carries the time at which it was made, so that its age can be read from it.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
SIDE_PX = 8 * 8 * 4
"""Of the square picture: 8 x 8 cells of one bit, each as large as two macroblocks of the JPEG."""

_CELL_PX = SIDE_PX // 8
_RTP_CLOCK_HZ = 90_000
_MOST_PAYLOAD_BYTES = 1_400
JPEG_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track0\r\n"


def stamped_picture(at_s: float) -> np.ndarray[Any, Any]:
    """(256, 256, 3) uint8: 64 black or white cells, the microseconds of a time in epoch seconds."""
    bits = np.array([(round(at_s * 1e6) >> bit) & 1 for bit in range(64)], np.uint8).reshape(8, 8)
    grey = np.kron(bits * 255, np.ones((_CELL_PX, _CELL_PX), np.uint8))
    return np.repeat(grey[:, :, None], 3, axis=2)


def stamp_of(payload: bytes) -> float:
    """The time in a picture, epoch seconds."""
    grey = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    middle = grey[_CELL_PX // 2 :: _CELL_PX, _CELL_PX // 2 :: _CELL_PX].ravel() > 127
    return sum(1 << bit for bit, white in enumerate(middle) if white) / 1e6


class RtspServer:
    """Hands RTP packets to whoever plays. A context manager; it may be left and entered again, on the same port."""

    def __init__(self, port: int, *, sdp: str = JPEG_SDP, user: str = "", password: str = "") -> None:
        self.url = f"rtsp://{HOST}:{port}/stream"
        self.sdp = sdp
        self._port = port
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.authorization = f"Basic {token}" if user else ""
        self._lock = threading.Lock()
        self._players: set[socket.socket] = set()
        self._connections: set[socket.socket] = set()
        self.played = 0
        self.udp_refused = 0

    def __enter__(self) -> Self:
        self._server = _Server((HOST, self._port), _Session)
        self._server.rtsp = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def connected(self, connection: socket.socket, *, here: bool) -> None:
        with self._lock:
            (self._connections.add if here else self._connections.discard)(connection)
            if not here:
                self._players.discard(connection)

    def play(self, connection: socket.socket) -> None:
        with self._lock:
            self._players.add(connection)
            self.played += 1

    def send(self, packet: bytes) -> None:
        """One RTP packet to every player."""
        framed = b"$\x00" + struct.pack("!H", len(packet)) + packet
        with self._lock:
            for connection in list(self._players):
                try:
                    connection.sendall(framed)
                except OSError:
                    self._players.discard(connection)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False
    rtsp: RtspServer


class _Session(socketserver.StreamRequestHandler):
    """One connection: requests, and between them what the player says of its reception."""

    server: _Server

    def handle(self) -> None:
        self.server.rtsp.connected(self.connection, here=True)
        with contextlib.suppress(OSError):
            while first := self.rfile.read(1):
                if first == b"$":
                    self.rfile.read(struct.unpack("!xH", self.rfile.read(3))[0])
                else:
                    self._answer(first + self.rfile.readline())
        self.server.rtsp.connected(self.connection, here=False)

    def _answer(self, line: bytes) -> None:
        method, url, _ = line.decode().split()
        headers = {}
        while text := self.rfile.readline().decode().strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        number = headers["cseq"]
        rtsp = self.server.rtsp
        if rtsp.authorization and headers.get("authorization") != rtsp.authorization:
            self._reply(number, "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n')
        elif method == "OPTIONS":
            self._reply(number, "200 OK", "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n")
        elif method == "DESCRIBE":
            body = f"Content-Base: {url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(rtsp.sdp)}\r\n"
            self._reply(number, "200 OK", body, rtsp.sdp)
        elif method == "SETUP" and "interleaved" in headers["transport"]:
            self._reply(number, "200 OK", "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n")
        elif method == "SETUP":
            rtsp.udp_refused += 1
            self._reply(number, "461 Unsupported Transport", "")
        elif method == "PLAY":
            self._reply(number, "200 OK", "Session: 1\r\n")
            rtsp.play(self.connection)
        else:
            self._reply(number, "200 OK", "Session: 1\r\n")

    def _reply(self, number: str, status: str, headers: str, body: str = "") -> None:
        self.wfile.write(f"RTSP/1.0 {status}\r\nCSeq: {number}\r\n{headers}\r\n{body}".encode())


class JpegCamera:
    """Makes stamped pictures at a rate and gives them to a server. A context manager: its thread ends with it."""

    def __init__(self, server: RtspServer, *, rate_hz: float = 20.0) -> None:
        self._server = server
        self._period_s = 1.0 / rate_hz
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        began_s = time.monotonic()
        sequence = 0
        while not self._over.wait(self._period_s):
            done, data = cv2.imencode(".jpg", stamped_picture(time.time()), [cv2.IMWRITE_JPEG_QUALITY, 80])
            assert done
            ticks = round((time.monotonic() - began_s) * _RTP_CLOCK_HZ) & 0xFFFFFFFF
            for payload, last in _jpeg_payloads(data.tobytes()):
                self._server.send(struct.pack("!BBHII", 0x80, 26 | (last << 7), sequence & 0xFFFF, ticks, 1) + payload)
                sequence += 1


def _jpeg_payloads(jpeg: bytes) -> Iterator[tuple[bytes, bool]]:
    """(RFC 2435 payload, whether it is the picture's last)."""
    tables, at = b"", 2
    while jpeg[at + 1] != 0xDA:  # start of scan
        marker, size = jpeg[at + 1], struct.unpack_from("!H", jpeg, at + 2)[0]
        if marker == 0xDB:  # one or two tables of 64 coefficients, each behind its number
            segment = jpeg[at + 4 : at + 2 + size]
            tables += b"".join(segment[start + 1 : start + 65] for start in range(0, len(segment), 65))
        at += 2 + size
    scan = jpeg[at + 2 + struct.unpack_from("!H", jpeg, at + 2)[0] : -2]
    for offset in range(0, len(scan), _MOST_PAYLOAD_BYTES):
        # Type 1 is 4:2:0; Q 255 says that the quantization tables come along.
        header = struct.pack("!II", offset, 0x01_FF_00_00 | (SIDE_PX // 8) << 8 | SIDE_PX // 8)
        if offset == 0:
            header += struct.pack("!BBH", 0, 0, len(tables)) + tables
        yield header + scan[offset : offset + _MOST_PAYLOAD_BYTES], offset + _MOST_PAYLOAD_BYTES >= len(scan)
