"""The versioned model bundle: a folder, or the same as one zip. Checked whole before anything in it is used; no pickle.

    manifest.json        what decides verdicts (`decides`), what is told about it (`about`), every file's sha256
    featurizer.onnx      the serving graph
    heads/NAME/*.npy     a head's arrays
    stream/scenes.npy    what the cameras are to see, where the training images have a scene in common
    reference/*.npy      held-out images with their answers: what `verify` compares with
    report/              for people; decides nothing

The digest covers `decides` alone, and the decisive files through their sha256 in it: same digest, same verdicts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from engine.errors import BundleError, FramegateError, HeadError
from engine.familiarity import FeatureLimits, PixelLimits
from engine.featurizer import FeaturizerSpec
from engine.heads import Calibration, Head
from engine.locations import is_url, shown
from engine.prediction import OperatingPoint
from engine.specs import ImageSpec
from engine.watching import SIDE, UNKNOWN, Scenes, StreamLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1
MANIFEST = "manifest.json"
GRAPH = "featurizer.onnx"
MAX_FILE_BYTES = 1 << 30
_HEAD_ARRAYS = ("evidence_weights", "pooled_weights")
_LIMIT_ARRAYS = ("mean", "scale", "directions", "deviations")
_SCENES = "stream/scenes.npy"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Classes:
    """The user's own words for the two classes."""

    passed: str
    failed: str


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Held-out images with the answers that the bundle gave when it was made.

    Attributes:
        images: uint8 (n, h, w, 3), as the graph takes them.
        pooled: float32 (n, d).
        evidence: float32 (n,).
        probabilities: float64 (n,), as published.
    """

    images: np.ndarray
    pooled: np.ndarray
    evidence: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """An opened bundle: whole, of a known schema, every byte as it was written.

    Attributes:
        about: metrics, versions, what it was trained on; told, never used to decide.
        defect_rate: share of defects that the probabilities are calibrated for.
        stream: what the consumer compares a station's stream with; nothing of it in bundles from before there was any.
    """

    name: str
    version: str
    digest: str
    classes: Classes
    image: ImageSpec
    featurizer: dict[str, Any]
    graph: bytes
    head: Head
    defect_rate: float
    about: dict[str, Any]
    reference: Reference | None = None
    stream: StreamLimits = UNKNOWN


def write_bundle(out: Path, bundle: Bundle, report: Mapping[str, bytes] | None = None) -> Bundle:
    """Write a bundle to the folder `out`, or to one zip where `out` ends in .zip; whole or not at all.

    The digest is computed here; `bundle.digest` is not looked at. Returns the bundle as it was written.

    Raises:
        BundleError: `out` exists already, or its name is no bundle name.
    """
    if out.exists():
        msg = (
            f"bundle {out} exists already: expected a new path; a bundle is never changed in place, give another --out"
        )
        raise BundleError(msg)
    written, files = _sealed(bundle, report or {})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_zip(out, files) if out.suffix == ".zip" else _write_folder(out, files)
    except OSError as error:
        msg = f"bundle {out} cannot be written: {error.strerror or error}; nothing was left behind"
        raise BundleError(msg) from error
    return written


def sealed(bundle: Bundle) -> Bundle:
    """A bundle as it will be read once it is written, with its digest. Raises BundleError where it cannot be."""
    return _sealed(bundle, {})[0]


def pack_bundle(bundle: Bundle) -> bytes:
    """A bundle as one zip in memory, without its report: for another process to open. Raises as `write_bundle`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in _sealed(bundle, {})[1].items():
            archive.writestr(name, data)
    return packed.getvalue()


def unpack_bundle(data: bytes) -> Bundle:
    """The opposite of `pack_bundle`, checked as any bundle is. Raises as `open_bundle`."""
    where = f"of {len(data)} bytes from another process"
    return _checked(where, _read_zip(io.BytesIO(data), where), None)


def _sealed(bundle: Bundle, report: Mapping[str, bytes]) -> tuple[Bundle, dict[str, bytes]]:
    """The bundle as it will be read, and all its files, the manifest among them."""
    if not _NAME.fullmatch(bundle.name):
        msg = f"bundle name {bundle.name!r} is not usable: expected letters, digits, '.', '_' and '-', at most 100"
        raise BundleError(msg)
    files = _files(bundle, report)
    decides = _decides(bundle, files)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "name": bundle.name,
        "version": bundle.version,
        "digest": _canonical_sha256(decides),
        "decides": decides,
        "about": bundle.about,
        **({} if bundle.stream.drift is None else {"drift": bundle.stream.drift}),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    written = _construct(manifest, files, manifest["digest"])  # what could not be opened again is not written
    sealed = {**manifest, "manifest_sha256": _canonical_sha256(manifest)}
    files[MANIFEST] = _utf8(json.dumps(sealed, indent=2, ensure_ascii=False, allow_nan=False)) + b"\n"
    return written, files


