"""Bundles that are replaced while frames flow: what is loaded, what is refused, and that no frame notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import pytest
from prometheus_client import CollectorRegistry

import consumer.app
from consumer.budget import Limits
from consumer.clock import SystemClock
from consumer.config import Settings
from consumer.engine_judge import EngineJudge
from consumer.events import Frame, Position
from consumer.lineup import Loader
from consumer.memory_io import MemoryDeadLetters, MemoryLog, MemorySink, MemorySource, MemoryWatcher
from consumer.metrics import Metrics
from consumer.pipeline import Pace, Pipeline, Ports
from consumer.reload import Reloader
from engine.backbone import FeaturizerSpec, inputs
from engine.backend_modelled import BatchCost, ModelledBackend
from engine.batcher import BatchPolicy
from engine.bundle import open_bundle, write_bundle
from engine.bundle_cache import BundleCache
from engine.errors import BundleError
from tests.lineups import Alone, Backends, bundle_of, jpegs, loader, put
from tests.web import Web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.backend import Backend
    from engine.bundle import Bundle

PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parent.parent.parent


def until(condition: Callable[[], object]) -> None:
    """Wait for something that has to happen."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.002)


@dataclass
class Watch:
    """A judge and the reloader that watches where it came from."""

    loader: Loader
    outcomes: list[str] = field(default_factory=list)
    waits: int = 0

    def __post_init__(self) -> None:
        self.judge = EngineJudge(self.loader.load())
        self.reloader = Reloader(
            self.loader, self.judge, largest=8, told=self.outcomes.append, settle=lambda _: self._wait()
        )

    def _wait(self) -> None:
        self.waits += 1

    def names(self) -> list[str]:
        """Which models judge."""
        return [route.model.name for route in self.judge.routes()]


@contextmanager
def watching(**where: object) -> Iterator[Watch]:
    watch = Watch(loader(**where))  # type: ignore[arg-type] # passed on
    try:
        yield watch
    finally:
        watch.judge.close()


