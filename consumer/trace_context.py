"""A frame's trace context, which its verdict and dead letter carry on: W3C Trace Context and Baggage. Pure.

Passed through and not taken part in: what OpenTelemetry instruments on either side is joined, and nothing here needs
its packages. What is malformed or too long is left out, as the recommendations have it; it never costs a frame.
https://www.w3.org/TR/trace-context/ and https://www.w3.org/TR/baggage/
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_TRACESTATE = 512
LONGEST_BAGGAGE = 8192
MOST_STATES, MOST_BAGGAGE = 32, 64
LONGEST_TRACEPARENT = 256

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]*)?")
_STATE = re.compile(rb"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
_BAGGAGE = re.compile(rb"%b[ \t]*=[ \t]*%b([ \t]*;[ \t]*%b([ \t]*=[ \t]*%b)?)*" % (_TOKEN, _VALUE, _TOKEN, _VALUE))

Trace = tuple[tuple[str, bytes], ...]
"""Headers as they go on: (name, value) pairs."""


def trace_of(headers: Mapping[str, bytes]) -> Trace:
    """What of these headers is a sound trace context.

    Args:
        headers: values by lower-case name.

    Returns:
        `traceparent`, `tracestate` where there is a sound `traceparent` too, and `baggage`: each as it came.
    """
    parent, state, baggage = (bytes(headers.get(name, b"")) for name in ("traceparent", "tracestate", "baggage"))
    trace = []
    if _is_parent(parent):
        trace.append(("traceparent", parent))
        if len(state) <= LONGEST_TRACESTATE and _is_list(state, _STATE, MOST_STATES):
            trace.append(("tracestate", state))
    if len(baggage) <= LONGEST_BAGGAGE and _is_list(baggage, _BAGGAGE, MOST_BAGGAGE):
        trace.append(("baggage", baggage))
    return tuple(trace)


def _is_parent(value: bytes) -> bool:
    """Version 00 has four fields; a later one may have more, and is read by the first four."""
    found = _TRACEPARENT.fullmatch(value) if len(value) <= LONGEST_TRACEPARENT else None
    return found is not None and not (value.startswith(b"00") and found[1] is not None)


def _is_list(value: bytes, member: re.Pattern[bytes], most: int) -> bool:
    """One to so many members with commas between them; of those some may be empty."""
    members = [text for part in value.split(b",") if (text := part.strip(b" \t"))]
    return 0 < len(members) <= most and all(map(member.fullmatch, members))
