"""Bundles from URLs: fetched once, checked before they get a place, found again when their server is away."""

from __future__ import annotations

import logging
import multiprocessing
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import engine.bundle_cache
from engine.bundle import bundle_path, bundle_url, open_bundle, write_bundle
from engine.bundle_cache import BundleCache
from engine.errors import BundleError, RemoteError
from engine.locations import shown
from engine.remote import open_store
from engine.remote_fsspec import FsspecStore
from engine.remote_http import HttpStore
from engine.remote_words import BUNDLE, Stamp
from tests.lineups import bundle_of
from tests.web import Web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.remote_words import Listing


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Three bundles as zips; the two graphs are the same, so only the heads tell them apart."""
    folder = tmp_path_factory.mktemp("zips")
    for seed in (1, 2, 3):
        write_bundle(folder / f"{seed}.zip", bundle_of(seed))
    return [(folder / f"{seed}.zip").read_bytes() for seed in (1, 2, 3)]


@pytest.fixture
def web(zips: list[bytes]) -> Iterator[Web]:
    with Web(zips[0]) as web:
        yield web


@pytest.fixture
def cache(tmp_path: Path) -> BundleCache:
    return BundleCache(tmp_path / "cache")


def names(cache: BundleCache) -> list[str]:
    """What is kept, with whatever else lies there."""
    return sorted(path.name for path in cache._folder.iterdir() if not path.name.endswith(".lock"))


def test_a_bundle_is_fetched_once_for_as_long_as_it_is_the_same(web: Web, cache: BundleCache) -> None:
    place = cache.fetch(web.url)
    assert open_bundle(web.url, at=place).name == "seed-1"
    before = cache.look(web.url)
    assert cache.fetch(web.url) == place
    assert cache.look(web.url) == before
    assert web.asked.count("GET") == 1
    assert BundleCache(cache._folder).fetch(web.url) == place
    assert web.asked.count("GET") == 1, "another process finds it"


@pytest.mark.parametrize("etag", ["two", None])
def test_another_one_is_seen_and_fetched(web: Web, cache: BundleCache, zips: list[bytes], etag: str | None) -> None:
    before, first = cache.look(web.url), cache.fetch(web.url)
    web.put(zips[1], etag)
    assert cache.look(web.url) != before
    second = cache.fetch(web.url)
    assert second != first
    assert open_bundle(web.url, at=second).name == "seed-2"


def test_a_server_that_tells_nothing_of_a_change_is_warned_of_once(
    web: Web, cache: BundleCache, caplog: pytest.LogCaptureFixture
) -> None:
    web.etag = None
    cache.look(web.url)
    cache.look(web.url)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "of a new bundle only another size will be noticed"
    ]


def test_a_url_that_may_only_be_got_is_looked_at_without_reading_it(web: Web, cache: BundleCache) -> None:
    web.no_head = True
    assert cache.look(web.url) == cache.look(web.url) != ()
    assert open_bundle(web.url, at=cache.fetch(web.url)).name == "seed-1"


def test_what_is_not_whole_gets_no_place(
    web: Web, cache: BundleCache, zips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.remote_http.PAUSES_S", (0.0,))
    content = bytearray(zips[0])
    content[len(content) // 2] ^= 1
    web.put(bytes(content), "broken")
    with pytest.raises(BundleError, match=rf"bundle {web.url} "):
        cache.fetch(web.url)
    assert names(cache) == []
    web.put(zips[0], "one")
    web.cut = True
    with pytest.raises((BundleError, RemoteError), match=rf"bundle {web.url} "):
        cache.fetch(web.url)
    assert names(cache) == []
    web.cut = False
    cache.fetch(web.url)
    assert len(names(cache)) == 1


def test_a_pin_is_looked_at(web: Web, cache: BundleCache) -> None:
    place = cache.fetch(web.url)
    digest = open_bundle(web.url, at=place).digest
    assert open_bundle(f"{web.url}@sha256:{digest}", at=place).digest == digest
    with pytest.raises(BundleError, match="expected the pinned 0000"):
        open_bundle(f"{web.url}@sha256:{'0' * 64}", at=place)


def test_nothing_there_and_a_server_that_refuses_are_told_apart(web: Web, cache: BundleCache) -> None:
    web.content = None
    assert cache.look(web.url) == ()
    with pytest.raises(BundleError, match=rf"bundle {web.url} is not there: expected a zip"):
        cache.fetch(web.url)
    web.put(b"", "x")
    web.status = 500
    with pytest.raises(RemoteError, match=rf"bundle {web.url} cannot be fetched: the server answers 500"):
        cache.fetch(web.url)


def test_while_a_server_is_away_the_last_one_serves_and_it_is_told_once(
    zips: list[bytes], cache: BundleCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Web(zips[0]) as web:
        before, place = cache.look(web.url), cache.fetch(web.url)
    caplog.clear()
    assert cache.look(web.url) == cache.look(web.url) == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "what was fetched from there before goes on" in caplog.text
    assert cache.fetch(web.url) == place
    assert BundleCache(cache._folder).look(web.url) != before, "a new process does not know yet what is there"
    assert BundleCache(cache._folder).fetch(web.url) == place
    caplog.clear()
    with Web(zips[1], etag="two", port=web.port):
        assert cache.look(web.url) != before
    assert "can be asked for again" in caplog.text
    assert "WARNING" not in {record.levelname for record in caplog.records}


def test_a_server_that_is_away_and_always_was_is_an_error(cache: BundleCache) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/parts.zip?sig=signature"
        with pytest.raises(RemoteError, match="cannot be fetched: ConnectionError") as caught:
            cache.fetch(url)
    assert "secret" not in str(caught.value)
    assert "signature" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_so_many_are_kept(
    web: Web, cache: BundleCache, zips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []
    for number, content in enumerate((*zips, zips[0])):
        web.put(content, str(number))
        places.append(cache.fetch(web.url))
    assert names(cache) == sorted(place.name for place in places[-engine.bundle_cache.KEPT :])
    monkeypatch.setattr(engine.bundle_cache, "KEPT_BYTES", len(zips[0]) + 1)
    other = web.url.replace("parts", "others")
    assert names(cache) != [last := cache.fetch(other).name]
    assert names(cache) == [last], "the bundle at hand stays, however large"


def test_a_bundle_that_changes_on_the_way_is_fetched_again(zips: list[bytes], tmp_path: Path) -> None:
    class Changing:
        """Gives another content from the second look on."""

        looks = 0

        def look(self, url: str) -> Listing:  # noqa: ARG002 - one URL
            self.looks += 1
            return {"": Stamp(None, "old" if self.looks == 1 else "new")}

        def read(self, url: str, name: str, stamp: Stamp) -> Iterator[bytes]:  # noqa: ARG002 - the same
            yield zips[0 if self.looks == 1 else 1]

    cache = BundleCache(tmp_path, lambda _: Changing())
    assert open_bundle("x://y", at=cache.fetch("x://y")).name == "seed-2"
    assert len(names(cache)) == 1


def test_what_is_too_large_or_leads_outside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        def __init__(self, name: str) -> None:
            self._name = name

        def look(self, url: str) -> Listing:  # noqa: ARG002 - one URL
            return {self._name: Stamp(None, "x")}

        def read(self, url: str, name: str, stamp: Stamp) -> Iterator[bytes]:  # noqa: ARG002 - the same
            yield b"x" * 100
            yield b"x" * 100

    monkeypatch.setattr(engine.bundle_cache, "LARGEST_BYTES", 150)
    with pytest.raises(BundleError, match="is larger than"):
        BundleCache(tmp_path, lambda _: Odd("")).fetch("x://y")
    for name in ("../outside", "a/../../outside", "/outside"):
        with pytest.raises(BundleError, match="not something Framegate writes"):
            BundleCache(tmp_path / "cache", lambda _, name=name: Odd(name)).fetch("x://y")  # type: ignore[misc]
    assert not (tmp_path / "outside").exists()


def _fetch(folder: Path, url: str) -> None:
    BundleCache(folder).fetch(url)


@pytest.mark.slow
def test_of_several_processes_one_fetches(web: Web, cache: BundleCache) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fetch, args=(cache._folder, web.url)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert web.asked.count("GET") == 1


def test_locations_are_told_apart() -> None:
    assert bundle_url("s3://models/parts@sha256:" + "a" * 64) == "s3://models/parts"
    assert bundle_url("bundles/parts") is None
    assert bundle_url("file:///bundles/parts%201") is None
    assert str(bundle_path("file:///bundles/parts%201")) == "/bundles/parts 1"
    assert shown("https://me:mine@store/parts.zip?sv=1&sig=secret") == "https://store/parts.zip?…"
    assert shown("s3://models/parts") == "s3://models/parts"
    assert isinstance(open_store("HTTPS://store/parts.zip"), HttpStore)


def test_what_is_not_installed_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(BundleError, match=r"s3:// is not served here .* pip install 'framegate\[s3\]'"):
        open_store("s3://models/parts")
    with pytest.raises(BundleError, match=r"gs:// is not served here .* install fsspec and the package"):
        open_store("gs://models/parts")


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_bundle_in_a_store_of_fsspec(cache: BundleCache, tmp_path: Path, kind: str) -> None:
    fsspec = pytest.importorskip("fsspec", reason="an extra: framegate[s3] or framegate[azure]")
    store = fsspec.filesystem("memory")
    url = f"memory://models-{kind}/parts" + (".zip" if kind == "zip" else "")
    for seed in (1, 2):
        local = tmp_path / (f"{seed}.zip" if kind == "zip" else str(seed))
        write_bundle(local, bundle_of(seed))
        before = cache.look(url)
        assert before == () if seed == 1 else before != ()
        store.put(f"{local}/" if kind == "folder" else str(local), url, recursive=kind == "folder")
        assert cache.look(url) != before
        assert open_bundle(url, at=cache.fetch(url)).name == f"seed-{seed}"
        assert cache.look(url) == cache.look(url)
    store.rm("/models-" + kind, recursive=True)
    with pytest.raises(BundleError, match="is not there"):
        cache.fetch(url)


def test_a_store_that_hangs_is_waited_for_only_so_long() -> None:
    fsspec = pytest.importorskip("fsspec", reason="an extra: framegate[s3] or framegate[azure]")
    import threading  # noqa: PLC0415 - only here

    over, asked = threading.Event(), []
    store = FsspecStore("memory://x", replace(BUNDLE, look_s=0.05))

    def hang(url: str, **_: object) -> None:
        asked.append(url)
        over.wait(10)

    store._url_to_fs = hang  # type: ignore[assignment] # hangs
    for words in ("no answer within 0.05 s", "the last question is not answered yet"):
        with pytest.raises(RemoteError, match=words):
            store.look("memory://x")
    assert len(asked) == 1
    over.set()
    assert fsspec is not None
