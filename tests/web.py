"""A web server on loopback with one file, for tests; what it says of it, and whether it does, can be changed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Web:
    """A context manager.

    Attributes:
        content: what lies at every path; None: nothing does.
        etag: whether it gives one.
        status: what it answers everything with, if not 200.
        no_head: it refuses HEAD, as a signed URL does.
        cut: it breaks off in the middle.
        cuts: it breaks off at these bytes of the file, each once.
        ranges: it can begin in the middle.
        hiccups: how often it answers 503 to GET before it answers.
        sent_bytes: of the file.
        asked: the requests it has had.
    """

    content: bytes | None = None
    etag: str | None = "one"
    status: int = 200
    no_head: bool = False
    cut: bool = False
    cuts: list[int] = field(default_factory=list)
    ranges: bool = False
    hiccups: int = 0
    sent_bytes: int = 0
    port: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/parts.zip"

    def put(self, content: bytes, etag: str | None) -> None:
        self.content, self.etag = content, etag

    def __enter__(self) -> Self:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                web._answer(self, "HEAD")

            def do_GET(self) -> None:
                web._answer(self, "GET")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, method: str) -> None:
        self.asked.append(method)
        content = self.content
        status = 403 if method == "HEAD" and self.no_head else self.status
        if method == "GET" and self.hiccups:
            self.hiccups -= 1
            status = 503
        if content is None or status != 200:
            request.send_response(404 if content is None else status)
            request.end_headers()
            return
        start = self._start(request)
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        if self.etag is not None:
            request.send_header("ETag", f'"{self.etag}"')
        request.end_headers()
        if method == "GET":
            end = len(content) // 2 if self.cut else self.cuts.pop(0) if self.cuts else len(content)
            request.wfile.write(content[start:end])
            self.sent_bytes += end - start

    def _start(self, request: BaseHTTPRequestHandler) -> int:
        """Where an answer begins."""
        asked = request.headers.get("Range")
        is_same = request.headers.get("If-Range") == f'"{self.etag}"'
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked and is_same and self.ranges else 0
