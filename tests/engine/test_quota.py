"""What a container may use of the processor, read from its control group."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from engine import streams
from engine.quota import cpu_quota

if TYPE_CHECKING:
    from pathlib import Path


def quota_of(tmp_path: Path, membership: str, groups: dict[str, str]) -> float | None:
    """The quota of a process whose groups look like this."""
    tree = tmp_path / "tree"
    for group, content in groups.items():
        (tree / group).mkdir(parents=True, exist_ok=True)
        (tree / group / "cpu.max").write_text(content, encoding="ascii")
    (tmp_path / "cgroup").write_text(membership, encoding="utf-8")
    return cpu_quota(tmp_path / "cgroup", tree)


@pytest.mark.parametrize(
    ("membership", "groups", "expected"),
    [
        ("0::/\n", {"": "200000 100000\n"}, 2.0),
        ("0::/\n", {"": "50000 100000\n"}, 0.5),
        ("0::/\n", {"": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/kubepods/pod1/c1\n", {"kubepods/pod1": "300000 100000", "kubepods/pod1/c1": "max 100000"}, 3.0),
        ("0::/a/b\n", {"a": "100000 100000", "a/b": "400000 100000"}, 1.0),
        ("0::/../../outside\n", {"": "200000 100000"}, 2.0),
        ("4:memory:/x\n0::/a\n", {"a": "250000 100000"}, 2.5),
        ("1:cpu:/\n", {"": "100000 100000"}, None),
        ("0::/\n", {"": "nonsense\n"}, None),
    ],
)
def test_the_tightest_group_around_the_process_counts(
    tmp_path: Path, membership: str, groups: dict[str, str], expected: float | None
) -> None:
    assert quota_of(tmp_path, membership, groups) == expected


def test_a_system_without_control_groups_sets_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "processes", "expected"),
    [(None, 1, 16), (2.9, 1, 2), (0.5, 1, 1), (64.0, 1, 16), (4.0, 2, 2), (2.0, 4, 1)],
)
def test_whole_cores_of_the_quota_are_used_and_shared(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, processes: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(streams, "cpu_quota", lambda: quota)
    monkeypatch.setattr(streams, "_sharing", processes)
    assert streams.cores() == expected
