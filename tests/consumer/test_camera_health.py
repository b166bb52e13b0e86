"""Frozen, shifted, drifting: said where it is so, and nowhere else; per station, bounded, over with the tenure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.camera_health import (
    ALIKE_FRAMES,
    DRIFT_FRAMES,
    DRIFT_KNOWN_FRAMES,
    DRIFT_TOLD_EVERY,
    SAME_FRAMES,
    SHIFTED_WINDOWS,
    CameraHealth,
    Change,
)
from consumer.events import Frame, Position
from consumer.tenure import Partition
from engine.watching import SIDE, UNKNOWN, WINDOW, StreamLimits, glance
from tests.scenes import frame, limits_of

P0, P1 = Partition("frames", 0), Partition("frames", 1)


def encoded(image: np.ndarray, quality: int = 95) -> bytes:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def decoded(payload: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR), np.uint8)


class Seen(NamedTuple):
    """A frame's bytes, and what is kept of its image."""

    payload: bytes
    glance: np.ndarray


def see(payload: bytes, image: np.ndarray) -> Seen:
    return Seen(payload, glance(image))


def shown(image: np.ndarray) -> Seen:
    payload = encoded(image)
    return see(payload, decoded(payload))


@dataclass
class Watch:
    """Cameras under watch, and what is said of them."""

    limits: StreamLimits = UNKNOWN
    most_stations: int = 100
    changes: list[Change] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.health = CameraHealth(self.changes.append, most_stations=self.most_stations)
        self.rng = np.random.default_rng(5)

    def send(
        self, seen: Seen, station: str = "a", partition: Partition = P0, frame_id: str | None = None
    ) -> str | None:
        """One frame; what is wrong with its camera."""
        self.sent += 1
        sent = Frame(
            Position("frames", partition.number, self.sent), station, frame_id or str(self.sent), seen.payload, 0.0, 0.0
        )
        finding = self.health.look(partition, sent, seen.glance, self.limits)
        return None if finding is None else finding.kind

    def live(self, count: int, scene: int = 1, right: int = 0, station: str = "a") -> list[str | None]:
        """Frames of a live camera."""
        return [self.send(shown(frame(scene, self.rng, right=right)), station) for _ in range(count)]

    def told(self) -> list[tuple[str, str, bool]]:
        """Every change."""
        return [(change.station, change.kind, change.faulty) for change in self.changes]


@pytest.mark.parametrize("limits", [UNKNOWN, limits_of(), limits_of(1)], ids=["old bundle", "noise", "scenes"])
def test_the_same_picture_again_and_again_is_a_frozen_camera_until_another_comes(limits: StreamLimits) -> None:
    watch = Watch(limits)
    assert watch.live(3) == [None] * 3
    stuck = shown(frame(1, watch.rng))
    assert [watch.send(stuck) for _ in range(SAME_FRAMES + 3)] == [None] * (SAME_FRAMES - 1) + ["frozen"] * 4
    assert watch.live(2) == [None, None], "the first other picture is judged"
    assert watch.told() == [("a", "frozen", True), ("a", "frozen", False)], "one event for each, none per frame"
    assert "see to the camera" in watch.changes[0].why


def test_a_frozen_picture_that_is_encoded_anew_each_time_is_found_by_its_missing_noise() -> None:
    watch = Watch(limits_of())
    image = frame(1, watch.rng)
    again: list[str | None] = []
    for _ in range(ALIKE_FRAMES + 2):
        payload = encoded(image)
        image = decoded(payload)  # a recorder's loss, added up
        again.append(watch.send(see(payload + bytes([len(again)]), image)))
    assert again == [None] * (ALIKE_FRAMES - 1) + ["frozen"] * 3


def test_other_bytes_that_only_look_the_same_are_frozen_where_the_noise_is_known_and_nowhere_else() -> None:
    image = frame(1, np.random.default_rng(0))
    kinds = {}
    for limits in (UNKNOWN, limits_of()):
        watch = Watch(limits)
        kinds[limits.noise] = {watch.send(see(bytes([number]), image)) for number in range(2 * ALIKE_FRAMES)}
    assert kinds == {None: {None}, limits_of().noise: {None, "frozen"}}


