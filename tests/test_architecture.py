"""Who may know whom, what the wheel holds, and what must not stand in any file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("consumer", "trainer", "engine")
HEAVY = ("cv2", "kafka", "onnx", "onnxruntime", "pycuda", "scipy", "sklearn", "tensorrt")
OURS = (".ci", ".github", "deploy", "docs", "requirements", "tests", *ROOMS)
"""Folders of the repository; with the files at the top, all that is committed."""


OTHERS = {"__pycache__", "node_modules"}


def project_files() -> Iterator[Path]:
    """Every file that is ours. Walked rather than asked of git, which a machine that only runs this need not have."""
    yield from (path for path in ROOT.iterdir() if path.is_file())
    for folder in OURS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and not OTHERS & {*path.parts})


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of pyproject.toml over the rooms that lie in `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
    )


def test_every_import_follows_the_contracts() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_can_break(tmp_path: Path) -> None:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    offences = {
        "engine/offence.py": "import consumer\nimport framegate\n",
        "trainer/offence.py": "import kafka\nimport onnxruntime\nimport pyarrow\n",
        "consumer/tenure.py": "import threading\n",
    }
    for name, text in offences.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"Contracts: 0 kept, 6 broken", done.stdout), done.stdout


@pytest.mark.parametrize(
    "module", ["engine", "engine.specs", "engine.prediction", "engine.batcher", "engine.cli_build", "framegate"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_test_folder_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_requirements_are_pinned_hashed_and_without_index() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert {file.name for file in files} >= {"base.txt", "build.txt", "dev.txt", "gpu.txt", "trainer.txt"}
    for file in files:
        lines = file.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        entries = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        assert entries
        for entry in entries:
            assert re.match(r"[a-z0-9][a-z0-9._-]*==\S+ ", entry), f"{file.name}: not one pinned version: {entry[:80]}"
            assert "--hash=sha256:" in entry, f"{file.name}: no hash: {entry[:80]}"


def test_requirement_files_agree_on_versions() -> None:
    versions: dict[str, set[str]] = {}
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        per_file: dict[str, set[str]] = {}
        # The versions alone: for whom a package is needed may differ from set to set.
        for name, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE):
            per_file.setdefault(name, set()).add(version)
        for name, found in per_file.items():
            assert versions.setdefault(name, found) == found, f"{name} differs in {path.name}"


def test_no_file_names_a_registry_or_a_place_on_one_machine() -> None:
    # Written in pieces so that this file does not find itself.
    registries = ["pypi" + ".org", "python" + "hosted", "repo1" + ".maven", "repo" + ".maven", "registry" + ".npmjs"]
    options = ["--index" + "-url", "--extra-index" + "-url", "--find" + "-links"]
    places = ["/wo" + "rk/", "/ro" + "ot/", "/home" + "/"]
    forbidden = re.compile("|".join(re.escape(text) for text in [*registries, *options, *places]).encode())
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()[:120]}"
        for path in project_files()
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_rooms_whole_and_the_front_door(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        points = ConfigParser()
        points.read_string(archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {*ROOMS, "framegate.py"}
    assert dict(points["console_scripts"]) == {"framegate": "framegate:main"}
    assert points.sections() == ["console_scripts"]
    # Not only the modules: a schema or a list beside them goes along.
    assert {name for name in names if name.startswith(ROOMS)} == {
        path.relative_to(ROOT).as_posix() for path in project_files() if path.relative_to(ROOT).parts[0] in ROOMS
    }


@pytest.mark.slow
def test_the_front_door_opens_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import framegate; print(framegate.__file__); framegate.main(['--version'])"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    where, version = done.stdout.splitlines()
    assert Path(where) == site / "framegate.py"
    assert version == f"framegate, version {wheel.name.split('-')[1]}"
