"""Several heads and several engines behind one judge: each station's answer is that of its own bundle alone."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from consumer.engine_judge import EngineJudge
from consumer.errors import SettingsError
from consumer.lineup import Lineup, Loader, Seat
from consumer.ports import Decoded
from consumer.shadow import Shadow
from engine.backbone import FeaturizerSpec, inputs
from engine.backend_modelled import BatchCost, ModelledBackend
from engine.bundle import open_bundle, write_bundle
from engine.choice import open_for
from engine.errors import BatchError, BundleError, FrameError
from engine.prediction import OperatingPoint
from engine.scorer import Scorer
from engine.specs import BatchProfile, ImageSpec
from tests.bundles import small_bundle, small_head
from tests.lineups import Alone, Backends, bundle_of, jpegs, loader, put
from tests.scenes import limits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from consumer.lanes import Lane
    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.prediction import ScoredBatch

ROUTES = """
[[route]]
station = "one"
bundle = "one"
[[route]]
station = "two-*"
bundle = "two"
[[route]]
station = "wide"
bundle = "wide"
"""


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """Two bundles of one featurizer, one of another, and routes to them."""
    put(tmp_path / "one", bundle_of(1))
    put(tmp_path / "two", bundle_of(2))
    put(tmp_path / "wide", bundle_of(3, wide=True))
    (tmp_path / "routes.toml").write_text(ROUTES, encoding="utf-8")
    return tmp_path


def judge_frames(judge: EngineJudge, stations: Sequence[str], payloads: Sequence[bytes]) -> ScoredBatch:
    """Through route, decode, score and release, as the pipeline does it."""
    frames = []
    for station, payload in zip(stations, payloads, strict=True):
        route = judge.route(station)
        assert route is not None
        frames.append(Decoded(station, route, judge.decode(payload, route), payload))
    try:
        return judge.score(frames)
    finally:
        for frame in frames:
            judge.release(frame.route)


STATIONS = """
[[route]]
station = "fixed"
bundle = "parts"
threshold = 0.25
review_band = [0.25, 0.25]
[[route]]
station = "*"
bundle = "parts"
"""


def test_a_station_is_decided_at_its_own_operating_point_unless_its_route_says_otherwise(tmp_path: Path) -> None:
    """And the verdict carries the numbers that decided; the candidate beside decides at its own, too."""
    own = {"strict": OperatingPoint(0.0, (0.0, 0.0)), "lax": OperatingPoint(1.0, (1.0, 1.0))}
    own["fixed"] = own["strict"]
    bundle = bundle_of(1, name="parts")
    put(tmp_path / "parts", replace(bundle, head=replace(bundle.head, stations=own)))
    put(tmp_path / "next", replace(bundle_of(2), head=replace(bundle_of(2).head, stations={"lax": own["strict"]})))
    (tmp_path / "routes.toml").write_text(STATIONS, encoding="utf-8")
    payload = jpegs(1)[0]
    lineups = loader(Backends(), routing=tmp_path / "routes.toml", shadow=str(tmp_path / "next"))
    with EngineJudge(lineups.load()) as judge:
        decided = judge_frames(judge, ["strict", "lax", "other", "fixed"], [payload] * 4).predictions
        points = {}
        for station in ("strict", "lax", "other", "fixed"):
            route = judge.route(station)
            assert isinstance(route, Seat)
            assert route.shadow is not None
            points[station] = route.operating_point, route.shadow.operating_point
            assert route.head.operating_point == route.operating_point
            judge.release(route)
        assert judge.lineup.find("lax") is judge.lineup.find("lax"), "made once"
    assert [prediction.decision for prediction in decided[:2]] == ["fail", "pass"]
    common = bundle.head.operating_point
    candidates = bundle_of(2).head.operating_point
    fixed = OperatingPoint(0.25, (0.25, 0.25))
    assert points == {
        "strict": (own["strict"], candidates),
        "lax": (own["lax"], own["strict"]),
        "other": (common, candidates),
        "fixed": (fixed, fixed),
    }


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_each_station_gets_exactly_what_its_bundle_alone_gives(plant: Path, backend: str) -> None:
    payloads = jpegs(8)
    stations = ["one", "two-a", "wide", "one", "two-b", "wide", "one", "two-a"]
    alone = Alone(backend)
    expected = [
        alone.predictions(plant / re.sub("-.*", "", station), [payload])[0]
        for station, payload in zip(stations, payloads, strict=True)
    ]
    backends = Backends(backend)
    with EngineJudge(loader(backends, routing=plant / "routes.toml").load()) as judge:
        for order in (range(8), reversed(range(8)), [3, 1], [4]):
            places = list(order)
            got = judge_frames(judge, [stations[i] for i in places], [payloads[i] for i in places])
            assert list(got.predictions) == [expected[i] for i in places], "to the last bit"
    assert backends.opened == ["seed-1", "seed-3"], "one engine for both heads of one featurizer"
    assert len({p.defect_probability for p in expected}) == 8, "or an exchange would not be seen"


def test_one_featurizer_on_images_of_two_sizes_has_two_engines(plant: Path) -> None:
    one = bundle_of(1)
    put(plant / "wide", replace(one, name="tiled", image=ImageSpec(128, 64, tile_px=(64, 64))))
    assert open_bundle(plant / "wide").head.featurizer == open_bundle(plant / "one").head.featurizer
    payloads = jpegs(4)
    stations = ["one", "wide", "wide", "two-a"]
    expected = [
        Alone().predictions(plant / re.sub("-.*", "", station), [payload])[0]
        for station, payload in zip(stations, payloads, strict=True)
    ]
    backends = Backends()
    with EngineJudge(loader(backends, routing=plant / "routes.toml").load()) as judge:
        assert list(judge_frames(judge, stations, payloads).predictions) == expected
    assert backends.opened == ["seed-1", "tiled"]


def begun_frames(judge: EngineJudge, stations: Sequence[str], payloads: Sequence[bytes]) -> list[Decoded]:
    """Decoded, with their routes taken."""
    frames = []
    for station, payload in zip(stations, payloads, strict=True):
        route = judge.route(station)
        assert route is not None
        frames.append(Decoded(station, route, judge.decode(payload, route), payload))
    return frames


def test_two_batches_at_once_and_a_third_alone_give_each_its_own(plant: Path) -> None:
    payloads = jpegs(8)
    stations = ["one", "two-a", "wide", "one", "two-b", "wide", "one", "two-a"]
    with EngineJudge(loader(routing=plant / "routes.toml").load()) as judge:
        assert judge.ahead == 2
        frames = begun_frames(judge, stations, payloads)
        expected = judge.score(frames).predictions
        first, second = judge.begin(frames[:5]), judge.begin(frames[5:])
        alone = judge.score(frames[2:3]).predictions
        judge.wait(first)
        third = judge.begin(frames[1:2])
        assert judge.finish(first).predictions == expected[:5]
        judge.wait(second)
        assert judge.finish(second).predictions == expected[5:]
        scored = judge.finish(third)
        assert scored.predictions == expected[1:2]
        assert scored.inference_ms > 0
        assert alone == expected[2:3]
        for frame in frames:
            judge.release(frame.route)


def test_the_route_names_the_model_that_judges(plant: Path) -> None:
    with EngineJudge(loader(routing=plant / "routes.toml").load()) as judge:
        routes = {station: judge.route(station) for station in ("one", "two-x", "wide", "other")}
        assert routes["other"] is None
        digests = {station: route.model.digest for station, route in routes.items() if route is not None}
        assert digests == {
            "one": open_bundle(plant / "one").digest,
            "two-x": open_bundle(plant / "two").digest,
            "wide": open_bundle(plant / "wide").digest,
        }
        assert [route.model.name for route in judge.routes()] == ["seed-1", "seed-2", "seed-3"]
        assert {route.engine.backend for route in judge.routes()} == {"onnxruntime"}


def test_the_bundle_beside_the_file_is_for_all_other_stations(plant: Path) -> None:
    with EngineJudge(loader(routing=plant / "routes.toml", bundle=str(plant / "two")).load()) as judge:
        route = judge.route("other")
        assert route is not None
        assert route.model.name == "seed-2"


def test_a_station_may_have_its_own_region_and_operating_point(plant: Path) -> None:
    (plant / "routes.toml").write_text(
        "[[route]]\nstation = 'cut'\nroi = [0.5, 0.0, 1.0, 1.0]\nthreshold = 0.0\nreview_band = [0.0, 0.0]\n"
    )
    one = open_bundle(plant / "one")
    payload = jpegs(1)[0]
    with EngineJudge(loader(routing=plant / "routes.toml", bundle=str(plant / "one")).load()) as judge:
        (cut, whole) = judge_frames(judge, ["cut", "other"], [payload] * 2).predictions
        region = replace(one, image=replace(one.image, region=judge.routes()[0].image_spec.region))
    assert whole == Alone().predictions(plant / "one", [payload])[0]
    assert cut.decision == "fail", "everything reaches a threshold of 0"
    put(plant / "cut", region)
    assert cut.defect_probability == Alone().predictions(plant / "cut", [payload])[0].defect_probability
    assert cut.defect_probability != whole.defect_probability


def test_a_threshold_that_does_not_fit_the_bundle_is_refused_at_the_start(plant: Path) -> None:
    (plant / "routes.toml").write_text("[[route]]\nstation = 'a'\nthreshold = 0.95\n")
    with pytest.raises(SettingsError, match=r"puts threshold 0\.95 outside the review band 0\.3 to 0\.6"):
        loader(routing=plant / "routes.toml", bundle=str(plant / "one")).load()


def test_a_bundle_that_is_not_there_closes_what_was_opened(plant: Path) -> None:
    (plant / "routes.toml").write_text(ROUTES.replace('"wide"\nbundle = "wide"', '"wide"\nbundle = "gone"'))
    closed: list[str] = []

    class Watched(Backends):
        def __call__(self, bundle: Any) -> Any:
            backend = super().__call__(bundle)
            close = backend.close

            def noted() -> None:
                closed.append(bundle.name)
                close()

            backend.close = noted  # type: ignore[method-assign] # looked in on
            return backend

    with pytest.raises(BundleError, match="gone is not there"):
        loader(Watched(), routing=plant / "routes.toml").load()
    until_closed(lambda: closed == ["seed-1"])


def until_closed(condition: Callable[[], bool]) -> None:
    """Closing is on a thread of its own."""
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def test_batches_too_large_for_an_engine_are_refused_at_the_start(plant: Path) -> None:
    big = loader(bundle=str(plant / "one"))
    big._largest = 65
    with pytest.raises(
        SettingsError, match="--batch-size 65 is too large for backend onnxruntime: expected at most 64"
    ):
        big.load()


def test_a_head_that_cannot_judge_what_its_featurizer_gives_is_refused(tmp_path: Path) -> None:
    head = small_head(4)
    crooked = replace(head, features=replace(head.features, mean=head.features.mean[:-1]))
    write_bundle(tmp_path / "crooked", small_bundle(head=crooked, with_reference=False))
    with pytest.raises(BundleError, match="has a head that cannot judge an image"):
        loader(bundle=str(tmp_path / "crooked")).load()


def test_a_bundle_shares_an_engine_only_where_it_answers_as_its_reference_does(tmp_path: Path) -> None:
    put(tmp_path / "one", small_bundle(head=small_head(1)))
    other = small_bundle(name="other", head=small_head(2))
    put(tmp_path / "two", other)
    assert other.reference is not None
    moved = replace(other.reference, probabilities=1.0 - other.reference.probabilities)
    put(tmp_path / "moved", replace(other, name="moved", reference=moved))
    (tmp_path / "routes.toml").write_text(
        "".join(f"[[route]]\nstation = '{name}'\nbundle = '{name}'\n" for name in ("one", "two", "moved"))
    )
    backends = Backends()
    careful = loader(backends, routing=tmp_path / "routes.toml")
    careful._must_agree = True
    careful.load().close()
    assert backends.opened == ["parts", "moved"], "two answers as its reference does, moved does not"


def test_an_engine_that_takes_few_heads_gets_several_batches(plant: Path) -> None:
    payloads = jpegs(6)
    stations = ["one", "two-a", "one", "two-b", "one", "two-a"]
    with EngineJudge(loader(routing=plant / "routes.toml").load()) as judge:
        expected = judge_frames(judge, stations, payloads).predictions
        for lane in judge.lineup.lanes:
            lane.most_heads = 1
        assert judge_frames(judge, stations, payloads).predictions == expected


def test_an_engine_that_takes_few_images_gets_several_batches(plant: Path) -> None:
    payloads = jpegs(5)
    stations = ["one", "two-a", "one", "wide", "one"]
    with EngineJudge(loader(routing=plant / "routes.toml").load()) as judge:
        expected = judge_frames(judge, stations, payloads).predictions
        for lane in judge.lineup.lanes:
            lane.largest = 2
        sizes: list[int] = []
        for lane in judge.lineup.lanes:
            lane.submit = noting(lane, sizes)  # type: ignore[method-assign] # looked in on
        assert judge_frames(judge, stations, payloads).predictions == expected
        assert sorted(sizes) == [1, 2, 2]


def noting(lane: Lane, sizes: list[int]) -> Callable[..., Any]:
    """Its `submit`, that notes how many images came."""
    submit = lane.submit

    def noted(images: np.ndarray, heads: Any) -> Any:
        sizes.append(len(images))
        return submit(images, heads)

    return noted


# How large batches are.


def costly(costs: dict[str, BatchCost], largest: dict[str, int] | None = None) -> Callable[[Bundle], Backend]:
    """Opens engines that take a time each of their own, by the bundle's name."""

    def opened(bundle: Bundle) -> Backend:
        spec = FeaturizerSpec()
        profile = BatchProfile(1, 1, (largest or {}).get(bundle.name, 64))
        return ModelledBackend(inputs(spec, bundle.image), spec.pooled_size, costs[bundle.name], profile=profile)

    return opened


