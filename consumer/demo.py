"""The whole line on one machine: broker, training, consumer and cameras in one process tree, then a summary."""

from __future__ import annotations

import csv
import json
import re
import signal
import tempfile
import time
import urllib.request
import zipfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.broker import HOST, EmbeddedBroker, free_port
from consumer.children import Child, Children
from consumer.demo_tally import Tally, Truth
from consumer.errors import ChildError, SettingsError
from consumer.topics import ensure_topics
from consumer.verdict_reader import VerdictReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

STATIONS = 4
TRAIN_LOTS = 8
STREAM_LOTS = 3
INPUT_SIZE = "256x192"
PARTITIONS = 4
_READY_TIMEOUT_S = 60.0
_TRAIN_TIMEOUT_S = 900.0
_LAST_VERDICT_TIMEOUT_S = 60.0
_DRAIN_TIMEOUT_S = 30.0
_TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What `framegate demo` was asked for.

    Attributes:
        data: the user's own zip or folder; None renders a line.
        train_images: rendered images of each station to train on.
        frames: frames of each station to send.
        rate_hz: frames a second of each station.
        keep: new folder for everything the demo makes; None makes it in a temporary one and removes it.
    """

    data: Path | None = None
    fail_class: str | None = None
    seed: int = 0
    train_images: int = 200
    frames: int = 120
    rate_hz: float = 8.0
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One image to send."""

    path: Path
    truth: Truth


@dataclass(frozen=True, slots=True)
class Progress:
    """What a display shows: the step, and while frames run the tally and how many were sent."""

    step: str
    seconds: float
    tally: Tally | None = None
    sent: int = 0


def run_demo(settings: DemoSettings, show: Callable[[Progress], None]) -> dict[str, Any]:
    """Run it all and return the summary; no process is left behind, however it ends.

    Raises:
        ChildError: a part has ended badly; the message has its last words.
        SettingsError: a setting makes no sense.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything was ended in order.
    """
    with _terminate_as_interrupt(), ExitStack() as stack:
        folder = _folder(settings, stack)
        return _Demo(settings, folder, show).run()


