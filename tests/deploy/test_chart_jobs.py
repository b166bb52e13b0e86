"""The chart's Jobs over upgrades: none is ever asked to change, and what was done once is not done again."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.chart import EVERYTHING, VALUES, render, rendered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chart import Manifest, Rendered

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.timeout(3600)]

ALL = {"topics", "train", "promote", "plan"}
SECRET = [{"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
RESOURCES = {"requests": {"cpu": "3", "memory": "3Gi"}, "limits": {"cpu": "3", "memory": "3Gi"}}
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"image__tag": "0.2.0"}, ALL),
    ({"image__repository": "hub.plant.example/framegate"}, ALL),
    ({"image__digests__gpu": f"sha256:{'a' * 64}"}, {"topics", "plan"}),
    ({"image__digests__cpu": f"sha256:{'a' * 64}"}, {"promote"}),
    ({"image__digests__trainer": f"sha256:{'a' * 64}"}, {"train"}),
    ({"image__pullPolicy": "Always"}, ALL),
    ({"image__pullSecrets": [{"name": "hub"}]}, ALL),
    ({"serviceAccount__name": "other"}, ALL),
    ({"serviceAccount__create": False}, ALL),
    ({"kafka__bootstrapServers": ["kafka-9:9092"]}, {"topics"}),
    ({"kafka__topics__dead": "dead"}, {"topics"}),
    ({"kafka__partitions": 24}, {"topics"}),
    ({"kafka__createTopics__replication": 3}, {"topics"}),
    ({"kafka__client": {}}, {"topics"}),
    (
        {"kafka__client": {"security.protocol": "SSL", "ssl.ca.location": "/etc/framegate/secrets/other.crt"}},
        {"topics"},
    ),
    ({"kafka__secrets": [{"name": "other"}]}, {"topics"}),
    ({"kafka__secrets": [{"name": "ca", "items": [{"key": "k", "path": "ca.crt"}]}]}, {"topics"}),
    ({"consumer__env": SECRET}, {"topics", "plan"}),
    ({"consumer__envFrom": [{"secretRef": {"name": "store"}}]}, {"topics", "plan"}),
    ({"consumer__nodeSelector": {"pool": "gpu"}}, {"plan"}),
    ({"consumer__tolerations": [{"operator": "Exists"}]}, {"plan"}),
    ({"consumer__affinity": {"podAntiAffinity": {}}}, {"plan"}),
    ({"consumer__backend": "tensorrt-fp32"}, {"plan"}),
    ({"gpu__memoryMb": 2048}, {"plan"}),
    ({"gpu__resource": "nvidia.com/mig-1g.24gb"}, {"plan"}),
    ({"gpu__runtimeClassName": "nvidia"}, {"plan"}),
    ({"cache__plans__existingClaim": "plans"}, {"plan"}),
    ({"bundle__claim": "other"}, {"train", "promote", "plan"}),
    ({"bundle__location": "/bundles/other.zip"}, {"plan"}),
    ({"training__source": "s3://images/parts-3.zip"}, {"train"}),
    ({"training__out": "candidates/q.zip"}, {"train"}),
    ({"training__args": ["--seed=8"]}, {"train"}),
    ({"training__scratch": {"size": "30Gi"}}, {"train"}),
    ({"training__scratch": {"claim": "scratch"}}, {"train"}),
    ({"training__env": SECRET}, {"train"}),
    ({"training__envFrom": [{"secretRef": {"name": "store"}}]}, {"train"}),
    ({"training__resources": RESOURCES}, {"train"}),
    ({"training__nodeSelector": {"pool": "cpu"}}, {"train"}),
    ({"training__tolerations": [{"operator": "Exists"}]}, {"train"}),
    ({"promote__from": "candidates/q.zip"}, {"promote"}),
    ({"promote__to": "others.zip"}, {"promote"}),
    ({"promote__backend": "openvino"}, {"promote"}),
    ({"promote__resources": RESOURCES}, {"promote"}),
    ({"plan__nodes": 2}, {"plan"}),
    ({"plan__location": "https://models.plant.example/p.zip"}, {"plan"}),
    ({"plan__resources": RESOURCES}, {"plan"}),
    ({"consumer__workers": 2}, set()),
    ({"consumer__drainSeconds": 5}, set()),
    ({"consumer__podLabels": {"team": "a"}}, set()),
    ({"keda__lagSeconds": 0.7}, set()),
    ({"bundle__routing": "[[route]]\nstation = 'b'\nbundle = '/bundles/b.zip'\n"}, set()),
    ({"monitoring__rules__enabled": False}, set()),
]
"""What somebody may change before an upgrade, and the Jobs that it reaches."""


def jobs(made: Rendered) -> dict[str, Manifest]:
    """What the Job is for -> the Job."""
    return {job["metadata"]["name"].split("-")[2]: job for job in made.of("Job")}


@pytest.fixture(scope="module")
def before() -> dict[str, Manifest]:
    return jobs(rendered("everything"))


@pytest.mark.parametrize(("change", "reached"), CHANGES, ids=[json.dumps(change)[:60] for change, _ in CHANGES])
def test_an_upgrade_makes_another_job_and_changes_none(
    change: dict[str, Any], reached: set[str], before: dict[str, Manifest]
) -> None:
    """The API takes no other spec for a Job that it has, so an upgrade with one would fail halfway."""
    after = jobs(render("cpu-small.yaml", **EVERYTHING | change))
    assert before.keys() == after.keys() == ALL
    renamed = {name for name in ALL if after[name]["metadata"]["name"] != before[name]["metadata"]["name"]}
    assert renamed == reached
    assert {name for name in ALL if after[name]["spec"] != before[name]["spec"]} == renamed


def test_a_name_never_stands_for_two_specs() -> None:
    specs = defaultdict(set)
    for change, _ in CHANGES:
        for job in render("cpu-small.yaml", **EVERYTHING | change).of("Job"):
            specs[job["metadata"]["name"]].add(json.dumps(job["spec"], sort_keys=True))
    assert len(specs) > len(CHANGES)
    assert {name: len(found) for name, found in specs.items() if len(found) > 1} == {}


def test_the_file_with_training_comes_up_in_the_order_that_it_tells() -> None:
    """Nothing is promoted that nobody has read about; and the second step leaves the first one's Job alone."""
    name = "secured-kafka.yaml"
    values = yaml.safe_load((VALUES / name).read_text(encoding="utf-8"))
    first, then = jobs(render(name)), jobs(render(name, promote__enabled=True))
    assert first.keys() == {"train"}
    assert then.keys() == {"train", "promote"}
    assert then["train"] == first["train"]
    assert values["promote"]["from"] == values["training"]["out"]
    assert values["bundle"]["location"] == f"/bundles/{values['promote']['to']}"
    assert "--set promote.enabled=true" in (VALUES / name).read_text(encoding="utf-8")