SHARED, ALONE = BatchCost(0.004, 0.00001), BatchCost(0.0, 0.004)
"""Of a batch's time: nearly all of it is shared; none is."""


def test_the_largest_batch_is_what_the_engine_finds_worth_it(plant: Path) -> None:
    with EngineJudge(Loader(costly({"seed-1": SHARED}), bundle=str(plant / "one"), largest=None).load()) as judge:
        assert judge.largest_batch is None
        assert judge.warm(None, 16) == judge.largest_batch == 16
        (lane,) = judge.lineup.lanes
        measured = lane.costs
        assert measured is not None
        assert measured.sizes == (1, 2, 4, 8, 16)
        assert measured.cost_s(8) >= SHARED.seconds(8) * 0.99
        assert judge.warm(None, 16) == 16
        assert lane.costs is measured, "measured once in its life"


def test_what_is_told_is_taken_and_nothing_measured(plant: Path) -> None:
    with EngineJudge(Loader(costly({"seed-1": ALONE}), bundle=str(plant / "one"), largest=None).load()) as judge:
        assert judge.warm(3, 16) == 3
        assert judge.lineup.lanes[0].costs is None


def test_of_several_engines_the_one_that_gains_most_decides_as_far_as_all_take_it(plant: Path) -> None:
    costs = {"seed-1": SHARED, "seed-2": SHARED, "seed-3": ALONE}
    for largest, expected in (({}, 16), ({"seed-3": 8}, 8)):
        load = Loader(costly(costs, largest), routing=plant / "routes.toml", largest=None, must_agree=False)
        with EngineJudge(load.load()) as judge:
            assert judge.warm(None, 16) == expected
            assert [lane._warm_to for lane in judge.lineup.lanes] == [expected] * 2, "warm in every size it may get"


