"""`framegate bench engine`: fair laps, the right contestants, all keys. Nothing here asserts what is fast."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import engine.bench
import framegate
from engine.backbone import build_reference_graph
from engine.backend_onnx import OnnxBackend, OnnxGraph
from engine.bench import CLASSIC_SIDE_PX, Timing, _per_image, bench_engine, classic_graph, two_in_flight
from engine.choice import open_for
from engine.errors import DeviceError
from engine.golden import golden_pictures
from engine.heads import stack
from engine.laps import Lap, Laps, race
from engine.plain_loops import Loop, onnx_loops, openvino_loops
from engine.processor import has_bfloat16
from engine.specs import ImageSpec
from engine.stand_in import stand_in
from tests.bundles import TILED, graph, small_bundle, small_head

HEADS = stack([small_head()])


def laps(*rates: float) -> Laps:
    return Laps(tuple(Lap(rate, 1000 / rate) for rate in rates))


def test_a_ratio_is_of_laps_side_by_side() -> None:
    own, other = laps(100, 50, 30), laps(50, 25, 60)  # the second lap was slow for both
    assert own.images_per_s == 50
    assert other.images_per_s == 50
    assert own.ratio(other) == 2
    assert other.ratio(own) == 0.5
    assert own.cpu_ms == 20


def test_each_runs_once_to_warm_up_then_all_in_turn_and_each_begins_a_round() -> None:
    order: list[str] = []
    now_s = [0.0]

    def contestant(name: str, images: int) -> object:
        def run(seconds: float) -> int:
            order.append(name if seconds else name.upper())
            now_s[0] += 2.0 if name == "b" else 1.0
            return images

        return run

    told: list[tuple[int, int]] = []
    found = race(
        {name: contestant(name, 10) for name in "abc"},  # type: ignore[misc]
        seconds=0.5,
        rounds=3,
        tick=lambda done, total: told.append((done, total)),
        clock=lambda: now_s[0],
        cpu_clock=lambda: now_s[0] / 2,
    )
    assert "".join(order) == "ABC" + "abc" + "bca" + "cab"
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert found["a"].images_per_s == 10
    assert found["b"].images_per_s == 5
    assert found["b"].cpu_ms == 100  # a second of processor time for ten images
    assert found["a"].ratio(found["b"]) == 2


@pytest.mark.slow
def test_every_loop_computes_whole_batches_and_at_least_one() -> None:
    pictures = golden_pictures(4, 64, 64)
    columns = np.repeat(HEADS[0], 4, axis=1), np.repeat(HEADS[1], 4)
    batch = {"images": pictures, "head_weights": columns[0], "head_biases": columns[1]}
    one = {**batch, "images": pictures[:1]}
    feeds, outputs = {4: [batch], 1: [one]}, ["evidence", "pooled"]
    loops = [onnx_loops(graph(), outputs, feeds), openvino_loops(graph(), "fp32", outputs, feeds)]
    if has_bfloat16():
        loops.append(openvino_loops(graph(), "bf16", outputs, feeds))
    for by_size in loops:
        assert len({loop.name for loop in by_size[4]}) == len(by_size[4])
        assert sum(loop.same_graph for loop in by_size[4]) >= 2
        for size, own in by_size.items():
            for loop in own:
                done = loop.run(0.0)
                assert done >= size
                assert done % size == 0


def test_ours_keeps_two_batches_in_flight_and_collects_them_all() -> None:
    backend = OnnxBackend(graph())
    out: list[int] = []
    submit, collect = backend.submit, backend.collect

    def counting_submit(images: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> object:
        out.append(1)
        return submit(images, weights, biases)

    def counting_collect(ticket: object) -> object:
        out.append(-1)
        return collect(ticket)  # type: ignore[arg-type]

    backend.submit, backend.collect = counting_submit, counting_collect  # type: ignore[method-assign, assignment]
    assert two_in_flight(backend, golden_pictures(4, 64, 64), HEADS, 2)(0.0) == 4
    assert out == [1, 1, -1, -1]
    backend.close()


def test_the_classic_graph_is_the_whole_network_and_nothing_beside_it() -> None:
    picture = golden_pictures(4, CLASSIC_SIDE_PX, CLASSIC_SIDE_PX)[3:]
    whole = OnnxGraph(build_reference_graph(ImageSpec(CLASSIC_SIDE_PX, CLASSIC_SIDE_PX)))
    classic = OnnxGraph(classic_graph())
    (expected,) = whole.run(["embedding"], {"images": picture})
    (got,) = classic.run([], {"images": picture})  # all there is
    assert got.shape == (1, 1280)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_stand_in_is_a_bundle_whose_reference_decides_both_ways() -> None:
    bundle = stand_in(64)
    assert bundle.reference is not None
    high = bundle.reference.probabilities >= bundle.head.operating_point.threshold
    assert 0.3 < high.mean() < 0.7
    open_for(bundle, "onnxruntime").close()


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_gives_every_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    from engine.backend import open_backend  # noqa: PLC0415 - the real one, beside its stand-in

    def opened(name: str, data: bytes) -> object:
        if name == "tensorrt":
            msg = "no NVIDIA driver was found: expected one; install it"
            raise DeviceError(msg)
        return open_backend(name, data)

    monkeypatch.setattr(engine.bench, "SIZES", (1, 2))
    monkeypatch.setattr(engine.bench, "CLASSIC_SIDE_PX", 64)
    monkeypatch.setattr(engine.bench, "tensorrt_is_installed", lambda: True)
    monkeypatch.setattr(engine.bench, "open_backend", opened)
    monkeypatch.setattr("engine.stand_in.SIDE_PX", 64)
    with pytest.raises(SystemExit) as end:
        framegate.main(["bench", "engine", "--seconds", "0", "--rounds", "2", *(["--json"] if as_json else [])])
    assert end.value.code == 0
    out = capsys.readouterr().out
    if not as_json:
        assert "tensorrt        not here: no NVIDIA driver" in out
        assert "times as fast" in out
        return
    result = json.loads(out)
    assert set(result["machine"]) >= {"cpu", "cores", "flags", "numpy", "onnxruntime", "openvino"}
    names = [backend["name"] for backend in result["backends"]]
    assert names == ["onnxruntime", "openvino", *(["openvino-bf16"] if has_bfloat16() else [])]
    assert [missing["name"] for missing in result["unavailable"]][-1] == "tensorrt"
    assert result["default"] in names
    assert "reference" in result["default_because"]
    for backend in result["backends"]:
        assert backend["batch"] in [size["batch"] for size in backend["sizes"]]
        for entry in (backend, *backend["sizes"]):
            assert entry["images_per_s"] > 0
            assert entry["plain_images_per_s"] > 0
            assert entry["ratio"] > 0
            assert entry["plain"]
        for size in backend["sizes"]:
            assert (
                max(loop["images_per_s"] for loop in size["loops"] if loop["same_graph"]) == size["plain_images_per_s"]
            )
    if has_bfloat16():
        bf16 = result["backends"][-1]
        assert bf16["plain_unmarked_images_per_s"] == max(s["plain_unmarked_images_per_s"] for s in bf16["sizes"])
    assert result["classic"]["images_per_s"] > 0
    assert result["classic"]["ratio_of_default"] > 0


def test_the_history_is_a_table_whose_columns_are_explained() -> None:
    folder = Path(__file__).parent.parent / "bench"
    rows = list(csv.DictReader((folder / "results.csv").read_text(encoding="utf-8").splitlines()))
    explained = (folder / "README.md").read_text(encoding="utf-8")
    assert rows
    for row in rows:
        assert None not in row.values()
        assert None not in row
        assert float(row["smallest_ratio"]) > 0
        assert float(row["ratio_of_default"]) > 0
    for column in set(rows[0]) - {"date", "commit", "cpu", "cores", "flags", "batch", "default"}:
        assert f"`{column}`" in explained or column.startswith("classic_"), column


@pytest.mark.slow
def test_a_tiled_bundle_is_measured_in_whole_images_and_so_are_its_librarys_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.bench, "SIZES", (1, 2))
    monkeypatch.setattr(engine.bench, "CLASSIC_SIDE_PX", 64)
    monkeypatch.setattr(engine.bench, "CPU_BACKENDS", ("onnxruntime",))
    monkeypatch.setattr(engine.bench, "tensorrt_is_installed", lambda: False)
    monkeypatch.setattr(engine.bench, "_default", lambda _: ("onnxruntime", "it was told to"))
    result = bench_engine(small_bundle(image=TILED), Timing(0.0, 2))
    assert (result["input_px"], result["tile_px"]) == ([128, 64], [64, 64])
    (backend,) = result["backends"]
    assert {entry["batch"] for entry in backend["sizes"]} >= {1, 2}
    assert backend["ratio"] > 0


def test_a_loop_over_tiles_counts_whole_images() -> None:
    loops = {12: [Loop("a", lambda seconds: 12 * int(seconds))], 6: [Loop("b", lambda _: 18, same_graph=False)]}
    found = _per_image(loops, 6)
    assert set(found) == {1, 2}
    assert found[2][0].run(3) == 6
    assert found[1][0].run(0) == 3
    assert not found[1][0].same_graph
