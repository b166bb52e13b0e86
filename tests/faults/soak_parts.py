"""What a soak is made of: frames with what has to be said of them, cameras that never run dry, bundles to replace."""

from __future__ import annotations

import itertools
import random
import shutil
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

import cv2
from kafka import KafkaProducer

from consumer.topics import producer_limits
from engine.bundle import write_bundle
from engine.scorer import open_scorer
from tests.bundles import pictures
from tests.faults.checker import Expected, FrameRecord, digest_of
from tests.lineups import bundle_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from engine.scorer import Scorer

STATIONS = tuple(f"station-{number}" for number in range(12))
PARTITIONS = 6
AHEAD = 500
"""Frames of a partition that are sent and not yet answered: above what a worker holds, so that none waits for them."""

BROKEN_SHARE = 0.03
SIDES_PX = (640, 480)
CANDIDATES = 64
GOOD = 24
EDGE = 0.02
"""No frame's probability lies nearer to one at which a decision changes, under any of the bundles."""

KINDS = ((1, False), (2, False), (3, True), (4, True))
"""(seed, of another graph) of each sound bundle: of their four reloads two need a new engine and two do not."""

BROKEN = ("changed", "cut", "lacking")
BAD_EVERY = 4


@dataclass(frozen=True, slots=True)
class Assortment:
    """Payloads, and what each model has to say of each, by the model's digest and the digest of the bytes."""

    good: tuple[bytes, ...]
    broken: tuple[bytes | None, ...]
    expected: Mapping[str, Mapping[str, Expected]]

    def draw(self, drawn: random.Random) -> bytes | None:
        """One frame's bytes."""
        return drawn.choice(self.broken if drawn.random() < BROKEN_SHARE else self.good)


class Bundles:
    """Sound and broken bundles that are put in one place, one after the other, as an operator does it."""

    def __init__(self, folder: Path) -> None:
        """Write all that are sound, and put the first in its place."""
        self.place = folder / "bundle"
        self._store = folder / "store"
        self.sound: list[Path] = []
        self.digests: list[str] = []
        for seed, wide in KINDS:
            path = self._store / f"seed-{seed}"
            self.digests.append(write_bundle(path, bundle_of(seed, wide=wide)).digest)
            self.sound.append(path)
        shutil.copytree(self.sound[0], self.place)
        self.there = 0
        self._number = 0
        self._ways = itertools.cycle(BROKEN)

    def replace(self) -> bool:
        """Put the next one in place. Returns whether it is sound."""
        self._number += 1
        sound = self._number % BAD_EVERY != 0
        nxt = (self.there + 1) % len(self.sound)
        new, old = (self.place.with_name(f".{mark}") for mark in ("new", "old"))
        shutil.copytree(self.sound[nxt], new)
        if sound:
            self.there = nxt
        else:
            spoil(new, next(self._ways))
        self.place.rename(old)
        new.rename(self.place)
        shutil.rmtree(old)
        return sound


def spoil(bundle: Path, way: str) -> None:
    """Break a bundle in one of three ways."""
    graph, manifest = bundle / "featurizer.onnx", bundle / "manifest.json"
    if way == "changed":
        graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    elif way == "cut":
        manifest.write_bytes(manifest.read_bytes()[:-200])
    else:
        next(bundle.rglob("pooled_weights.npy")).unlink()


def assortment(bundles: Bundles) -> Assortment:
    """All that may be sent, scored offline by every bundle, each frame alone."""
    images = [cv2.resize(picture, SIDES_PX, interpolation=cv2.INTER_LINEAR) for picture in pictures(CANDIDATES, seed=5)]
    payloads = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for image in images]
    tables: dict[str, dict[str, Expected]] = {}
    clear = set(payloads)
    for path, digest in zip(bundles.sound, bundles.digests, strict=True):
        with open_scorer(path, "onnxruntime") as scorer:
            tables[digest] = {digest_of(payload): _scored(scorer, payload) for payload in payloads}
            edges = (scorer.operating_point.threshold, *scorer.operating_point.review_band)
        clear -= {
            payload
            for payload in payloads
            if any(abs((tables[digest][digest_of(payload)].probability or 0.0) - edge) <= EDGE for edge in edges)
        }
    good = tuple(payload for payload in payloads if payload in clear)[:GOOD]
    if len(good) < GOOD:
        msg = f"only {len(good)} of {CANDIDATES} pictures are clear under every bundle: expected {GOOD}"
        raise ValueError(msg)
    broken = (None, b"", b"not an image", good[0][:200])
    for table in tables.values():
        table |= {digest_of(payload): Expected("none", "undecodable") for payload in broken}
    return Assortment(good, broken, tables)


def _scored(scorer: Scorer, payload: bytes) -> Expected:
    """What the engine says of one frame alone."""
    prediction = scorer.score(scorer.decode(payload)[None]).predictions[0]
    return Expected(prediction.decision, None, prediction.defect_probability)


class Cameras:
    """Twelve stations that always have frames waiting, and never more than a bounded number. A context manager.

    Attributes:
        acknowledged: every frame that is in its topic, as the broker says.
        failed: what went wrong, if anything did.
    """

    def __init__(self, bootstrap_servers: str, topic: str, assortment: Assortment, seed: int) -> None:
        """Connect; nothing is sent before the context is entered."""
        self.acknowledged: SimpleQueue[FrameRecord] = SimpleQueue()
        self.failed: list[BaseException] = []
        self._topic = topic
        self._assortment = assortment
        self._digests = {id(payload): digest_of(payload) for payload in (*assortment.good, *assortment.broken)}
        self._drawn = random.Random(seed)
        self._sent = [0] * PARTITIONS
        self._answered = [0] * PARTITIONS
        self._stop = threading.Event()
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap_servers.split(","),
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            batch_size=256 * 1024,
            metrics_enabled=False,
            **producer_limits(),
        )
        self._thread = threading.Thread(target=self._send, name="cameras", daemon=True)

    def answered(self, partition: int) -> None:
        """A frame of this partition has its verdict: another may be sent."""
        self._answered[partition] += 1

    @property
    def sent(self) -> int:
        """Frames handed to the client."""
        return sum(self._sent)

    def stop(self) -> None:
        """Send no more, and wait until all is acknowledged."""
        self._stop.set()
        self._thread.join()
        self._producer.flush(60)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self._producer.close(timeout=10)

    def _send(self) -> None:
        try:
            for number in self._turns():
                self._one(number)
        except Exception as error:  # noqa: BLE001 - told by whoever waits for the frames
            self.failed.append(error)

    def _turns(self) -> Iterator[int]:
        """Partitions with room, in turn."""
        while not self._stop.is_set():
            room = [number for number in range(PARTITIONS) if self._sent[number] - self._answered[number] < AHEAD]
            yield from room
            if not room:
                self._stop.wait(0.01)

    def _one(self, partition: int) -> None:
        """A frame of one of the partition's stations."""
        nth = self._sent[partition]
        stations = STATIONS[partition::PARTITIONS]
        station = stations[nth % len(stations)]
        payload = self._assortment.draw(self._drawn)
        frame_id = f"{partition}/{nth}"
        future = self._producer.send(
            self._topic, payload, key=station.encode(), headers=[("ce_id", frame_id.encode())], partition=partition
        )
        digest = self._digests[id(payload)]

        def stored(where: object) -> None:
            offset = where.offset  # type: ignore[attr-defined] # the client's metadata of a record
            self.acknowledged.put(FrameRecord(partition, offset, station, frame_id, digest))

        future.add_callback(stored)
        future.add_errback(self.failed.append)
        self._sent[partition] = nth + 1