# Swapping: routes taken before go on, engines close when the last of them is given back.


def lineup_of(place: Path, before: Lineup | None = None, backends: Backends | None = None) -> Lineup:
    return loader(backends, bundle=str(place)).load(before)


def test_a_frame_under_way_is_judged_by_the_model_it_was_decoded_for(plant: Path) -> None:
    payload = jpegs(1)[0]
    old, new = (Alone().predictions(plant / name, [payload])[0] for name in ("one", "wide"))
    with EngineJudge(lineup_of(plant / "one")) as judge:
        before = judge.route("a")
        assert before is not None
        frames = [Decoded("a", before, judge.decode(payload, before), payload)]
        (lane,) = judge.lineup.lanes
        judge.swap(lineup_of(plant / "wide"))
        after = judge.route("a")
        assert after is not None
        frames.append(Decoded("a", after, judge.decode(payload, after), payload))
        assert not lane.wait_closed(0.05), "it is needed"
        assert judge.score(frames).predictions == (old, new)
        judge.release(before)
        assert lane.wait_closed(10), "its last frame is done"
        assert not lane.hold()
        assert judge.score(frames[1:]).predictions == (new,)
        judge.release(after)


def test_a_lineup_of_the_same_featurizer_takes_the_engine_over(plant: Path) -> None:
    backends = Backends()
    with EngineJudge(lineup_of(plant / "one", backends=backends)) as judge:
        (lane,) = judge.lineup.lanes
        judge.swap(lineup_of(plant / "two", judge.lineup, backends))
        judge.swap(lineup_of(plant / "two", judge.lineup, backends))
        payload = jpegs(1)[0]
        assert judge_frames(judge, ["a"], [payload]).predictions[0] == Alone().predictions(plant / "two", [payload])[0]
        assert not lane.wait_closed(0)
        assert judge.lineup.lanes == (lane,)
    assert backends.opened == ["seed-1"]
    assert lane.wait_closed(0)


