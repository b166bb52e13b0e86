"""Images from object stores, against Azurite and moto's S3: the same images, each byte once, and what can go wrong."""

from __future__ import annotations

import io
import random
import resource
import tempfile
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import engine.remote_http
import trainer.object_store
import trainer.spool
from engine.errors import FramegateError, RemoteError
from tests.object_stores import Way
from tests.web import Web
from trainer.archives import MIB, Limits
from trainer.errors import FetchError, MemberError, SourceError
from trainer.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.object_stores import ObjectStore
    from trainer.progress import Step

OVERHEAD = 0.1
"""Of headers and of what a store says in XML."""


def images(count: int = 12, n_bytes: int = 100_000) -> dict[str, bytes]:
    """Nothing that decodes; sources do not look."""
    rng = random.Random(count)
    return {f"{label}/{number}.jpg": rng.randbytes(n_bytes) for label in ("good", "fail") for number in range(count)}


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def read_all(url: str, times: int = 1, limits: Limits | None = None) -> dict[str, bytes]:
    with open_source(url, limits) as source:
        names = [item.name for item in source.items()]
        source.fetch(names)
        for _ in range(times - 1):
            assert all(source.read(name) for name in names)
        return {name: source.read(name) for name in names}


@pytest.fixture
def spool_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's temporary files lie."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def way(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    """The environment leads through this."""
    with Way(object_store.port) as way:
        for name, value in object_store.env(port=way.port).items():
            monkeypatch.setenv(name, value)
        yield way


def gets(way: Way, suffix: str) -> int:
    return sum(line.startswith("GET") and line.split()[1].split("?")[0].endswith(suffix) for line in way.asked)


