"""A real Prometheus watches a real consumer while things are broken: each fault fires its own alert, and it clears.

What is shown here is that the product's metrics and the shipped rules fit each other; promtool shows the thresholds.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from engine.backend import open_backend
from engine.familiarity import PixelLimits
from engine.scorer import Scorer
from tests.deploy.feed import Feed, dark, other_colour, plain
from tests.deploy.live_prometheus import HURRY, Prometheus, about, hurried
from tests.deploy.prometheus import RULES, tool
from tests.line import Line
from tests.lineups import bundle_of, put
from tests.scenes import limits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from engine.bundle import Bundle
    from tests.deploy.live_prometheus import Told
    from tests.kafka_cluster import RunningBroker

PATIENCE_S = 150.0
"""For one alert to fire or to clear: a minute of silence is one of them, on a machine that has other work too."""

STILL_S = 12.0
"""A healthy line is looked at for so long: each rule has been evaluated a dozen times."""

DARK_BELOW = 40.0
DEADLINE_S = 35.0
LATE_S = -50.0
"""Past the deadline, and within the minute that a camera's clock is believed."""

BUSY = {"coloured": 4}
"""Drift is known after 64 frames."""

STATIONS = ("healthy", "quiet", "coloured", "hasty", "dark", "frozen", "torn", "late")


def test_hurried_rules_are_the_shipped_ones_but_for_their_durations() -> None:
    shipped = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    quick = hurried(shipped)
    for group, quick_group in zip(shipped["groups"], quick["groups"], strict=True):
        for rule, quick_rule in zip(group["rules"], quick_group["rules"], strict=True):
            assert rule.keys() == quick_rule.keys()
            assert all(rule[key] == quick_rule[key] for key in rule.keys() - {"for", "expr"})
            assert without_durations(rule["expr"]) == without_durations(quick_rule["expr"])
    drift = next(rule for group in quick["groups"] for rule in group["rules"] if rule.get("alert") == "FramegateDrift")
    assert drift["for"] == f"{600 // HURRY}s"


def without_durations(expression: str) -> str:
    return re.sub(r"\d+[smh]\b", "a while", expression)


