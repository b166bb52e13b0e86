"""Which trace context goes on, and that no header costs a frame. Good and bad ones are of the recommendations."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer import wire
from consumer.events import DeadLetter, Frame, Position
from consumer.trace_context import LONGEST_BAGGAGE, LONGEST_TRACESTATE, trace_of

PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATE = b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
BAGGAGE = b"key1=value1;property1;property2, key2 = value2, key3=value3; propertyKey=propertyValue"


def names(**headers: bytes) -> list[str]:
    trace = trace_of(headers)
    for name, value in trace:
        assert headers[name] == value, "each goes on as it came"
    return [name for name, _ in trace]


def test_what_is_sound_goes_on_as_it_came() -> None:
    assert names(traceparent=PARENT, tracestate=STATE, baggage=BAGGAGE) == ["traceparent", "tracestate", "baggage"]
    assert names(baggage=BAGGAGE) == ["baggage"]
    assert names(traceparent=PARENT) == ["traceparent"]
    assert names() == []


@pytest.mark.parametrize(
    ("parent", "sound"),
    [
        (PARENT, True),
        (PARENT.replace(b"00-4", b"cc-4"), True),
        (PARENT.replace(b"00-4", b"cc-4") + b"-what-the-future-will-be-like", True),
        (PARENT + b"-more", False),
        (PARENT.replace(b"00-4", b"cc-4") + b".what", False),
        (PARENT.replace(b"00-4", b"ff-4"), False),
        (PARENT.upper(), False),
        (PARENT[:-1], False),
        (PARENT + b"0", False),
        (PARENT.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32), False),
        (PARENT.replace(b"00f067aa0ba902b7", b"0" * 16), False),
        (PARENT.replace(b"a", b"g"), False),
        (b" " + PARENT, False),
        (PARENT + b"\n", False),
        (b"\xff\xfe", False),
        (b"cc" + PARENT[2:] + b"-" + b"x" * 1000, False),
    ],
)
def test_a_parent_is_sound_or_is_left_out_with_its_state(parent: bytes, sound: bool) -> None:
    assert names(traceparent=parent, tracestate=STATE) == (["traceparent", "tracestate"] if sound else [])


@pytest.mark.parametrize(
    ("state", "sound"),
    [
        (STATE, True),
        (b"a=1, ,b=2", True),
        (b"fw529a3039@dt=x", True),
        (b"", False),
        (b",", False),
        (b"A=1", False),
        (b"a", False),
        (b"a=b=c", False),
        (b"a=\x80", False),
        (b"a=" + b"x" * 257, False),
        (b"a=1," * 33, False),
        (b",".join([b"a=" + b"x" * 250] * 3)[: LONGEST_TRACESTATE + 1], False),
    ],
)
def test_a_state_that_is_malformed_or_too_long_is_left_out_alone(state: bytes, sound: bool) -> None:
    expected = ["traceparent", "tracestate"] if sound else ["traceparent"]
    assert names(traceparent=PARENT, tracestate=state) == expected


@pytest.mark.parametrize(
    ("baggage", "sound"),
    [
        (BAGGAGE, True),
        (b"serverNode=DF%2028", True),
        (b"empty=", True),
        (b"no-value", False),
        (b"a=b c", False),
        (b"a=\r\nb", False),
        (b'a="b"', False),
        (b"a=1," * 65, False),
        (b"a=" + b"x" * LONGEST_BAGGAGE, False),
    ],
)
def test_baggage_that_is_malformed_or_too_long_is_left_out(baggage: bytes, sound: bool) -> None:
    assert names(baggage=baggage) == (["baggage"] if sound else [])


@given(st.dictionaries(st.sampled_from(["traceparent", "tracestate", "baggage"]), st.binary(max_size=600)))
def test_whatever_comes_costs_nothing(headers: dict[str, bytes]) -> None:
    assert set(trace_of(headers)) <= set(headers.items())


def test_a_header_made_to_be_slow_is_not() -> None:
    began_s = time.thread_time()
    for evil in (b"a=" + b"; a" * 2700 + b"\x00", b"a=" + b" \t" * 4000 + b"\x00", b"a" * 8000 + b"\x00"):
        assert names(traceparent=PARENT, tracestate=evil[:512], baggage=evil[:LONGEST_BAGGAGE]) == ["traceparent"]
    assert time.thread_time() - began_s < 0.2


def test_a_frames_trace_is_among_the_headers_of_what_is_published_of_it() -> None:
    headers = [("traceparent", PARENT), ("Tracestate", STATE), ("baggage", b"\xff"), ("tracestate", None)]
    frame: Frame = wire.frame_from_record(
        Position("frames", 0, 1), key=b"a", value=b"x", headers=headers, timestamp_ms=0, now_s=1.0
    )
    record = wire.dead_letter_record(DeadLetter("id", frame, "undecodable", "no image", 1.0), group="g")
    assert record.headers[-2:] == [("traceparent", PARENT), ("tracestate", STATE)]
    assert len({name for name, _ in record.headers}) == len(record.headers)
