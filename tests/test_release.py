"""A release: one version, a changelog, wheel and sdist that hold what they should, bills of materials, the audit.

With FRAMEGATE_RELEASE=1 (`make release-check`) also what must be true only on the day: the version has its section in
the changelog, and nothing is left unreleased.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import tomllib
import warnings
import zipfile
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
RELEASE = os.environ.get("FRAMEGATE_RELEASE") == "1"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETS = {"cpu": "base", "gpu": "gpu", "trainer": "trainer"}
HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\S+))?$", flags=re.MULTILINE)
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
KINDS = {".css", ".html", ".js", ".json", ".py", ".svg", ".txt"}
"""What a wheel's files are: no image, no model, no archive."""


def release(verb: str, *options: str, dist: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / ".ci" / "release.sh"), verb, *options]
    environment = {**os.environ, "DIST": str(dist)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)


# --- version and changelog ---------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "framegate", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"framegate, version {PROJECT['version']}\n"
    stated = re.compile(rf"""version\s*[:=]+\s*["']?{re.escape(PROJECT["version"])}\b""", flags=re.IGNORECASE)
    others = [*ROOT.glob("*.py"), *ROOT.glob("Dockerfile"), *ROOT.glob("deploy/**/*.y*ml")]
    others += [path for room in ("consumer", "engine", "trainer") for path in (ROOT / room).rglob("*.py")]
    found = [path.relative_to(ROOT).as_posix() for path in others if stated.search(path.read_text(encoding="utf-8"))]
    # A chart has to name the version of what it deploys; that it names this one is all that can be asked.
    assert set(found) <= {"deploy/helm/Chart.yaml", "deploy/helm/framegate/Chart.yaml"}


def changelog() -> list[tuple[str, str, str]]:
    """(version, date, text) of each section, as they stand."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    places = list(HEADING.finditer(text))
    ends = [place.start() for place in places[1:]] + [len(text)]
    return [(place[1], place[2] or "", text[place.end() : end]) for place, end in zip(places, ends, strict=True)]


def test_the_changelog_has_its_form() -> None:
    sections = changelog()
    assert sections[0][:2] == ("Unreleased", ""), "what comes next is written down first"
    versions = [Version(version) for version, _, _ in sections[1:]]
    assert versions == sorted(versions, reverse=True)
    days = [date.fromisoformat(day) for _, day, _ in sections[1:]]
    assert days == sorted(days, reverse=True)
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^## ", text, flags=re.MULTILINE)) == len(sections), "a heading is not '## [1.2.3] - date'"
    for version, _, content in sections:
        kinds = re.findall(r"^### (.+)$", content, flags=re.MULTILINE)
        assert set(kinds) <= CHANGES, version
        assert len(kinds) == len(set(kinds)), f"{version}: a kind of change comes twice"
    # Between releases the version is the next one; on the day it is that of the newest section.
    assert not versions or Version(PROJECT["version"]) >= versions[0]


@pytest.mark.skipif(not RELEASE, reason="asked for by `make release-check`")
def test_this_version_is_written_up() -> None:
    sections = changelog()
    assert sections[0][2].strip() == "", "the section [Unreleased] is not empty: move it below this version's heading"
    assert len(sections) > 1, "the changelog has no release"
    assert sections[1][0] == PROJECT["version"]
    assert "- " in sections[1][2]


# --- wheel and sdist ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist."""
    dist = tmp_path_factory.mktemp("dist")
    done = release("build", dist=dist)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return wheel, sdist


def sdist_files(sdist: Path) -> dict[str, bytes]:
    """Its files by their path below its one folder."""
    with tarfile.open(sdist) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        tops = {PurePosixPath(member.name).parts[0] for member in files}
        assert tops == {f"framegate-{PROJECT['version']}"}
        content = {}
        for member in files:
            opened = archive.extractfile(member)
            assert opened is not None
            content["/".join(PurePosixPath(member.name).parts[1:])] = opened.read()
        return content


@pytest.mark.slow
def test_the_wheel_is_for_every_machine_and_holds_no_data(built: tuple[Path, Path]) -> None:
    wheel, _ = built
    assert wheel.name == f"framegate-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    content = [name for name in names if ".dist-info/" not in name]
    assert {PurePosixPath(name).suffix for name in content} <= KINDS
    assert not [name for name in content if "test" in PurePosixPath(name).parts[0]]


@pytest.mark.slow
def test_the_sdist_holds_the_sources_and_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    files = sdist_files(sdist)
    tops = {name.split("/")[0] for name in files}
    assert tops - {".gitignore"} == {
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "consumer",
        "engine",
        "framegate.py",
        "pyproject.toml",
        "trainer",
    }
    for name, content in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tmp_path / "source", capture_output=True, check=True)
    with zipfile.ZipFile(tmp_path / "dist" / wheel.name) as again, zipfile.ZipFile(wheel) as first:
        assert {entry.filename: entry.CRC for entry in again.infolist()} == {
            entry.filename: entry.CRC for entry in first.infolist()
        }