def open_bundle(location: str | Path, *, at: Path | None = None) -> Bundle:
    """Open and check a bundle: a folder or a zip, pinned by `LOCATION@sha256:DIGEST` where its digest must be that one.

    Args:
        location: where it is, for people.
        at: the copy on this machine of what lies there, see `engine.bundle_cache`; None: the location is a path.

    Raises:
        BundleError: not there, not a bundle, a newer schema, a changed byte, another digest than the pinned one.
    """
    where, pinned = _split_pin(str(location))
    if at is None and is_url(where):
        msg = f"bundle {shown(where)} is a URL: expected a folder or a zip; copy it here first"
        raise BundleError(msg)
    place = Path(where) if at is None else at
    where = shown(where)
    return _checked(where, _read_zip(place, where) if place.is_file() else _read_folder(place, where), pinned)


def read_report(location: str | Path, name: str, *, at: Path | None = None) -> bytes:
    """One file of a bundle's report, from `report/` on; the bundle is checked as `open_bundle` does.

    Args:
        location: as `open_bundle` takes it.
        name: of the file.
        at: as `open_bundle` takes it.

    Raises:
        BundleError: as `open_bundle`, or the report has no such file.
    """
    where = shown(str(location))
    place = bundle_path(str(location)) if at is None else at
    files = _read_zip(place, where) if place.is_file() else _read_folder(place, where)
    _checked(where, files, _split_pin(str(location))[1])
    try:
        return files[f"report/{name}"]
    except KeyError as error:
        msg = f"bundle {where} has no {name} in its report: expected one of a newer version; train it again"
        raise BundleError(msg) from error


def _checked(where: str, files: Mapping[str, bytes], pinned: str | None) -> Bundle:
    """The bundle that these files are, every byte of them looked at. Raises as `open_bundle`."""
    manifest = _manifest(where, files)
    _check_files(where, files, manifest)
    digest = _canonical_sha256(manifest["decides"])
    if digest != manifest["digest"]:
        msg = (
            f"bundle {where} has digest {digest}: its manifest says {manifest['digest']}; it was changed, "
            "fetch it again"
        )
        raise BundleError(msg)
    if pinned is not None and pinned != digest:
        msg = f"bundle {where} has digest {digest}: expected the pinned {pinned}; deploy that one or change the pin"
        raise BundleError(msg)
    try:
        return _construct(manifest, files, digest)
    except (FramegateError, KeyError, TypeError, ValueError) as error:
        msg = f"bundle {where} does not hold what schema {SCHEMA} promises ({error}); train it again"
        raise BundleError(msg) from error


def bundle_path(location: str) -> Path:
    """Where a location's files lie, without its pin. Raises BundleError where the pin is none."""
    return Path(_split_pin(location)[0])


def bundle_url(location: str) -> str | None:
    """The URL of a location that has to be fetched, without its pin; None: it is a path. Raises as `bundle_path`."""
    where = _split_pin(location)[0]
    return where if is_url(where) else None


def _files(bundle: Bundle, report: Mapping[str, bytes]) -> dict[str, bytes]:
    head, limits = bundle.head, bundle.head.features
    files = {GRAPH: bundle.graph}
    files |= {f"heads/{head.name}/{name}.npy": _npy(getattr(head, name)) for name in _HEAD_ARRAYS}
    files |= {f"heads/{head.name}/limits_{name}.npy": _npy(getattr(limits, name)) for name in _LIMIT_ARRAYS}
    if bundle.stream.scenes is not None:
        files[_SCENES] = _npy(bundle.stream.scenes.pictures)
    if bundle.reference is not None:
        files |= {
            f"reference/{name}.npy": _npy(getattr(bundle.reference, name))
            for name in ("images", "pooled", "evidence", "probabilities")
        }
    return files | {f"report/{name}": data for name, data in report.items()}


