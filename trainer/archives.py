"""Zip archives from strangers: audited before the first byte is used, read in bounded memory, never extracted.

The audit refuses the whole archive: a zip that climbs out of its folder was not made by a camera.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Self

from trainer.errors import MemberError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MIB = 1024 * 1024
CHUNK_BYTES = MIB

LOCAL_HEADER_BYTES = 30
CENTRAL_HEADER_BYTES = 46
CENTRAL_HEADER_MARK = b"PK\x01\x02"
ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
"""Bits of a member's flags: encrypted, strongly encrypted, central directory encrypted (APPNOTE 4.4.4)."""

OTHER_FORMATS = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"PK\x03\x04": "the beginning of a zip whose end is missing (copied or downloaded in part)",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a source may hold.

    Attributes:
        max_members: files and folders in an archive, or files in a folder.
        max_member_bytes: one file, unpacked.
        max_total_bytes: all files that would be read, unpacked.
        max_ratio: unpacked size of those files over the archive's own size; asked only above `max_member_bytes` in
            total, because a few flat test images may pack better than any bomb needs to.
    """

    max_members: int = 1_000_000
    max_member_bytes: int = 64 * MIB
    max_total_bytes: int = 256 * 1024 * MIB
    max_ratio: float = 100.0


def show(name: str) -> str:
    """A name of unknown origin for a message: quoted, control characters escaped, shortened."""
    return repr(name if len(name) <= 120 else f"{name[:117]}...")  # noqa: PLR2004


def member_path(name: str, what: str = "zip member", cure: str = "pack it again from the image folder") -> str:
    """A name of unknown origin as a relative posix path, without `.` and empty parts.

    Backslashes count as separators, as old Windows packers write them. `what` it names and what helps: for the message.

    Raises:
        SourceError: the name is absolute, climbs out (`..`), has a drive letter or a null character, or is empty.
    """
    path = name.replace("\\", "/")
    parts = PurePosixPath(path).parts
    if "\0" in path or not parts or path.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", path):
        msg = (
            f"{what} {show(name)} points outside the archive: expected relative names such as 'good/1.jpg'; "
            f"the source is refused whole, {cure}"
        )
        raise SourceError(msg)
    return "/".join(parts)


class SafeZip:
    """An audited zip: `sizes` of the files in it, and `read`. A context manager; not for several threads.

    Attributes:
        sizes: path -> declared size in bytes, in the order of the archive; folders are left out.
    """

    def __init__(
        self, path: Path | str, limits: Limits, is_read: Callable[[str], bool], content: io.FileIO | None = None
    ) -> None:
        """Open and audit `path`; files for which `is_read(path)` is false are listed but not held to size limits.

        Args:
            path: of a file here; with `content`, only the name that messages give.
            limits: how much it may hold.
            is_read: will this member be read as an image.
            content: the zip where it is open already; it is closed with this.

        Raises:
            SourceError: not a zip, damaged, empty, or hostile.
        """
        self._path = path
        self._limits = limits
        self._file = _GuardedFile(content or _open(path), path, limits.max_members)
        try:
            self._zip = _open_directory(self._file, path)
            self._members = _audit(self._zip, self._file, limits, is_read)
        except BaseException:
            self._file.close()
            raise
        self.sizes: Mapping[str, int] = {name: info.file_size for name, info in self._members.items()}

    def __enter__(self) -> Self:
        """Hand over itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._zip.close()
        self._file.close()

    def read(self, name: str) -> bytes:
        """The unpacked bytes of one file; its checksum is verified.

        Declared sizes are not trusted: unpacking goes by chunks and stops at `max_member_bytes`.

        Raises:
            MemberError: no such file, damaged, or larger than it may be.
            SourceError: encrypted or oddly packed, which the audit has ruled out for every image.
        """
        info = self._members.get(name)
        if info is None:
            msg = f"{show(name)} is not in {self._path}: expected a name from its listing"
            raise MemberError(msg)
        _refuse_unreadable(info, self._path)
        content = bytearray()
        try:
            with self._zip.open(info) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    content += chunk
                    if len(content) > self._limits.max_member_bytes:
                        raise _too_large(name, len(content), self._limits.max_member_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            msg = (
                f"{show(name)} in {self._path} is damaged ({str(error) or 'it ends early'}); pack or copy the zip again"
            )
            raise MemberError(msg) from error
        if len(content) != info.file_size:
            sizes = f"{len(content)} bytes unpacked, {info.file_size} declared"
            msg = f"{show(name)} in {self._path} is damaged: {sizes}; pack the zip again"
            raise MemberError(msg)
        return bytes(content)


class _GuardedFile(io.BufferedReader):
    """A file that refuses to hand over a central directory of more members than allowed.

    zipfile reads the whole directory in one call and builds an object of half a kilobyte for every 46 bytes of it
    before anybody can count them.
    """

    def __init__(self, content: io.FileIO, path: Path | str, max_members: int) -> None:
        super().__init__(content)
        self.path = path
        self._max_members = max_members

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual; a block that could hold too many directory entries is counted first."""
        content = super().read(size)
        if len(content) > self._max_members * CENTRAL_HEADER_BYTES:
            _refuse_count(content.count(CENTRAL_HEADER_MARK), self._max_members, self.path)
        return content


def _open(path: Path | str) -> io.FileIO:
    """Open the file itself."""
    try:
        return io.FileIO(path)
    except OSError as error:
        msg = f"{path} cannot be opened: {error.strerror}; expected a zip of images that this user may read"
        raise SourceError(msg) from error


def _open_directory(file: _GuardedFile, path: Path | str) -> zipfile.ZipFile:
    """Read the central directory."""
    head = file.read(4)
    if not head:
        msg = f"{path} is an empty file (0 bytes): expected a zip of images; pack or copy it again"
        raise SourceError(msg)
    try:
        return zipfile.ZipFile(file)
    # struct.error and NotImplementedError: zipfile's answers to extra fields cut short and to versions from the future.
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, NotImplementedError) as error:
        kind = next(
            (kind for mark, kind in OTHER_FORMATS.items() if head.startswith(mark)), f"a file that begins with {head!r}"
        )
        msg = f"{path} is not a readable zip ({error}): it looks like {kind}; expected a zip or a folder of images"
        raise SourceError(msg) from error


def _audit(
    archive: zipfile.ZipFile, file: _GuardedFile, limits: Limits, is_read: Callable[[str], bool]
) -> dict[str, zipfile.ZipInfo]:
    """Refuse what no honest packer writes; return path -> member for the files."""
    infos, path = archive.infolist(), file.path
    _refuse_count(len(infos), limits.max_members, path)
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = member_path(info.orig_filename)
        _refuse_special(info, path)
        if info.orig_filename.endswith(("/", "\\")):
            continue
        if name in members:
            msg = f"{path} holds {show(name)} twice: which of them is meant is unclear; pack the zip again"
            raise SourceError(msg)
        members[name] = info
    if not members:
        msg = f"{path} is an empty zip: expected images in two class folders, such as good/1.jpg and fail/2.jpg"
        raise SourceError(msg)
    _refuse_overlap(infos, archive.start_dir, path)
    readable = {name: info for name, info in members.items() if is_read(name)}
    for info in readable.values():
        _refuse_unreadable(info, path)
    _refuse_bomb(readable, file, limits)
    return members


def _refuse_count(count: int, max_members: int, path: Path | str) -> None:
    """Refuse an archive of too many members."""
    if count > max_members:
        msg = f"{path} holds {count:,} members: expected at most {max_members:,}; split it"
        raise SourceError(msg)


def _refuse_special(info: zipfile.ZipInfo, path: Path | str) -> None:
    """Refuse links and devices; the upper half of the attributes is the Unix mode, 0 where the packer has none."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        msg = f"{path} holds {show(info.orig_filename)}, {what}: expected plain files; pack the images themselves"
        raise SourceError(msg)


def _refuse_unreadable(info: zipfile.ZipInfo, path: Path | str) -> None:
    """Refuse encrypted members, and packings whose unpacked size cannot be bounded while reading."""
    if info.flag_bits & ENCRYPTED_FLAGS:
        msg = (
            f"{path} is encrypted (member {show(info.orig_filename)}): expected a zip without a password; pack it again"
        )
        raise SourceError(msg)
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        msg = (
            f"{path} is packed with method {info.compress_type} (member {show(info.orig_filename)}): expected stored "
            "(0) or deflate (8); pack it again with the usual settings"
        )
        raise SourceError(msg)


def _refuse_overlap(infos: list[zipfile.ZipInfo], directory_offset: int, path: Path | str) -> None:
    """Refuse members that share bytes: how a few kilobytes claim to hold petabytes.

    An end is counted without the local header's extra field, so it is never too late, and an honest zip never refused.
    """
    ordered = sorted(infos, key=lambda info: info.header_offset)
    starts = [info.header_offset for info in ordered[1:]] + [directory_offset]
    for info, next_start in zip(ordered, starts, strict=True):
        end = info.header_offset + LOCAL_HEADER_BYTES + len(info.orig_filename) + info.compress_size
        if info.header_offset < 0 or end > next_start:
            msg = (
                f"{path} holds members that overlap ({show(info.orig_filename)}): damaged or a zip bomb; pack it again"
            )
            raise SourceError(msg)


def _refuse_bomb(members: dict[str, zipfile.ZipInfo], file: _GuardedFile, limits: Limits) -> None:
    """Refuse by declared sizes; `read` holds every member to what it declared and to the same limit."""
    path = file.path
    for name, info in members.items():
        if info.file_size > limits.max_member_bytes:
            msg = (
                f"{path} is refused as a possible zip bomb: {_too_large(name, info.file_size, limits.max_member_bytes)}"
            )
            raise SourceError(msg)
    total_bytes = sum(info.file_size for info in members.values())
    if total_bytes > limits.max_total_bytes:
        msg = f"{path} unpacks to {total_bytes:,} bytes: expected at most {limits.max_total_bytes:,}; split it"
        raise SourceError(msg)
    ratio = total_bytes / os.fstat(file.fileno()).st_size
    if total_bytes > limits.max_member_bytes and ratio > limits.max_ratio:
        msg = (
            f"{path} unpacks to {ratio:.0f} times its size ({total_bytes:,} bytes): expected at most "
            f"{limits.max_ratio:.0f} times, images hardly pack; refused as a possible zip bomb, give the folder instead"
        )
        raise SourceError(msg)


def _too_large(name: str, size_bytes: int, limit_bytes: int) -> MemberError:
    """The words for one file over the limit."""
    msg = (
        f"{show(name)} holds {size_bytes:,} bytes or more: expected at most {limit_bytes:,} for one image; take it out"
    )
    return MemberError(msg)
