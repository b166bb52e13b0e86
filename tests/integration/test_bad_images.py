"""All bad images mixed into a stream of good frames change nothing for the good ones."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaProducer

from consumer.topics import producer_limits
from consumer.wire import frame_record
from engine.bundle import write_bundle
from tests.line import Line
from tests.lineups import bundle_of, jpegs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.kafka_cluster import RunningBroker

pytestmark = pytest.mark.slow

STATIONS = ("press-1", "press-2", "weld", "paint", "Prüfplatz 4")
BAD_SHARE = 0.3
PICTURES = 60
SENT_S = float(int(time.time()))
"""Of every frame in either stream, for the verdict tells it too."""

ANSWER = (
    "station",
    "part_id",
    "decision",
    "cause",
    "reasons",
    "defect_probability",
    "threshold",
    "review_band",
    "model",
    "engine",
    "captured_at",
)
"""All that a verdict says of its frame but for where the frame lay and how long it took."""

Sent = tuple[str, str, bytes | None]
"""Frame id, station, payload."""


def good_frames(count: int) -> list[Sent]:
    payloads = jpegs(PICTURES, seed=7)
    return [
        (f"good-{number}", STATIONS[number % len(STATIONS)], payloads[number % PICTURES]) for number in range(count)
    ]


def bad_frames(folder: Path) -> list[Sent]:
    """Every one of the collection, from all stations, and what is no image at all."""
    names = [entry["file"] for entry in json.loads((folder / "index.json").read_text())["files"]]
    payloads: list[tuple[str, bytes | None]] = [(name, (folder / name).read_bytes()) for name in names]
    payloads += [("null", None), ("empty", b"")]
    return [(f"bad-{name}", station, payload) for (name, payload), station in zip(payloads, itertools.cycle(STATIONS))]


def mixed(good: list[Sent], bad: list[Sent]) -> list[Sent]:
    """The good ones in their order, the bad ones anywhere between them."""
    drawn = random.Random(1)
    bad = drawn.sample(bad, len(bad))
    places = set(drawn.sample(range(len(good) + len(bad)), len(bad)))
    goods, bads = iter(good), iter(bad)
    return [next(bads) if place in places else next(goods) for place in range(len(good) + len(bad))]


def judged(broker: RunningBroker, folder: Path, unique: str, bundle: Path, sent: list[Sent]) -> list[dict[str, Any]]:
    """The verdicts of a consumer that gets these frames and nothing else; all of them wait before it starts."""
    with Line(broker.bootstrap_servers, folder, unique) as line:
        publish(line, sent)
        consumer = line.consumer(bundle, "--backend", "onnxruntime")
        verdicts = line.collect(len(sent))
        consumer.terminate()
        consumer.wait(30)
    return verdicts


def publish(line: Line, sent: Iterable[Sent]) -> None:
    producer = KafkaProducer(bootstrap_servers=line.bootstrap_servers, acks="all", **producer_limits())
    futures = []
    for frame_id, station, payload in sent:
        record = frame_record(
            station=station, payload=payload or b"", frame_id=frame_id, captured_at_s=SENT_S, part_id=f"of {frame_id}"
        )
        futures.append(
            producer.send(
                line.frames, key=record.key, value=payload, headers=record.headers, timestamp_ms=int(1000 * SENT_S)
            )
        )
    for future in futures:
        future.get(60)
    producer.close()


def test_each_good_frame_is_answered_as_without_the_bad_ones(
    broker: RunningBroker, shared_data: Path, unique: str, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", bundle_of(1))
    bad = bad_frames(shared_data / "badimages")
    good = good_frames(int(len(bad) * (1 - BAD_SHARE) / BAD_SHARE))
    alone = judged(broker, tmp_path / "alone", f"{unique}a", tmp_path / "bundle", good)
    together = judged(broker, tmp_path / "mixed", f"{unique}m", tmp_path / "bundle", mixed(good, bad))

    assert len(together) == len(good) + len(bad)
    assert len({verdict["frame_id"] for verdict in together}) == len(together)
    answers, among_bad = (
        {verdict["frame_id"]: {key: verdict[key] for key in ANSWER} for verdict in verdicts}
        for verdicts in (alone, together)
    )
    different = [name for name, _, _ in good if among_bad[name] != answers[name]]
    assert different == []
    assert {answers[name]["decision"] for name, _, _ in good} >= {"pass", "fail"}, "or nothing could differ"
    assert {answers[name]["cause"] for name, _, _ in good} == {None}
    assert {among_bad[name]["cause"] for name, _, _ in bad} >= {"undecodable", "oversize"}
    order = defaultdict(list)
    for verdict in together:
        if verdict["frame_id"].startswith("good-"):
            order[verdict["station"]].append(verdict["frame_id"])
    assert order == {station: [name for name, whose, _ in good if whose == station] for station in STATIONS}