def test_an_empty_fixture_that_stands_still_shows_its_sensors_noise_and_is_not_frozen() -> None:
    watch = Watch(limits_of(1))
    empty = np.repeat(frame(1, np.random.default_rng(0))[..., :1], 3, axis=2).astype(np.float32)
    for _ in range(5 * ALIKE_FRAMES):
        live = np.clip(empty + watch.rng.normal(0, 2, empty.shape), 0, 255).astype(np.uint8)
        assert watch.send(shown(live)) is None


@pytest.mark.parametrize("files", [2, 3, 64])
def test_files_that_are_sent_in_turn_are_not_frozen(files: int) -> None:
    watch = Watch(limits_of())
    pictures = [shown(frame(number, watch.rng)) for number in range(files)]
    assert {watch.send(pictures[number % files]) for number in range(6 * max(files, ALIKE_FRAMES))} == {None}


def test_a_frame_that_its_camera_sent_again_says_nothing() -> None:
    watch = Watch(limits_of())
    seen = shown(frame(1, watch.rng))
    assert {watch.send(seen, frame_id="the-one") for _ in range(3 * ALIKE_FRAMES)} == {None}


def test_a_frozen_station_says_nothing_of_the_others() -> None:
    watch = Watch(limits_of())
    stuck = shown(frame(1, watch.rng))
    for number in range(2 * SAME_FRAMES):
        assert watch.send(stuck, "stuck") == (None if number < SAME_FRAMES - 1 else "frozen")
        assert watch.live(1, station="healthy") == [None]
        assert watch.send(stuck, f"new-{number}") is None, "the same picture from another station is another matter"
    assert {station for station, _, _ in watch.told()} == {"stuck"}


def test_a_camera_that_was_moved_is_found_after_two_windows_and_is_well_after_one() -> None:
    watch = Watch(limits_of(1, 2))
    assert set(watch.live(4 * WINDOW)) == {None}
    proof = SHIFTED_WINDOWS * WINDOW
    assert watch.live(proof + 5, right=5) == [None] * (proof - 1) + ["shifted"] * 6
    watch.live(WINDOW - 5, right=5)
    assert watch.live(WINDOW + 3) == ["shifted"] * (WINDOW - 1) + [None] * 4
    assert watch.told() == [("a", "shifted", True), ("a", "shifted", False)]
    assert "+7.8% right and +0.0% down" in watch.changes[0].why


def test_one_odd_window_is_no_moved_camera() -> None:
    watch = Watch(limits_of(1))
    for _ in range(3):
        assert set(watch.live(WINDOW, right=6)) | set(watch.live(WINDOW)) == {None}
    assert set(watch.live(WINDOW, right=6)) | set(watch.live(WINDOW, right=-6)) == {None}, (
        "nor are two of different places"
    )


def test_another_product_is_no_moved_camera() -> None:
    watch = Watch(limits_of(1, 2))
    assert set(watch.live(2 * WINDOW)) | set(watch.live(3 * WINDOW, scene=2)) == {None}, "one that is known"
    assert set(watch.live(3 * WINDOW, scene=7)) == {None}, "nor one that is not"


def test_without_a_scene_in_common_nothing_is_shifted() -> None:
    watch = Watch(limits_of())
    assert set(watch.live(3 * WINDOW)) | set(watch.live(5 * WINDOW, right=9)) == {None}


def test_another_bundle_begins_anew() -> None:
    watch = Watch(limits_of(1))
    watch.live(3 * WINDOW, right=5)
    watch.limits = limits_of(4)
    assert watch.live(1, scene=4) == [None]
    assert watch.told() == [("a", "shifted", True), ("a", "shifted", False)]


def test_a_frozen_picture_moves_no_camera() -> None:
    watch = Watch(limits_of(1))
    watch.live(WINDOW)
    stuck = shown(frame(1, watch.rng, right=6))
    kinds = [watch.send(stuck) for _ in range(4 * WINDOW)]
    assert set(kinds[SAME_FRAMES:]) == {"frozen"}
    assert set(watch.live(WINDOW)) == {None}