def _decides(bundle: Bundle, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Everything a verdict depends on, and nothing else; what is not there as before it could be: the digest stays."""
    head = bundle.head
    stream = _stream_decides(bundle.stream, files)
    stations = {name: asdict(point) for name, point in head.stations.items()}
    prefix = f"heads/{head.name}/"
    return {
        "classes": asdict(bundle.classes),
        "image": bundle.image.to_json(),
        "featurizer": {**bundle.featurizer, "sha256": hashlib.sha256(bundle.graph).hexdigest()},
        "defect_rate": bundle.defect_rate,
        **({"stream": stream} if stream else {}),
        "heads": [
            {
                "name": head.name,
                "featurizer": head.featurizer,
                "evidence_bias": head.evidence_bias,
                "pooled_bias": head.pooled_bias,
                "calibration": asdict(head.calibration),
                "operating_point": asdict(head.operating_point),
                **({"stations": stations} if stations else {}),
                "pixels": _pixels_decide(head.pixels),
                "features": {"residual": head.features.residual, "limit": head.features.limit},
                "arrays": {
                    name.removeprefix(prefix): hashlib.sha256(data).hexdigest()
                    for name, data in sorted(files.items())
                    if name.startswith(prefix)
                },
            }
        ],
    }


def _pixels_decide(limits: PixelLimits) -> dict[str, float]:
    """The limits that limit anything."""
    own = {field.name: field.default for field in fields(PixelLimits)}
    return {name: value for name, value in asdict(limits).items() if value != own[name]}


def _stream_decides(stream: StreamLimits, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What can turn a station's verdicts into `none`."""
    decides: dict[str, Any] = {} if stream.noise is None else {"noise": stream.noise}
    if stream.scenes is not None:
        decides["scenes"] = {
            "limit": stream.scenes.limit,
            "likeness": stream.scenes.likeness,
            "sha256": hashlib.sha256(files[_SCENES]).hexdigest(),
        }
    return decides


def _stream(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> StreamLimits:
    """Of a bundle's files. Raises ValueError where they cannot be compared with anything."""
    decides = manifest["decides"].get("stream", {})
    scenes = None
    if "scenes" in decides:
        entry = decides["scenes"]
        pictures = _array(files[_SCENES])
        if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE) or pictures.dtype != np.float32:  # noqa: PLR2004 - k, h, w
            msg = f"scenes are {pictures.dtype} {pictures.shape}: expected float32 (k, {SIDE}, {SIDE})"
            raise ValueError(msg)
        scenes = Scenes(pictures, float(entry["limit"]), float(entry["likeness"]))
    noise, drift = decides.get("noise"), manifest.get("drift")
    return StreamLimits(None if noise is None else float(noise), scenes, None if drift is None else float(drift))


def _construct(manifest: Mapping[str, Any], files: Mapping[str, bytes], digest: str) -> Bundle:
    decides = manifest["decides"]
    (entry,) = decides["heads"]
    prefix = f"heads/{entry['name']}/"
    arrays = {name: _array(files[f"{prefix}{name}.npy"]) for name in _HEAD_ARRAYS}
    limits = {name: _array(files[f"{prefix}limits_{name}.npy"]) for name in _LIMIT_ARRAYS}
    head = Head(
        name=entry["name"],
        featurizer=entry["featurizer"],
        evidence_bias=entry["evidence_bias"],
        pooled_bias=entry["pooled_bias"],
        calibration=Calibration(**entry["calibration"]),
        operating_point=_point(entry["operating_point"]),
        stations={name: _point(point) for name, point in entry.get("stations", {}).items()},
        pixels=PixelLimits(**entry["pixels"]),
        features=FeatureLimits(
            limits["mean"],
            limits["scale"],
            limits["directions"],
            limits["deviations"],
            residual=entry["features"]["residual"],
            limit=entry["features"]["limit"],
        ),
        **arrays,
    )
    featurizer = dict(decides["featurizer"])
    graph_sha256 = featurizer.pop("sha256")
    spec = FeaturizerSpec.from_json(featurizer)
    try:
        head.check_fits(graph_sha256, channels=spec.channels, pooled_size=spec.pooled_size)
    except HeadError as error:
        raise BundleError(str(error)) from error
    return Bundle(
        name=manifest["name"],
        version=manifest["version"],
        digest=digest,
        classes=Classes(**decides["classes"]),
        image=ImageSpec.from_json(decides["image"]),
        featurizer=featurizer,
        graph=files[GRAPH],
        head=head,
        defect_rate=decides["defect_rate"],
        about=manifest["about"],
        reference=_reference(files),
        stream=_stream(manifest, files),
    )


def _point(entry: Mapping[str, Any]) -> OperatingPoint:
    low, high = entry["review_band"]
    return OperatingPoint(entry["threshold"], (low, high))


def _reference(files: Mapping[str, bytes]) -> Reference | None:
    if "reference/images.npy" not in files:
        return None
    names = ("images", "pooled", "evidence", "probabilities")
    return Reference(**{name: _array(files[f"reference/{name}.npy"]) for name in names})


def _manifest(where: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    if MANIFEST not in files:
        msg = f"{where} is no bundle: it holds no {MANIFEST}; expected a folder or zip that `framegate train` wrote"
        raise BundleError(msg)
    try:
        manifest: dict[str, Any] = json.loads(files[MANIFEST])
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        msg = (
            f"bundle {where} has a {MANIFEST} that cannot be read ({error}): it was changed or cut short, "
            "fetch it again"
        )
        raise BundleError(msg) from error
    if not isinstance(schema, int) or schema > SCHEMA:
        msg = f"bundle {where} has schema {schema}: this Framegate reads up to {SCHEMA}; use a newer Framegate"
        raise BundleError(msg)
    claimed = manifest.pop("manifest_sha256", None)
    if claimed != _canonical_sha256(manifest):
        msg = f"bundle {where} has a {MANIFEST} that does not fit its own sha256: it was changed, fetch it again"
        raise BundleError(msg)
    return manifest


def _check_files(where: str, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    listed = manifest["files"]
    for name, sha256 in listed.items():
        if name not in files:
            msg = f"bundle {where} lacks {name}: its manifest lists it; fetch the bundle again"
            raise BundleError(msg)
        got = hashlib.sha256(files[name]).hexdigest()
        if got != sha256:
            msg = f"bundle {where} has a changed {name}: sha256 {got}, expected {sha256}; fetch the bundle again"
            raise BundleError(msg)
    decisive = {GRAPH: manifest["decides"]["featurizer"]["sha256"]}
    if "scenes" in manifest["decides"].get("stream", {}):
        decisive[_SCENES] = manifest["decides"]["stream"]["scenes"]["sha256"]
    for entry in manifest["decides"]["heads"]:
        decisive |= {f"heads/{entry['name']}/{name}": sha256 for name, sha256 in entry["arrays"].items()}
    if any(listed.get(name) != sha256 for name, sha256 in decisive.items()):
        msg = f"bundle {where} lists other files than it decides by: it was put together from two; train it again"
        raise BundleError(msg)


def _split_pin(location: str) -> tuple[str, str | None]:
    where, mark, digest = location.rpartition("@sha256:")
    if not mark:
        return _without_scheme(location), None
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        msg = f"pin @sha256:{digest} is not a digest: expected 64 hexadecimal digits, as `manifest.json` shows"
        raise BundleError(msg)
    return _without_scheme(where), digest


def _without_scheme(where: str) -> str:
    """A `file://` URL as the path it is."""
    return unquote(urlsplit(where).path) if where.startswith("file://") else where


def _read_folder(folder: Path, where: str) -> dict[str, bytes]:
    if not folder.is_dir():
        msg = f"bundle {where} is not there: expected a folder or a zip that `framegate train` wrote"
        raise BundleError(msg)
    try:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    except OSError as error:
        msg = f"bundle {where} cannot be read: {error.strerror}: {error.filename}"
        raise BundleError(msg) from error


def _read_zip(file: Path | io.BytesIO, where: str) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(file) as archive:
            files = {}
            for info in archive.infolist():
                name = PurePosixPath(info.filename)
                if info.is_dir():
                    continue
                if name.is_absolute() or ".." in name.parts or info.file_size > MAX_FILE_BYTES:
                    msg = (
                        f"bundle {where} holds {info.filename!r} of {info.file_size} bytes: "
                        "not something Framegate writes"
                    )
                    raise BundleError(msg)
                files[str(name)] = archive.read(info)
            return files
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        msg = f"bundle {where} is not a whole zip ({error}): expected one that `framegate train` wrote; fetch it again"
        raise BundleError(msg) from error


def _write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Beside its place first, then renamed: a watcher never sees half a bundle."""
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, data in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        part.chmod(0o755)
        part.rename(out)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write_zip(out: Path, files: Mapping[str, bytes]) -> None:
    handle, part = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(files.items()):
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
        Path(part).chmod(0o644)
        Path(part).rename(out)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise


def _canonical_sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(_utf8(text)).hexdigest()


def _utf8(text: str) -> bytes:
    """JSON as bytes. Odd bytes of file names that are not UTF-8 become JSON's own escapes and are read back."""
    return text.encode(errors="backslashreplace")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _array(data: bytes) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array
