"""Live and ready, and what a probe gets over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from consumer.errors import SettingsError
from consumer.health import Health, HttpServer
from consumer.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator


class Hands:
    """A clock that is set by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def health() -> Health:
    return Health(stale_after_s=30.0)


@pytest.fixture
def server(clock: Hands, health: Health) -> Iterator[HttpServer]:
    registry = CollectorRegistry()
    Metrics(registry).count_commit()
    with HttpServer(registry=registry, health=health, clock=clock) as running:
        yield running


def ask(server: HttpServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    """(status, content type, body)."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


def test_live_while_the_loop_comes_round(health: Health) -> None:
    health.beat(10.0)
    assert health.live(40.0) == (True, "")
    live, reason = health.live(40.1)
    assert not live
    assert "30 s" in reason
    health.beat(41.0)
    assert health.live(42.0)[0]


def test_a_start_that_hangs_is_found(health: Health) -> None:
    assert health.live(10.0)[0]
    assert not health.live(41.0)[0]


def test_ready_is_said_not_guessed(health: Health) -> None:
    assert health.ready() == (False, "starting")
    health.set_ready(ready=True)
    assert health.ready() == (True, "")
    health.set_ready(ready=False, reason="no broker")
    assert health.ready() == (False, "no broker")


def test_the_probes_follow_the_state(server: HttpServer, health: Health, clock: Hands) -> None:
    status, content_type, body = ask(server, "/ready")
    assert (status, content_type, json.loads(body)) == (503, "application/json", {"ready": False, "reason": "starting"})
    health.set_ready(ready=True)
    health.beat(clock.now_s)
    assert ask(server, "/ready")[0] == 200
    assert ask(server, "/live?verbose=1")[0] == 200
    clock.now_s += 31
    status, _, body = ask(server, "/live")
    assert status == 503
    assert "has not come round for 31 s" in json.loads(body)["reason"]


def test_metrics_in_the_form_that_is_asked_for(server: HttpServer) -> None:
    status, content_type, body = ask(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["framegate_commits"].samples[0].value == 1
    status, content_type, body = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert "framegate_commits" in names


def test_head_has_no_body_and_other_paths_are_not_there(server: HttpServer) -> None:
    # By hand: an HTTP client throws the body of a HEAD away.
    with socket.create_connection((server.host, server.port), timeout=5) as client:
        client.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 200")
    assert b"Content-Length: " in answer
    assert answer.endswith(b"\r\n\r\n")
    assert ask(server, "/")[0] == 404
    assert ask(server, "/metrics/../ready")[0] == 404
    assert ask(server, "/metrics", method="POST")[0] == 501


def test_a_client_that_says_nothing_does_not_hold_the_others_up(server: HttpServer) -> None:
    with socket.create_connection((server.host, server.port), timeout=5):
        assert ask(server, "/metrics")[0] == 200


def test_a_client_that_goes_away_makes_no_noise(server: HttpServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection((server.host, server.port), timeout=5) as client:
        client.sendall(b"\x16\x03\x01\x00garbage\r\n\r\n")
    with socket.create_connection((server.host, server.port), timeout=5) as client:
        client.sendall(b"GET /metr")
    assert ask(server, "/metrics")[0] == 200
    assert capsys.readouterr() == ("", "")


def test_it_listens_on_loopback_only_and_lets_go(server: HttpServer) -> None:
    assert server.host == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert server.port > 0


def test_a_port_is_free_again_after_the_end(health: Health) -> None:
    with HttpServer(registry=CollectorRegistry(), health=health) as first:
        port = first.port
    with HttpServer(port=port, registry=CollectorRegistry(), health=health) as second:
        assert ask(second, "/live")[0] == 200


def test_a_port_that_is_taken_says_so(server: HttpServer, health: Health) -> None:
    with (
        pytest.raises(SettingsError, match=f"{server.port} cannot be used"),
        HttpServer(port=server.port, registry=CollectorRegistry(), health=health),
    ):
        pass
    with (
        pytest.raises(SettingsError, match="99999 cannot be used"),
        HttpServer(port=99999, registry=CollectorRegistry(), health=health),
    ):
        pass
