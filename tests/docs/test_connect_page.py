"""The page on Kafka Connect: verdicts of a running consumer go into a file and into PostgreSQL, as it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, KafkaProducer

from consumer.broker import free_port
from engine.bundle import write_bundle
from tests.kafka_cluster import CONNECT_POM, KafkaUnavailable, fetch_jars
from tests.line import Line
from tests.lineups import bundle_of, jpegs
from tests.pages import block, commands
from tests.postgres import Postgres

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kafka_cluster import RunningBroker

PAGE = "kafka-connect.md"
PASSWORD = "s3cret of the table"
FRAMES = 6
WAIT_S = 120.0
FETCH_S = 600.0
NOT_REACHED = ("Unknown host", "Connection refused", "Could not transfer", "offline mode")

pytestmark = [pytest.mark.apache, pytest.mark.slow]


def judged(kafka: RunningBroker, folder: Path, unique: str) -> tuple[str, list[dict[str, Any]]]:
    """(topic, verdicts) of a real consumer; one of them lies there twice, and one that was given up beside them."""
    write_bundle(folder / "bundle", bundle_of(1))
    with Line(kafka.bootstrap_servers, folder / "line", unique) as line:
        line.consumer(folder / "bundle", "--workers", "1", "--backend", "onnxruntime")
        producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
        for payload in jpegs(FRAMES):
            producer.send(
                line.frames, payload, key=b"press-1", headers=[("traceparent", b"00-%032x-%016x-01" % (1, 1))]
            )
        producer.flush(30)
        producer.close()
        verdicts = line.collect(FRAMES)
        topic = line.verdicts
    reader = KafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest", group_id=None
    )
    record = next(reader)
    reader.close()
    later = [(name, b"2030-01-01T00:00:00Z" if name == "ce_time" else value) for name, value in record.headers]
    given_up = [(name, b"given-up" if name == "ce_id" else value) for name, value in record.headers]
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=f"page-{unique}")
    producer.init_transactions()
    for headers, end in ((later, producer.commit_transaction), (given_up, producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, record.value, key=record.key, headers=headers)
        producer.flush(30)
        end()
    producer.close()
    return topic, verdicts


def test_verdicts_go_into_a_file_and_into_a_database_once_each(
    apache_kafka: RunningBroker, tmp_path: Path, unique: str
) -> None:
    try:
        jars = fetch_jars(CONNECT_POM)
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    with Postgres() as database:
        database.sql("create database plant")
        database.sql(f"create user connect password '{PASSWORD}'")
        database.sql("grant all on schema public to connect", "plant")
        topic, verdicts = judged(apache_kafka, tmp_path, unique)
        carry(apache_kafka, tmp_path, jars, topic, database)
        database.sql(block(PAGE, "view"), "plant")
        rows = database.sql("select verdict_id, station, decision, total_ms from verdicts", "plant")
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    ids = sorted(verdict["verdict_id"] for verdict in verdicts)
    assert len(lines) == FRAMES + 1, "the file has the repeated one twice, and nothing that was given up"
    assert sorted({line["verdict_id"] for line in lines}) == ids
    assert sorted(row[0] for row in rows) == ids, "a row for each verdict, however often it came"
    assert {(row[0], row[1], row[2]) for row in rows} == {
        (verdict["verdict_id"], "press-1", verdict["decision"]) for verdict in verdicts
    }
    assert all(float(row[3]) > 0 for row in rows)


def carry(kafka: RunningBroker, folder: Path, jars: Path, topic: str, database: Postgres) -> None:
    """Run Kafka Connect as the page has it, until all is in the file and in the table."""
    plugins, secrets = folder / "plugins", folder / "secrets"
    fetch_connector(plugins)
    secrets.mkdir()
    (secrets / "database.password").write_text(PASSWORD)
    worker = {"kafka-1:9092": kafka.bootstrap_servers, "8083": free_port(), "/opt/connectors": plugins}
    names = {"topics=verdicts": f"topics={topic}"}
    where = {"db:5432": f"127.0.0.1:{database.port}", "/etc/connect/secrets": secrets}
    (folder / "worker.properties").write_text(block(PAGE, "worker", worker))
    (folder / "file-sink.properties").write_text(block(PAGE, "file-sink", names))
    (folder / "jdbc-sink.properties").write_text(block(PAGE, "jdbc-sink", {**names, **where}))
    log = folder / "connect.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-ec", block(PAGE, "standalone")],
            cwd=folder,
            env=commands(folder / "bin", jars),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end_s = time.monotonic() + WAIT_S
        while not all_there(folder, database):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            time.sleep(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def fetch_connector(place: Path) -> None:
    """As the page has it; Maven keeps it for the next time."""
    script = block(PAGE, "plugin", {"/opt/connectors": place})
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=False, timeout=FETCH_S)
    if done.returncode != 0 and any(words in done.stdout for words in NOT_REACHED):
        pytest.skip(f"Maven cannot reach Maven Central: {done.stdout[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(place.glob("*/debezium-connector-jdbc-*.jar"))


def all_there(folder: Path, database: Postgres) -> bool:
    """Whether the file and the table have all of them."""
    file = folder / "verdicts.jsonl"
    if not file.exists() or file.read_text().count("\n") < FRAMES + 1:
        return False
    if database.sql("select 1 from pg_tables where tablename = 'verdict_documents'", "plant") == []:
        return False
    return database.sql("select count(*) from verdict_documents", "plant") >= [[str(FRAMES)]]