# The shadow.


class Told:
    """What a shadow tells."""

    def __init__(self) -> None:
        self.compared: list[tuple[str, str, str]] = []
        self.left_out = 0

    def shadow(self) -> Shadow:
        return Shadow(lambda *what: self.compared.append(what), self._leave_out)

    def _leave_out(self, frames: int) -> None:
        self.left_out += frames


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.mark.parametrize(("candidate", "engines"), [("two", 1), ("wide", 2)])
def test_the_shadow_decides_as_it_would_alone_and_changes_no_answer(
    plant: Path, told: Told, candidate: str, engines: int
) -> None:
    payloads = jpegs(8, seed=5)
    stations = ["a", "b"] * 4
    mine = Alone().predictions(plant / "one", payloads)
    its = Alone().predictions(plant / candidate, payloads)
    assert [p.decision for p in mine] != [p.decision for p in its], "or a flip would not be seen"
    with EngineJudge(loader(bundle=str(plant / "one"), shadow=str(plant / candidate)).load()) as judge:
        assert len(judge.lineup.lanes) == engines
        judge.shadow = told.shadow()
        assert judge_frames(judge, stations, payloads).predictions == tuple(mine)
        assert judge.shadow.wait_done(20)
        judge.shadow.close()
    expected = [(s, m.decision, i.decision) for s, m, i in zip(stations, mine, its, strict=True)]
    assert sorted(told.compared) == sorted(expected)
    assert told.left_out == 0


