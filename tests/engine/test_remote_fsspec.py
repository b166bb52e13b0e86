"""Files in a store of fsspec: exact parts, and what changes on the way is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import RemoteError
from engine.remote_fsspec import PART_BYTES, PARTS_AT_ONCE, FsspecStore, _refusal
from engine.remote_words import BUNDLE, Stamp, away

if TYPE_CHECKING:
    from collections.abc import Iterator

fsspec = pytest.importorskip("fsspec", reason="an extra: framegate[s3] or framegate[azure]")

SIZES = [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, (PARTS_AT_ONCE + 2) * PART_BYTES + 5]


@pytest.fixture
def memory(unique: str) -> Iterator[tuple[Any, str]]:
    """A store in memory, and the URL of a folder in it."""
    files = fsspec.filesystem("memory")
    files.mkdir(f"/{unique}")
    yield files, f"memory://{unique}"
    files.rm(f"/{unique}", recursive=True)


@pytest.mark.parametrize("size", SIZES)
def test_parts_are_in_order_and_none_is_asked_for_twice(
    memory: tuple[Any, str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, url = memory
    content = bytes(range(251)) * (size // 251 + 1)
    files.pipe_file(f"{url}/a", content[:size])
    store = FsspecStore(url)
    asked: list[tuple[int, int]] = []
    opened, _ = store._open(url)
    cat_file = opened.cat_file

    def note(path: str, start: int, end: int) -> bytes:
        asked.append((start, min(end, size)))
        found: bytes = cat_file(path, start=start, end=end)
        return found

    monkeypatch.setattr(opened, "cat_file", note)
    listing = store.look(url)
    assert listing["a"].size_bytes == size
    assert b"".join(store.read(url, "a", listing["a"])) == content[:size]
    assert sum(end - start for start, end in asked) == size
    assert sorted(asked) == sorted(set(asked))


@pytest.mark.parametrize("change", [-1, 1, PART_BYTES, None])
def test_a_file_that_is_not_as_it_was_listed_is_an_error(memory: tuple[Any, str], change: int | None) -> None:
    files, url = memory
    size = PART_BYTES + 10
    files.pipe_file(f"{url}/a", bytes(size))
    store = FsspecStore(url)
    stamp = store.look(url)["a"]
    if change is None:
        files.rm_file(f"{url}/a")
    else:
        files.pipe_file(f"{url}/a", bytes(size + change))
    with pytest.raises(
        RemoteError, match=rf"bundle {url} cannot be fetched: 'a' in it changed or broke off on the way"
    ):
        list(store.read(url, "a", stamp))


def test_a_file_of_unknown_size_is_streamed(memory: tuple[Any, str]) -> None:
    files, url = memory
    files.pipe_file(f"{url}/a", bytes(PART_BYTES + 10))
    assert sum(map(len, FsspecStore(url).read(url, "a", Stamp(None, "")))) == PART_BYTES + 10


def test_a_part_that_does_not_come_is_waited_for_only_so_long(
    memory: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading  # noqa: PLC0415 - only here

    files, url = memory
    files.pipe_file(f"{url}/a", b"x")
    store = FsspecStore(url, replace(BUNDLE, part_s=0.05))
    stamp = store.look(url)["a"]
    over = threading.Event()
    monkeypatch.setattr(store._open(url)[0], "cat_file", lambda *_, **__: over.wait(10))
    with pytest.raises(RemoteError, match=r"no answer within 0.05 s"):
        list(store.read(url, "a", stamp))
    over.set()


class Answer(Exception):  # noqa: N818 - as the packages have them
    """What a store's package raises."""

    def __init__(self, status: int | None = None, code: object = None) -> None:
        super().__init__("string to sign: secret")
        self.status_code = status
        self.error_code = code


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Answer(403, "AuthenticationFailed"), "Answer, AuthenticationFailed"),
        (Answer(401), "Answer"),
        (Answer(404), None),
        (Answer(503, "ServerBusy"), None),
        (PermissionError("secret"), "PermissionError"),
        (ValueError("unable to connect to account for secret"), "the key or the connection string is missing or none"),
        (ConnectionError("nobody"), None),
    ],
)
def test_refusals_are_told_from_what_passes(error: Exception, told: str | None) -> None:
    assert _refusal(error) == told
    outer = RuntimeError("outer")
    outer.__cause__ = error
    assert _refusal(outer) == told


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach https://me:secret@store/a.zip",
        "GET https://store/a.zip?sv=1&sig=secret failed",
        "AccountName=plant;AccountKey=secret;BlobEndpoint=x",
        "SharedAccessSignature=secret",
        "aws_secret_access_key=secret",
        "token=secret&x",
    ],
)
def test_no_secret_is_shown_of_what_went_wrong(text: str) -> None:
    assert "secret" not in str(away("az://a/b", BUNDLE, ConnectionError(text))).replace("aws_secret_access_key", "")
