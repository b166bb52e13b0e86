"""What the set-up says on a machine that lacks something; the installation itself is what `make test` stands on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")


class Machine:
    """A copy of what the set-up reads, and a PATH whose first folder shadows the machine's own programs."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.programs = folder / "programs"
        self.programs.mkdir()
        shutil.copytree(ROOT / ".ci", self.checkout / ".ci")
        shutil.copytree(ROOT / "requirements", self.checkout / "requirements")
        shutil.copy(ROOT / "pyproject.toml", self.checkout)

    def shadow(self, name: str, script: str) -> None:
        """Put a shell script in place of a program."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def set_up(self, **environment: str) -> str:
        """Run `.ci/setup.sh base`, which has to fail; give back what it said."""
        done = subprocess.run(
            [str(self.checkout / ".ci" / "setup.sh"), "base"],
            env={"PATH": f"{self.programs}:/usr/bin:/bin", "FRAMEGATE_SYSTEM_PACKAGES": "no", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert not (self.checkout / ".venv").exists()
        return done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_old_python_is_named_with_what_to_install(machine: Machine) -> None:
    for name in PYTHONS:
        machine.shadow(name, '[ "$1" = --version ] && echo Python 3.9.2 && exit; exit 1')
    said = machine.set_up()
    assert "Python 3.11 to 3.14 is needed; found Python 3.9.2" in said
    assert "apt install python3 python3-venv" in said


def test_a_python_asked_for_that_is_not_there_is_named(machine: Machine) -> None:
    assert "PYTHON=/nowhere/python3 is not a Python" in machine.set_up(PYTHON="/nowhere/python3")


@pytest.mark.skipif(
    shutil.which("uv", path="/usr/bin:/bin") is not None, reason="uv is there and would make the environment"
)
def test_a_python_without_ensurepip_names_the_package(machine: Machine) -> None:
    for name in PYTHONS:
        machine.shadow(name, f'case "$*" in *ensurepip*|*"-m pip"*) exit 1;; esac; exec {sys.executable} "$@"')
    said = machine.set_up()
    assert f"sudo apt install python3.{sys.version_info.minor}-venv" in said


@pytest.mark.parametrize(
    ("program", "script", "expected"),
    [
        ("uname", "[ $1 = -s ] && echo Darwin || echo arm64", "Darwin on arm64 is not supported"),
        ("getconf", "echo glibc 2.27", "glibc 2.27 is too old"),
        ("getconf", "exit 1", "no glibc"),
    ],
)
def test_a_machine_without_wheels_is_refused(machine: Machine, program: str, script: str, expected: str) -> None:
    machine.shadow(program, script)
    assert expected in machine.set_up()


def test_make_alone_lists_the_targets() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")]
    assert listed[:3] == ["help", "demo", "test"]