class Claim:
    """The volume with bundles, and a `framegate` that only says what it was called with."""

    def __init__(self, folder: Path) -> None:
        self.bundles = folder / "bundles"
        self.bundles.mkdir()
        self.calls = folder / "calls"
        self._bin = folder / "bin"
        self._bin.mkdir()
        self.framegate("true")

    def framegate(self, does: str) -> None:
        """What it does from now on; `$1` and following are its words."""
        program = self._bin / "framegate"
        program.write_text(f'#!/bin/sh\necho "$1" >> "{self.calls}"\n{does}\n')
        program.chmod(0o755)

    def run(self, container: Manifest) -> subprocess.CompletedProcess[str]:
        """Run a container's command here, with this folder for /bundles."""
        here = {
            variable["name"]: variable["value"].replace("/bundles", str(self.bundles)) for variable in container["env"]
        }
        words = [word.replace("/bundles", str(self.bundles)) for word in container.get("args", [])]
        return subprocess.run(
            [*container["command"], *words],
            env={**here, "PATH": f"{self._bin}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self) -> list[str]:
        return self.calls.read_text().split() if self.calls.exists() else []


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    return Claim(tmp_path)


def training(**sets: Any) -> Manifest:
    made = render("secured-kafka.yaml", **{"training__source": "https://images.plant.example/a.zip", **sets})
    container: Manifest = made.pods["training"]["containers"][0]
    return container


def test_a_training_is_not_run_again_by_an_upgrade(claim: Claim) -> None:
    (claim.bundles / "candidates").mkdir()
    assert claim.run(training()).returncode == 0
    again = claim.run(training(image__tag="0.2.0", training__resources=RESOURCES))
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert claim.called() == ["train"]
    claim.run(training(training__args=["--seed=8"]))
    assert claim.called() == ["train", "train"], "another task is left to `framegate train`, which writes over nothing"


def test_a_training_that_failed_is_tried_again(claim: Claim) -> None:
    (claim.bundles / "candidates").mkdir()
    claim.framegate("exit 1")
    assert claim.run(training()).returncode == 1
    claim.framegate("true")
    assert claim.run(training()).returncode == 0
    assert claim.called() == ["train", "train"]


def promoted(claim: Claim, **sets: Any) -> int:
    """Run the Job: its first container, and where that was content, its second one."""
    pod = render("secured-kafka.yaml", promote__enabled=True, **sets).pods["promote"]
    for container in (*pod["initContainers"], *pod["containers"]):
        done = claim.run(container)
        if done.returncode != 0:
            return done.returncode
    return 0


def test_a_promoted_bundle_is_whole_or_the_one_before(claim: Claim) -> None:
    candidates = claim.bundles / "candidates"
    candidates.mkdir()
    serving = claim.bundles / "parts.zip"
    serving.write_bytes(b"old")
    before = serving.stat().st_ino
    assert promoted(claim) != 0, "there is nothing to promote yet"
    assert serving.read_bytes() == b"old"
    (candidates / "parts-1.zip").write_bytes(b"new")
    claim.framegate("exit 1")
    assert promoted(claim) == 1, "not verified"
    assert serving.read_bytes() == b"old"
    claim.framegate("true")
    assert promoted(claim) == 0
    assert serving.read_bytes() == b"new"
    assert serving.stat().st_ino != before, "renamed, not overwritten"
    assert sorted(path.name for path in claim.bundles.iterdir()) == ["candidates", "parts.zip", "parts.zip.promoted"]


def test_an_upgrade_does_not_promote_again_what_was_replaced_since(claim: Claim) -> None:
    candidates = claim.bundles / "candidates"
    candidates.mkdir()
    serving = claim.bundles / "parts.zip"
    for number in (1, 2):
        (candidates / f"parts-{number}.zip").write_text(str(number))
    assert promoted(claim) == 0
    serving.write_text("by hand")
    (candidates / "parts-1.zip").unlink()
    claim.framegate("exit 1")
    assert promoted(claim, image__tag="0.2.0") == 0
    assert serving.read_text() == "by hand"
    claim.framegate("true")
    assert promoted(claim, promote__from="candidates/parts-2.zip") == 0
    assert serving.read_text() == "2"
    (candidates / "parts-1.zip").write_text("1")
    assert promoted(claim) == 0, "the way back"
    assert serving.read_text() == "1"
