"""The images: what BuildKit makes of the Dockerfile, its RUN lines run, and the image that they make used.

There is no container engine here. BuildKit's front end plans each image, `tests.image_root` carries the plan out on
this machine, in a mount namespace. What is not run that way is named below, line for line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest
from packaging.requirements import Requirement

from engine.bundle import write_bundle
from tests.bundles import pictures, small_bundle
from tests.image_plan import ROOT, File, ImagePlan, context_files, plan_image
from tests.image_root import BuiltImage, base_python, build_image, require_namespaces, version_of_base

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(1200)  # the first test that wants the image makes it

TARGETS = ("cpu", "gpu", "trainer")
NOT_RUN = {
    "cpu": [],
    "gpu": ["apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*"],
    "trainer": [
        (
            "mkdir -p /usr/share/man/man1 && apt-get update && apt-get install --yes --no-install-recommends "
            "openjdk-17-jre-headless && rm -rf /var/lib/apt/lists/*"
        )
    ],
}
"""RUN lines that need a Debian of their own; whoever adds one sees it here."""
ASKED = os.environ.get("FRAMEGATE_TEST_IMAGES", "").split()
"""Images besides `cpu` to make: they take long, see deploy/README.md."""


@pytest.fixture(scope="module", params=TARGETS)
def plan(request: pytest.FixtureRequest) -> ImagePlan:
    return plan_image(request.param)


def hadolint(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", *arguments, "Dockerfile"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing() -> None:
    done = hadolint("--config", ".hadolint.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_rule_that_is_off_would_find_something(tmp_path: Path) -> None:
    empty = tmp_path / "none.yaml"
    empty.write_text("ignored: []\n")
    found = set(re.findall(r"\b(DL|SC)(\d{4})\b", hadolint("--config", str(empty)).stdout))
    off = set(re.findall(r"^ *- (DL|SC)(\d{4})$", (ROOT / ".hadolint.yaml").read_text(), flags=re.MULTILINE))
    assert found == off


@pytest.mark.deploy
@pytest.mark.slow
def test_base_images_are_named_by_exact_version() -> None:
    """And nothing else is fetched: the misspelt name of a stage would be taken for an image's."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    given = dict(re.findall(r"^ARG ([A-Z_]+)=(\S+:\S+)$", text, flags=re.MULTILINE))
    for image in given.values():
        assert re.search(r":\d+\.\d+(\.\d+)?-\S+$", image), image
    expected = {"cpu": {"PYTHON"}, "trainer": {"PYTHON"}, "gpu": {"PYTHON", "GPU_PYTHON", "TENSORRT"}}
    for target, names in expected.items():
        asked = {image.removeprefix("docker.io/library/") for image in plan_image(target).bases}
        assert asked == {given[name] for name in names}


@pytest.mark.deploy
@pytest.mark.slow
def test_buildkit_takes_it_and_warns_of_nothing(plan: ImagePlan) -> None:
    assert plan.warnings == ()
    assert plan.runs()


