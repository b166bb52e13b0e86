"""Making a client that has reached its cluster, whichever of the brokers answers, and saying why where none does.

kafka-python 3.0.12 asks one of the brokers, by chance, and waits for it until all of its time is over: one that takes
connections and is silent (it hangs, or a proxy stands before one that is gone) costs the start, though others would
answer. So a client is given little time and then made anew. Its constructor, where it fails, leaves its thread running,
and its TLS handshake knows no timeout: whatever it has made is closed here.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from kafka.errors import KafkaConfigurationError, KafkaError
from kafka.net.compat import KafkaNetClient

from consumer.errors import BrokerError
from consumer.kafka_transport import mend_reading
from consumer.overheard import overhear

if TYPE_CHECKING:
    from typing import Any

Client_co = TypeVar("Client_co", covariant=True)

ATTEMPT_S = 4.0
"""What one client is given. A broker that is well answers within a few milliseconds."""

CLOSE_S = 1.0
"""What it is given beyond that to say so itself."""


class Build(Protocol[Client_co]):
    """Makes a client: a consumer, a producer or an admin client, with the settings given beside its own."""

    def __call__(self, *, bootstrap_timeout_ms: int, kafka_client: Any) -> Client_co:
        """A client that is bootstrapped."""
        ...


class NoAnswerError(BrokerError):
    """No broker let us in.

    Attributes:
        reason: the last one, in the client's words.
        for_good: trying again cannot help: the password or a certificate is not taken.
    """

    def __init__(self, reason: str, *, for_good: bool) -> None:
        """Keep both."""
        super().__init__(reason)
        self.reason = reason
        self.for_good = for_good


def bootstrapped(build: Build[Client_co], *, within_s: float) -> Client_co:
    """The client that `build` makes, made anew until a broker answers it.

    Raises:
        KafkaConfigurationError: one of its settings is wrong.
        NoAnswerError: not within `within_s`, or never.
    """
    mend_reading()  # or what a broker says as it hangs up may be lost
    end_s = time.monotonic() + within_s
    while True:
        attempt_s = max(1.0, min(ATTEMPT_S, end_s - time.monotonic()))
        try:
            return _attempt(build, attempt_s)
        except NoAnswerError as error:
            if error.for_good or time.monotonic() >= end_s:
                raise


def _attempt(build: Build[Client_co], attempt_s: float) -> Client_co:
    made = _Made()
    watchdog = threading.Timer(attempt_s + CLOSE_S, made.close)
    watchdog.daemon = True
    watchdog.start()
    heard = None
    try:
        with overhear(made.close) as heard:
            return build(bootstrap_timeout_ms=int(attempt_s * 1000), kafka_client=made.make)
    except KafkaConfigurationError:
        made.close()
        raise
    except (KafkaError, OSError, ValueError) as error:
        made.close()
        reason = heard.reason if heard is not None and heard.reason else f"{error}"
        raise NoAnswerError(reason, for_good=heard is not None and heard.for_good) from error
    finally:
        watchdog.cancel()
        watchdog.join(1.0)


class _Made:
    """What a client's constructor has made so far."""

    def __init__(self) -> None:
        self._made: list[KafkaNetClient] = []
        self._closing = threading.Lock()

    def make(self, **configs: Any) -> KafkaNetClient:
        """As the client makes it itself."""
        self._made.append(KafkaNetClient(**configs))
        return self._made[-1]

    def close(self) -> None:
        """Close it; from any thread, and harmless where that is done already."""
        with self._closing:
            while self._made:
                # Woken by it, the constructor closes what it has as well, and then there is nothing left to wake.
                with suppress(RuntimeError):
                    self._made.pop().close()
