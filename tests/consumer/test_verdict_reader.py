"""Reading verdicts where no broker answers; the rest is tested with what reads them, the demo and the integration."""

from __future__ import annotations

import socket

import pytest

from consumer import verdict_reader
from consumer.errors import BrokerError
from consumer.verdict_reader import VerdictReader


def test_a_broker_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict_reader, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(BrokerError, match=rf"verdicts cannot be read from 127\.0\.0\.1:{port}: .*see that the broker"):
        VerdictReader(f"127.0.0.1:{port}")