def test_a_bundle_that_is_replaced_is_loaded_once(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    with watching(bundle=str(tmp_path / "b")) as watch:
        assert watch.reloader.look() is None
        put(tmp_path / "b", bundle_of(2))
        assert watch.reloader.look() == "loaded"
        assert watch.names() == ["seed-2"]
        assert watch.reloader.look() is None
        assert watch.outcomes == ["loaded"]


def test_a_new_engine_brings_its_own_largest_batch(tmp_path: Path) -> None:
    def opened(bundle: Bundle) -> Backend:
        cost = BatchCost(0.004, 0.0) if bundle.name == "seed-3" else BatchCost(0.0, 0.004)
        spec = FeaturizerSpec()
        return ModelledBackend(inputs(spec, bundle.image), spec.pooled_size, cost)

    put(tmp_path / "b", bundle_of(1))
    load = Loader(opened, bundle=str(tmp_path / "b"), largest=None, must_agree=False)
    with EngineJudge(load.load()) as judge:
        assert judge.warm(None, 8) == 2
        told: list[int | None] = []
        reloader = Reloader(
            load, judge, largest=None, most=8, told=lambda _: told.append(judge.largest_batch), settle=lambda _: None
        )
        put(tmp_path / "b", bundle_of(2))
        assert reloader.look() == "loaded"
        put(tmp_path / "b", bundle_of(3, wide=True))
        assert reloader.look() == "loaded"
    assert told == [2, 8], "known by the time that it is told"


def test_the_running_pipeline_gets_the_new_engines_policy(tmp_path: Path) -> None:
    class Noting:
        used: ClassVar[list[BatchPolicy]] = []

        def use(self, policy: BatchPolicy) -> None:
            self.used.append(policy)

    put(tmp_path / "b", bundle_of(1))
    settings = Settings(str(tmp_path / "b"), backend="onnxruntime", watch_s=0.02, station_cap=3, max_in_flight=8)
    load = loader(bundle=str(tmp_path / "b"))
    with EngineJudge(load.load()) as judge:
        judge.warm(None, settings.most_batch())
        pipeline = cast("Pipeline", Noting())
        with consumer.app._attend(settings, load, judge, Metrics(CollectorRegistry()), pipeline):
            put(tmp_path / "b", bundle_of(3, wide=True))
            until(lambda: Noting.used != [])
        (policy,) = Noting.used
        assert policy == settings.policy(judge.largest_batch or 0)
        assert policy.station_cap == 3
        assert 2 <= policy.max_size <= 4


def test_a_zip_is_watched_as_a_folder_is(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b.zip", bundle_of(1))
    write_bundle(tmp_path / "next.zip", bundle_of(2))
    with watching(bundle=str(tmp_path / "b.zip")) as watch:
        (tmp_path / "next.zip").rename(tmp_path / "b.zip")
        assert watch.reloader.look() == "loaded"
        assert watch.names() == ["seed-2"]


def test_a_link_that_is_turned_to_another_bundle_is_seen(tmp_path: Path) -> None:
    for seed in (1, 2):
        put(tmp_path / f"v{seed}", bundle_of(seed))
    (tmp_path / "current").symlink_to("v1")
    with watching(bundle=str(tmp_path / "current")) as watch:
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").replace(tmp_path / "current")
        assert watch.reloader.look() == "loaded"
        assert watch.names() == ["seed-2"]


def test_a_url_is_watched_and_its_server_may_go_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed in (1, 2):
        write_bundle(tmp_path / f"{seed}.zip", bundle_of(seed))
    one, two = ((tmp_path / f"{seed}.zip").read_bytes() for seed in (1, 2))
    cache = BundleCache(tmp_path / "cache")
    with ExitStack() as stack:
        with Web(one) as web:
            watch = stack.enter_context(watching(bundle=web.url, cache=cache))
            assert watch.reloader.look() is None
            web.put(two, "two")
            assert watch.reloader.look() == "loaded"
            assert watch.names() == ["seed-2"]
            asked = len(web.asked)
            assert watch.reloader.look() is None
            assert web.asked[asked:] == ["HEAD"], "nothing is fetched while nothing has changed"
            web.put(two[:-100], "three")
            assert watch.reloader.look() == "refused"
        caplog.clear()
        assert [watch.reloader.look(), watch.reloader.look()] == [None, None]
        assert len(caplog.records) == 1, "told once"
        assert watch.names() == ["seed-2"]
        with Web(one, etag="four", port=web.port):
            assert watch.reloader.look() == "loaded"
        assert watch.names() == ["seed-1"]
    assert watch.outcomes == ["loaded", "refused", "loaded"]


def test_a_routing_file_and_a_shadow_may_name_urls(tmp_path: Path) -> None:
    write_bundle(tmp_path / "1.zip", bundle_of(1))
    put(tmp_path / "b", bundle_of(2))
    with Web((tmp_path / "1.zip").read_bytes()) as web:
        routes = tmp_path / "routes.toml"
        routes.write_text(f'[[route]]\nstation = "a"\nbundle = "{web.url}"\n[[route]]\nstation = "b"\nbundle = "b"\n')
        cache = BundleCache(tmp_path / "cache")
        with watching(routing=routes, shadow=web.url, cache=cache) as watch:
            assert watch.names() == ["seed-1", "seed-2"]
            assert web.asked.count("GET") == 1


def test_without_a_cache_a_url_is_refused() -> None:
    with pytest.raises(BundleError, match="is a URL: expected a folder or a zip"):
        loader(bundle="https://127.0.0.1:9/parts.zip").load()


def test_the_same_bundle_again_changes_nothing_and_is_said_to(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    with watching(bundle=str(tmp_path / "b")) as watch:
        put(tmp_path / "b", bundle_of(1))
        assert watch.reloader.look() == "unchanged"
        assert watch.reloader.look() is None


def test_a_broken_bundle_is_refused_once_with_one_line_and_the_old_one_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "b", bundle_of(1))
    with watching(bundle=str(tmp_path / "b")) as watch:
        graph = tmp_path / "b" / "featurizer.onnx"
        graph.write_bytes(graph.read_bytes()[:-1] + b"x")
        assert watch.reloader.look() == "refused"
        assert watch.reloader.look() is None, "not again and again"
        assert watch.reloader.look(again=True) == "refused", "unless asked to"
        assert watch.names() == ["seed-1"]
        assert len(caplog.records) == 2
        assert "reload refused, and the models of before go on: bundle" in caplog.text
        assert "has a changed featurizer.onnx" in caplog.text
        put(tmp_path / "b", bundle_of(2))
        assert watch.reloader.look() == "loaded"
        assert watch.names() == ["seed-2"]
    assert watch.outcomes == ["refused", "refused", "loaded"]


def test_a_bundle_that_goes_away_is_refused_and_its_return_noticed(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    with watching(bundle=str(tmp_path / "b")) as watch:
        (tmp_path / "b").rename(tmp_path / "elsewhere")
        assert watch.reloader.look() == "refused"
        (tmp_path / "elsewhere").rename(tmp_path / "b")
        assert watch.reloader.look() == "unchanged"


def test_what_is_being_copied_is_left_until_it_stands_still(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    put(tmp_path / "next", bundle_of(2))
    with watching(bundle=str(tmp_path / "b")) as watch:
        files = sorted(path for path in (tmp_path / "next").rglob("*") if path.is_file())

        def copy_one_more(_seconds: float) -> None:
            if files:
                source = files.pop()
                shutil.copy(source, tmp_path / "b" / source.relative_to(tmp_path / "next"))

        watch.reloader._settle = copy_one_more
        copy_one_more(0)
        assert watch.reloader.look() == "loaded"
        assert files == []
        assert watch.names() == ["seed-2"]
        assert watch.outcomes == ["loaded"], "never tried half copied"


def test_an_unexpected_failure_of_a_library_is_a_refusal_too(tmp_path: Path) -> None:
    class Failing(Backends):
        def __call__(self, bundle: Bundle) -> Backend:
            if self.opened:
                msg = "from the depths of a library"
                raise RuntimeError(msg)
            return super().__call__(bundle)

    put(tmp_path / "b", bundle_of(1))
    with watching(backends=Failing(), bundle=str(tmp_path / "b")) as watch:
        put(tmp_path / "b", bundle_of(3, wide=True))
        assert watch.reloader.look() == "refused"
        assert watch.names() == ["seed-1"]


def test_a_routing_file_is_watched_with_all_it_names(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        put(tmp_path / f"b{seed}", bundle_of(seed))
    routes = tmp_path / "routes.toml"
    routes.write_text("[[route]]\nstation = 'a'\nbundle = 'b1'\n")
    with watching(routing=routes) as watch:
        routes.write_text("[[route]]\nstation = 'a'\nbundle = 'b2'\n[[route]]\nstation = '*'\nbundle = 'b3'\n")
        assert watch.reloader.look() == "loaded"
        assert watch.names() == ["seed-2", "seed-3"]
        put(tmp_path / "b3", bundle_of(4))
        assert watch.reloader.look() == "loaded"
        assert watch.names() == ["seed-2", "seed-4"]
        routes.write_text("[[route]]\nstation = 'a'\n")
        assert watch.reloader.look() == "refused"
        routes.write_text("[[route]]\nstation = 'a'\nbundle = 'b9'\n")
        assert watch.reloader.look() == "refused"
        put(tmp_path / "b9", bundle_of(5))
        assert watch.reloader.look() == "loaded", "the bundle that was missing is watched"
        assert watch.names() == ["seed-5"]


def test_only_what_changed_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        put(tmp_path / f"b{seed}", bundle_of(seed))
    routes = tmp_path / "routes.toml"
    routes.write_text("[[route]]\nstation = 'a'\nbundle = 'b1'\n[[route]]\nstation = 'b'\nbundle = 'b2'\n")
    opened: list[str] = []

    def noted(place: str) -> Bundle:
        opened.append(place)
        return open_bundle(place)

    monkeypatch.setattr("consumer.lineup.open_bundle", noted)
    with watching(routing=routes) as watch:
        put(tmp_path / "b2", bundle_of(3))
        assert watch.reloader.look() == "loaded"
    assert [place.rpartition("/")[2] for place in opened] == ["b1", "b2", "b2"]


def test_it_looks_by_itself_and_when_asked(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    with watching(bundle=str(tmp_path / "b")) as watch:
        with watch.reloader.watching(0.01):
            put(tmp_path / "b", bundle_of(2))
            until(lambda: "loaded" in watch.outcomes)
            until(lambda: watch.names() == ["seed-2"])
        seen = len(watch.outcomes)
        with watch.reloader.watching(0):
            put(tmp_path / "b", bundle_of(1))
            time.sleep(0.05)
            assert len(watch.outcomes) == seen, "0: not by itself"
            watch.reloader.ask()
            until(lambda: len(watch.outcomes) > seen)
        assert not any(thread.name == "reload" for thread in threading.enumerate())


# With frames flowing.


class Flowing:
    """A pipeline on memory that is fed until it is told to stop."""

    def __init__(self, judge: EngineJudge, payloads: list[bytes]) -> None:
        self.judge = judge
        self.payloads = payloads
        self.clock = SystemClock()
        self.log = MemoryLog(partitions=2)
        self.sink, self.watcher = MemorySink(), MemoryWatcher()
        self.source = MemorySource(self.log, self.clock, wait=time.sleep)
        self.letters = MemoryDeadLetters()
        self.pipeline = Pipeline(
            Ports(self.source, self.sink, judge, self.clock, self.watcher, self.letters, "{}/{}".format),
            Pace(BatchPolicy(8, 0.002, 8), Limits(64, 10**8), 2),
        )
        self.raised: list[BaseException] = []
        self.sent = 0
        self._feeding = True
        self._threads = [threading.Thread(target=self._feed), threading.Thread(target=self._run)]

    def _feed(self) -> None:
        """As fast as the pipeline takes it, half a budget ahead at most."""
        while self._feeding:
            if self.sent - len(self.sink.verdicts) < 100:
                number = self.sent

                def make(offset: int, number: int = number) -> Frame:
                    now_s = self.clock.epoch_s()
                    position = Position("frames", number % 2, offset)
                    return Frame(position, "ab"[number % 2], str(number), self.payload(number), now_s, now_s)

                self.log.append(number % 2, make)
                self.sent += 1
            else:
                time.sleep(0.001)

    def payload(self, number: int) -> bytes:
        return self.payloads[number % len(self.payloads)]

    def _run(self) -> None:
        try:
            self.pipeline.run()
        except BaseException as error:  # noqa: BLE001 - looked at below
            self.raised.append(error)

    def __enter__(self) -> Flowing:  # noqa: PYI034 - never derived from
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._feeding = False
        self._threads[0].join()
        until(lambda: self.raised or len(self.sink.verdicts) == self.sent)
        self.pipeline.stop()
        self._threads[1].join()

    def judged_since(self, frames: int) -> None:
        """Wait for so many more verdicts."""
        enough = len(self.sink.verdicts) + frames
        until(lambda: self.raised or len(self.sink.verdicts) >= enough)

    def assert_each_frame_once_by_the_model_it_names(self, alone: Alone, places: dict[str, str]) -> Counter[str]:
        """Exactly one verdict each, in order; each number that of exactly the model named. How many by which."""
        assert self.raised == []
        verdicts = self.sink.verdicts
        for station in "ab":
            offsets = [v.frame.position.offset for v in verdicts if v.frame.station == station]
            assert offsets == list(range(len(offsets)))
        assert len(verdicts) == self.sent
        for place in places.values():
            alone.predictions(place, self.payloads)
        by_model: Counter[str] = Counter()
        for verdict in verdicts:
            expected = alone.of(verdict.model.digest, self.payload(int(verdict.frame.frame_id)))
            assert verdict.cause is None
            assert (verdict.decision, verdict.defect_probability) == (expected.decision, expected.defect_probability)
            by_model[verdict.model.name] += 1
        assert self.letters.letters == []
        return by_model


def swap_under_load(tmp_path: Path, swaps: int) -> tuple[Counter[str], Watch]:
    """Replace the bundle so many times, every third time by one of another featurizer, while frames flow."""
    versions = [bundle_of(1), bundle_of(2), bundle_of(3, wide=True)]
    places: dict[str, str] = {}
    for number, version in enumerate(versions):
        places[write_bundle(tmp_path / f"v{number}", version).digest] = str(tmp_path / f"v{number}")
    put(tmp_path / "b", versions[0])
    payloads = jpegs(7)
    with watching(bundle=str(tmp_path / "b")) as watch:
        with Flowing(watch.judge, payloads) as flowing:
            flowing.judged_since(20)
            for number in range(1, swaps + 1):
                put(tmp_path / "b", versions[number % 3])
                assert watch.reloader.look() == "loaded"
                flowing.judged_since(20)
        lanes = watch.judge.lineup.lanes
        assert [lane._needs for lane in lanes] == [1], "only the lineup needs it"
        by_model = flowing.assert_each_frame_once_by_the_model_it_names(Alone(), places)
    return by_model, watch


def test_a_swap_under_load_loses_nothing_and_every_verdict_is_of_the_model_it_names(tmp_path: Path) -> None:
    by_model, watch = swap_under_load(tmp_path, 4)
    assert set(by_model) == {"seed-1", "seed-2", "seed-3"}
    assert watch.outcomes == ["loaded"] * 4


@pytest.mark.slow
def test_fifty_swaps_under_load(tmp_path: Path) -> None:
    by_model, watch = swap_under_load(tmp_path, 50)
    assert watch.outcomes == ["loaded"] * 50
    assert min(by_model.values()) > 100
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "close-engine"])
    engines = [thread for thread in threading.enumerate() if thread.name.startswith("engine")]
    assert len(engines) <= 2 * len(os.sched_getaffinity(0)), "the threads of closed engines are gone"


def test_a_bad_bundle_under_load_is_refused_and_costs_no_frame(tmp_path: Path) -> None:
    put(tmp_path / "b", bundle_of(1))
    good = write_bundle(tmp_path / "good", bundle_of(1))
    with watching(bundle=str(tmp_path / "b")) as watch, Flowing(watch.judge, jpegs(5)) as flowing:
        flowing.judged_since(20)
        (tmp_path / "b" / "manifest.json").write_text("{")
        assert watch.reloader.look() == "refused"
        flowing.judged_since(20)
    by_model = flowing.assert_each_frame_once_by_the_model_it_names(Alone(), {good.digest: str(tmp_path / "good")})
    assert set(by_model) == {"seed-1"}


SWAPS_AND_THEIR_MEMORY = """
import sys, time
from pathlib import Path
import numpy as np
from consumer.engine_judge import EngineJudge
from consumer.reload import Reloader
from engine.endurance import resident_bytes
from tests.lineups import Backends, bundle_of, loader, put

place, backend, kind, leak = Path(sys.argv[1]), *sys.argv[2:]
versions = [bundle_of(1), bundle_of(3, wide=True) if kind == "engines" else bundle_of(2)]
put(place, versions[0])
load = loader(Backends(backend), bundle=str(place))
held, held_on_to, outcomes = [], [], []
with EngineJudge(load.load()) as judge:
    reloader = Reloader(load, judge, largest=8, told=outcomes.append, settle=lambda _: None)
    for swap in range(1, 91):
        put(place, versions[swap % 2])
        before = judge.lineup
        if leak == "leak":
            before.close = lambda kept=before: held_on_to.append(kept)
        reloader.look()
        for lane in before.lanes:
            if leak != "leak" and lane not in judge.lineup.lanes:
                assert lane.wait_closed(10)
        held.append(resident_bytes() / 2**20)
assert outcomes == ["loaded"] * 90
print(np.polyfit(range(50), held[40:], 1)[0])
print([round(value, 1) for value in held], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "kind", "leak"),
    [
        ("onnxruntime", "heads", ""),
        ("onnxruntime", "engines", ""),
        ("openvino", "engines", ""),
        ("onnxruntime", "engines", "leak"),
    ],
)
def test_fifty_swaps_take_no_memory(tmp_path: Path, backend: str, kind: str, leak: str) -> None:
    """In a process of its own, where nothing that an earlier test gave back can hide what is kept.

    The allocator settles within the first forty, at a few MiB more than one engine takes.
    """
    command = [sys.executable, "-c", SWAPS_AND_THEIR_MEMORY, str(tmp_path / "b"), backend, kind, leak]
    # Every engine is opened on a new thread. With an arena for each of some threads, as glibc has by default, what one
    # of them frees does not serve the next, and the memory climbs in steps for sixty swaps or more before it stays.
    one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=one_arena)
    assert done.returncode == 0, done.stderr
    mib_per_swap = float(done.stdout)
    print(done.stderr)  # noqa: T201 - shown where it fails
    if leak:
        assert mib_per_swap > 1.0, "an engine that is not closed would be seen"
    else:
        assert mib_per_swap < 0.1
