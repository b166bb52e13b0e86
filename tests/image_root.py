"""The root file system of an image, made and used without a container engine, in a mount namespace of Linux.

The base image is played by this machine: its /usr (read-only), /dev, /proc and /sys, with the Python that runs the
tests at /usr/local, where the official images have theirs. All else is the image's own. So what a `Dockerfile` runs is
run word for word and at its own paths, and a program of the image finds its root read-only, as under `--read-only`.
Needs root, for the mounts, for `useradd` and for becoming another user.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.image_plan import ROOT, Copy, File, ImagePlan, Run, context_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TOLD = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_INDEX_URL")
"""How this machine reaches its package index, which a build is told as arguments; nothing else of the environment."""

_RUN_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class BasePython:
    """The base image's Python: its version, what is mounted at /usr/local, and what as its site-packages there."""

    version: str
    prefix: Path
    packages: Path


_ETC = ("alternatives", "ca-certificates.conf", "group", "host.conf", "hosts", "ld.so.conf", "ld.so.conf.d")
_ETC_TOO = ("localtime", "login.defs", "nsswitch.conf", "passwd", "pip.conf", "resolv.conf", "shadow", "ssl")


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image: its plan, its root, and the Python that plays its base image's."""

    plan: ImagePlan
    root: Path
    python: BasePython
    volumes: Path

    def command(
        self,
        arguments: Sequence[str],
        *,
        mounts: Mapping[str, Path] | None = None,
        writable: Sequence[str] = (),
        environment: Sequence[str] = (),
        entrypoint: Sequence[str] | None = None,
    ) -> list[str]:
        """As `docker run --read-only --tmpfs /tmp` would run it: as its user, in its folder, with its environment.

        Its volumes are folders of their own, as an engine makes them: empty, and of the owner that they have inside.
        """
        config = self.plan.config
        there = dict(mounts or {})
        own = [volume for volume in config.get("Volumes", {}) if volume not in there]
        for volume in own:
            status = (self.root / volume.lstrip("/")).stat()
            there[volume] = self.volumes / volume.strip("/").replace("/", "-")
            there[volume].mkdir(parents=True, exist_ok=True)
            os.chown(there[volume], status.st_uid, status.st_gid)
        return inside(
            self.root,
            self.python,
            [*(config["Entrypoint"] if entrypoint is None else entrypoint), *arguments],
            [*config["Env"], *environment],
            folder=config["WorkingDir"],
            user=config["User"],
            mounts=there,
            writable=[*writable, *own],
        )

    def run(self, arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end; options as for `command`."""
        command = self.command(arguments, **options)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_RUN_TIMEOUT_S)


def require_namespaces() -> None:
    """Skip where this machine does not let us."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to run what a Dockerfile runs as root, in a mount namespace")
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs mount namespaces: {done.stderr.strip()}")


def build_image(
    plan: ImagePlan, folder: Path, python: BasePython, skip: Callable[[Run], bool] = lambda _: False
) -> Path:
    """Carry a plan out below `folder`; the image's root.

    Args:
        plan: as BuildKit made it.
        folder: new.
        python: the base image's.
        skip: RUN lines that are left out.
    """
    let_in = context_files()
    roots: dict[str | None, Path] = {}
    for number, step in enumerate(plan.steps):
        uses = sum(other.base == step.base for other in plan.steps[number:])
        if step.base is None:
            root = _new_root(folder / f"root-{number}", python)
        elif uses > 1:  # two stages begin with the same step
            root = folder / f"root-{number}"
            shutil.copytree(roots[step.base], root, symlinks=True)
        else:
            root = roots[step.base]
        for action in step.actions:
            if isinstance(action, Run):
                if not skip(action):
                    _run(action, root, roots, python)
            elif isinstance(action, Copy):
                source = ROOT if action.step is None else roots[action.step]
                _copy(source, root, action, let_in if action.step is None else None)
            else:
                _make(root, action)
        roots[step.name] = root
    return roots[plan.steps[-1].name]


