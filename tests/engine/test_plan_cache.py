from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import PlanError
from engine.plan_cache import Machine, PlanCache, PlanKey, default_folder

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

MACHINE = Machine("11.4.0.106", "NVIDIA H100", "9.0", "580.65.06", "13.0, headers 13.0")
RANGES = {"images": ((1, 64, 64, 3), (1, 64, 64, 3), (4, 64, 64, 3))}
KEY = PlanKey("ab" * 32, MACHINE, (RANGES,), {"tf32": False, "workspace_bytes": None})


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def refused() -> bytes:
    pytest.fail("the plan was built though it should have been found")


def test_a_plan_is_built_once(cache: PlanCache) -> None:
    first = cache.get_or_build(KEY, lambda: b"plan\nof two lines")
    again = cache.get_or_build(KEY, refused)
    assert (first.plan, first.hit) == (b"plan\nof two lines", False)
    assert (again.plan, again.hit) == (first.plan, True)
    assert (cache.misses, cache.hits) == (1, 1)


OTHERS: list[dict[str, Any]] = [
    {"onnx_sha256": "cd" * 32},
    *({"machine": dataclasses.replace(MACHINE, **{field.name: "other"})} for field in dataclasses.fields(Machine)),
    {"profiles": ({"images": ((1, 64, 64, 3), (1, 64, 64, 3), (8, 64, 64, 3))},)},
    {"profiles": (RANGES, RANGES)},
    {"options": {"tf32": True, "workspace_bytes": None}},
    {"options": {"tf32": False, "workspace_bytes": 1}},
]


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_another_value_anywhere_is_another_plan(change: dict[str, Any], cache: PlanCache) -> None:
    cache.get_or_build(KEY, lambda: b"plan")
    other = cache.get_or_build(dataclasses.replace(KEY, **change), lambda: b"other")
    assert not other.hit
    assert cache.get_or_build(KEY, refused).plan == b"plan"


def test_it_is_private_and_whole(cache: PlanCache) -> None:
    before = os.umask(0)
    try:
        path = cache.get_or_build(KEY, lambda: b"plan").path
        cache.keep_timing(MACHINE, b"timing")
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in cache.folder.iterdir()} == {0o600}
    assert {file.suffix for file in cache.folder.iterdir()} == {".plan", ".timing", ""}
    assert b'"NVIDIA H100"' in path.read_bytes().splitlines()[1]


@pytest.mark.parametrize("damage", [b"", b"framegate plan 1\n", b"framegate plan 1\n{}\nplan"])
def test_a_damaged_plan_is_built_again(damage: bytes, cache: PlanCache, caplog: pytest.LogCaptureFixture) -> None:
    path = cache.get_or_build(KEY, lambda: b"plan" * 100).path
    path.write_bytes(damage or path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = cache.get_or_build(KEY, lambda: b"plan" * 100)
    assert not again.hit
    assert "is not whole" in caplog.text
    assert cache.get_or_build(KEY, refused).hit


def test_a_plan_under_another_ones_name_is_not_taken(cache: PlanCache) -> None:
    path = cache.get_or_build(KEY, lambda: b"plan").path
    other = dataclasses.replace(KEY, onnx_sha256="cd" * 32)
    path.rename(cache.path(other))
    assert not cache.get_or_build(other, lambda: b"other").hit


def test_what_others_may_have_written_is_refused(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache.get_or_build(KEY, lambda: b"plan").path
    path.chmod(0o620)
    with pytest.raises(PlanError, match=r"writable by others \(mode 620\): .* only this user can write; delete it"):
        cache.get_or_build(KEY, refused)
    path.chmod(0o600)
    cache.folder.chmod(0o770)
    with pytest.raises(PlanError, match=r"plans is writable by others"):
        cache.get_or_build(KEY, refused)
    cache.folder.chmod(0o700)
    target = cache.folder / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    with pytest.raises(PlanError, match="symbolic link"):
        cache.get_or_build(KEY, refused)
    path.unlink()
    target.rename(path)
    assert cache.get_or_build(KEY, refused).hit
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(PlanError, match=f"owned by user {path.stat().st_uid}"):
        cache.get_or_build(KEY, refused)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "plans").symlink_to(tmp_path / "real")
    with pytest.raises(PlanError, match="symbolic link"):
        PlanCache(tmp_path / "plans").get_or_build(KEY, refused)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PlanError, match=r"cannot be .*: Not a directory"):
        PlanCache(tmp_path / "file" / "plans").get_or_build(KEY, refused)


def test_a_failed_build_leaves_nothing_and_blocks_nobody(cache: PlanCache) -> None:
    def fail() -> bytes:
        msg = "no plan"
        raise PlanError(msg)

    with pytest.raises(PlanError, match="no plan"):
        cache.get_or_build(KEY, fail)
    assert [file.name for file in cache.folder.iterdir()] == ["lock"]
    assert not cache.get_or_build(KEY, lambda: b"plan").hit


def test_a_discarded_plan_is_built_again(cache: PlanCache) -> None:
    cache.get_or_build(KEY, lambda: b"plan")
    cache.discard(KEY)
    cache.discard(KEY)
    assert not cache.get_or_build(KEY, lambda: b"plan").hit


def test_timing_is_bound_to_the_machine(cache: PlanCache) -> None:
    assert cache.timing(MACHINE) == b""
    cache.keep_timing(MACHINE, b"measured")
    assert cache.timing(MACHINE) == b"measured"
    assert cache.timing(dataclasses.replace(MACHINE, gpu="another")) == b""


def build_slowly(folder: Path, started: Event, go_on: Event) -> None:
    def build() -> bytes:
        started.set()
        assert go_on.wait(30)
        return b"from another process"

    PlanCache(folder).get_or_build(KEY, build)


def test_one_process_builds_and_the_other_waits_for_its_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    child = context.Process(target=build_slowly, args=(tmp_path / "plans", started, go_on))
    child.start()
    try:
        assert started.wait(30)
        waits: list[None] = []

        def waiting() -> None:
            waits.append(None)
            go_on.set()

        found = PlanCache(tmp_path / "plans", waiting).get_or_build(KEY, refused)
    finally:
        go_on.set()
        child.join(30)
    assert child.exitcode == 0
    assert (found.plan, found.hit) == (b"from another process", True)
    assert waits
    assert caplog.text.count("another process is building") == 1


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")

    def give_up() -> None:
        raise KeyboardInterrupt

    with cache._one_builder(), pytest.raises(KeyboardInterrupt):
        PlanCache(tmp_path / "plans", give_up).get_or_build(KEY, refused)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/framegate/plans"),
        ({"HOME": "/h"}, "/h/.cache/framegate/plans"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "relative"}, "/h/.cache/framegate/plans"),
    ],
)
def test_the_default_folder_is_the_users_cache(environment: dict[str, str], expected: str) -> None:
    assert default_folder(environment) == Path(expected)
