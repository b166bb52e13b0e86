"""Sources: honest zips and folders give the same images; hostile ones are refused before anything is read."""

from __future__ import annotations

import io
import os
import stat
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest

from engine.errors import InputError
from trainer.archives import MIB, Limits
from trainer.errors import MemberError, SourceError
from trainer.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

JPEG = b"\xff\xd8\xff\xe0 not decoded here"


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of the given files."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pieces(name: str, packed: bytes, crc: int, size: int, *, method: int = 8, flags: int = 0) -> tuple[bytes, bytes]:
    """Local header with data, and the central directory entry without its offset, of one hand-made member."""
    raw = name.encode()
    common = struct.pack("<HHHHIIIHH", flags, method, 0, 0x21, crc, len(packed), size, len(raw), 0)
    local = b"PK\x03\x04" + struct.pack("<H", 20) + common + raw + packed
    version, attributes = struct.pack("<HH", 0x0314, 20), struct.pack("<HHHI", 0, 0, 0, 0o100644 << 16)
    return local, b"PK\x01\x02" + version + common + attributes


def hand_made(
    *members: tuple[str, bytes, int, int], method: int = 8, flags: int = 0, offset: int | None = None
) -> bytes:
    """A zip of hand-made members (name, packed, crc, declared size); `offset` puts all entries at one local header."""
    body, directory = b"", b""
    for name, packed, crc, size in members:
        local, entry = pieces(name, packed, crc, size, method=method, flags=flags)
        directory += entry + struct.pack("<I", len(body) if offset is None else offset) + name.encode()
        body += local
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def deflate(content: bytes) -> bytes:
    """Raw deflate, as zips hold it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


FILES = {
    "good/1.jpg": JPEG,
    "good/cam 2/2.JPG": JPEG + b"2",
    "fail/3.png": b"\x89PNG",
    "fail/note": b"no image, but nothing says so",
}
CLUTTER = {
    "__MACOSX/good/._1.jpg": b"x",
    "good/.DS_Store": b"x",
    "good/Thumbs.db": b"x",
    ".git/1.jpg": b"x",
    "readme.txt": b"x",
    "SOURCE.md": b"x",
    "boxes.csv": b"x",
}


def test_zip_and_folder_give_the_same_images(tmp_path: Path) -> None:
    for name, content in (FILES | CLUTTER).items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    packed = write_zip(tmp_path / "in.zip", dict(reversed((FILES | CLUTTER).items())))
    with open_source(packed) as from_zip, open_source(str(tmp_path / "in")) as from_folder:
        assert from_zip.items() == from_folder.items()
        names = [item.name for item in from_zip.items()]
        assert names == sorted(FILES)
        assert [item.size_bytes for item in from_zip.items()] == [len(FILES[name]) for name in names]
        for name in names:
            assert from_zip.read(name) == from_folder.read(name) == FILES[name]
        assert from_zip.notes == from_folder.notes == ()
        assert from_zip.origin == str(packed)


def test_nothing_is_written(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", FILES)
    before = sorted(tmp_path.rglob("*"))
    with open_source(packed) as source:
        source.read("good/1.jpg")
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_of_a_zip_and_backslashes_of_windows_packers_are_read(tmp_path: Path) -> None:
    raw = hand_made(("good\\1.jpg", JPEG, zlib.crc32(JPEG), len(JPEG)), method=0)
    (tmp_path / "in.zip").write_bytes(raw)
    with open_source(tmp_path / "in.zip") as source:
        assert [item.name for item in source.items()] == ["good/1.jpg"]
        assert source.read("good/1.jpg") == JPEG
    with zipfile.ZipFile(tmp_path / "dirs.zip", "w") as archive:
        archive.mkdir("data")
        archive.mkdir("data/good")
        archive.writestr("data/good/1.jpg", JPEG)
    with open_source(tmp_path / "dirs.zip") as source:
        assert [item.name for item in source.items()] == ["data/good/1.jpg"]


def test_a_zip_streamed_by_its_packer_is_read(tmp_path: Path) -> None:
    """Sizes in a data descriptor after the data, as packers write that cannot seek."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.content = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, chunk: bytes) -> int:  # type: ignore[override]
            self.content += chunk
            return len(chunk)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good/1.jpg", JPEG)
        archive.writestr("good/2.jpg", JPEG)
    (tmp_path / "in.zip").write_bytes(bytes(pipe.content))
    with open_source(tmp_path / "in.zip") as source:
        assert source.read("good/2.jpg") == JPEG