def test_a_zip_is_fetched_once_however_often_it_is_read(
    object_store: ObjectStore, way: Way, unique: str, spool_folder: Path
) -> None:
    files = images(90)  # several parts of the size that is asked for at once
    content = packed(files)
    url = object_store.put(unique, {"train.zip": content})
    steps: list[Step] = []
    with open_source(f"{url}/train.zip", tell=steps.append) as source:
        assert source.notes == ()
        assert source.origin == f"{url}/train.zip"
        for _ in range(3):
            assert {item.name: source.read(item.name) for item in source.items()} == files
        assert list(spool_folder.iterdir()) == [], "the spool has no name, so nothing is left of a run that is killed"
    assert len(content) <= way.answered_bytes < (1 + OVERHEAD) * len(content)
    assert gets(way, "train.zip") == -(-len(content) // (4 * MIB)) > 1
    assert [step.name for step in steps][:1] == ["list"]
    whole = len(content) // MIB
    assert [step.done for step in steps if step.name == "fetch MiB"] == [*range(4, whole, 4), whole]
    with pytest.raises(MemberError, match="closed"):
        source.read("good/1.jpg")


def test_loose_images_are_fetched_once_however_often_they_are_read(
    object_store: ObjectStore, way: Way, unique: str, spool_folder: Path
) -> None:
    files = images()
    url = object_store.put(
        unique, {**{f"line 1/{name}": content for name, content in files.items()}, "line 1/x.csv": b"x"}
    )
    steps: list[Step] = []
    with open_source(f"{url}/line 1/") as source:
        names = [item.name for item in source.items()]
        assert sorted(names) == sorted(files)
        assert way.answered_bytes < 50_000, "of loose images only the names are needed before the labels are known"
        assert source.read(names[3]) == files[names[3]]
        source.fetch(names, steps.append)
        for _ in range(3):
            assert {name: source.read(name) for name in names} == files
        assert list(spool_folder.iterdir()) == []
    total_bytes = sum(map(len, files.values()))
    assert total_bytes <= way.answered_bytes < (1 + OVERHEAD) * total_bytes
    assert gets(way, ".jpg") == len(files)
    assert gets(way, ".csv") == 0
    assert steps[-1].done == steps[-1].total == len(files) - 1


def test_a_container_with_one_zip_is_that_zip(object_store: ObjectStore, unique: str) -> None:
    files = images(2, 100)
    url = object_store.put(unique, {"in/train.zip": packed(files), "in/readme.txt": b"x"})
    with open_source(url) as source:
        assert {item.name: source.read(item.name) for item in source.items()} == files
        assert source.notes == (f"trained from 'in/train.zip', the one zip in {url}",)
        assert source.origin == url


def test_loose_images_go_before_a_zip_and_a_note_says_so(object_store: ObjectStore, unique: str) -> None:
    files = images(2, 100)
    url = object_store.put(unique, {**files, "train.zip": packed(images(3, 100))})
    with open_source(url) as source:
        assert {item.name: source.read(item.name) for item in source.items()} == files
        assert any(f"give {url}/train.zip to train from it" in note for note in source.notes)


def test_several_zips_are_asked_about(object_store: ObjectStore, unique: str) -> None:
    url = object_store.put(unique, {f"{day}.zip": packed(images(2, 10)) for day in ("mo", "tu", "we", "th")})
    with pytest.raises(SourceError, match=rf"holds 4 zips .*'mo.zip', 'th.zip', 'tu.zip' and 1 more.* {url}/mo.zip"):
        open_source(url)


def test_a_groups_file_beside_loose_images_is_read(object_store: ObjectStore, unique: str) -> None:
    url = object_store.put(unique, {**images(1, 10), "groups.csv": b"file,label,group\n"})
    with open_source(url) as source:
        assert source.groups_csv() == "file,label,group\n"


ODD = ("a b.jpg", "ü/x#1.jpg", "100%20.jpg", "a+b&c=d.jpg", "a..b..jpg", "w\\x.jpg")


def test_odd_names_are_read(object_store: ObjectStore, unique: str) -> None:
    url = object_store.put(unique, {name: name.encode() for name in ODD})
    # Azure itself takes a backslash for a slash; here it counts as one wherever it comes from.
    assert read_all(url) == {
        name.replace("\\", "/"): content for name, content in ((name, name.encode()) for name in ODD)
    }


# ------------------------------------------------------------------ what is wrong


def refusal(url: str, limits: Limits | None = None) -> FramegateError:
    """The one error, which has one line and holds no secret."""
    with pytest.raises(FramegateError) as caught:
        read_all(url, limits=limits)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_not_there_is_named(object_store: ObjectStore, unique: str) -> None:
    url = object_store.put(unique, {"train.zip": packed(images(1, 10))})
    nowhere = refusal(f"{object_store.scheme}://no{unique}/train.zip")
    assert f"is not there: expected a zip or a folder of images; there is no 'no{unique}' in this account" in str(
        nowhere
    )
    misspelt = refusal(f"{url}/tran.zip")
    assert f"{url}/tran.zip is not there: expected a zip" in str(misspelt)
    assert f"; '{unique}' holds 'train.zip'" in str(misspelt)
    empty = refusal(object_store.put(f"e{unique}", {}))
    assert f"{object_store.scheme}://e{unique} is empty: expected a zip" in str(empty)
    assert {type(error) for error in (nowhere, misspelt, empty)} == {SourceError}


def test_a_wrong_key_is_told_and_not_shown(
    object_store: ObjectStore, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = object_store.put(unique, {"train.zip": packed(images(1, 10))})
    secret = "U2VjcmV0IG9mIHRoZSBwbGFudA=="
    for name, value in object_store.env(key=secret).items():
        monkeypatch.setenv(name, value)
    with object_store.guarded():
        for place in (url, f"{url}/train.zip"):
            error = refusal(place)
            assert isinstance(error, SourceError), "starting again does not help"
            assert f"source {place} may not be read: the store refuses (" in str(error)
            assert {"az": "AZURE_STORAGE_ACCOUNT_KEY", "s3": "AWS_SECRET_ACCESS_KEY"}[object_store.scheme] in str(error)
            assert secret not in str(error)


@pytest.mark.parametrize(
    "given", ["nonsense", "AccountName=plant;AccountKey=not base64;BlobEndpoint=http://127.0.0.1:9/"]
)
def test_a_connection_string_that_is_none_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    pytest.importorskip("adlfs", reason="an extra: framegate[azure]")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", given)
    error = refusal("az://images/train.zip")
    assert "may not be read: the store refuses (" in str(error)
    assert "not base64" not in str(error)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    assert "set AZURE_STORAGE_ACCOUNT_NAME and" in str(refusal("az://images/train.zip"))


@pytest.mark.parametrize("kind", ["zip", "loose"])
def test_an_answer_that_breaks_off_is_asked_for_again(
    object_store: ObjectStore, way: Way, unique: str, kind: str
) -> None:
    files = images()
    url = object_store.put(unique, files if kind == "loose" else {"train.zip": packed(files)})
    way.cuts = [600_000, 1_500_000]
    assert read_all(url) == files
    assert way.cuts == []


@pytest.mark.parametrize("kind", ["zip", "loose"])
def test_a_store_that_goes_away_ends_in_one_error(
    object_store: ObjectStore, way: Way, unique: str, kind: str, monkeypatch: pytest.MonkeyPatch, spool_folder: Path
) -> None:
    monkeypatch.setattr(trainer.object_store, "SOURCE", replace(trainer.object_store.SOURCE, part_s=2.0))
    files = images()
    url = object_store.put(unique, files if kind == "loose" else {"train.zip": packed(files)})

    def leave(step: Step) -> None:
        if step.name == "fetch":
            way.refuses = True

    if kind == "zip":
        way.cuts = [300_000]
        way.ends = True
    with pytest.raises(RemoteError, match=rf"source {url}.* cannot be fetched: ") as caught, open_source(url) as source:
        source.fetch([item.name for item in source.items()], leave)
    assert "\n" not in str(caught.value)
    assert list(spool_folder.iterdir()) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_zip_behind_a_web_server_is_fetched_once_and_continued(
    monkeypatch: pytest.MonkeyPatch, *, ranges: bool
) -> None:
    monkeypatch.setattr("engine.remote_http.PAUSES_S", (0.0, 0.0))
    files = images()
    content = packed(files)
    with Web(content, ranges=ranges) as web:
        assert read_all(web.url, times=2) == files
        assert (web.asked.count("GET"), web.sent_bytes) == (1, len(content))
        web.cuts = [1_000_000, 1_500_000]
        if ranges:
            assert read_all(web.url) == files
            assert web.sent_bytes < 2 * len(content) + 2 * engine.remote_http.PART_BYTES
        else:
            assert "changed or broke off on the way" in str(refusal(web.url))
        web.cuts, web.hiccups = [], 2
        assert read_all(web.url) == files
        web.hiccups = 3
        error = refusal(web.url.replace("http://", "http://me:secret@") + "?sig=signature")
        assert "the server answers 503" in str(error)
        assert "secret" not in str(error)
        assert "signature" not in str(error)


def test_what_a_web_server_says_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.remote_http.PAUSES_S", (0.0,))
    with Web(None) as web:
        assert f"source {web.url} is not there: expected a zip" in str(refusal(web.url))
        web.put(b"<html>", "x")
        assert f"{web.url} is not a readable zip" in str(refusal(web.url))
        web.status = 401
        assert f"source {web.url} may not be read: the store refuses (401 Unauthorized)" in str(refusal(web.url))
        web.status, web.content = 200, packed(images(1, 300_000))
        web.cuts = [200_000]
        web.etag = None
        assert "cannot be fetched: ChunkedEncodingError" in str(refusal(web.url))


# ------------------------------------------------------------------ what is hostile, or too much


@pytest.fixture
def s3(moto: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The store that takes any name."""
    for name, value in moto.env().items():
        monkeypatch.setenv(name, value)
    return moto


@pytest.mark.parametrize("name", ["../up.jpg", "a/../../up.jpg", "w\\..\\..\\up.jpg", "C:/up.jpg", "/up.jpg"])
def test_names_that_lead_outside_are_refused(s3: ObjectStore, unique: str, name: str) -> None:
    url = s3.put(unique, {"good/1.jpg": b"x", name: b"x"})
    with pytest.raises(SourceError, match=r"points outside .* rename it in the store"):
        open_source(url)


def test_two_spellings_of_one_path_are_refused(s3: ObjectStore, unique: str) -> None:
    url = s3.put(unique, {"good/1.jpg": b"x", "good//1.jpg": b"y"})
    with pytest.raises(SourceError, match=r"holds 'good/1.jpg' twice, spelled 'good//1.jpg' and 'good/1.jpg'"):
        open_source(url)


def test_the_audit_of_zips_holds_at_a_url(object_store: ObjectStore, unique: str) -> None:
    evil = packed({"good/1.jpg": b"x", "../evil.jpg": b"x"})
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good/bomb.png", bytes(65 * MIB))
    url = object_store.put(unique, {"evil.zip": evil, "bomb.zip": bomb.getvalue(), "half.zip": evil[: len(evil) // 2]})
    assert "points outside the archive" in str(refusal(f"{url}/evil.zip"))
    assert f"{url}/bomb.zip is refused as a possible zip bomb" in str(refusal(f"{url}/bomb.zip"))
    assert f"{url}/half.zip is not a readable zip" in str(refusal(f"{url}/half.zip"))


def test_limits_hold_before_anything_is_fetched(object_store: ObjectStore, way: Way, unique: str) -> None:
    url = object_store.put(unique, {"good/1.jpg": bytes(1000), "good/large.jpg": bytes(1001), "fail/2.jpg": b""})
    with open_source(url, Limits(max_member_bytes=1000)) as source:
        source.fetch([item.name for item in source.items()])
        assert source.read("good/1.jpg") == bytes(1000)
        assert source.read("fail/2.jpg") == b""
        with pytest.raises(MemberError, match=rf"'good/large.jpg' in {url} is larger than 1,000 bytes"):
            source.read("good/large.jpg")
        with pytest.raises(MemberError, match="is not in"):
            source.read("../good/1.jpg")
    assert gets(way, "large.jpg") == 0
    assert "holds 2,001 bytes of images: expected at most 2,000" in str(refusal(url, Limits(max_total_bytes=2000)))
    assert "is a folder of 3 files" in str(refusal(url, Limits(max_members=2)))
    packed_url = object_store.put(f"z{unique}", {"train.zip": packed(images(2, 5000))})
    before = way.answered_bytes
    assert "is larger than 9,999 bytes: split it" in str(refusal(packed_url, Limits(max_total_bytes=9999)))
    assert way.answered_bytes - before < 5000


def test_room_is_looked_for_before_and_a_full_disk_is_one_error(
    object_store: ObjectStore, unique: str, spool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = images(2)
    loose = object_store.put(unique, files)
    zipped = object_store.put(f"z{unique}", {"train.zip": packed(files)})
    monkeypatch.setattr(trainer.spool, "SPARE_BYTES", 1 << 60)
    for url in (loose, zipped):
        error = refusal(url)
        assert isinstance(error, FetchError)
        assert f"cannot be kept in {spool_folder} while training reads it (it takes 0 MiB, and " in str(error)
        assert "TMPDIR" in str(error)
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(spool_folder))
    for name, value in object_store.env().items():
        monkeypatch.setenv(name, value)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))  # as good as a full disk, for this process alone
    try:
        errors = [refusal(url) for url in (loose, zipped)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all("(File too large)" in str(error) for error in errors)