def test_what_is_known_ends_with_the_tenure_of_the_partition_and_with_nothing_else() -> None:
    watch = Watch(limits_of())
    stuck = shown(frame(1, watch.rng))
    for _ in range(SAME_FRAMES):
        watch.send(stuck, "a", P0)
        watch.send(stuck, "b", P1)
    watch.health.end([P0])
    assert watch.told()[-1] == ("a", "frozen", False)
    assert [watch.send(stuck, "a", P0) for _ in range(SAME_FRAMES)] == [None] * (SAME_FRAMES - 1) + ["frozen"]
    assert watch.send(stuck, "b", P1) == "frozen"


def test_only_so_many_stations_are_remembered_and_whoever_is_forgotten_is_no_longer_said_to_be_faulty() -> None:
    watch = Watch(limits_of(), most_stations=3)
    stuck = shown(frame(1, watch.rng))
    for _ in range(SAME_FRAMES):
        watch.send(stuck, "a")
    for number in range(50):
        watch.send(stuck, f"s{number}")
        assert len(watch.health) <= 3
    assert watch.told() == [("a", "frozen", True), ("a", "frozen", False)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=120))
def test_frozen_is_exactly_a_run_of_equal_pictures(frames: list[tuple[str, int]]) -> None:
    """Against the definition, written down naively: station by station, the length of the run that a frame ends."""
    rng = np.random.default_rng(0)
    pictures = [shown(frame(number, rng)) for number in range(3)]
    watch = Watch(UNKNOWN)
    history: dict[str, list[int]] = {"a": [], "b": []}
    for station, number in frames:
        past = history[station]
        past.append(number)
        is_run = len(past) >= SAME_FRAMES and set(past[-SAME_FRAMES:]) == {number}
        assert watch.send(pictures[number], station) == ("frozen" if is_run else None)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(-10, 10))
def test_shifted_is_said_of_every_far_displacement_and_of_no_near_one(seed: int, right: int) -> None:
    watch = Watch(limits_of(1, 2))
    watch.rng = np.random.default_rng(seed)
    kinds = watch.live(3 * WINDOW, right=right)
    is_far = abs(right) / SIDE > watch.limits.scenes.limit if watch.limits.scenes is not None else False
    assert kinds[-1] == ("shifted" if is_far else None)


def test_drift_is_the_recent_mean_over_what_training_allows() -> None:
    limits = limits_of()
    health = CameraHealth(lambda _: None)
    told = [health.drift(P0, "a", 1.0, limits) for _ in range(DRIFT_KNOWN_FRAMES)]
    assert told[:-1] == [None] * (DRIFT_KNOWN_FRAMES - 1)
    assert told[-1] == pytest.approx(0.5)
    later = [ratio for _ in range(2 * DRIFT_FRAMES) if (ratio := health.drift(P0, "a", 4.0, limits)) is not None]
    assert len(later) == 2 * DRIFT_FRAMES // DRIFT_TOLD_EVERY
    assert later == sorted(later)
    assert later[0] < 1 < later[-1] < 2
    assert later[-1] > 1.7, "after twice the memory the old images hardly count"
    assert health.drift(P0, "b", 4.0, limits) is None, "another station, another mean"


def test_drift_begins_anew_with_another_head_and_is_unknown_to_old_bundles() -> None:
    health = CameraHealth(lambda _: None)
    limits = limits_of()
    for _ in range(DRIFT_KNOWN_FRAMES):
        health.drift(P0, "a", 9.0, limits)
    other = replace(limits, drift=1.0)
    told = [health.drift(P0, "a", 1.0, other) for _ in range(DRIFT_KNOWN_FRAMES)]
    assert told[-1] == pytest.approx(1.0)
    assert {health.drift(P0, "c", 1.0, UNKNOWN) for _ in range(3 * DRIFT_KNOWN_FRAMES)} == {None}
