"""Live and ready, and the small HTTP server that says so and shows the metrics."""

from __future__ import annotations

import json
import logging
import socketserver
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Self

from prometheus_client.exposition import choose_encoder

from consumer.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

STALE_AFTER_S = 60.0
"""A loop that has not come round for this long is stuck: far above the slowest batch and a broker's timeouts."""

SLOWEST_CLIENT_S = 10.0
"""A client that has not sent its request by then is dropped, so that none holds a thread for ever."""

_POLL_S = 0.1
"""How often the server looks whether it is to end."""


class Health:
    """Whether the process lives and whether it is ready. State only: times are arguments, in monotonic seconds.

    Live means that the loop comes round: a process that does not should be restarted. Ready means that frames are
    answered: a broker that is gone makes it not ready, but a restart would not help.
    """

    def __init__(self, stale_after_s: float = STALE_AFTER_S) -> None:
        """Begin live and not ready."""
        self._stale_after_s = stale_after_s
        self._beat_s: float | None = None
        self._ready: tuple[bool, str] = (False, "starting")
        self._lock = Lock()

    def beat(self, now_s: float) -> None:
        """Say that the loop came round."""
        with self._lock:
            self._beat_s = now_s

    def set_ready(self, ready: bool, reason: str = "") -> None:
        """Say whether frames are answered, and if not, why not."""
        with self._lock:
            self._ready = (ready, reason)

    def live(self, now_s: float) -> tuple[bool, str]:
        """(is it live, why): false when no beat came for longer than the limit.

        Before the first beat the time counts from the first question: a start that hangs is found as well.
        """
        with self._lock:
            if self._beat_s is None:
                self._beat_s = now_s
            silent_s = now_s - self._beat_s
        if silent_s > self._stale_after_s:
            limit_s = self._stale_after_s
            return False, f"the loop has not come round for {silent_s:.0f} s: expected at least every {limit_s:g} s"
        return True, ""

    def ready(self) -> tuple[bool, str]:
        """(is it ready, why not)."""
        with self._lock:
            return self._ready


class HttpServer:
    """`/metrics`, `/live` and `/ready` over HTTP: 200, or 503 with the reason as JSON. A context manager.

    Loopback unless told otherwise: it has no authentication. Requests run on daemon threads and never touch the loop.

    Attributes:
        host, port: where it listens once entered; port 0 asks for a free one.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        registry: CollectorRegistry,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the parts; nothing listens before the context is entered.

        Args:
            host: address to listen on; with a colon in it, IPv6.
            port: 0 for a free one.
            registry: what `/metrics` shows.
            health: what `/live` and `/ready` ask.
            clock: monotonic seconds, the clock that `health.beat` gets its times from.
        """
        self.host = host
        self.port = port
        self._routes = _Routes(registry, health, clock)
        self._server: _Server | None = None
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens, for example `http://127.0.0.1:9108`."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        """Listen. Raises SettingsError where the address is taken or not ours."""
        try:
            server = _Server((self.host, self.port), self._routes)
        except (OSError, OverflowError) as error:
            msg = (
                f"metrics address {self.host}:{self.port} cannot be used ({error}): expected a free port of this "
                "machine; choose another, or 0 for any"
            )
            raise SettingsError(msg) from error
        self.port = int(server.server_address[1])
        self._server = server
        self._thread = Thread(target=server.serve_forever, args=(_POLL_S,), name="framegate-http", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; requests under way end with their threads."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None


class _Routes:
    """Path -> (status, content type, body)."""

    def __init__(self, registry: CollectorRegistry, health: Health, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._health = health
        self._clock = clock

    def answer(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """Answer one GET."""
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return HTTPStatus.OK, content_type, encode(self._registry)
        if path == "/live":
            return _judged("live", *self._health.live(self._clock()))
        if path == "/ready":
            return _judged("ready", *self._health.ready())
        return _json(HTTPStatus.NOT_FOUND, {"error": "expected /metrics, /live or /ready"})


def _judged(name: str, good: bool, reason: str) -> tuple[HTTPStatus, str, bytes]:
    """200 or 503, with the reason."""
    return _json(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, {name: good, "reason": reason})


def _json(status: HTTPStatus, value: dict[str, Any]) -> tuple[HTTPStatus, str, bytes]:
    """One JSON document and its status."""
    return status, "application/json", json.dumps(value).encode() + b"\n"


class _Server(ThreadingHTTPServer):
    """The standard library's threaded server, without a name look-up and without noise."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], routes: _Routes) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self.routes = routes
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind only: the inherited form asks a name server for our own name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the standard library's signature
        """A client that went away is nobody's error."""
        log.debug("request from %s failed: %s", client_address, sys.exception())


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    timeout = SLOWEST_CLIENT_S
    server_version = "framegate"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with a body."""
        self._reply(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without one."""
        self._reply(with_body=False)

    def _reply(self, *, with_body: bool) -> None:
        """Ask the routes and send what they say."""
        path = self.path.partition("?")[0]
        status, content_type, body = self.server.routes.answer(path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """A probe every second is no news."""
        log.debug(format, *args)