def test_a_shadow_that_cannot_keep_up_is_left_out_and_holds_nothing_up(plant: Path, told: Told) -> None:
    payloads = jpegs(8)
    with EngineJudge(loader(bundle=str(plant / "one"), shadow=str(plant / "wide")).load()) as judge:
        shadow = judge.shadow = told.shadow()
        shadow.engine_works()
        shadow.engine_rests = lambda: None  # type: ignore[method-assign] # an engine that never rests
        for _ in range(10):
            judge_frames(judge, ["a"] * 8, payloads)
        assert told.compared == []
        assert told.left_out >= 80 - 64 - 1
        shadow.close()
        wide = next(lane for lane in judge.lineup.lanes if lane.image_shape == (64, 96, 3))
        assert wide._needs == 1, "what waited is given back"


def test_the_engine_rests_when_no_batch_is_with_it(plant: Path, told: Told) -> None:
    with EngineJudge(loader(bundle=str(plant / "one"), shadow=str(plant / "two")).load()) as judge:
        shadow = judge.shadow = told.shadow()
        frames = begun_frames(judge, ["a"] * 4, jpegs(4))
        first, second = judge.begin(frames[:2]), judge.begin(frames[2:])
        judge.wait(first)
        judge.wait(first)
        assert not shadow._resting.is_set(), "the second computes"
        judge.finish(first)
        judge.wait(second)
        assert shadow._resting.is_set()
        judge.finish(second)
        crooked = replace(frames[0], image=frames[0].image[:32])
        with pytest.raises(BatchError):
            judge.begin([crooked])
        assert shadow._resting.is_set(), "what could not be begun does not compute"
        assert shadow.wait_done(20)
        assert len(told.compared) == 4
        shadow.close()
        for frame in frames:
            judge.release(frame.route)


