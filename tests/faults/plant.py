"""A whole plant on this machine: three brokers behind a network that can be broken, consumers, cameras, a dashboard."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from consumer.children import bound_command
from consumer.topics import ensure_topics
from engine.bundle import write_bundle
from tests.bundles import small_bundle
from tests.faults.checker import check, read_frames, read_verdicts
from tests.faults.frames import assortment
from tests.faults.proxy import Network
from tests.kafka_cluster import ApacheKafka

if TYPE_CHECKING:
    from tests.faults.checker import Report
    from tests.faults.frames import Assortment

ROOT = Path(__file__).resolve().parents[2]
STATIONS = tuple(f"station-{number}" for number in range(8))
PARTITIONS = 6
SESSION_S = 6.0
UP_MARK = "the source is ready"
"""What a worker logs once it is a member of the group; by then it has its own way with signals."""

END_S = 30.0
ANSWERS_S = 150.0
CHECK_S = 120.0
TAIL_LINES = 15


class Worker:
    """One consumer under one name, over all its lives."""

    def __init__(self, plant: Plant, name: str) -> None:
        """Begin its first life."""
        self.name = name
        self._plant = plant
        self._lives = 0
        self.start()

    @property
    def log(self) -> Path:
        """What the present life says."""
        return self._plant.folder / f"{self.name}-{self._lives:03}.log"

    @property
    def up(self) -> bool:
        """Whether it is at work."""
        return self.process.poll() is None and UP_MARK in self.log.read_text(errors="replace")

    def start(self) -> None:
        """Begin a life. Its process does not outlive the thread that calls this."""
        self._lives += 1
        command = [sys.executable, "-m", "tests.faults.worker", *self._plant.options(self.name, self._lives)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                bound_command(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=ROOT,
            )
        self.ending = False

    def kill(self) -> None:
        """As a power cut would."""
        self.ending = True
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """Ask it to end."""
        self.ending = True
        self.process.terminate()

    def last_words(self) -> str:
        """The end of its log."""
        return "\n    ".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


@dataclass
class Plant:
    """All of it. A context manager: leaving it ends every process and thread of it.

    Attributes:
        folder: data and logs.
        rate_hz: frames a second, of all stations together.
        shared_data: see `assortment`.
    """

    folder: Path
    rate_hz: float
    seed: int
    shared_data: Path | None = None
    workers: list[Worker] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    sent: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)
    _answered_s: dict[str, float] = field(default_factory=dict)
    _answers: int = 0
    _threads: dict[str, threading.Thread] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _camera_stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Brokers, network, topics, bundle, cameras and dashboard; no consumer yet."""
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it, last opened first."""
        self._stack.close()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = self._stack.enter_context(Network((1, 2, 3)))
        fronts = {node: proxy.port for node, proxy in self.network.proxies.items()}
        settings = {"min.insync.replicas": 2, "transaction.state.log.min.isr": 2}
        self.cluster = ApacheKafka(3, self.folder / "kafka", settings=settings, fronts=fronts)
        for node, proxy in self.network.proxies.items():
            proxy.target = self.cluster.fronted_port(node)
        self._stack.enter_context(self.cluster)
        ensure_topics(self.cluster.bootstrap_servers, partitions=PARTITIONS, replication=3)
        write_bundle(self.folder / "bundle", small_bundle())
        self.assortment: Assortment = assortment(self.folder / "bundle", self.shared_data)
        self._stack.callback(self._end_workers)
        self._begin("dashboard", self._watch, self._stop)
        self._begin("cameras", self._send, self._camera_stop)

    def _begin(self, name: str, work: Any, stop: threading.Event) -> None:
        self._threads[name] = threading.Thread(target=work, name=name, daemon=True)
        self._threads[name].start()
        self._stack.callback(self._threads[name].join, END_S)
        self._stack.callback(stop.set)

    def options(self, name: str, life: int) -> list[str]:
        """A worker's command line."""
        topics = ["--frames-topic", "frames", "--verdicts-topic", "verdicts", "--dead-topic", "frames.dead"]
        place = ["--bundle", str(self.folder / "bundle"), "--bootstrap-servers", self.network.addresses]
        ours = ["--group", "faults", "--instance", name, "--session-timeout-s", str(SESSION_S)]
        return [*place, *topics, *ours, "--seed", str(self.seed + life)]

    def add_worker(self, name: str) -> Worker:
        """A further consumer of the group."""
        worker = Worker(self, name)
        self.workers.append(worker)
        return worker

    def restart_the_fallen(self) -> None:
        """A consumer that ended though nobody asked it to is noted, with its last words, and started again."""
        for worker in self.workers:
            status = worker.process.poll()
            if status is not None and not worker.ending:
                self.died.append(f"{worker.name} ended by itself with status {status}:\n    {worker.last_words()}")
                worker.start()

    @property
    def flows_since_s(self) -> float:
        """Each station has a committed verdict of a frame that was sent then or later; monotonic seconds."""
        return min((self._answered_s.get(station, 0.0) for station in STATIONS), default=0.0)

    @property
    def answers(self) -> int:
        """Verdicts that the dashboard has seen."""
        return self._answers

    def admin(self) -> KafkaAdminClient:
        """To be closed by the caller."""
        return KafkaAdminClient(bootstrap_servers=self.cluster.bootstrap_servers.split(","))

    def in_sync(self) -> bool:
        """Whether every partition of every topic has all its replicas in sync."""
        try:
            with self.admin() as admin:
                topics = admin.describe_topics()
        except KafkaError:
            return False
        return all(
            len(partition["isr_nodes"]) == len(partition["replica_nodes"])
            for topic in topics
            for partition in topic["partitions"]
        )

    def finish(self) -> Report:
        """Send no more, see everything answered, end the consumers in order, and check."""
        self._camera_stop.set()
        self._threads["cameras"].join(CHECK_S)
        self.network.heal()
        end_s = time.monotonic() + ANSWERS_S
        while not (self._answers >= self.sent and self._all_up()) and time.monotonic() < end_s:
            self.restart_the_fallen()
            time.sleep(0.2)
        time.sleep(1.0)  # for what should not come any more
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                status = worker.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.died.append(f"{worker.name} did not end within {END_S:g} s:\n    {worker.last_words()}")
            else:
                if status:
                    self.died.append(
                        f"{worker.name} was asked to end, and did with {status}:\n    {worker.last_words()}"
                    )
        servers = self.cluster.bootstrap_servers
        frames, verdicts = read_frames(servers, "frames", CHECK_S), read_verdicts(servers, "verdicts", CHECK_S)
        return check(frames, verdicts, self.assortment.expected, "frames")

    def _all_up(self) -> bool:
        """Whether no consumer is at its start, where SIGTERM ends it as it ends any program: with nothing in hand."""
        return all(worker.up or worker.ending for worker in self.workers)

    def _end_workers(self) -> None:
        for worker in self.workers:
            worker.kill()

    def _send(self) -> None:
        """The cameras: all stations in turn, each frame's id telling when it was sent."""
        drawn = random.Random(self.seed)
        producer = KafkaProducer(
            bootstrap_servers=self.cluster.bootstrap_servers.split(","),
            acks="all",
            enable_idempotence=True,
            delivery_timeout_ms=300_000,
            max_block_ms=120_000,
        )
        due_s = time.monotonic()
        number = 0
        while not self._camera_stop.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + 1 / self.rate_hz, time.monotonic() - 1.0)
            station = STATIONS[number % len(STATIONS)]
            frame_id = f"{station}/{number}/{time.monotonic():.3f}"
            payload = self.assortment.draw(drawn)
            producer.send("frames", payload, key=station.encode(), headers=[("ce_id", frame_id.encode())])
            number += 1
            self.sent = number
        producer.flush(CHECK_S)
        producer.close(timeout=10)

    def _watch(self) -> None:
        """The dashboard: reads committed verdicts as they come."""
        reader = KafkaConsumer(
            bootstrap_servers=self.cluster.bootstrap_servers.split(","),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            reconnect_backoff_max_ms=500,
        )
        reader.assign([TopicPartition("verdicts", number) for number in range(PARTITIONS)])
        while not self._stop.is_set():
            with suppress(KafkaError):  # a broker is away: it comes back
                for records in reader.poll(timeout_ms=100).values():
                    for record in records:
                        self._note(record)
        reader.close()

    def _note(self, record: Any) -> None:
        """One verdict; its frame's id is at hand without reading all of it."""
        _, _, rest = record.value.partition(b'"frame_id":"')
        frame_id = rest.partition(b'"')[0].decode()
        station, _, sent_s = frame_id.split("/")
        self._answered_s[station] = max(self._answered_s.get(station, 0.0), float(sent_s))
        self._answers += 1
