"""Public sets: pinned hashes, resuming, and clear words, against a server on the loopback."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from engine.errors import InputError
from trainer import public_data
from trainer.errors import FetchError
from trainer.labels import label_source
from trainer.public_data import PUBLIC_SETS, PublicSet, fetch
from trainer.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED = Path(os.environ.get("FRAMEGATE_TEST_DATA", Path(__file__).parents[2].parent / "shared"))


class Mirror(ThreadingHTTPServer):
    """Serves a folder and remembers what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """A mirror of an empty folder, tmp_path / "mirror"."""
    (tmp_path / "mirror" / "x").mkdir(parents=True)
    with Mirror(tmp_path / "mirror") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def small(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> PublicSet:
    """A set of twelve files, served by the mirror and known to `fetch`."""
    contents = {f"{kind}.{number}.jpg": f"{kind} {number}".encode() for kind in ("cat", "dog") for number in range(6)}
    for name, content in contents.items():
        (tmp_path / "mirror" / "x" / name).write_bytes(content)
    chosen = PublicSet(
        name="small",
        summary="twelve files",
        licence="CC0",
        caveat="none",
        source_url="here",
        base_url=mirror.url,
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        paths={name: f"x/{name}" for name in contents},
    )
    monkeypatch.setattr(public_data, "PUBLIC_SETS", MappingProxyType({"small": chosen}))
    return chosen


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def images(folder: Path) -> dict[str, str]:
    """Name -> sha256 of what lies in the folder beside the notice."""
    return {path.name: hash_of(path) for path in folder.iterdir() if path.name != "SOURCE.txt"}


def test_the_catdog_set_is_pinned_and_says_its_licence() -> None:
    catdog = PUBLIC_SETS["catdog"]
    assert len(catdog.files) == 600
    assert all(len(digest) == 64 for digest in catdog.files.values())
    assert len(set(catdog.files.values())) == 600
    assert catdog.paths["cat.0.jpg"] == "cat/cat.0.jpg"
    assert "9e4f1e1b8eb00fb52c7b1f7e271e573cbe5a2d2f" in catdog.base_url
    for words in ("Apache-2.0", "photographers' rights", "https://github.com/ardamavi/Dog-Cat-Classifier"):
        assert words in catdog.notice


def test_the_catdog_set_is_the_one_the_tests_use(tmp_path: Path, mirror: Mirror) -> None:
    """The real 600 files through a real server: every pinned hash fits, and what comes out can be trained on."""
    folder = SHARED / "data" / "catdog"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set FRAMEGATE_TEST_DATA")
    (tmp_path / "mirror" / "cat").symlink_to(folder / "good", target_is_directory=True)
    (tmp_path / "mirror" / "dog").symlink_to(folder / "fail", target_is_directory=True)
    steps: list[tuple[int, int]] = []
    out = fetch("catdog", tmp_path / "new" / "out", base_url=mirror.url, progress=lambda *step: steps.append(step))
    assert out == tmp_path / "new" / "out"
    assert steps == [(done, 600) for done in range(1, 601)]
    assert len(mirror.asked) == 600
    with open_source(out) as source:
        labelling = label_source(source)
    assert (labelling.pass_class, labelling.fail_class) == ("cat", "dog")
    assert [sample.is_defect for sample in labelling.samples].count(True) == 300
    assert labelling.skipped == ()


def test_a_fetch_goes_on_where_it_ended(tmp_path: Path, mirror: Mirror, small: PublicSet) -> None:
    fetch("small", tmp_path / "out")
    assert images(tmp_path / "out") == dict(small.files)
    assert (tmp_path / "out" / "SOURCE.txt").read_text(encoding="utf-8") == small.notice
    mirror.asked.clear()
    (tmp_path / "out" / "cat.1.jpg").unlink()
    (tmp_path / "out" / "dog.2.jpg").write_bytes(b"cut")
    fetch("small", tmp_path / "out")
    assert sorted(mirror.asked) == ["/x/cat.1.jpg", "/x/dog.2.jpg"]
    assert images(tmp_path / "out") == dict(small.files)


def test_another_content_is_refused_and_not_kept(tmp_path: Path, small: PublicSet) -> None:
    (tmp_path / "mirror" / "x" / "cat.3.jpg").write_bytes(b"<html>please log in</html>")
    with pytest.raises(FetchError, match=r"cat\.3\.jpg is not the pinned file \(its sha256 differs\)"):
        fetch("small", tmp_path / "out")
    left = images(tmp_path / "out")
    assert "cat.3.jpg" not in left
    assert left.items() <= small.files.items()


def test_a_file_the_server_has_not_got(tmp_path: Path, small: PublicSet) -> None:
    (tmp_path / "mirror" / small.paths["dog.0.jpg"]).unlink()
    with pytest.raises(FetchError, match=r"dog\.0\.jpg was answered with status 404"):
        fetch("small", tmp_path / "out")


@pytest.mark.usefixtures("small")
def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as free:  # bound and not listening: nobody else gets the port, and it refuses
        free.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match=r"no connection to http://127.*on a machine without one"):
            fetch("small", tmp_path / "out", base_url=f"http://127.0.0.1:{free.getsockname()[1]}/")


@pytest.mark.usefixtures("small")
def test_an_answer_that_breaks_off(tmp_path: Path) -> None:
    """Half a body under a whole length must not pass for the file."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(FetchError, match=r"broke off|sha256 differs|no connection"):
                fetch("small", tmp_path / "out", base_url=f"http://127.0.0.1:{server.getsockname()[1]}")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert images(tmp_path / "out") == {}


def test_unknown_sets_and_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'cats' is not known: expected one of catdog"):
        fetch("cats", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        fetch("catdog", tmp_path / "file")
    with pytest.raises(FetchError, match="cannot be written: Not a directory"):
        fetch("catdog", tmp_path / "file" / "below")
