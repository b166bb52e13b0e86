"""A bundle comes back as it was written, or not at all."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.bundle import Bundle, _canonical_sha256, open_bundle, write_bundle
from engine.errors import BundleError, InputError
from engine.prediction import OperatingPoint
from engine.watching import StreamLimits
from tests.bundles import small_bundle, small_head
from tests.scenes import limits_of, scenes_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "parts"
    write_bundle(out, small_bundle(), {"index.html": b"<p>fine</p>"})
    return out


def test_everything_that_decides_survives(written: Path) -> None:
    bundle, before = open_bundle(written), small_bundle()
    assert (bundle.name, bundle.version, bundle.classes, bundle.image) == ("parts", "7", before.classes, before.image)
    assert bundle.graph == before.graph
    assert bundle.featurizer == before.featurizer
    assert bundle.head.calibration == before.head.calibration
    assert bundle.head.operating_point == before.head.operating_point
    assert bundle.head.pixels == before.head.pixels
    assert bundle.head.evidence_bias == before.head.evidence_bias
    for name in ("evidence_weights", "pooled_weights"):
        np.testing.assert_array_equal(getattr(bundle.head, name), getattr(before.head, name))
    for name in ("mean", "scale", "directions", "deviations", "residual", "limit"):
        np.testing.assert_array_equal(getattr(bundle.head.features, name), getattr(before.head.features, name))
    assert bundle.reference is not None
    assert before.reference is not None
    np.testing.assert_array_equal(bundle.reference.images, before.reference.images)


@pytest.mark.parametrize("out", ["parts", "parts.zip"])
def test_file_names_that_are_not_utf_8_come_back_as_they_were(tmp_path: Path, out: str) -> None:
    named = replace(small_bundle(), about={"skipped": [["bad/\udcff\udc80ü.jpg", "broken"]], "lot \udcfe": 1})
    digest = write_bundle(tmp_path / out, named).digest
    opened = open_bundle(tmp_path / out)
    assert opened.about == named.about
    assert opened.digest == digest == write_bundle(tmp_path / f"plain-{out}", replace(named, about={})).digest


def test_what_a_stream_is_compared_with_survives(tmp_path: Path) -> None:
    pixels = replace(small_head().pixels, dark=9.5, bright=250.25)
    written = replace(small_bundle(), stream=limits_of(1, 2), head=replace(small_head(), pixels=pixels))
    write_bundle(tmp_path / "parts", written)
    opened = open_bundle(tmp_path / "parts")
    assert opened.head.pixels == pixels
    before, after = written.stream, opened.stream
    assert (after.noise, after.drift) == (before.noise, before.drift)
    assert before.scenes is not None
    assert after.scenes is not None
    assert (after.scenes.limit, after.scenes.likeness) == (before.scenes.limit, before.scenes.likeness)
    np.testing.assert_array_equal(after.scenes.pictures, before.scenes.pictures)


def test_a_stations_own_operating_point_survives_and_decides(written: Path, tmp_path: Path) -> None:
    own = {"press-1": OperatingPoint(0.3, (0.2, 0.4)), "press-2": OperatingPoint(0.6, (0.6, 0.6))}
    before = replace(small_bundle(), head=replace(small_head(), stations=own))
    write_bundle(tmp_path / "parts", before)
    opened = open_bundle(tmp_path / "parts")
    assert opened.head.stations == own
    assert opened.head.at("press-1").operating_point == own["press-1"]
    assert opened.head.at("elsewhere") is opened.head
    assert opened.digest != open_bundle(written).digest
    assert "stations" not in json.loads((written / "manifest.json").read_text())["decides"]["heads"][0]


def test_a_bundle_from_before_streams_were_known_opens_and_keeps_its_digest(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert "stream" not in manifest["decides"]
    assert "drift" not in manifest
    assert set(manifest["decides"]["heads"][0]["pixels"]) == {"contrast", "detail"}, "as earlier versions wrote it"
    bundle = open_bundle(written)
    assert (bundle.stream.noise, bundle.stream.scenes, bundle.stream.drift) == (None, None, None)
    assert (bundle.head.pixels.dark, bundle.head.pixels.bright) == (0.0, 255.0), "any light will do"


@pytest.mark.parametrize(
    "odd", [np.zeros((2, 64, 64)), np.zeros((64, 64), np.float32), np.zeros((1, 8, 8), np.float32)]
)
def test_scenes_that_nothing_can_be_compared_with_are_refused(tmp_path: Path, odd: np.ndarray) -> None:
    scenes = replace(scenes_of(1), pictures=odd)
    with pytest.raises(ValueError, match="expected float32"):
        write_bundle(tmp_path / "parts", replace(small_bundle(), stream=StreamLimits(scenes=scenes)))
    assert not (tmp_path / "parts").exists()


def test_other_scenes_than_were_trained_are_refused(tmp_path: Path) -> None:
    for name, scene in (("one", 1), ("other", 2)):
        write_bundle(tmp_path / name, replace(small_bundle(), stream=StreamLimits(scenes=scenes_of(scene))))
    shutil.copy(tmp_path / "other" / "stream" / "scenes.npy", tmp_path / "one" / "stream" / "scenes.npy")
    with pytest.raises(BundleError, match=r"changed stream/scenes\.npy"):
        open_bundle(tmp_path / "one")


def test_a_zip_is_the_same_bundle(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts.zip"
    assert write_bundle(out, small_bundle()).digest == open_bundle(written).digest
    assert open_bundle(out).digest == open_bundle(written).digest


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    write_bundle(first, small_bundle())
    write_bundle(second, small_bundle())
    assert first.read_bytes() == second.read_bytes()


DECISIVE: list[Callable[[Bundle], Bundle]] = [
    lambda b: replace(b, defect_rate=0.01),
    lambda b: replace(b, image=replace(b.image, max_pixels=1_000)),
    lambda b: replace(b, image=replace(b.image, jpeg="scaled")),
    lambda b: replace(b, head=replace(b.head, operating_point=OperatingPoint(0.5, (0.3, 0.61)))),
    lambda b: replace(b, head=replace(b.head, evidence_weights=np.nextafter(b.head.evidence_weights, np.float32(9)))),
    lambda b: replace(b, head=replace(b.head, pixels=replace(b.head.pixels, contrast=2.0))),
    lambda b: replace(b, head=replace(b.head, pixels=replace(b.head.pixels, dark=12.0))),
    lambda b: replace(b, stream=StreamLimits(noise=0.0)),
    lambda b: replace(b, stream=StreamLimits(scenes=scenes_of(1))),
]
TOLD: list[Callable[[Bundle], Bundle]] = [
    lambda b: replace(b, about={"created_at": "another day"}),
    lambda b: replace(b, name="other", version="8"),
    lambda b: replace(b, reference=None),
    lambda b: replace(b, stream=StreamLimits(drift=1.5)),
]


@pytest.mark.parametrize("change", DECISIVE)
def test_digest_moves_with_what_decides(written: Path, tmp_path: Path, change: Callable[[Bundle], Bundle]) -> None:
    assert write_bundle(tmp_path / "other", change(small_bundle())).digest != open_bundle(written).digest


@pytest.mark.parametrize("change", TOLD)
def test_digest_stays_with_what_is_only_told(written: Path, tmp_path: Path, change: Callable[[Bundle], Bundle]) -> None:
    assert write_bundle(tmp_path / "other", change(small_bundle())).digest == open_bundle(written).digest


def test_any_changed_byte_is_seen(written: Path, tmp_path: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        copy = tmp_path / "copy"
        shutil.copytree(written, copy)
        place = copy / path.relative_to(written)
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 0x04
        place.write_bytes(data)
        with pytest.raises(BundleError, match=r"changed|cannot be read|does not fit|schema"):
            open_bundle(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["manifest.json", "featurizer.onnx", "heads/default/pooled_weights.npy"])
def test_a_missing_file_is_named(written: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        open_bundle(copy)


def test_a_newer_schema_asks_for_a_newer_framegate(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["schema"] = 2
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"schema 2.*reads up to 1.*newer Framegate"):
        open_bundle(copy)


def test_a_pin_holds_the_bundle_to_its_digest(written: Path) -> None:
    digest = open_bundle(written).digest
    assert open_bundle(f"{written}@sha256:{digest}").digest == digest
    with pytest.raises(BundleError, match="expected the pinned"):
        open_bundle(f"{written}@sha256:{'0' * 64}")
    with pytest.raises(BundleError, match="64 hexadecimal digits"):
        open_bundle(f"{written}@sha256:abc")


def test_a_bundle_is_never_written_over(written: Path) -> None:
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(written, small_bundle())


def test_what_is_no_bundle_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not there"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="is a URL"):
        open_bundle("s3://models/parts-1")
    text = tmp_path / "text.zip"
    text.write_text("no zip")
    with pytest.raises(BundleError, match="not a whole zip"):
        open_bundle(text)


def test_a_zip_that_climbs_out_is_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("../manifest.json", "{}")
    with pytest.raises(BundleError, match="not something Framegate writes"):
        open_bundle(evil)


def test_a_head_of_another_featurizer_is_refused(tmp_path: Path) -> None:
    stranger = replace(small_head(), featurizer="0" * 64)
    with pytest.raises(BundleError, match="was fitted on featurizer"):
        write_bundle(tmp_path / "parts", small_bundle(head=stranger))
    assert not (tmp_path / "parts").exists()


def test_nothing_in_a_bundle_is_a_pickle(tmp_path: Path) -> None:
    bundle = small_bundle()
    evil = replace(bundle.head, pooled_weights=np.array([object()]))
    with pytest.raises(ValueError, match="allow_pickle"):
        write_bundle(tmp_path / "parts", replace(bundle, head=evil))
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("featurizer", "told"),
    [
        ({"backbone": "efficientnet-lite0", "taps": [2, 4, 99], "embedding": False}, r"taps \[2, 4, 99\] do not fit"),
        ({"backbone": "resnet50", "taps": [2], "embedding": False}, "'resnet50' is not known"),
        (
            {"backbone": "efficientnet-lite0", "taps": [2, 4], "embedding": False},
            r"float32 \{'evidence_weights': \(64,",
        ),
    ],
)
def test_a_bundle_whose_taps_do_not_exist_is_refused(tmp_path: Path, featurizer: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        write_bundle(tmp_path / "parts", replace(small_bundle(), featurizer=featurizer))
    assert not (tmp_path / "parts").exists()
    write_bundle(tmp_path / "parts", small_bundle())
    path = tmp_path / "parts" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decides"]["featurizer"] |= featurizer
    manifest["digest"] = _canonical_sha256(manifest["decides"])
    del manifest["manifest_sha256"]
    path.write_text(json.dumps({**manifest, "manifest_sha256": _canonical_sha256(manifest)}))
    with pytest.raises(BundleError, match=told):
        open_bundle(tmp_path / "parts")