def test_a_shadow_that_fails_costs_no_verdict(plant: Path, told: Told) -> None:
    payloads = jpegs(4)
    with EngineJudge(loader(bundle=str(plant / "one"), shadow=str(plant / "two")).load()) as judge:
        judge.shadow = told.shadow()
        for seat in judge.lineup.seats.values():
            assert isinstance(seat.shadow, Seat)
            limits = seat.shadow.head.features
            broken = replace(seat.shadow.head, features=replace(limits, mean=limits.mean[1:]))
            object.__setattr__(seat.shadow, "head", broken)
        expected = Alone().predictions(plant / "one", payloads)
        assert judge_frames(judge, ["a"] * 4, payloads).predictions == tuple(expected)
        assert judge.shadow.wait_done(10)
        judge.shadow.close()
    assert (told.compared, told.left_out) == ([], 4)


def test_what_only_the_shadow_cannot_decode_counts_as_none(plant: Path, told: Told) -> None:
    wide = bundle_of(3, wide=True)
    put(plant / "strict", replace(wide, image=replace(wide.image, max_pixels=100)))
    payload = jpegs(1)[0]
    with EngineJudge(loader(bundle=str(plant / "one"), shadow=str(plant / "strict")).load()) as judge:
        judge.shadow = told.shadow()
        (mine,) = judge_frames(judge, ["a"], [payload]).predictions
        assert judge.shadow.wait_done(10)
        judge.shadow.close()
    assert told.compared == [("a", mine.decision, "none")]


def test_decoding_keeps_to_the_routes_own_limits(plant: Path) -> None:
    with EngineJudge(lineup_of(plant / "one")) as judge:
        route = judge.route("a")
        assert route is not None
        with pytest.raises(FrameError):
            judge.decode(b"no image", route)
        judge.release(route)
        assert np.asarray(judge.decode(jpegs(1)[0], route)).shape == route.image_shape


def test_a_station_with_a_region_of_its_own_is_compared_with_no_scene_of_another(tmp_path: Path) -> None:
    put(tmp_path / "b", replace(bundle_of(1), stream=limits_of(1)))
    routes = tmp_path / "routes.toml"
    routes.write_text(
        '[[route]]\nstation = "own"\nbundle = "b"\nroi = [0.1, 0.1, 0.9, 0.9]\n'
        '[[route]]\nstation = "same"\nbundle = "b"\nroi = [0.0, 0.0, 1.0, 1.0]\n'
        '[[route]]\nstation = "*"\nbundle = "b"\n',
        encoding="utf-8",
    )
    with EngineJudge(loader(routing=routes).load()) as judge:
        streams = {}
        for station in ("own", "same", "plain"):
            route = judge.route(station)
            assert route is not None
            streams[station] = route.stream
            judge.release(route)
    assert (streams["own"].noise, streams["own"].scenes) == (None, None), "another region has other noise, too"
    assert streams["own"].drift == streams["plain"].drift == limits_of().drift, "the head is the same"
    for station in ("same", "plain"):
        assert streams[station].scenes is not None
        assert streams[station].noise == limits_of().noise


def test_a_prediction_tells_how_far_its_image_is_from_the_training_set(tmp_path: Path) -> None:
    bundle = put(tmp_path / "b", bundle_of(1))
    (payload,) = jpegs(1)
    with EngineJudge(loader(bundle=str(tmp_path / "b")).load()) as judge:
        route = judge.route("a")
        assert route is not None
        (prediction,) = judge.score([Decoded("a", route, judge.decode(payload, route), payload)]).predictions
        judge.release(route)
    with Scorer(bundle, open_for(bundle, "onnxruntime")) as scorer:
        images = np.stack([scorer.decode(payload)])
        pooled = scorer.features(images).pooled[0]
    assert prediction.distance == pytest.approx(bundle.head.features.distance(pooled), rel=1e-5)
