"""How much of the processor a container may use: its cgroup's quota, which the scheduler enforces by stopping threads.

`os.sched_getaffinity` knows nothing of it: in a container that may use two of a node's 64 cores it says 64, and a
process that starts a thread for each is stopped for most of every tenth of a second.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

MEMBERSHIP = Path("/proc/self/cgroup")
TREE = Path("/sys/fs/cgroup")


def cpu_quota(membership: Path = MEMBERSHIP, tree: Path = TREE) -> float | None:
    """Cores' worth of time that this process may use; None where nothing limits it.

    Of control groups version 2 alone, which is what Kubernetes runs on: the smallest `cpu.max` of the group and of
    those around it. In a container its own group is the top of what it sees.

    Args:
        membership: says which group the process is in.
        tree: where the groups are.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    unified = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    if not unified:
        return None
    own = PurePosixPath(unified[0].lstrip("/"))
    if ".." in own.parts:  # a group outside of what this process sees
        own = PurePosixPath()
    found = [_quota_of(tree / group / "cpu.max") for group in (own, *own.parents)]
    return min((quota for quota in found if quota is not None), default=None)


def _quota_of(file: Path) -> float | None:
    """`200000 100000` is two cores; `max 100000`, or no such file, no limit."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
