"""Public sets of images, downloaded on request: pinned by sha256, with their licence said before anything else.

None of these images is part of Framegate; what is here is their addresses and hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING

import pooch
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import HTTPError, RequestException, Timeout

from engine.errors import InputError
from trainer.errors import FetchError

if TYPE_CHECKING:
    from pathlib import Path

    from requests import Response

Progress = Callable[[int, int], None]
"""Called with (files done, files in the set), from the calling thread."""

CONNECTIONS = 4
"""Hundreds of small files: waiting for answers is most of the time, and more than this is impolite."""

TIMEOUT_S = 30

NOTICE_FILE = "SOURCE.txt"


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A set that can be fetched.

    Attributes:
        name: what the user types.
        summary: what is in it, one line.
        licence: the licence it was published under.
        caveat: what the licence does not cover; shown with it.
        source_url: where a person reads about it.
        base_url: prefix of every file's address, with the revision in it.
        files: name in the fetched folder -> sha256.
        paths: name in the fetched folder -> path below `base_url`.
    """

    name: str
    summary: str
    licence: str
    caveat: str
    source_url: str
    base_url: str
    files: Mapping[str, str]
    paths: Mapping[str, str]

    @property
    def notice(self) -> str:
        """Licence, caveat and source, to show before the download; it is kept beside the images."""
        lines = (f"{self.name}: {self.summary}", f"Source: {self.source_url}", f"Licence: {self.licence}")
        return "\n".join((*lines, f"Caveat: {self.caveat}", ""))


def find_set(name: str) -> PublicSet:
    """The set of that name.

    Raises:
        InputError: there is none; the message lists all.
    """
    try:
        return PUBLIC_SETS[name]
    except KeyError:
        msg = f"public set {name!r} is not known: expected one of {', '.join(sorted(PUBLIC_SETS))}"
        raise InputError(msg) from None


def fetch(name: str, out: Path, *, base_url: str | None = None, progress: Progress | None = None) -> Path:
    """Download a set into a folder that `train` takes as it is.

    Files that are there with the right hash are kept, so a fetch that broke off goes on where it ended. A file whose
    hash differs from the pinned one is never left in the folder under its name.

    Args:
        name: a key of `PUBLIC_SETS`.
        out: folder, made where it is missing.
        base_url: a mirror with the same paths below it.
        progress: called after each file.

    Returns:
        `out`.

    Raises:
        InputError: no such set, or `out` is a file.
        FetchError: no network, the server has not got it, another content arrived, or the disk refused.
    """
    chosen = find_set(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / NOTICE_FILE).write_text(chosen.notice, encoding="utf-8")
    except FileExistsError as error:
        msg = f"{out} is a file: expected a folder to write {name} to; choose another --out"
        raise InputError(msg) from error
    except OSError as error:
        raise _disk_error(out, error) from error
    base = (base_url or chosen.base_url).rstrip("/")
    urls = {file: f"{base}/{path}" for file, path in chosen.paths.items()}
    registry = {file: f"sha256:{digest}" for file, digest in chosen.files.items()}
    shelf = pooch.create(path=out, base_url=f"{base}/", registry=registry, urls=urls)
    pooch.get_logger().setLevel("WARNING")  # one line for each of hundreds of files otherwise
    _fetch_all(shelf, chosen, progress or (lambda _done, _total: None))
    return out


def _fetch_all(shelf: pooch.Pooch, chosen: PublicSet, progress: Progress) -> None:
    """Fetch every file, several at once; the first failure ends it."""
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_S, hooks={"response": _close_refusal})
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as pool:
        running = {pool.submit(shelf.fetch, file, downloader=downloader): file for file in chosen.files}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                _result(future.result, shelf, running[future])
                progress(done, len(running))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _close_refusal(response: Response, **_: object) -> None:
    """Pooch raises on an answer that is not 200, and leaves its connection to the garbage collector."""
    if not response.ok:
        response.close()


def _result(result: Callable[[], str], shelf: pooch.Pooch, file: str) -> None:
    """Put what went wrong with one file into words."""
    url = shelf.get_url(file)
    retry = "files already there are kept: run the same command again"
    try:
        result()
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else "unknown"
        msg = f"{url} was answered with status {status}: expected 200; it has moved or the server is busy; {retry}"
        raise FetchError(msg) from error
    except (NoConnection, Timeout) as error:
        msg = (
            f"no connection to {url}: expected a network that reaches it; on a machine without one, fetch elsewhere "
            f"and copy the folder, or train on your own zip; {retry}"
        )
        raise FetchError(msg) from error
    except RequestException as error:
        msg = f"the download of {url} broke off ({error}); {retry}"
        raise FetchError(msg) from error
    except ValueError as error:  # pooch's word for a hash that differs
        msg = f"{url} is not the pinned file (its sha256 differs), not kept; a proxy may have answered; {retry}"
        raise FetchError(msg) from error
    except OSError as error:
        raise _disk_error(shelf.abspath / file, error) from error


def _disk_error(path: Path, error: OSError) -> FetchError:
    """The words for a disk that refuses."""
    return FetchError(f"{path} cannot be written: {error.strerror or error}; choose another --out or make room")


def _read_registry(file: str) -> dict[str, str]:
    """Path below the base URL -> sha256."""
    text = resources.files("trainer").joinpath(file).read_text(encoding="utf-8")
    pairs = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {path: digest for path, digest in pairs}  # noqa: C416 - checks that each line has two words


def _catdog() -> PublicSet:
    """Cats and dogs under their Kaggle names."""
    commit = "9e4f1e1b8eb00fb52c7b1f7e271e573cbe5a2d2f"
    repository = "ardamavi/Dog-Cat-Classifier"
    digests = _read_registry("public_data_catdog.txt")
    paths = {path.rpartition("/")[2]: path for path in digests}
    return PublicSet(
        name="catdog",
        summary="300 photos of cats and 300 of dogs (cat.N.jpg, dog.N.jpg): a smoke test, not an inspection task",
        licence="Apache-2.0 (file LICENSE of the repository, Copyright 2017 Arda Mavi)",
        caveat=(
            "the photos are those of the Kaggle/Asirra cats-vs-dogs set; the repository's licence cannot clear the "
            "photographers' rights. For tests only: do not ship them, nor a product that contains them."
        ),
        source_url=f"https://github.com/{repository}/tree/{commit}/Data/Train_Data",
        base_url=f"https://raw.githubusercontent.com/{repository}/{commit}/Data/Train_Data",
        files=MappingProxyType({name: digests[path] for name, path in paths.items()}),
        paths=MappingProxyType(paths),
    )


PUBLIC_SETS: Mapping[str, PublicSet] = MappingProxyType({chosen.name: chosen for chosen in (_catdog(),)})
"""Every set by its name."""
