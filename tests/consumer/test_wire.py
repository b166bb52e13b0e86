"""The wire form, read and written by an independent implementation of CloudEvents and checked against the schema."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from consumer import wire
from consumer.events import (
    Cause,
    DeadLetter,
    EngineRef,
    Frame,
    ModelRef,
    Position,
    Reason,
    StageTimes,
    Verdict,
)
from engine.errors import InputError

NOW_S = 1_772_344_800.0  # 2026-03-01T06:00:00Z
HERE = Position("frames", 3, 41)
SCHEMA = json.loads((Path(wire.__file__).parent / "verdict.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=FormatChecker())


def read(
    *,
    key: bytes | None = b"press-1",
    value: bytes | None = b"image",
    headers: list[tuple[str, Any]] | None = None,
    timestamp_ms: int | None = round(NOW_S * 1000) - 20,
    position: Position = HERE,
    **limits: float,
) -> Frame:
    """Read one record at NOW_S."""
    return wire.frame_from_record(
        position, key=key, value=value, headers=headers, timestamp_ms=timestamp_ms, now_s=NOW_S, **limits
    )


def a_verdict(**changes: Any) -> Verdict:
    """A plain pass."""
    verdict = Verdict(
        verdict_id="0" * 32,
        frame=read(),
        decision="pass",
        model=ModelRef("pcb", "1", "sha256:00", "pooled"),
        engine=EngineRef("onnxruntime", "cpu", "fp32"),
        decided_at_s=NOW_S + 0.25,
        threshold=0.5,
        review_band=(0.4, 0.6),
        times=StageTimes(transport_ms=20.0, total_ms=270.0),
        batch_size=4,
        defect_probability=0.125,
    )
    return replace(verdict, **changes)


def a_letter(**changes: Any) -> DeadLetter:
    """A letter of a broken frame."""
    return replace(
        DeadLetter("0" * 32, read(value=b"\xff\xd8 image bytes"), "undecodable", "cut off", NOW_S), **changes
    )


# --- frames: what a camera sends


def test_the_binding_reads_our_frame() -> None:
    record = wire.frame_record(
        station="Presse 1/ü",
        payload=b"\xff\xd8",
        frame_id="f-1",
        captured_at_s=NOW_S + 0.25,
        part_id="p-7",
        content_type="image/jpeg",
    )
    assert record.value is not None
    event = from_binary_event(KafkaMessage(dict(record.headers), None, record.value))
    assert event.get_specversion() == "1.0"
    assert event.get_id() == "f-1"
    assert event.get_type() == "framegate.frame.v1"
    assert event.get_source() == "/stations/Presse%201%2F%C3%BC"
    assert event.get_time() == datetime(2026, 3, 1, 6, 0, 0, 250_000, tzinfo=UTC)
    assert event.get_datacontenttype() == "image/jpeg"
    assert event.get_extension("partid") == "p-7"
    assert event.get_data() == b"\xff\xd8"
    assert record.key == "Presse 1/ü".encode()
    assert record.timestamp_ms is None, "the client's sending time is what a capture time is held against"


def test_we_read_the_bindings_frame() -> None:
    captured = datetime(2026, 3, 1, 5, 59, 59, 750_000, tzinfo=UTC)
    event = CloudEvent(
        {
            "id": "abc",
            "type": wire.FRAME_TYPE,
            "source": "/stations/press-1",
            "specversion": "1.0",
            "time": captured,
            "datacontenttype": "image/png",
            "partid": "p-8",
            "partitionkey": "press-1",
        },
        b"\x89PNG",
    )
    message = to_binary_event(event)
    assert isinstance(message.key, str)
    frame = read(key=message.key.encode(), value=message.value, headers=list(message.headers.items()))
    assert frame == Frame(HERE, "press-1", "abc", b"\x89PNG", captured.timestamp(), NOW_S, "p-8", skewed=False)


def test_what_a_frame_says_survives_the_way() -> None:
    record = wire.frame_record(station="s", payload=b"i", frame_id="f", captured_at_s=NOW_S - 0.123456, part_id=None)
    frame = read(key=record.key, value=record.value, headers=list(record.headers))
    assert frame.captured_at_s == pytest.approx(NOW_S - 0.123456, abs=1e-6)
    assert (frame.station, frame.frame_id, frame.part_id, frame.skewed) == ("s", "f", None, False)


def test_bare_key_and_bytes_are_served() -> None:
    frame = read(headers=None)
    assert frame == Frame(HERE, "press-1", "frames-3-41", b"image", NOW_S - 0.02, NOW_S, None, skewed=False)


@pytest.mark.parametrize("key", [None, b""])
def test_a_record_without_a_key_is_of_the_unknown_station(key: bytes | None) -> None:
    assert read(key=key).station == "unknown"


@pytest.mark.parametrize("value", [None, b""])
def test_a_record_without_a_value_is_an_empty_frame(value: bytes | None) -> None:
    assert read(value=value).payload == b""


def test_keys_that_are_not_utf8_stay_stable_and_distinct() -> None:
    keys = [b"press-\xff", b"press-\xfe", b"press-%FF", b"\xc3", b"\xff" * 5000, b"\xff" * 5001, b"a" * 300, b"a" * 301]
    stations = [read(key=key).station for key in keys]
    assert stations == [read(key=key).station for key in keys]
    assert len(set(stations)) == len(keys)
    assert stations[0].startswith("press-%FF~"), "a person must recognise the station"
    assert all(len(station) <= wire.MAX_NAME_CHARS for station in stations)


def test_a_long_name_within_the_limit_is_left_alone() -> None:
    assert read(key=b"a" * 256).station == "a" * 256


@pytest.mark.parametrize(
    "time",
    [
        b"",
        b"yesterday",
        b"2026-03-01",
        b"2026-03-01T05:59:59",  # no offset: whose time?
        b"2026-03-01T05:59:60Z",
        b"2026-02-30T05:59:59Z",
        b"2026-03-01T05:59:59+99:99",
        b"1969-12-31T23:59:59Z",
        b"\xff\xfe",
        b"2026-03-01T05:59:59." + b"0" * 10_000 + b"Z",
        "\uff12\uff10\uff12\uff16-03-01T05:59:59Z".encode(),  # digits, but not ASCII
        b"+2026-03-01T05:59:59Z",
        None,
    ],
)
def test_an_unreadable_capture_time_leaves_the_records(time: bytes | None) -> None:
    frame = read(headers=[("ce_time", time)])
    assert frame.captured_at_s == NOW_S - 0.02
    assert not frame.skewed


@pytest.mark.parametrize(
    "time",
    [b"2026-03-01T05:59:59Z", b"2026-03-01t05:59:59z", b"2026-03-01T06:59:59+01:00", b"2026-03-01 05:59:59.000000000Z"],
)
def test_every_form_of_rfc_3339_is_read(time: bytes) -> None:
    assert read(headers=[("ce_time", time)]).captured_at_s == NOW_S - 1


def test_of_headers_with_one_name_the_last_serves_and_nulls_are_passed_over() -> None:
    headers = [("ce_id", b"a"), ("ce_id", b"b"), ("ce_id", None), ("CE_PARTID", b"p"), ("", b""), ("ce_partid", b"")]
    frame = read(headers=headers)
    assert (frame.frame_id, frame.part_id) == ("b", "p")


def test_absurd_ids_are_capped_and_distinct() -> None:
    ids = [read(headers=[("ce_id", b"x" * 100_000 + end)]).frame_id for end in (b"1", b"2")]
    assert len(set(ids)) == 2
    assert {len(frame_id) for frame_id in ids} == {wire.MAX_NAME_CHARS}


def at(seconds: float) -> list[tuple[str, bytes]]:
    """Headers of a camera whose clock says NOW_S + seconds."""
    return [("ce_time", wire.rfc3339(NOW_S + seconds).encode())]


@pytest.mark.parametrize(
    ("camera_s", "record_s", "captured_s", "skewed"),
    [
        (-0.5, -0.25, -0.5, False),
        (-59.0, 0.0, -59.0, False),
        (-61.0, 0.0, 0.0, True),
        (-3600.0, -0.25, -0.25, True),
        (5.0, -0.25, -0.25, True),  # ahead of us
        (5.0, 5.0, 0.0, True),  # and so is the stamp its own client made: neither serves
        (5.0, None, 0.0, True),
        (0.5, -0.25, 0.0, False),  # two clocks' ordinary disagreement, never a negative latency
        (-3600.0, None, -3600.0, False),  # nothing to hold it against: it may have waited an hour
        (-3601.0, -3600.0, -3601.0, False),  # an old frame with an honest clock
        (None, -7200.0, -7200.0, False),
        (None, 5.0, 0.0, True),
        (None, None, 0.0, False),
    ],
)
def test_a_skewed_clock_is_found_and_the_records_time_serves(
    camera_s: float | None, record_s: float | None, captured_s: float, skewed: bool
) -> None:
    frame = read(
        headers=None if camera_s is None else at(camera_s),
        timestamp_ms=None if record_s is None else round((NOW_S + record_s) * 1000),
    )
    assert frame.captured_at_s == pytest.approx(NOW_S + captured_s, abs=1e-6)
    assert frame.skewed is skewed


def test_the_skew_limits_are_settings() -> None:
    assert read(headers=at(-30), skew_limit_s=10).skewed
    assert not read(headers=at(5), future_limit_s=10).skewed


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**63)])
def test_kafkas_no_timestamp_is_none(timestamp_ms: int) -> None:
    assert read(timestamp_ms=timestamp_ms).captured_at_s == NOW_S


names = st.one_of(st.text(), st.sampled_from(["ce_id", "ce_time", "ce_partid", "ce_source", "content-type", "CE_ID"]))
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.one_of(
    st.binary(max_size=80),
    st.datetimes(timezones=offsets).map(lambda time: time.isoformat().encode()),
    st.builds("{:04}-{:02}-{:02}T{:02}:{:02}:60Z".format, *[st.integers(0, 99)] * 5).map(str.encode),
)
records: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "key": st.none() | st.binary(max_size=600),
        "value": st.none() | st.binary(max_size=20),
        "headers": st.none() | st.lists(st.tuples(names, st.none() | times)),
        "timestamp_ms": st.none() | st.integers(-(2**63), 2**63 - 1),
    }
)


@given(records)
def test_whatever_a_camera_sends_gets_its_verdict(record: dict[str, Any]) -> None:
    frame = read(**record)
    assert frame.station
    assert frame.frame_id
    assert max(len(frame.station), len(frame.frame_id), len(frame.part_id or "")) <= wire.MAX_NAME_CHARS
    assert 0 <= frame.captured_at_s <= frame.fetched_at_s == NOW_S
    verdict = a_verdict(frame=frame, decision="none", cause="undecodable", defect_probability=None)
    sent = wire.verdict_record(verdict, group="g")
    VALIDATOR.validate(wire.parse_verdict(sent.value))
    assert wire.dead_letter_record(a_letter(frame=frame), group="g").key == sent.key


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_two_keys_are_two_stations(one: bytes, other: bytes) -> None:
    assert (read(key=one).station == read(key=other).station) == ((one or b"unknown") == (other or b"unknown"))


# --- verdicts


def test_the_verdict_id_is_the_same_for_ever() -> None:
    # Fixed: readers behind the topic drop repeats by it, across versions of Framegate.
    assert (
        wire.verdict_id("tansu_cluster", "01a20ac9-2b0c-70d1-8ece-01a20b19ae45", 3, 41)
        == "fb7f8c7cc73f9eac3f54862a177bc5f9"
    )


def test_the_verdict_id_tells_places_apart() -> None:
    places = [
        ("c", "t", 1, 23),
        ("c", "t", 12, 3),
        ("c", "t", 1, 24),
        ("ct", "", 1, 23),
        ("d", "t", 1, 23),
        ('c","t', "", 1, 23),
    ]
    assert len({wire.verdict_id(*place) for place in places}) == len(places)


@given(st.text(), st.text(), st.integers(0, 2**31), st.integers(0, 2**62))
def test_the_verdict_id_is_the_hash_of_the_whole_place(cluster: str, topic: str, partition: int, offset: int) -> None:
    place = json.dumps([cluster, topic, partition, offset], separators=(",", ":"))
    assert wire.verdict_id(cluster, topic, partition, offset) == hashlib.sha256(place.encode()).hexdigest()[:32]


@given(st.floats(-(2.0**35), 2.0**37))
@example(0.9999999)
@example(1.7e9 + 0.9999996)
@example(-0.25)
@example(-0.0000001)
def test_a_time_is_written_as_python_writes_it(epoch_s: float) -> None:
    written = datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="microseconds")
    assert wire.rfc3339(epoch_s) == written.replace("+00:00", "Z")


def test_the_binding_reads_our_verdict() -> None:
    record = wire.verdict_record(a_verdict(), group="line 1/a")
    assert record.value is not None
    event = from_binary_event(KafkaMessage(dict(record.headers), record.key, record.value))
    assert event.get_type() == "framegate.verdict.v1"
    assert event.get_source() == "/framegate/line%201%2Fa"
    assert event.get_id() == "0" * 32
    assert event.get_time() == datetime(2026, 3, 1, 6, 0, 0, 250_000, tzinfo=UTC)
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == wire.verdict_document(a_verdict())
    assert record.key == b"press-1"
    assert record.timestamp_ms == round((NOW_S + 0.25) * 1000)


def test_the_verdict_says_what_the_contract_lists() -> None:
    assert wire.verdict_document(a_verdict()) == {
        "schema": 1,
        "verdict_id": "0" * 32,
        "frame_id": "frames-3-41",
        "station": "press-1",
        "part_id": None,
        "source": {"topic": "frames", "partition": 3, "offset": 41},
        "decision": "pass",
        "cause": None,
        "reasons": [],
        "defect_probability": 0.125,
        "threshold": 0.5,
        "review_band": [0.4, 0.6],
        "model": {"name": "pcb", "version": "1", "digest": "sha256:00", "head": "pooled"},
        "engine": {"backend": "onnxruntime", "device": "cpu", "precision": "fp32"},
        "captured_at": "2026-03-01T05:59:59.980000Z",
        "clock_skewed": False,
        "decided_at": "2026-03-01T06:00:00.250000Z",
        "latency_ms": {
            "transport": 20.0,
            "fetch_wait": None,
            "decode": None,
            "batch_wait": None,
            "inference": None,
            "classify": None,
            "total": 270.0,
        },
        "batch": {"size": 4},
    }


finite = st.floats(allow_nan=False, allow_infinity=False)
probabilities = st.floats(0, 1)
milliseconds = st.none() | st.floats()
reasons = st.lists(st.sampled_from(get_args(Reason)), unique=True).map(tuple)
words = st.text(max_size=20)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    """Any verdict that keeps the contract."""
    decision = draw(st.sampled_from(["pass", "fail", "review", "none"]))
    given_reasons = () if decision == "pass" else draw(reasons)
    return a_verdict(
        verdict_id=draw(st.text(min_size=1, max_size=32)),
        frame=read(**draw(records)),
        decision=decision,
        cause=draw(st.sampled_from(get_args(Cause))) if decision == "none" else None,
        reasons=given_reasons or (("band",) if decision == "review" else ()),
        defect_probability=draw(probabilities | st.none()) if decision == "none" else draw(probabilities),
        model=ModelRef(*(draw(words) for _ in range(4))),
        engine=EngineRef(*(draw(words) for _ in range(3))),
        decided_at_s=draw(st.floats(0, 4e9)),
        threshold=draw(finite),
        review_band=(draw(finite), draw(finite)),
        times=StageTimes(*(draw(milliseconds) for _ in range(7))),
        batch_size=draw(st.integers(0, 1000)),
    )


@given(verdicts())
def test_every_verdict_fits_the_schema_and_comes_back(verdict: Verdict) -> None:
    record = wire.verdict_record(verdict, group="g")
    assert record.value is not None
    document = wire.parse_verdict(record.value)
    VALIDATOR.validate(document)
    assert set(document) <= set(SCHEMA["properties"]), "a key that the schema does not describe"
    assert document["defect_probability"] == verdict.defect_probability


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        {"decision": "none", "cause": None, "defect_probability": None},
        {"decision": "none", "cause": "tired", "defect_probability": None},
        {"decision": "maybe"},
        {"cause": "late"},
        {"defect_probability": None},
        {"defect_probability": float("nan")},
        {"defect_probability": 1.5},
        {"decision": "fail", "defect_probability": None},
        {"reasons": ("camera",)},
        {"decision": "review"},
        {"threshold": float("nan")},
        {"review_band": (0.4, float("inf"))},
    ],
)
def test_a_verdict_that_breaks_its_contract_never_leaves(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"of Position\(topic='frames', partition=3, offset=41\) has"):
        wire.verdict_record(a_verdict(**changes), group="g")


@pytest.mark.parametrize(
    "changes",
    [
        {"decision": "none", "defect_probability": None},
        {"cause": "late"},
        {"decision": "maybe"},
        {"defect_probability": None},
        {"defect_probability": 1.5},
        {"reasons": ["camera"]},
        {"decision": "review"},
        {"schema": 2},
        {"captured_at": "2026-03-01 06:00"},
        {"review_band": [0.1]},
        {"batch": {"size": -1}},
        {"source": {"topic": "frames", "partition": 0}},
    ],
)
def test_the_schema_refuses_what_the_writer_refuses(changes: dict[str, Any]) -> None:
    document = wire.verdict_document(a_verdict())
    VALIDATOR.validate(document)
    assert not VALIDATOR.is_valid(document | changes)


def test_the_schema_lets_a_contract_grow() -> None:
    VALIDATOR.validate(wire.verdict_document(a_verdict()) | {"shadow": {"decision": "fail"}})


@pytest.mark.parametrize(
    ("value", "words_of_error"),
    [
        (None, "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xd8\xff\xe0 a frame", "not JSON"),
        (b'{"schema": 1, "threshold": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "JSON list"),
        (b'{"schema": 2}', "schema 2"),
        (b'{"schema": 1}', "lacks verdict_id"),
    ],
)
def test_a_reader_refuses_what_is_no_verdict(value: bytes | None, words_of_error: str) -> None:
    with pytest.raises(InputError, match=words_of_error):
        wire.parse_verdict(value)


@pytest.mark.parametrize(
    "changes", [{"decision": "ok"}, {"decision": "none"}, {"cause": "late"}, {"decision": "none", "cause": "tired"}]
)
def test_a_reader_refuses_a_verdict_it_could_not_act_on(changes: dict[str, Any]) -> None:
    value = json.dumps(wire.verdict_document(a_verdict()) | changes).encode()
    with pytest.raises(InputError, match="not passed"):
        wire.parse_verdict(value)


# --- dead letters


def test_a_dead_letter_says_where_and_why_and_never_carries_the_image() -> None:
    record = wire.dead_letter_record(a_letter(), group="g")
    assert record.value is not None
    event = from_binary_event(KafkaMessage(dict(record.headers), record.key, record.value))
    assert (event.get_type(), event.get_source(), event.get_id()) == (
        "framegate.deadletter.v1",
        "/framegate/g",
        "0" * 32,
    )
    assert event.get_data() == {
        "schema": 1,
        "verdict_id": "0" * 32,
        "frame_id": "frames-3-41",
        "station": "press-1",
        "part_id": None,
        "source": {"topic": "frames", "partition": 3, "offset": 41},
        "cause": "undecodable",
        "error": "cut off",
        "payload_bytes": 14,
        "captured_at": "2026-03-01T05:59:59.980000Z",
        "at": "2026-03-01T06:00:00.000000Z",
    }
    assert b"image bytes" not in record.value


def test_a_dead_letters_error_is_bounded_and_always_writable() -> None:
    record = wire.dead_letter_record(a_letter(error="\udcff" + "x" * 10_000_000), group="g")
    assert record.value is not None
    assert len(record.value) < 3_000
    assert len(json.loads(record.value)["error"]) == wire.MAX_ERROR_CHARS


# --- the page that people read

PAGE = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")


def test_the_pages_example_is_a_verdict_and_shows_every_key() -> None:
    example = PAGE.split("```json\n")[1].split("```")[0]
    document = wire.parse_verdict(example.encode())
    VALIDATOR.validate(document)
    assert set(document) == set(SCHEMA["properties"]) == set(wire.verdict_document(a_verdict()))


def test_the_page_names_every_word_a_reader_meets() -> None:
    letter = wire.dead_letter_record(a_letter(), group="g").value
    assert letter is not None
    keys = {*wire.verdict_document(a_verdict()), *json.loads(letter)} - {"batch"}
    types = {wire.FRAME_TYPE, wire.VERDICT_TYPE, wire.DEAD_LETTER_TYPE}
    headers = {name for name, _ in wire.verdict_record(a_verdict(), group="g").headers} | {"ce_partid"}
    words_of_the_wire = keys | types | headers | set(get_args(Cause)) | set(get_args(Reason))
    assert [word for word in sorted(words_of_the_wire) if f"`{word}`" not in PAGE] == []
