"""A watched folder: each image once, whole, in the order of arrival, and moved away when the broker has it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from consumer import drop_folder
from consumer.drop_folder import POLL_S, DropFolder
from consumer.errors import SettingsError
from consumer.topics import MAX_MESSAGE_BYTES
from engine.errors import WorkError

if TYPE_CHECKING:
    from consumer.pictures import Picture

ROOT = os.geteuid() == 0


class MessageSizeTooLargeError(Exception):
    """As the client has it: it is told by its name."""


class Watched:
    """A folder with a clock set by hand: looking again is what moves it."""

    def __init__(self, path: Path, **more: Any) -> None:
        self.path = path
        self.now_s = 100.0
        more = {"settle_s": 0.0, "clock": lambda: self.now_s, **more}
        self.folder = DropFolder(path, **more)
        self._newest_ns = 0

    def drop(self, name: str, content: bytes = b"x") -> Path:
        """Write a file into the folder, at a time that the file system can tell from that of the one before."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            path.write_bytes(content)
            if path.stat().st_ctime_ns > self._newest_ns:
                self._newest_ns = path.stat().st_ctime_ns
                return path

    def take(self) -> Picture | None:
        self.now_s += POLL_S
        return self.folder.take()

    def take_all(self) -> list[Picture]:
        taken: list[Picture] = []
        while (picture := self.take()) is not None:
            taken.append(picture)
            assert len(taken) < 100, "the same again and again"
        return taken

    def answer(self, picture: Picture, error: BaseException | None = None) -> None:
        self.folder.settle(picture, error)
        self.folder.tidy()

    def there(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


def names(pictures: list[Picture]) -> list[str]:
    return [picture.path.name for picture in pictures if picture.path is not None]


def test_images_come_once_each_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for name in ("b.jpg", "z/c.PNG", "a.jpg"):
        watched.drop(name, name.encode())
    taken = watched.take_all()
    assert [(picture.payload, picture.content_type) for picture in taken] == [
        (b"b.jpg", "image/jpeg"),
        (b"z/c.PNG", "image/png"),
        (b"a.jpg", "image/jpeg"),
    ]
    watched.drop("0.jpg")
    assert names(watched.take_all()) == ["0.jpg"], "those under way are not taken again"


def test_a_file_moved_in_has_arrived_now_however_old_it_is(tmp_path: Path) -> None:
    inside, outside = tmp_path / "drop", tmp_path / "other"
    inside.mkdir()
    outside.mkdir()
    watched = Watched(inside)
    old = Watched(outside).drop("old.jpg")
    os.utime(old, (1_000_000, 1_000_000))
    watched.drop("first.jpg")
    old.rename(inside / "old.jpg")
    first, second = watched.take_all()
    assert names([first, second]) == ["first.jpg", "old.jpg"]
    assert first.captured_at_s is not None
    assert second.captured_at_s is not None
    assert first.captured_at_s <= second.captured_at_s


def test_a_growing_file_is_left_alone_until_it_has_been_the_same_for_a_while(tmp_path: Path) -> None:
    watched = Watched(tmp_path, settle_s=1.0)
    path = watched.drop("a.jpg", b"half")
    for _ in range(3):
        assert watched.take() is None
    watched.drop("a.jpg", b"half and half")
    whole_s = watched.now_s
    while (picture := watched.take()) is None:
        pass
    assert watched.now_s - whole_s >= 1.0
    assert picture.payload == b"half and half"
    watched.answer(picture)
    assert not path.exists()


def test_what_is_not_an_image_yet_is_left_alone(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for name in (".a.jpg", "b.jpg.part", "c.txt", ".hidden/d.jpg"):
        watched.drop(name)
    assert watched.take_all() == []
    (tmp_path / "b.jpg.part").rename(tmp_path / "b.jpg")
    assert names(watched.take_all()) == ["b.jpg"]


def test_an_acknowledged_image_lies_in_the_done_folder_and_is_never_taken_again(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.drop("day/a.jpg", b"first")
    (picture,) = watched.take_all()
    assert watched.there() == {"day/a.jpg"}, "until the broker has it"
    watched.answer(picture)
    assert watched.there() == {"done/day/a.jpg"}
    watched.drop("day/a.jpg", b"second")
    (again,) = watched.take_all()
    assert again.frame_id != picture.frame_id
    watched.answer(again)
    assert sorted(path.read_bytes() for path in (tmp_path / "done" / "day").iterdir()) == [b"first", b"second"]
    assert watched.take_all() == []


def test_sent_images_may_lie_elsewhere_or_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    watched = Watched(tmp_path / "drop", done=tmp_path / "archive")
    watched.drop("a.jpg")
    watched.answer(watched.take_all()[0])
    assert (tmp_path / "archive" / "a.jpg").is_file()
    watched = Watched(tmp_path / "drop", delete=True)
    watched.drop("b.jpg")
    watched.answer(watched.take_all()[0])
    assert watched.there() == set()


def test_after_a_crash_an_image_that_was_not_moved_is_sent_again_under_the_same_id(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        watched.drop(name)
    first, second = watched.take_all()
    watched.answer(first)
    (again,) = Watched(tmp_path).take_all()
    assert (again.frame_id, again.path) == (second.frame_id, second.path)
    assert again.captured_at_s == second.captured_at_s
    assert first.frame_id != second.frame_id


def test_an_image_written_anew_while_it_is_under_way_is_another_one(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.drop("image.jpg", b"first")
    (picture,) = watched.take_all()
    watched.drop("image.jpg", b"second")
    watched.answer(picture)
    assert watched.there() == {"image.jpg"}
    assert [picture.payload for picture in watched.take_all()] == [b"second"]


def test_a_lost_image_stays_and_ends_the_run_after_the_others_are_moved(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        watched.drop(name)
    lost, stored = watched.take_all()
    watched.folder.settle(lost, TimeoutError())
    watched.folder.settle(stored, None)
    with pytest.raises(WorkError, match=r"a\.jpg was not acknowledged \(TimeoutError\): it stays"):
        watched.folder.tidy()
    assert watched.there() == {"a.jpg", "done/b.jpg"}


def test_an_image_that_the_broker_never_takes_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(tmp_path)
    watched.drop("a.bmp", b"x" * (2 * MAX_MESSAGE_BYTES))
    (picture,) = watched.take_all()
    assert len(picture.payload) == MAX_MESSAGE_BYTES + 1, "no more is read than shows that it is too large"
    watched.answer(picture, MessageSizeTooLargeError())
    assert watched.there() == {"refused/a.bmp"}
    assert "larger than the topic takes" in caplog.text
    assert watched.take_all() == []


def test_an_image_that_goes_away_is_none(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.drop("a.jpg")
    watched.drop("b.jpg")
    watched.folder._look()
    (tmp_path / "a.jpg").unlink()
    (picture,) = watched.take_all()
    (tmp_path / "b.jpg").unlink()
    watched.answer(picture)
    assert watched.there() == set()


def test_what_waits_is_bounded_and_nothing_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_folder, "MOST_WAITING", 3)
    watched = Watched(tmp_path, settle_s=POLL_S)
    dropped = [watched.drop(f"{9 - number}.jpg").name for number in range(10)]
    taken: list[Picture] = []
    for _ in range(100):
        if (picture := watched.take()) is not None:
            watched.answer(picture)
            taken.append(picture)
        assert len(watched.folder._seen) + len(watched.folder._whole) + len(watched.folder._under_way) <= 3
    assert names(taken) == dropped


def test_the_part_is_in_the_name(tmp_path: Path) -> None:
    watched = Watched(tmp_path, part_pattern=re.compile(r"^([A-Z]\d+)_"))
    watched.drop("A17_left.jpg")
    watched.drop("nothing.jpg")
    assert [picture.part_id for picture in watched.take_all()] == ["A17", None]


def test_an_arrival_later_than_now_is_now(tmp_path: Path) -> None:
    watched = Watched(tmp_path, wall_clock=lambda: 1_000.0)
    watched.drop("a.jpg")
    assert watched.take_all()[0].captured_at_s == 1_000.0


def test_a_folder_that_is_taken_away_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    watched = Watched(tmp_path / "drop")
    (tmp_path / "drop").rename(tmp_path / "gone")
    with pytest.raises(WorkError, match="see that it is mounted"):
        watched.take()


@pytest.mark.parametrize("done", [".", ".."])
def test_a_done_folder_around_the_watched_one_is_refused(tmp_path: Path, done: str) -> None:
    (tmp_path / "drop").mkdir()
    with pytest.raises(SettingsError, match="holds the watched folder"):
        DropFolder(tmp_path / "drop", done=tmp_path / "drop" / done)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not there: expected a folder to watch"):
        DropFolder(tmp_path / "no")


def test_another_file_system_is_refused(tmp_path: Path) -> None:
    shm = Path("/dev/shm")  # noqa: S108 - nothing is written there
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev or not os.access(shm, os.W_OK):
        pytest.skip("needs a second file system at /dev/shm")
    with pytest.raises(SettingsError, match="another file system"):
        DropFolder(tmp_path, done=shm)


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingsError, match="the right to write"):
        DropFolder(tmp_path)
