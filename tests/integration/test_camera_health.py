"""`framegate run` on a broker with a camera that freezes and one that is moved beside healthy ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from consumer.camera_health import SAME_FRAMES, SHIFTED_WINDOWS
from engine.watching import WINDOW
from tests.line import Line
from tests.lineups import Alone, bundle_of, put
from tests.scenes import frame, limits_of

if TYPE_CHECKING:
    from tests.kafka_cluster import RunningBroker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

FRAMES = 4 * WINDOW
FROZEN_FROM = 20
STATIONS = ("healthy-1", "healthy-2", "frozen", "moved")


def film(folder: Path, station: str, seed: int) -> Path:
    """A station's pictures, in the order in which they are to be sent."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    image = frame(1, rng, side=128)
    for number in range(FRAMES):
        if station != "frozen" or number < FROZEN_FROM:
            image = frame(1, rng, side=128, right=5 if station == "moved" and number >= WINDOW else 0)
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        assert done
        (folder / f"{number:03}.jpg").write_bytes(data.tobytes())
    return folder


@pytest.mark.parametrize("options", [["--workers", "1"], ["--workers", "2"], ["--workers", "1", "--no-camera-checks"]])
def test_faulty_cameras_are_told_and_healthy_ones_are_answered_as_ever(
    embedded_broker: RunningBroker, unique: str, tmp_path: Path, options: list[str]
) -> None:
    put(tmp_path / "one", replace(bundle_of(1), stream=limits_of(1)))
    stations = {name: film(tmp_path / name, name, seed) for seed, name in enumerate(STATIONS)}
    with Line(embedded_broker.bootstrap_servers, tmp_path / "work", unique) as line:
        consumer = line.consumer(tmp_path / "one", *options, "--backend", "onnxruntime")
        sent = line.cameras(stations)
        verdicts = line.collect(len(sent))
        consumer.terminate()
        consumer.wait(30)
        log = (tmp_path / "work" / "consumer.log").read_text()

    judged = {verdict["frame_id"]: verdict for verdict in verdicts}
    assert len(judged) == len(verdicts) == len(sent)
    got, expected = defaultdict(list), defaultdict(list)
    answers = Alone().predictions(tmp_path / "one", [Path(each["path"]).read_bytes() for each in sent])
    for each, answer in zip(sent, answers, strict=True):
        verdict = judged[each["frame_id"]]
        got[each["station"]].append((verdict["cause"] or verdict["decision"], verdict["defect_probability"]))
        expected[each["station"]].append((answer.decision, answer.defect_probability))
    is_watched = "--no-camera-checks" not in options
    first = {"frozen": FROZEN_FROM + SAME_FRAMES - 2, "moved": WINDOW + SHIFTED_WINDOWS * WINDOW - 1}
    for station in STATIONS:
        proof = first.get(station, FRAMES) if is_watched else FRAMES
        assert got[station] == expected[station][:proof] + [("camera_fault", None)] * (FRAMES - proof), station
    assert log.count("camera of station 'frozen' is frozen") == is_watched
    assert log.count("camera of station 'moved' is shifted") == is_watched
    assert log.count("camera of station") == 2 * is_watched
    assert all(line.startswith("{") for line in log.splitlines() if "camera of station" in line), "JSON off a terminal"