@pytest.mark.slow
def test_both_say_what_they_are(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        texts = [archive.read(name), sdist_files(sdist)["PKG-INFO"]]
    for text in texts:
        metadata = Metadata.from_email(text, validate=True)  # what a package index would ask
        assert metadata.name == "framegate"
        assert str(metadata.version) == PROJECT["version"]
        assert metadata.summary == PROJECT["description"]
        assert metadata.license_expression == "Apache-2.0"
        assert metadata.license_files == ["LICENSE"]
        assert str(metadata.requires_python) == PROJECT["requires-python"]
        assert metadata.description_content_type == "text/markdown"
        assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
        assert "Private :: Do Not Upload" in (metadata.classifiers or [])
        base = {Requirement(text) for text in PROJECT["dependencies"]}
        assert {requirement for requirement in metadata.requires_dist or [] if requirement.marker is None} == base


# --- bills of materials ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each image's, as text."""
    dist = tmp_path_factory.mktemp("sbom")
    done = release("sbom", dist=dist)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (dist / "sbom").iterdir()} == {f"framegate-{image}.cdx.json" for image in SETS}
    return {image: (dist / "sbom" / f"framegate-{image}.cdx.json").read_text(encoding="utf-8") for image in SETS}


def locked(name: str) -> dict[tuple[str, str], set[str]]:
    """(package, version) -> hashes of a lock file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        entry = re.match(r"([a-z0-9._-]+)==(\S+)", line)
        if entry:
            found[entry[1], entry[2]] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("image", SETS)
def test_a_bill_of_materials_is_valid_and_complete(bills: dict[str, str], image: str) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert validator.validate_str(bills[image]) is None
        assert validator.validate_str('{"bomFormat": "CycloneDX", "specVersion": "1.6", "version": "one"}') is not None
    bill: dict[str, Any] = json.loads(bills[image])
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == ("framegate", PROJECT["version"], "application")
    listed = {
        (part["name"], part["version"]): {
            digest["content"] for place in part["externalReferences"] for digest in place["hashes"]
        }
        for part in bill["components"]
    }
    assert listed == locked(SETS[image])
    for part in bill["components"]:
        assert part["purl"].startswith(f"pkg:pypi/{part['name']}@")


@pytest.mark.slow
def test_a_bill_of_materials_is_the_same_when_made_again(bills: dict[str, str], tmp_path: Path) -> None:
    assert release("sbom", "cpu", dist=tmp_path).returncode == 0
    again = (tmp_path / "sbom" / "framegate-cpu.cdx.json").read_text(encoding="utf-8")
    assert again == bills["cpu"]


# --- the audit ---------------------------------------------------------------------------------------------------


class _Service(ThreadingHTTPServer):
    """A vulnerability service in the manner of OSV, on loopback: knows of `bad` packages, remembers what was asked."""

    def __init__(self, bad: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.bad = bad
        self.asked: set[tuple[str, str]] = set()

    @property
    def options(self) -> list[str]:
        return ["--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{self.server_port}/query"]


class _Answer(BaseHTTPRequestHandler):
    server: _Service

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, version = asked["package"]["name"], asked["version"]
        self.server.asked.add((name, version))
        known = {"id": "TEST-1", "summary": "made up", "details": "", "affected": []}
        text = json.dumps({"vulns": [known]} if name in self.server.bad else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def service() -> Iterator[_Service]:
    with _Service() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_audit_asks_about_every_locked_version(service: _Service, tmp_path: Path) -> None:
    done = release("audit", *service.options, dist=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [path.stem for path in (ROOT / "requirements").glob("*.txt")]
    assert service.asked == set.union(*(set(locked(name)) for name in files))
    assert f"Auditing {len(service.asked)} locked versions of" in done.stderr


@pytest.mark.slow
def test_the_audit_fails_for_a_known_vulnerability(service: _Service, tmp_path: Path) -> None:
    service.bad = ("numpy",)
    done = release("audit", *service.options, dist=tmp_path)
    assert done.returncode == 1
    assert "TEST-1" in done.stdout


@pytest.mark.slow
def test_the_audit_fails_where_nobody_answers(service: _Service, tmp_path: Path) -> None:
    options = service.options
    service.shutdown()
    service.server_close()
    done = release("audit", *options, dist=tmp_path)
    assert done.returncode == 1
    assert "Connection" in done.stderr


@pytest.mark.slow
def test_no_locked_version_has_a_known_vulnerability(tmp_path: Path) -> None:
    """Only where the service answers: the package index's own, which a mirror of it may not have."""
    done = release("audit", dist=tmp_path)
    if re.search(r"could not be audited|ConnectionError|ServiceError", done.stderr):
        pytest.skip(f"the vulnerability service does not answer here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout
