"""What the Kafka client only logs of its connections, and when it is no use to go on."""

from __future__ import annotations

import logging
import ssl
import threading

import pytest
from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError

from consumer.overheard import CONNECTIONS, overhear

log = logging.getLogger(CONNECTIONS)


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (SaslAuthenticationFailedError("invalid credentials"), True),
        (KafkaConnectionError("Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), True),
        (ssl.SSLError(1, "[SSL] PEM lib"), True),
        (KafkaConnectionError("Handshake failed: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred"), False),
        (KafkaConnectionError("socket disconnected"), False),
    ],
)
def test_the_reason_is_kept_and_what_is_for_good_is_given_up_at_once(
    error: Exception, for_good: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gave_up = threading.Event()
    with overhear(gave_up.set) as heard:
        log.warning("Bootstrap connection to %s failed: %s (backoff %.2f secs)", "bootstrap-0", error, 0.1)
        log.info("passed over")
        assert gave_up.wait(5.0 if for_good else 0.05) is for_good
        log.error("Bootstrap failed: %s", KafkaConnectionError("later"))
    assert heard.for_good is for_good
    assert (str(error.args[-1]) in heard.reason) is for_good
    assert "\n" not in heard.reason
    assert caplog.records == [], "it goes nowhere else"


def test_the_clients_logger_is_left_as_it_was() -> None:
    before = (log.level, log.propagate, list(log.handlers))
    with overhear(lambda: None):
        pass
    assert (log.level, log.propagate, list(log.handlers)) == before


def test_two_that_overlap_leave_it_so_too() -> None:
    before = (log.level, log.propagate, list(log.handlers))
    first, second = overhear(lambda: None), overhear(lambda: None)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not log.propagate, "the second still listens"
    second.__exit__(None, None, None)
    assert (log.level, log.propagate, list(log.handlers)) == before
