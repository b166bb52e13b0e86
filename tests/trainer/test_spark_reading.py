"""Single images by what a listing told of them, without listing again: folders, zips, object stores."""

from __future__ import annotations

import threading
import zipfile
from typing import TYPE_CHECKING

import pytest

from engine.errors import FramegateError
from trainer.errors import MemberError, SourceError
from trainer.sources import open_source
from trainer.spark_reading import Entry, listed, open_reader, read_ahead

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {"good/a.jpg": b"aa", "fail/b.jpg": b"bbb"}.items():
        path = tmp_path / "parts" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return tmp_path / "parts"


def test_a_folder_is_read_without_being_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source(folder) as source:
        entries = listed(source, str(folder), [item.name for item in source.items()])
    assert entries == [Entry("fail/b.jpg", "fail/b.jpg", 3, ""), Entry("good/a.jpg", "good/a.jpg", 2, "")]
    monkeypatch.setattr("os.walk", None)
    reader = open_reader(str(folder), is_loose=True)
    assert [reader.read(entry) for entry in entries] == [b"bbb", b"aa"]
    reader.close()


def test_what_cannot_be_read_is_told_of_in_its_place(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    (folder / "good" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    entries = [Entry(name, name, 2, "") for name in ("good/a.jpg", "good/none.jpg", "good/link.jpg", "../outside.jpg")]
    read = list(read_ahead(open_reader(str(folder), is_loose=True), entries))
    assert read[0] == b"aa"
    assert [type(each) for each in read[1:]] == [MemberError] * 3


def test_a_zip_is_read_by_its_own_listing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "parts.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "good" / "a.jpg", "good/a.jpg")
    with open_source(path) as source:
        (entry,) = listed(source, str(path), ["good/a.jpg"])
    assert entry.key == ""
    reader = open_reader(str(path), is_loose=False)
    assert reader.read(entry) == b"aa"
    reader.close()
    with pytest.raises(SourceError):
        open_reader(str(tmp_path / "none.zip"), is_loose=False)


class Slow:
    """A store that waits until enough reads are under way."""

    at_once = 4

    def __init__(self) -> None:
        self.together = threading.Barrier(4, timeout=20)

    def read(self, entry: Entry) -> bytes:
        self.together.wait()
        if entry.name == "2":
            msg = "not this one"
            raise MemberError(msg)
        return entry.name.encode()

    def close(self) -> None: ...


def test_reads_from_a_store_are_under_way_together_and_come_in_order() -> None:
    got = list(read_ahead(Slow(), [Entry(str(i), str(i), None, "") for i in range(20)]))
    assert [each for each in got if isinstance(each, bytes)] == [str(i).encode() for i in range(20) if i != 2]
    assert isinstance(got[2], MemberError)


class Away(Slow):
    """A store that is gone."""

    def read(self, entry: Entry) -> bytes:
        msg = f"{entry.name} cannot be had"
        raise FramegateError(msg)


def test_a_store_that_is_away_is_no_image_that_is_set_aside() -> None:
    with pytest.raises(FramegateError, match="0 cannot be had"):
        list(read_ahead(Away(), [Entry(str(i), str(i), None, "") for i in range(20)]))
