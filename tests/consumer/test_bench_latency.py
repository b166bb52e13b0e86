"""From capture to verdict: arrivals, the pairing of frames with verdicts, and the keys. Nothing asserts a speed."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import pytest

from consumer.bench_jobs import COMMAND
from consumer.bench_latency import Latency, Place, _collect, _settled, arrivals, keys, latency_of, run
from consumer.bench_runs import jpegs
from consumer.errors import ChildError
from consumer.plain_stream import Answer, station_of
from consumer.topics import ensure_topics

if TYPE_CHECKING:
    from pathlib import Path

    from consumer.plain_stream import AnswerReader
    from tests.kafka_cluster import RunningBroker


def test_arrivals_are_poisson() -> None:
    times = np.array(arrivals(500.0, 20.0, np.random.default_rng(0)))
    assert times[0] >= 0
    assert times[-1] < 20
    assert np.all(np.diff(times) >= 0)
    assert len(times) == pytest.approx(10_000, abs=4 * 100)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential"


def test_a_frame_counts_from_when_it_was_due_however_late_it_was_sent() -> None:
    sent = [(0, 0, 10.0, 10.0), (1, 0, 11.0, 11.4), (0, 1, 12.0, 12.0)]
    answers = [
        Answer(0, 1, 12.020, {"decode": 4.0, "batch_wait": None, "total": 15.0}),
        Answer(0, 0, 10.500, {}),
        Answer(1, 0, 11.500, {"decode": 2.0, "total": 450.0}),
    ]
    first = {(answer.partition, answer.offset): answer for answer in answers}
    found = latency_of(sent, first, from_s=10.5)
    assert found.frames == 2, "the lead does not count"
    assert found.p99_ms == pytest.approx(500, rel=0.02)
    assert found.p50_ms == pytest.approx((500 + 20) / 2)
    assert found.camera_late_ms == pytest.approx(400, rel=0.02)
    assert found.stages_ms["decode"][0] == pytest.approx(3.0)
    assert found.stages_ms["publish"][0] == pytest.approx((50 + 5) / 2), "what is left of the whole"
    assert "total" not in found.stages_ms
    assert "batch_wait" not in found.stages_ms, "no frame reached it"


def latency(p99_ms: float) -> Latency:
    return Latency(p99_ms / 2, p99_ms, 100, 0.1, {"decode": (1.0, 2.0)})


def test_ratios_are_taken_within_a_round() -> None:
    found = {
        "plain": [latency(100), latency(1000), latency(10)],
        "at_least_once": [latency(50), latency(400), latency(8)],
        "exactly_once": [latency(60), latency(415), latency(18)],
    }
    told = keys([("half", 100.0, found), ("most", 400.0, {"at_least_once": found["at_least_once"]})])
    assert told["p99_ratio"] == {"at_least_once": 0.5, "exactly_once": 0.6}
    assert told["exactly_once_added_ms"] == 10
    half, most = told["loads"]
    assert half["plain"]["p99_ms"] == 100
    assert half["plain"]["stages_ms"] == {"decode": {"p50": 1.0, "p99": 2.0}}
    assert most["all_p99_ms"] == {"at_least_once": [50, 400, 8]}
    json.dumps(told)


def test_the_first_verdict_of_a_frame_counts_and_no_frame_twice() -> None:
    class Reader:
        batches: ClassVar[list[list[Answer]]] = [
            [Answer(0, 0, 1.0, {}), Answer(0, 0, 2.0, {})],
            [Answer(1, 0, 3.0, {})],
        ]

        def poll(self, _timeout_s: float) -> list[Answer]:
            return self.batches.pop(0)

    found = _collect(cast("AnswerReader", Reader()), 2, time.monotonic() + 10)
    assert {place: answer.at_s for place, answer in found.items()} == {(0, 0): 1.0, (1, 0): 3.0}
    assert _collect(cast("AnswerReader", Reader()), 2, time.monotonic() - 1) == {}, "too late"


def test_who_did_not_keep_up_has_no_latency() -> None:
    told = keys([("half", 100.0, {"plain": [latency(10), None], "at_least_once": [latency(5), latency(5)]})])
    assert told["p99_ratio"]["at_least_once"] is None
    assert told["loads"][0]["plain"] is None
    assert told["loads"][0]["all_p99_ms"] == {"plain": [10, None], "at_least_once": [5, 5]}
    assert told["loads"][0]["at_least_once"]["p99_ms"] == 5


def test_what_was_not_measured_is_null() -> None:
    nothing: dict[str, object] = {
        "p99_ratio": {"at_least_once": None, "exactly_once": None},
        "exactly_once_added_ms": None,
        "loads": [],
    }
    assert keys([]) == nothing
    embedded = keys([("half", 100.0, {"plain": [latency(10)], "at_least_once": [latency(5)]})])
    assert embedded["p99_ratio"] == {"at_least_once": 0.5, "exactly_once": None}
    assert embedded["exactly_once_added_ms"] is None


def test_it_begins_when_all_workers_have_had_their_partitions_for_a_while(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def lines(*events: tuple[int, float, str]) -> None:
        text = [json.dumps({"worker": worker, "at": at_s, "what": what}) for worker, at_s, what in events]
        log.write_text("\n".join(["no JSON", *text]))

    now_s = time.time()
    lines()
    assert _settled(log, 0), "the plain loop says nothing"
    lines((0, now_s - 9, "partitions assigned: f-0, f-1"))
    assert not _settled(log, 2)
    lines((0, now_s - 9, "partitions assigned: f-0"), (1, now_s - 0.5, "partitions assigned: f-1"))
    assert not _settled(log, 2), "a moment ago"
    lines((0, now_s - 9, "partitions assigned: f-0"), (1, now_s - 5, "partitions assigned: f-1"))
    assert _settled(log, 2)


@pytest.fixture
def place(embedded_broker: RunningBroker, unique: str, tmp_path: Path) -> Place:
    payloads = tmp_path / "payloads"
    payloads.mkdir()
    (payloads / "0.jpg").write_bytes(jpegs(1)[0])
    servers, frames, verdicts = embedded_broker.bootstrap_servers, f"frames-{unique}", f"verdicts-{unique}"
    ensure_topics(servers, partitions=2, replication=1, frames=frames, verdicts=verdicts, dead=f"dead-{unique}")
    return Place(servers, {}, frames, verdicts, 2, payloads, tmp_path)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["plain", "null"])
def test_a_run_measures_every_frame_behind_the_lead(place: Place, kind: str) -> None:
    job: dict[str, object] = {"bootstrap_servers": place.bootstrap_servers, "client": {}, "group": place.verdicts}
    if kind == "plain":
        job |= {"bundle": None, "backend": "auto", "frames": place.frames, "verdicts": place.verdicts}
        job |= {"idle_exit_s": 60.0}
    else:
        job |= {"frames_topic": place.frames, "verdicts_topic": place.verdicts, "http_port": None, "workers": 1}
        job |= {"log_format": "json", "dead_topic": f"{place.frames}-dead"}
    due_s = [0.1 * number for number in range(20)]
    found = run([*COMMAND, kind, json.dumps(job)], place, due_s, 0 if kind == "plain" else 1)
    assert found is not None
    assert found.frames == 10, "those due in the first second are the lead"
    assert 0 < found.p50_ms <= found.p99_ms
    assert ("decode" in found.stages_ms) is (kind == "null")


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize(
    ("code", "said"), [("1/0", "ended before it had .*ZeroDivisionError"), ("import time; time.sleep(60)", "did not")]
)
def test_a_contestant_that_does_not_answer_is_named_with_its_last_words(
    place: Place, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.setattr("consumer.bench_latency.JOIN_S", 20.0 if code == "1/0" else 1.0)
    with pytest.raises(ChildError, match=re.compile(f"verdicts-.* {said}", re.DOTALL)):
        run([sys.executable, "-c", code], place, [0.0], 0)


def test_stations_lie_in_the_partition_that_their_name_says() -> None:
    names = [station_of(number, 4) for number in range(64)]
    assert len(set(names)) == 16
    assert all(name.split("-")[1] == str(number % 4) for number, name in enumerate(names))
