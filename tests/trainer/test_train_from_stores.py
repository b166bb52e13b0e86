"""From an object store to a bundle, by the command that a user types; the same bundle wherever the images lie."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from engine.bundle import open_bundle
from trainer.settings import TrainSettings
from trainer.train import train

if TYPE_CHECKING:
    from pathlib import Path

    from tests.object_stores import Azurite, ObjectStore

END_S = 240.0
"""A store's package has threads that wait for ever: they must not keep a process that is done."""


def command(*arguments: str, env: dict[str, str], end_s: float = END_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-m", "framegate", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
        timeout=end_s,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # the whole of a training run, on a machine that may be busy
def test_cats_and_dogs_from_a_blob_container(azurite: Azurite, shared_data: Path, unique: str, tmp_path: Path) -> None:
    """The acceptance of issue 6: one command from `train.zip` in a container to a bundle that tells them apart."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for label in ("good", "fail"):
            for path in sorted((shared_data / "data" / "catdog" / label).iterdir()):
                archive.write(path, path.name)  # cat.12.jpg and dog.7.jpg, flat
    url = azurite.put(f"images{unique}", {"train.zip": packed.getvalue()})
    spool = tmp_path / "spool"
    spool.mkdir()
    done = command(
        *("train", f"{url}/train.zip", "--out", str(tmp_path / "pets"), "--fail-class", "dog", "--json"),
        env={**azurite.env(), "TMPDIR": str(spool)},
        end_s=800.0,
    )
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary["classes"] == {"pass": "cat", "fail": "dog", "how": "names"}
    assert summary["images"]["used"] + summary["images"]["held_out"] == 600
    assert summary["held_out"]["auroc"] >= 0.99
    assert open_bundle(tmp_path / "pets").about["source"] == f"{url}/train.zip"
    assert list(spool.iterdir()) == []


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def pictures() -> dict[str, bytes]:
    return {
        f"{label}/{number}.png": picture(1000 * len(label) + number) for label in ("ok", "bad") for number in range(12)
    }


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.slow
def test_same_images_same_digest_wherever_they_lie(object_store: ObjectStore, unique: str, tmp_path: Path) -> None:
    files = pictures()
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    sources = [
        str(tmp_path / "in"),
        object_store.put(f"loose{unique}", files),
        f"{object_store.put(f'zip{unique}', {'train.zip': packed(files)})}/train.zip",
    ]
    digests = []
    for number, source in enumerate(sources):
        bundle, _ = train(TrainSettings(source=source, out=tmp_path / str(number), size_px=(64, 64)))
        digests.append(bundle.digest)
    assert len(set(digests)) == 1


@pytest.mark.slow
def test_the_command_tells_what_is_wrong_in_one_line_and_ends(
    object_store: ObjectStore, unique: str, tmp_path: Path
) -> None:
    url = object_store.put(unique, {"train.zip": packed(pictures())})
    out = str(tmp_path / "out")
    secret = "U2VjcmV0IG9mIHRoZSBwbGFudA=="
    cases: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
        ((f"{url}/nothing.zip",), {}, "is not there"),
        ((url, "--fail-class", "wrong"), {}, "fail class 'wrong' is not among the classes"),
        ((url, "--group-pattern", "(lot)"), {}, "fits none of the 24 images"),
    ]
    if object_store.scheme == "az":
        cases.append(((url,), {"key": secret}, "may not be read"))
    for arguments, given, words in cases:
        done = command("train", *arguments, "--out", out, env=object_store.env(**given))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
        assert secret not in done.stderr
