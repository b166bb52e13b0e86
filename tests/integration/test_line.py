"""The whole path on real images, through both brokers: zip -> bundle -> frames -> verdicts."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaProducer

from consumer.topics import producer_limits
from consumer.wire import frame_record
from tests.line import Line

if TYPE_CHECKING:
    from tests.kafka_cluster import RunningBroker

pytestmark = pytest.mark.slow

SETS = {"pcb": 160, "screws": 120, "catdog": 160}
"""Images of each real set that are trained and tested on."""

WORST_AUROC = {"pcb": 0.80, "screws": 0.98, "catdog": 0.95}
"""On so few images; the benchmark holds what the whole sets give."""

FEATURIZER = ("--size=160x160", "--taps=2,4,7,10")
"""Given, for choosing it takes as long again and is looked at where training is."""

STATIONS = ("west", "east", "north")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("line")


@pytest.fixture(scope="session")
def bundle_of(shared_data: Path, work: Path) -> Any:
    """A function from a set's name to (bundle, held-out folder), trained once through the command from a zip."""

    @cache
    def trained(name: str) -> tuple[Path, Path]:
        archive, groups = _zip(shared_data / "data" / name, work / f"{name}.zip", SETS[name])
        bundle, held = work / f"{name}-bundle", work / f"{name}-held"
        places = ("--groups", str(groups), "--out", str(bundle), "--held-out", str(held))
        _framegate("train", str(archive), *places, *FEATURIZER)
        return bundle, held

    return trained


def _zip(folder: Path, out: Path, count: int) -> tuple[Path, Path]:
    """The first groups of a set, both classes, as a zip, and their rows of groups.csv."""
    with (folder / "groups.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["group"], row["file"]))
    step = max(1, len(rows) // count)
    chosen = rows[::step]
    groups = out.with_suffix(".csv")
    with zipfile.ZipFile(out, "w") as archive, groups.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "group"])
        for row in chosen:
            archive.write(folder / row["file"], row["file"])
            table.writerow([row["file"], row["label"], row["group"]])
    return out, groups