class Watch:
    """Looks again and again, and bears no alert but those that are due."""

    def __init__(self, prometheus: Prometheus, feed: Feed) -> None:
        self._prometheus = prometheus
        self._feed = feed
        self._due: set[Told] = set()
        self.story: list[tuple[float, str, Told]] = []
        self._began_s = time.monotonic()

    @property
    def told(self) -> set[Told]:
        """All that has fired."""
        return {each for _, what, each in self.story if what == "fires"}

    def nothing_for(self, seconds: float) -> None:
        """Nothing fires."""
        end_s = time.monotonic() + seconds
        self._until(lambda _: time.monotonic() > end_s)

    def also(self, *told: Told) -> None:
        """These are due from now on, whenever they come."""
        self._due.update(told)

    def fires(self, *told: Told) -> None:
        """These are due from now on; wait until they fire."""
        self._due.update(told)
        self._until(lambda firing: firing >= set(told))
        self.story += [(time.monotonic() - self._began_s, "fires", each) for each in told]
        for each in told:
            alert = self._prometheus.firing()[each]
            assert each[1] in alert["annotations"]["summary"], alert
            assert "no value" not in json.dumps(alert["annotations"]), alert

    def clears(self, *told: Told) -> None:
        """Wait until these fire no more; from then on they are not due."""
        self._until(lambda firing: not firing & set(told))
        self._due.difference_update(told)
        self.story += [(time.monotonic() - self._began_s, "clears", each) for each in told]

    def _until(self, reached: Callable[[set[Told]], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while True:
            if self._feed.error is not None:
                raise self._feed.error
            firing = set(self._prometheus.firing())
            assert firing <= self._due, f"{firing - self._due} fire beside {self._due}; so far {self.story}"
            if reached(firing):
                return
            assert time.monotonic() < end_s, f"{firing} fire of {self._due} after {PATIENCE_S:.0f} s; {self.story}"
            time.sleep(0.4)


@pytest.fixture
def prometheus_is_here() -> None:
    tool("prometheus")


def distances(scorer: Scorer, pictures: list[bytes]) -> np.ndarray:
    """Of each picture from the training set; all of them are sound."""
    answer = scorer.score(np.stack([scorer.decode(picture) for picture in pictures]))
    return np.array([prediction.distance for prediction in answer.predictions], np.float64)


@pytest.fixture
def bundle() -> Bundle:
    """One that knows its scene, its light, and how far its parts may be from those of training."""
    model = bundle_of(1)
    with Scorer(model, open_backend("onnxruntime", model.graph)) as scorer:
        usual, strange = (distances(scorer, pictures) for pictures in (plain(), other_colour()))
    assert usual.max() < strange.min()
    limits = replace(limits_of(1), drift=float((usual.max() + strange.min()) / 2))
    head = replace(model.head, pixels=PixelLimits(1.0, 0.5, dark=DARK_BELOW))
    return replace(model, head=head, stream=limits)


@pytest.fixture
def line(embedded_broker: RunningBroker, unique: str, tmp_path: Path) -> Iterator[Line]:
    with Line(embedded_broker.bootstrap_servers, tmp_path / "work", unique) as line:
        yield line


def worker_pid(line: Line, number: int) -> int:
    """Out of the log."""
    prefix = f"worker {number} started as process "
    said = [
        json.loads(text)["what"] for text in (line.folder / "consumer.log").read_text().splitlines() if prefix in text
    ]
    return int(said[-1].removeprefix(prefix))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prometheus_is_here")
def test_each_fault_fires_its_own_alert_and_no_other_and_clears(
    line: Line, bundle: Bundle, embedded_broker: RunningBroker, tmp_path: Path
) -> None:
    routing = tmp_path / "line.toml"
    put(tmp_path / "parts", bundle)
    write_routes(routing, STATIONS)
    consumer = line.consumer(
        None,
        *("--routing", str(routing), "--workers", "2", "--backend", "onnxruntime"),
        *("--deadline-s", f"{DEADLINE_S:g}", "--session-timeout-s", "24", "--watch-s", "1"),
    )
    sound = plain()
    with (
        Feed(embedded_broker.bootstrap_servers, line.frames, BUSY) as feed,
        Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{line.port}"]) as prometheus,
    ):
        for station in STATIONS:
            feed.shows(station, sound)
        watch = Watch(prometheus, feed)
        watch.nothing_for(STILL_S)
        deadlines = prometheus.ask("query", query="framegate_deadline_seconds")["result"]
        assert [sample["value"][1] for sample in deadlines] == [f"{DEADLINE_S:g}"] * 2, "of each worker"

        # These two take their time: a minute of silence, and 64 frames and a while.
        silent, drift = ("FramegateStationSilent", "quiet"), ("FramegateDrift", "coloured")
        feed.falls_silent("quiet")
        feed.shows("coloured", other_colour())
        watch.also(silent, drift)

        stuck = ("FramegateStuck", "1")
        os.kill(worker_pid(line, 1), signal.SIGSTOP)
        try:
            watch.fires(stuck)
        finally:
            os.kill(worker_pid(line, 1), signal.SIGCONT)
        watch.clears(stuck)

        faults: dict[Told, tuple[list[bytes], tuple[float, ...]]] = {
            ("FramegateClockSkew", "hasty"): (sound, (3600.0,)),
            ("FramegateCameraTrouble", "dark"): (dark(DARK_BELOW / 3), ()),
            ("FramegateCameraFault", "frozen"): (sound[:1], ()),
            ("FramegateDeadLetters", "torn"): ([picture[:100] for picture in sound], ()),
            ("FramegateDeadlineMissed", "late"): (sound, (0.0, LATE_S)),
            ("FramegateNoneVerdicts", "stranger"): (sound, ()),
        }
        for told, (pictures, clock) in faults.items():
            feed.shows(told[1], pictures, *clock)
            watch.fires(told)

        refused = ("FramegateReloadRefused", "")
        with in_place_of(tmp_path / "parts"):
            watch.fires(refused)
            watch.fires(silent, drift)
        watch.clears(refused)

        write_routes(routing, (*STATIONS, "stranger"))
        for station in STATIONS:
            feed.shows(station, sound)
        watch.clears(silent, drift, *faults)
        assert prometheus.broken_rules() == []

        consumer.end(0.0)  # not in order: one that takes its time to stop says that it is not ready, which is no fault
        watch.fires(("FramegateDown", ""))

        seen = prometheus.ask("query", query='count_over_time(ALERTS{alertstate="firing"}[30m])')["result"]
        told_ever = {(each["metric"]["alertname"], about(each["metric"])) for each in seen}
        assert told_ever == watch.told, "between two looks too"


def write_routes(routing: Path, stations: Sequence[str]) -> None:
    """One bundle for these stations, and nothing for any other."""
    routes = [f'[[route]]\nstation = "{station}"\nbundle = "parts"\n' for station in stations]
    routing.write_text("".join(routes), encoding="utf-8")


@contextmanager
def in_place_of(place: Path) -> Iterator[None]:
    """What is no bundle, inside the block."""
    aside = place.with_name("aside")
    place.rename(aside)
    place.mkdir()
    (place / "manifest.json").write_text("{", encoding="utf-8")
    yield
    (place / "manifest.json").unlink()
    place.rmdir()
    aside.rename(place)