def inside(
    root: Path,
    python: BasePython,
    command: Sequence[str],
    environment: Sequence[str],
    *,
    folder: str = "/",
    user: str | None = None,
    mounts: Mapping[str, Path] | None = None,
    writable: Sequence[str] = (),
) -> list[str]:
    """The command line that runs a command in a root; it execs, so signals reach the command itself.

    Args:
        root: of the image.
        python: the base image's.
        command: as it is called inside.
        environment: `NAME=value`, the whole of it.
        folder: where to run.
        user: `uid:gid`; then the root is read-only but for a fresh /tmp and what is `writable`. None: root, who may
            write.
        mounts: path inside -> path here.
        writable: of these, which may be written to.
    """
    at = shlex.quote(str(root))
    lines = ["set -eu", f"mount --bind {at} {at}", f"cd {at}"]
    for name in ("dev", "proc", "sys"):
        lines += [f"mkdir -p {name}", f"mount --rbind /{name} {name}"]
    lines += ["mkdir -p usr", "mount --bind /usr usr", "mount -o remount,bind,ro usr"]
    lines += [f"mount --bind {shlex.quote(str(python.prefix))} usr/local", "mount -o remount,bind,ro usr/local"]
    lines += [f"mount --bind {shlex.quote(str(python.packages))} usr/local/lib/python{python.version}/site-packages"]
    for inner, outer in (mounts or {}).items():
        there = shlex.quote(inner.lstrip("/"))
        make = f"mkdir -p {there}" if outer.is_dir() else f"mkdir -p $(dirname {there}) && touch {there}"
        lines += [make, f"mount --bind {shlex.quote(str(outer))} {there}"]
        lines += [] if inner in writable else [f"mount -o remount,bind,ro {there}"]
    change = ["chroot", str(root), "/usr/bin/env", "-i", f"--chdir={folder}", *environment]
    if user is not None:
        lines += ["mount -t tmpfs -o mode=1777 tmpfs tmp", f"mount -o remount,bind,ro {at}"]
        uid, gid = user.split(":")
        change += ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
    lines.append(f"exec {shlex.join([*change, *command])}")
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines)]


def base_python(version: str, prefix: Path, folder: Path) -> BasePython:
    """A Python to play the base image's: of this machine's installation, with nothing but pip beside it, as there.

    Args:
        version: such as `3.11`.
        prefix: of the installation; skips where that is the system's own, or of another version.
        folder: new, for its packages.
    """
    library = prefix / "lib" / f"python{version}"
    if prefix == Path("/usr") or not (library.is_dir() and (prefix / "bin" / "python").exists()):
        pytest.skip(f"needs a Python {version} with a prefix of its own, as the base image has one: got {prefix}")
    bundled = sorted((library / "ensurepip" / "_bundled").glob("pip-*.whl"))
    if not bundled:
        pytest.skip(f"needs a Python that brings pip, as the base image's does: {library} has no ensurepip")
    with zipfile.ZipFile(bundled[-1]) as wheel:
        wheel.extractall(folder)
    return BasePython(version, prefix, folder)


def _new_root(root: Path, python: BasePython) -> Path:
    """What of a base image is written to: the rest is this machine's."""
    for name in ("etc", "opt", "root", "var/cache", "var/lib", "var/log", "var/tmp"):
        (root / name).mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    # Of /etc what tells programs of /usr how to work: Debian keeps Java's settings there too.
    java = [path.name for path in Path("/etc").glob("java-*-openjdk")]
    for name in (*_ETC, *_ETC_TOO, *java):
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, root / "etc" / name, symlinks=True, ignore=shutil.ignore_patterns("private"))
        elif source.exists():
            shutil.copy2(source, root / "etc" / name)
    # Libraries are found where the base image has them, before those of this machine's own Python.
    subprocess.run(inside(root, python, ["/sbin/ldconfig"], []), check=True)
    return root


def _run(action: Run, root: Path, roots: Mapping[str | None, Path], python: BasePython) -> None:
    environment = ["HOME=/root", *(f"{name}={os.environ[name]}" for name in TOLD if name in os.environ)]
    environment += action.environment
    mounts = {where: roots[step] / part.lstrip("/") for where, step, part in action.mounts}
    command = inside(root, python, action.arguments, environment, folder=action.folder, mounts=mounts)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_RUN_TIMEOUT_S)
    assert done.returncode == 0, f"{action.shell}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def _copy(source: Path, root: Path, action: Copy, let_in: set[str] | None) -> None:
    """As COPY does: of a folder its content; a destination that ends in a slash is a folder."""
    here, there = source / action.source.lstrip("/"), root / action.destination.lstrip("/")
    if not here.is_dir():
        target = there / here.name if action.destination.endswith("/") else there
        assert let_in is None or action.source.lstrip("/") in let_in, f".dockerignore leaves {action.source} out"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(here, target)
        return

    def left_out(folder: str, names: list[str]) -> list[str]:
        if let_in is None:
            return []
        paths = [Path(folder, name) for name in names]
        return [path.name for path in paths if path.is_file() and path.relative_to(source).as_posix() not in let_in]

    # A stage's files are linked: a later one adds to what it takes over, and changes none of it.
    taken = shutil.copy2 if let_in is not None else os.link
    shutil.copytree(here, there, symlinks=True, dirs_exist_ok=True, ignore=left_out, copy_function=taken)


def _make(root: Path, action: File) -> None:
    path = root / action.path.lstrip("/")
    if action.content is None:
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, action.owner, action.owner)
    else:
        path.write_bytes(action.content)


def version_of_base(argument: str) -> str:
    """Such as `3.11`: the Python of the base image that this argument of the Dockerfile names."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(rf"^ARG {argument}=python:(\d+\.\d+)\.", text, flags=re.MULTILINE)
    assert found is not None, f"the Dockerfile has no ARG {argument} with a Python's version"
    return found[1]