class _Demo:
    """One run. `folder` holds the images, the bundle and the logs."""

    def __init__(self, settings: DemoSettings, folder: Path, show: Callable[[Progress], None]) -> None:
        self._settings = settings
        self._folder = folder
        self._show = show
        self._start_s = time.monotonic()
        (folder / "logs").mkdir()

    def run(self) -> dict[str, Any]:
        logs = self._folder / "logs"
        with EmbeddedBroker(log=logs / "broker.log") as broker, Children(logs) as children:
            ensure_topics(broker.bootstrap_servers, partitions=PARTITIONS, replication=1)
            source = self._source(children)
            trained = self._train(children, source)
            pictures = self._pictures()
            consumer = self._consumer(children, broker)
            tally, truth = self._stream(children, broker, consumer, pictures)
            consumer.terminate()
            consumer.wait(_DRAIN_TIMEOUT_S)
        summary = tally.summary(truth, time.monotonic() - self._start_s)
        summary["trained_on"] = trained["images"]
        summary["held_out_auroc"] = trained["held_out"]["auroc"]
        return summary

    def _source(self, children: Children) -> Path:
        """A zip to train on: the user's own, or of a rendered line, whose later lots are what is sent."""
        settings = self._settings
        if settings.data is not None:
            return settings.data
        self._say("rendering a line")
        train, later = self._folder / "train", self._folder / "stream"
        jobs = [
            self._render(children, train, settings.train_images, first_lot=0, lots=TRAIN_LOTS),
            self._render(children, later, settings.frames, first_lot=TRAIN_LOTS, lots=STREAM_LOTS),
        ]
        for job in jobs:
            self._await(job, _TRAIN_TIMEOUT_S, "rendering a line")
        archive = self._folder / "train.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
            for path in sorted(path for path in train.rglob("*") if path.is_file()):
                file.write(path, path.relative_to(train).as_posix())
        return archive

    def _render(self, children: Children, out: Path, count: int, *, first_lot: int, lots: int) -> Child:
        numbers = {"--per-station": count, "--seed": self._settings.seed, "--first-lot": first_lot, "--lots": lots}
        options = [text for name, value in numbers.items() for text in (name, str(value))]
        return children.start(f"render-{out.name}", ["data", "render", "--out", str(out), *options])

    def _train(self, children: Children, source: Path) -> dict[str, Any]:
        """Train; on the user's own data keep what was held out, to send it."""
        report = self._folder / "train.json"
        options = ["--json", "--seed", str(self._settings.seed)]
        if self._settings.data is None:
            options += ["--size", INPUT_SIZE]
        else:
            options += ["--held-out", str(self._folder / "stream")]
        if self._settings.fail_class is not None:
            options += ["--fail-class", self._settings.fail_class]
        command = ["train", str(source), "--out", str(self._folder / "bundle"), "--name", "demo", *options]
        self._await(children.start("train", command, report), _TRAIN_TIMEOUT_S, "training")
        summary: dict[str, Any] = json.loads(report.read_bytes())
        return summary

    def _pictures(self) -> list[Picture]:
        """What will be sent, none of it trained on, with its truth."""
        folder = self._folder / "stream"
        with (folder / "groups.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            Picture(
                folder / row["file"],
                Truth(
                    station=_plain(row.get("station") or f"station-{index % STATIONS + 1}"),
                    is_defect=bool(int(row["is_defect"])) if "is_defect" in row else row["label"] == "fail",
                    kind=row.get("kind") or "",
                    difficulty=row.get("difficulty") or "",
                ),
            )
            for index, row in enumerate(rows)
        ]

    def _consumer(self, children: Children, broker: EmbeddedBroker) -> Child:
        """Started and ready: cameras must not run ahead, or their wait would count as latency."""
        self._say("starting the consumer")
        command = ["run", "--bundle", str(self._folder / "bundle"), "--bootstrap-servers", broker.bootstrap_servers]
        port = free_port()
        consumer = children.start("consumer", [*command, "--http-port", str(port), "--group", "framegate-demo"])
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while not _answers(f"http://{HOST}:{port}/ready"):
            consumer.require_running()
            if time.monotonic() > deadline_s:
                msg = f"the consumer was not ready within {_READY_TIMEOUT_S:.0f} s; see {self._folder / 'logs'}"
                raise ChildError(msg)
            time.sleep(_TICK_S)
            self._say("starting the consumer")
        return consumer

    def _stream(
        self, children: Children, broker: EmbeddedBroker, consumer: Child, pictures: list[Picture]
    ) -> tuple[Tally, dict[str, Truth]]:
        """Send every picture by its station's camera and collect a verdict for each."""
        by_path = self._by_station(pictures)
        cameras = [self._camera(children, broker, folder) for folder in sorted((self._folder / "stations").iterdir())]
        tally = Tally()
        deadline_s: float | None = None
        with VerdictReader(broker.bootstrap_servers) as reader:
            while True:
                for verdict in reader.poll(_TICK_S):
                    tally.add(verdict)
                consumer.require_running()
                if not broker.alive:
                    msg = f"the broker ended; see {self._folder / 'logs' / 'broker.log'}"
                    raise ChildError(msg)
                sent = [line for _, path in cameras for line in _lines(path)]
                self._show(Progress("judging frames", time.monotonic() - self._start_s, tally, len(sent)))
                ended = [camera.check() for camera, _ in cameras]  # all are asked: a failed one is seen at once
                if all(ended):
                    truth = {line["frame_id"]: by_path[line["path"]] for line in sent}
                    now_s = time.monotonic()
                    deadline_s = deadline_s or now_s + _LAST_VERDICT_TIMEOUT_S
                    if not tally.missing(truth):
                        return tally, truth
                    if now_s > deadline_s:
                        count, patience = len(tally.missing(truth)), f"{_LAST_VERDICT_TIMEOUT_S:.0f} s"
                        logs = self._folder / "logs"
                        msg = f"{count} of {len(truth)} frames have no verdict after {patience}; see {logs}"
                        raise ChildError(msg)

    def _by_station(self, pictures: list[Picture]) -> dict[str, Truth]:
        """Move each picture to its station's folder; the truth by the new path."""
        by_path = {}
        for picture in pictures:
            folder = self._folder / "stations" / picture.truth.station
            folder.mkdir(parents=True, exist_ok=True)
            by_path[str(picture.path.rename(folder / picture.path.name))] = picture.truth
        return by_path

    def _camera(self, children: Children, broker: EmbeddedBroker, folder: Path) -> tuple[Child, Path]:
        """A camera on one station's pictures, in random order; and the file that lists what it sent."""
        sent = self._folder / f"sent-{folder.name}.jsonl"
        numbers = {
            "--rate": self._settings.rate_hz,
            "--count": self._settings.frames,
            "--shuffle": self._settings.seed,
            "--sent": sent,
            "--bootstrap-servers": broker.bootstrap_servers,
        }
        options = [text for name, value in numbers.items() for text in (name, str(value))]
        return children.start(
            f"camera-{folder.name}", ["camera", str(folder), "--station", folder.name, *options]
        ), sent

    def _await(self, child: Child, timeout_s: float, step: str) -> None:
        """Wait for a child's good end, and keep the display alive."""
        deadline_s = time.monotonic() + timeout_s
        while not child.check():
            if time.monotonic() > deadline_s:
                child.wait(0)
            self._say(step)
            time.sleep(_TICK_S)

    def _say(self, step: str) -> None:
        self._show(Progress(step, time.monotonic() - self._start_s))


def _plain(station: str) -> str:
    """A station's name as it can name a folder and a camera's argument too."""
    return re.sub(r"[^\w.-]", "_", station)


def _answers(url: str) -> bool:
    """Whether this address, on loopback, answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - an http address of our own making
            return bool(answer.status == HTTPStatus.OK)
    except OSError:  # not listening yet, or 503
        return False


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file that may still be written to, or may not be there yet."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _folder(settings: DemoSettings, stack: ExitStack) -> Path:
    """Where everything goes: the user's folder, or one that is removed at the end."""
    if settings.keep is None:
        return Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="framegate-demo-", ignore_cleanup_errors=True))
        )
    try:
        settings.keep.mkdir(parents=True)
    except OSError as error:
        msg = f"folder {settings.keep} cannot be made: {error.strerror}; expected a new one, give another --keep"
        raise SettingsError(msg) from error
    return settings.keep.resolve()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: in order."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