def _framegate(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "framegate", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _stations(held: Path, folder: Path) -> dict[str, Path]:
    """The held-out images dealt out to three stations."""
    for index, path in enumerate(sorted(path for path in held.rglob("*") if path.suffix in {".jpg", ".png"})):
        place = folder / STATIONS[index % len(STATIONS)]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    return {station: folder / station for station in STATIONS}


@pytest.mark.parametrize("name", list(SETS))
def test_every_frame_one_verdict_in_order_and_as_score_says(
    broker: RunningBroker, bundle_of: Any, unique: str, tmp_path: Path, name: str
) -> None:
    bundle, held = bundle_of(name)
    stations = _stations(held, tmp_path / "stations")
    with Line(broker.bootstrap_servers, tmp_path / "work", unique) as line:
        consumer = line.consumer(bundle)
        sent = line.cameras(stations)
        verdicts = line.collect(len(sent))
        consumer.terminate()
        consumer.wait(30)

    assert Counter(v["frame_id"] for v in verdicts) == Counter(s["frame_id"] for s in sent)
    assert len({v["verdict_id"] for v in verdicts}) == len(sent)
    order = defaultdict(list)
    for verdict in verdicts:
        order[verdict["station"]].append(verdict["frame_id"])
    for station in STATIONS:
        assert order[station] == [s["frame_id"] for s in sent if s["station"] == station]

    scored = {}
    for text in _framegate("score", str(bundle), *map(str, stations.values())).splitlines():
        entry = json.loads(text)
        scored[entry["path"]] = entry
    path_of = {s["frame_id"]: s["path"] for s in sent}
    for verdict in verdicts:
        entry = scored[path_of[verdict["frame_id"]]]
        for key in ("decision", "cause", "reasons", "defect_probability"):
            assert verdict[key] == entry[key], path_of[verdict["frame_id"]]

    digest = json.loads((bundle / "manifest.json").read_text())["digest"]
    assert {v["model"]["digest"] for v in verdicts} == {digest}
    assert _auroc(verdicts, path_of, held) >= WORST_AUROC[name]


def _auroc(verdicts: list[dict[str, Any]], path_of: dict[str, str], held: Path) -> float:
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - only here

    with (held / "groups.csv").open(newline="") as file:
        defect = {Path(row["file"]).name: int(row["is_defect"]) for row in csv.DictReader(file)}
    truth = [defect[Path(path_of[v["frame_id"]]).name] for v in verdicts]
    return float(roc_auc_score(truth, [v["defect_probability"] for v in verdicts]))


def test_bad_images_each_end_as_expected_in_one_consumer_below_1_gib(
    broker: RunningBroker, bundle_of: Any, shared_data: Path, unique: str, tmp_path: Path
) -> None:
    folder = shared_data / "badimages"
    entries = json.loads((folder / "index.json").read_text())["files"]
    payloads: list[tuple[str, bytes | None]] = [(e["file"], (folder / e["file"]).read_bytes()) for e in entries]
    expect = {e["file"]: e["expect"] for e in entries} | {"null": "reject", "empty": "reject"}
    payloads += [("null", None), ("empty", b"")]
    bundle, _ = bundle_of("screws")
    with Line(broker.bootstrap_servers, tmp_path / "work", unique) as line:
        consumer = line.consumer(bundle)
        _publish(line, payloads)
        verdicts = line.collect(len(payloads))
        consumer.require_running()  # the very same process
        peak_bytes = _peak_bytes(consumer.pid)
        restarts = line.metrics()["process_start_time_seconds"]
        consumer.terminate()
        consumer.wait(30)
        not_judged = {v["verdict_id"] for v in verdicts if v["decision"] == "none"}
        dead = _read_dead(line, len(not_judged))

    assert restarts > 0
    assert Counter(v["frame_id"] for v in verdicts) == Counter(name for name, _ in payloads)
    wrong = {v["frame_id"]: (v["decision"], v["cause"]) for v in verdicts if not _as_expected(expect[v["frame_id"]], v)}
    assert wrong == {}
    assert {letter["verdict_id"] for letter in dead} == not_judged
    assert peak_bytes < 1 << 30


def _as_expected(expect: str, verdict: dict[str, Any]) -> bool:
    cause = verdict["cause"]
    fits: bool = {
        "decode": cause is None,
        "reject": cause == "undecodable",
        "reject_by_limit": cause == "oversize",
        "either": cause in {None, "undecodable"},
    }[expect]
    return fits


def _publish(line: Line, payloads: list[tuple[str, bytes | None]]) -> None:
    producer = KafkaProducer(bootstrap_servers=line.bootstrap_servers, acks="all", **producer_limits())
    futures = []
    for index, (name, payload) in enumerate(payloads):
        record = frame_record(
            station=STATIONS[index % 3], payload=payload or b"", frame_id=name, captured_at_s=1.0, part_id=None
        )
        value = record.value if payload else payload
        futures.append(producer.send(line.frames, key=record.key, value=value, headers=record.headers))
    for future in futures:
        future.get(30)
    producer.close()


def _read_dead(line: Line, count: int) -> list[dict[str, Any]]:
    """The dead letters, until there are `count` (the embedded broker's end offsets are too small to go by)."""
    from kafka import KafkaConsumer, TopicPartition  # noqa: PLC0415

    reader = KafkaConsumer(bootstrap_servers=line.bootstrap_servers, group_id=None, auto_offset_reset="earliest")
    partitions = [TopicPartition(line.dead, number) for number in reader.partitions_for_topic(line.dead)]
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    letters: list[dict[str, Any]] = []
    deadline_s = time.monotonic() + 20
    while len(letters) < count and time.monotonic() < deadline_s:
        letters += [json.loads(r.value) for records in reader.poll(timeout_ms=500).values() for r in records]
    reader.close()
    return letters


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