@pytest.mark.deploy
@pytest.mark.slow
def test_the_image_says_what_it_is_and_how_it_runs(plan: ImagePlan) -> None:
    config = plan.config
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["framegate"]
    assert config["Volumes"] == {"/var/cache/framegate": {}}
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["PATH"].startswith("/opt/framegate/bin:")
    assert environment["XDG_CACHE_HOME"] == "/var/cache"
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    assert labels == {"title", "description", "licenses", "version", "revision"}
    licence = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["license"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == licence
    serves = config["Cmd"][0] == "run"
    assert config["Healthcheck"]["Test"][0] == ("CMD" if serves else "NONE")
    assert config.get("StopSignal") == ("SIGTERM" if serves else None)


@pytest.mark.deploy
@pytest.mark.slow
def test_what_is_not_run_here_is_known() -> None:
    for target in TARGETS:
        assert [run.shell for run in plan_image(target).runs() if "apt-get" in run.shell] == NOT_RUN[target]


@pytest.mark.deploy
@pytest.mark.slow
def test_the_build_context_is_what_the_images_are_made_of() -> None:
    copied = set.union(*(plan_image(target).copied_from_context() for target in TARGETS))
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), f"COPY {name}: there is no such file"
    assert context_files() == {
        path.relative_to(ROOT).as_posix()
        for name in copied
        for path in [ROOT / name, *(ROOT / name).rglob("*")]
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.deploy
@pytest.mark.slow
def test_the_names_are_checked_in_every_image(plan: ImagePlan) -> None:
    assert [run for run in plan.runs() if "/opt/framegate/bin/python -I /wheel/own_names.py" in run.shell]


@pytest.mark.deploy
@pytest.mark.slow
def test_the_cpu_image_holds_the_environment_alone(cpu_image: BuiltImage) -> None:
    opt = [path.name for path in (cpu_image.root / "opt").iterdir()]
    assert opt == ["framegate"]
    assert not (cpu_image.root / "src").exists()
    assert not (cpu_image.root / "wheel").exists()
    programs = {path.name for path in (cpu_image.root / "opt/framegate/bin").iterdir()}
    assert "framegate" in programs
    assert not {name for name in programs if re.match(r"pip|hatch|wheel|easy_install", name)}
    (site,) = (cpu_image.root / "opt/framegate/lib").glob("python3.*/site-packages")
    assert not {"pip", "setuptools", "hatchling", "pytest"} & {path.name for path in site.iterdir()}
    assert not list((cpu_image.root / "root").iterdir()), "something was left in root's home"


@pytest.mark.deploy
@pytest.mark.slow
def test_the_cpu_image_answers_on_a_read_only_root(cpu_image: BuiltImage) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert cpu_image.run(["--version"]).stdout == f"framegate, version {version}\n"
    for arguments in (["--help"], cpu_image.plan.config["Cmd"]):
        done = cpu_image.run(arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: framegate ")
    probe = "touch /opt/framegate/x || touch ~/x || touch /etc/x || touch /x; id -u; id -g"
    done = cpu_image.run(["-c", probe], entrypoint=["sh"])
    assert done.stderr.count("Read-only file system") == 4
    assert done.stdout.split() == ["10001", "10001"]


@pytest.mark.deploy
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "auto"])
def test_the_cpu_image_scores_on_a_read_only_root(cpu_image: BuiltImage, backend: str, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", small_bundle())
    image = tmp_path / "part.png"
    assert cv2.imwrite(str(image), pictures(1)[0])
    tmp_path.chmod(0o755)
    mounts = {"/bundle": tmp_path / "bundle", "/images": image.parent}
    done = cpu_image.run(["score", "/bundle", "/images/part.png", "--backend", backend], mounts=mounts)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["path"] == "/images/part.png"
    assert line["cause"] is None
    assert 0 <= line["defect_probability"] <= 1


@pytest.mark.deploy
@pytest.mark.slow
def test_a_heatmap_goes_where_it_is_told_and_fonts_to_the_volume(cpu_image: BuiltImage, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", small_bundle())
    assert cv2.imwrite(str(tmp_path / "part.png"), pictures(1)[0])
    maps = tmp_path / "maps"
    maps.mkdir()
    os.chown(maps, 10001, 10001)
    tmp_path.chmod(0o755)
    mounts = {"/data": tmp_path, "/maps": maps}
    arguments = ["score", "/data/bundle", "/data/part.png", "--heatmap", "/maps", "--backend", "onnxruntime"]
    done = cpu_image.run(arguments, mounts=mounts, writable=["/maps"])
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(maps.iterdir())) == 1


@pytest.mark.deploy
@pytest.mark.slow
def test_a_name_of_somebody_elses_ends_the_build(cpu_image: BuiltImage) -> None:
    (script,) = [
        action.content
        for step in cpu_image.plan.steps
        for action in step.actions
        if isinstance(action, File) and action.content is not None
    ]
    (site,) = (cpu_image.root / "opt/framegate/lib").glob("python3.*/site-packages")
    check = ["-I", "-c", script.decode()]
    python = ["/opt/framegate/bin/python"]
    assert cpu_image.run(check, entrypoint=python).returncode == 0
    other = site / "other-1.0.dist-info"
    other.mkdir()
    try:
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
        (other / "RECORD").write_text("engine/another.py,,\n")
        done = cpu_image.run(check, entrypoint=python)
    finally:
        shutil.rmtree(other)
    assert done.returncode == 1
    assert "the name engine is not Framegate's alone: it belongs to" in done.stderr


@pytest.fixture(scope="module")
def wheels_own_names() -> set[str]:
    return {"consumer", "engine", "trainer", "framegate.py"}


@pytest.mark.deploy
@pytest.mark.slow
def test_the_cpu_image_has_the_wheel_and_nothing_beside_it(cpu_image: BuiltImage, wheels_own_names: set[str]) -> None:
    (site,) = (cpu_image.root / "opt/framegate/lib").glob("python3.*/site-packages")
    (record,) = site.glob("framegate-*.dist-info/RECORD")
    tops = {line.split(",")[0].split("/")[0] for line in record.read_text().splitlines()}
    assert {
        top for top in tops if not top.endswith(".dist-info") and top not in {"..", "__pycache__"}
    } == wheels_own_names
    (points,) = site.glob("framegate-*.dist-info/entry_points.txt")
    assert points.read_text().split() == ["[console_scripts]", "framegate", "=", "framegate:main"]


@pytest.mark.deploy
@pytest.mark.slow
def test_the_cpu_image_holds_just_what_is_locked(cpu_image: BuiltImage) -> None:
    """So that its bill of materials, which is made from the lock file, is the image's."""
    code = (
        "import json; from importlib.metadata import distributions; "
        "print(json.dumps({found.name.lower().replace('_', '-'): found.version for found in distributions()}))"
    )
    done = cpu_image.run(["-I", "-c", code], entrypoint=["/opt/framegate/bin/python"])
    installed = json.loads(done.stdout)
    text = (ROOT / "requirements" / "base.txt").read_text(encoding="utf-8")
    lines = [Requirement(line) for line in re.findall(r"^([a-z0-9._-]+==[^\\\n]+?) *\\", text, flags=re.MULTILINE)]
    here = {"python_full_version": version_of_base("PYTHON"), "python_version": version_of_base("PYTHON")}
    locked = {line.name: str(line.specifier) for line in lines if line.marker is None or line.marker.evaluate(here)}
    del installed["framegate"]
    assert {name: f"=={version}" for name, version in installed.items()} == locked


@pytest.fixture
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BuiltImage]:
    """One of the images that take long, without the lines of NOT_RUN: g++ is this machine's, Java too."""
    target = request.param
    if target not in ASKED:
        pytest.skip(f"takes minutes: set FRAMEGATE_TEST_IMAGES={target} to make the image {target} too")
    require_namespaces()
    prefix = (
        Path(os.environ.get("FRAMEGATE_TEST_GPU_PYTHON") or sys.base_prefix)
        if target == "gpu"
        else Path(sys.base_prefix)
    )
    python = base_python(version_of_base("GPU_PYTHON" if target == "gpu" else "PYTHON"), prefix, tmp_path / "pip")
    if target == "gpu":  # NVIDIA's image has its own; here only its name and version are played
        (python.packages / "tensorrt.py").write_text("__version__ = '11.2.1.2'\n")
    plan = plan_image(target)
    folder = tmp_path / "image"
    try:
        root = build_image(plan, folder, python, skip=lambda run: run.shell in NOT_RUN[target])
        yield BuiltImage(plan, root, python, tmp_path / "volumes")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.deploy
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("built", ["gpu"], indirect=True)
def test_the_gpu_image_has_pycuda_for_the_hosts_driver(built: BuiltImage) -> None:
    (driver,) = built.root.glob("opt/framegate/lib/python3.*/site-packages/pycuda/_driver*.so")
    needed = subprocess.run(["readelf", "-d", driver], capture_output=True, text=True, check=True).stdout
    assert "Shared library: [libcuda.so.1]" in needed
    done = built.run(["-c", "import pycuda.driver"], entrypoint=["python"])
    assert "libcuda.so.1: cannot open shared object file" in done.stderr, "the driver comes from the host"
    assert built.run(["--version"]).stdout.startswith("framegate, version ")


@pytest.mark.deploy
@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("built", ["trainer"], indirect=True)
def test_the_trainer_image_opens_stores_and_spark(built: BuiltImage) -> None:
    code = (
        "import adlfs, fsspec, pandas, pyarrow, pyspark, s3fs; from pyspark.sql import SparkSession; "
        "print(SparkSession.builder.master('local[1]').getOrCreate().range(7).count())"
    )
    done = built.run(["-c", code], entrypoint=["python"], environment=["SPARK_LOCAL_IP=127.0.0.1"])
    assert done.stdout.split() == ["7"], done.stderr
    assert built.run(["train", "--help"]).returncode == 0