def test_nested_archives_and_videos_are_noted(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", FILES | {"more.zip": b"PK", "a.7z": b"7z", "line.mp4": b"x"})
    with open_source(packed) as source:
        assert len(source.items()) == len(FILES)
        assert len(source.notes) == 2
        assert "2 archives" in source.notes[0]
        assert "1 video " in source.notes[1]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (FILES | {"groups.csv": b"\xef\xbb\xbffile,label,group\n"}, "file,label,group\n"),
        ({f"data/{name}": content for name, content in FILES.items()} | {"data/groups.csv": b"top"}, "top"),
        (FILES | {"good/groups.csv": b"one class only"}, None),
        (FILES, None),
    ],
)
def test_groups_csv_inside(tmp_path: Path, files: dict[str, bytes], expected: str | None) -> None:
    with open_source(write_zip(tmp_path / "in.zip", files)) as source:
        assert source.groups_csv() == expected


def test_groups_csv_that_is_no_text(tmp_path: Path) -> None:
    with (
        open_source(write_zip(tmp_path / "in.zip", FILES | {"groups.csv": b"\xff\xfe\x00"})) as source,
        pytest.raises(SourceError, match="not UTF-8"),
    ):
        source.groups_csv()


# ------------------------------------------------------------------ no source


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.zip cannot be read \(No such file"):
        open_source(tmp_path / "nowhere.zip")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "begins with b'hell'"),
        (b"Rar!\x1a\x07", "RAR"),
        (JPEG, "JPEG"),
        (hand_made(), "empty zip"),
    ],
)
def test_not_a_zip(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "in.zip").write_bytes(content)
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path / "in.zip")


def test_a_zip_copied_in_part_is_called_so(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "in.zip", FILES).read_bytes()
    (tmp_path / "in.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="end is missing"):
        open_source(tmp_path / "in.zip")


def test_every_cut_and_every_flipped_byte_is_an_input_error_or_read(tmp_path: Path) -> None:
    """No damage may surface as anything but InputError: the command would print a traceback."""
    whole = write_zip(tmp_path / "in.zip", {"good/1.jpg": JPEG * 3, "fail/2.jpg": JPEG}).read_bytes()
    damaged = [whole[:end] for end in range(len(whole))]
    for at in range(len(whole)):
        damaged += [whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :] for bits in (1, 255)]
    refused = 0
    for content in damaged:
        (tmp_path / "in.zip").write_bytes(content)
        try:
            with open_source(tmp_path / "in.zip") as source:
                for item in source.items():
                    source.read(item.name)
        except InputError:
            refused += 1
    assert refused > len(damaged) // 2


@pytest.mark.parametrize("files", [{"readme.txt": b"x"}, {"inner.zip": b"PK"}])
def test_no_images(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(SourceError, match="holds no images, but 1 other files"):
        open_source(write_zip(tmp_path / "in.zip", files))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match="holds no images, but nothing"):
        open_source(tmp_path / "folder")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3:/through-path", "is neither a path nor a URL: expected s3:// with two slashes"),
        ("nonsense://a/b", "nonsense:// is not served here .* install fsspec and the package that it names"),
    ],
)
def test_urls_that_are_none(url: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        open_source(url)


# ------------------------------------------------------------------ hostile zips


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "good/../../evil.jpg",
        "/etc/evil.jpg",
        "C:/evil.jpg",
        "c:\\evil.jpg",
        "..\\evil.jpg",
        "\\evil.jpg",
    ],
)
def test_climbing_members_are_refused(tmp_path: Path, name: str) -> None:
    packed = write_zip(tmp_path / "in.zip", FILES | {name: JPEG})
    with pytest.raises(SourceError, match="points outside the archive"):
        open_source(packed)


def test_a_null_character_in_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.zip").write_bytes(hand_made(("good/1.jpg\0.txt", JPEG, zlib.crc32(JPEG), len(JPEG)), method=0))
    with pytest.raises(SourceError, match="outside"):
        open_source(tmp_path / "in.zip")


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", {"../\x1b[2J\n.jpg": JPEG})
    with pytest.raises(SourceError) as caught:
        open_source(packed)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "word"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "special file")])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int, word: str) -> None:
    link = zipfile.ZipInfo("good/link.jpg")
    link.create_system = 3
    link.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("good/1.jpg", JPEG)
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match=word):
        open_source(tmp_path / "in.zip")


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_encrypted_members_are_refused(tmp_path: Path, flag: int) -> None:
    (tmp_path / "in.zip").write_bytes(hand_made(("good/1.jpg", b"x" * 40, 1, 28), method=0, flags=flag))
    with pytest.raises(SourceError, match="without a password"):
        open_source(tmp_path / "in.zip")


def test_members_twice_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of just this
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            archive.writestr("good/1.jpg", JPEG)
            archive.writestr("good/1.jpg", b"another")
    with pytest.raises(SourceError, match="twice"):
        open_source(tmp_path / "in.zip")
    with pytest.raises(SourceError, match="twice"):
        open_source(write_zip(tmp_path / "in.zip", {"good/1.jpg": JPEG, "good//./1.jpg": JPEG}))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_without_a_bound_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(SourceError, match="stored"):
        open_source(write_zip(tmp_path / "in.zip", FILES, method))


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", {f"good/{number}.jpg": b"" for number in range(300)})
    with pytest.raises(SourceError, match="300 members: expected at most 299"):
        open_source(packed, Limits(max_members=299))
    with open_source(packed, Limits(max_members=300)) as source:
        assert len(source.items()) == 300


def test_a_huge_directory_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """Half a kilobyte of objects for 60 bytes of directory: counted in the raw bytes, before zipfile builds them."""
    entry = pieces("1.jpg", b"", 0, 0)[1] + struct.pack("<I", 0) + b"1.jpg"
    count = 200_000
    end = struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(entry) * count, 0, 0)
    (tmp_path / "in.zip").write_bytes(entry * count + b"PK\x05\x06" + end)
    tracemalloc.start()
    with pytest.raises(SourceError, match="200,000 members"):
        open_source(tmp_path / "in.zip", Limits(max_members=1000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * len(entry) * count


def test_a_member_declared_too_large_is_refused(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", FILES | {"good/bomb.png": bytes(65 * MIB)})
    with pytest.raises(SourceError, match=r"bomb.*'good/bomb.png' holds 68,157,440 bytes"):
        open_source(packed)


def test_many_members_that_pack_too_well_are_refused(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", FILES | {f"good/{number}.bmp": bytes(10 * MIB) for number in range(7)})
    with pytest.raises(SourceError, match=r"times its size.*bomb"):
        open_source(packed)


def test_a_few_flat_images_may_pack_well(tmp_path: Path) -> None:
    with open_source(write_zip(tmp_path / "in.zip", {"good/black.bmp": bytes(6 * MIB)})) as source:
        assert source.read("good/black.bmp") == bytes(6 * MIB)


def test_many_images_that_hardly_pack_are_no_bomb(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", {f"good/{number}.jpg": os.urandom(900) for number in range(5)})
    with open_source(packed, Limits(max_member_bytes=1000)) as source:
        assert len(source.items()) == 5


def test_the_total_is_limited(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", {f"good/{number}.jpg": bytes(1000) for number in range(5)})
    with pytest.raises(SourceError, match="5,000 bytes: expected at most 4,999"):
        open_source(packed, Limits(max_total_bytes=4999))


def test_what_is_not_read_may_be_large(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", FILES | {"annotations.json": bytes(1000)})
    with open_source(packed, Limits(max_member_bytes=999)) as source:
        assert source.read("good/1.jpg") == JPEG


def test_what_the_audit_passes_over_is_bounded_when_it_is_read(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "in.zip", FILES | {"groups.csv": bytes(5 * MIB)})
    with (
        open_source(packed, Limits(max_member_bytes=MIB)) as source,
        pytest.raises(MemberError, match="expected at most 1,048,576"),
    ):
        source.groups_csv()


@pytest.mark.parametrize("forged", [False, True])
def test_a_member_larger_than_declared_stays_small(tmp_path: Path, *, forged: bool) -> None:
    """Declares 100 bytes and unpacks to 48 MiB; with a checksum forged to fit the first 100 as well."""
    packed = deflate(bytes(48 * MIB))
    crc = zlib.crc32(bytes(100)) if forged else zlib.crc32(b"")
    (tmp_path / "in.zip").write_bytes(hand_made(("good/1.jpg", packed, crc, 100)))
    tracemalloc.start()
    with open_source(tmp_path / "in.zip") as source:
        if forged:
            assert source.read("good/1.jpg") == bytes(100)
        else:
            with pytest.raises(MemberError, match="damaged"):
                source.read("good/1.jpg")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * MIB


def test_a_member_smaller_than_declared_is_damaged(tmp_path: Path) -> None:
    packed = deflate(JPEG)
    (tmp_path / "in.zip").write_bytes(hand_made(("good/1.jpg", packed, zlib.crc32(JPEG), len(JPEG) + 1)))
    with open_source(tmp_path / "in.zip") as source, pytest.raises(MemberError, match="damaged"):
        source.read("good/1.jpg")


def test_a_damaged_member_leaves_the_others_readable(tmp_path: Path) -> None:
    members = [("good/1.jpg", JPEG, 1, len(JPEG)), ("good/2.jpg", JPEG, zlib.crc32(JPEG), len(JPEG))]
    (tmp_path / "in.zip").write_bytes(hand_made(*members, method=0))
    with open_source(tmp_path / "in.zip") as source:
        with pytest.raises(MemberError, match=r"'good/1.jpg' in .* is damaged \(Bad CRC-32"):
            source.read("good/1.jpg")
        assert source.read("good/2.jpg") == JPEG


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """Several names for one kernel."""
    packed = deflate(bytes(MIB))
    members = [(f"good/{number}.jpg", packed, zlib.crc32(bytes(MIB)), MIB) for number in range(3)]
    (tmp_path / "in.zip").write_bytes(hand_made(*members, offset=0))
    with pytest.raises(SourceError, match="overlap"):
        open_source(tmp_path / "in.zip")


def test_members_that_quote_each_other_are_refused(tmp_path: Path) -> None:
    """The zip bomb of Fifield (2019): each member holds the next one's header as a stored deflate block."""
    kernel = deflate(bytes(MIB))
    content, packed = bytes(MIB), kernel
    local, entry = pieces("c.jpg", packed, zlib.crc32(content), len(content))
    chain, entries = local, [(entry, b"c.jpg", len(local))]
    for name in ("b.jpg", "a.jpg"):
        quoted = chain[: 30 + len(name)]
        content = quoted + content
        packed = b"\x00" + struct.pack("<HH", len(quoted), len(quoted) ^ 0xFFFF) + quoted + packed
        local, entry = pieces(name, packed, zlib.crc32(content), len(content))
        chain = local[: 30 + len(name) + 5] + chain
        entries.append((entry, name.encode(), len(chain)))
    directory = b"".join(entry + struct.pack("<I", len(chain) - back) + name for entry, name, back in reversed(entries))
    end = struct.pack("<HHHHIIH", 0, 0, 3, 3, len(directory), len(chain), 0)
    (tmp_path / "in.zip").write_bytes(chain + directory + b"PK\x05\x06" + end)
    with pytest.raises(SourceError, match="overlap"):
        open_source(tmp_path / "in.zip")


# ------------------------------------------------------------------ folders


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.jpg").write_bytes(b"secret")
    good = tmp_path / "in" / "good"
    good.mkdir(parents=True)
    (good / "1.jpg").write_bytes(JPEG)
    (good / "inside.jpg").symlink_to(good / "1.jpg")
    (good / "out.jpg").symlink_to(tmp_path / "secret" / "key.jpg")
    (good / "nothing.jpg").symlink_to(good / "gone.jpg")
    (good / "up").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(good / "pipe.jpg")
    (tmp_path / "alias").symlink_to(tmp_path / "in", target_is_directory=True)
    with open_source(tmp_path / "alias") as source:
        assert [item.name for item in source.items()] == ["good/1.jpg", "good/inside.jpg"]
        assert source.read("good/inside.jpg") == JPEG
        assert source.notes[0].startswith("3 links not followed")
        for name in ("good/out.jpg", "../secret/key.jpg", str(tmp_path / "secret" / "key.jpg")):
            with pytest.raises(MemberError, match="not in"):
                source.read(name)


def test_folder_limits(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "1.jpg").write_bytes(bytes(101))
    (tmp_path / "good" / "2.jpg").write_bytes(bytes(100))
    with pytest.raises(SourceError, match="more than 1 files"):
        open_source(tmp_path, Limits(max_members=1))
    with open_source(tmp_path, Limits(max_member_bytes=100)) as source:
        assert len(source.read("good/2.jpg")) == 100
        with pytest.raises(MemberError, match="larger than 100 bytes"):
            source.read("good/1.jpg")
        (tmp_path / "good" / "2.jpg").unlink()
        with pytest.raises(MemberError, match="No such file"):
            source.read("good/2.jpg")
