"""What the pages say of the chart, where it can be held against the chart and the product."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import TYPE_CHECKING

import click
import pytest
import yaml

import framegate
from consumer.config import Settings
from consumer.lineup import sight
from consumer.metrics import metric_docs
from tests.chart import CHART, FILES, ROOT, VALUES, helm, render, rendered

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.timeout(3600)]

PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("docs/cluster.md", "docs/sizing.md", "deploy/README.md")
}
PAGE = PAGES["docs/cluster.md"]


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", PAGES[name]):
        page = (ROOT / name).parent / target if target else ROOT / name
        assert page.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_every_metric_named_is_declared(name: str) -> None:
    named = set(re.findall(r"framegate_[a-z_]+", PAGES[name]))
    assert named <= {doc.name for doc in metric_docs()}


@pytest.mark.parametrize("name", PAGES)
def test_every_command_named_is_one(name: str) -> None:
    text = PAGES[name].replace("\\\n", " ")
    lines = re.findall(r"^    (?:.* -- )?framegate (\w.*)$", text, re.MULTILINE)
    assert lines or name == "docs/sizing.md"
    for line in lines:
        words = shlex.split(line, comments=True)
        command: click.Command | None = framegate.cli
        while words and isinstance(command, click.Group) and not words[0].startswith("-"):
            command = command.get_command(click.Context(command), words.pop(0))
            assert command is not None, line
        assert command is not None
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, line


CALLS = [
    (name, " ".join(call.split()))
    for name, text in {**PAGES, "README.md": (ROOT / "README.md").read_text(encoding="utf-8")}.items()
    for call in re.findall(r"^ +(helm (?:install|upgrade|template) .*)$", text.replace("\\\n", " "), re.MULTILINE)
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_helm_takes_every_line(name: str, call: str) -> None:
    """As `helm template`, with a file of ours for the reader's."""
    words = shlex.split(call.partition(" | ")[0], comments=True)
    own = "secured-kafka.yaml" if "promote" in call else "gpu-one-l4.yaml"
    places = {"values.yaml": str(VALUES / own), str(CHART.relative_to(ROOT)): str(CHART)}
    words = [places.get(word, word) for word in words]
    words = [str(ROOT / word) if word.startswith("deploy/helm/values/") else word for word in words]
    done = helm("template", *words[2:])
    assert done.returncode == 0, f"{name}: {done.stderr}"
    assert words[words.index("--namespace") + 1] == "framegate", "what every other line and query says"


def test_kubectl_is_told_of_what_there_is() -> None:
    text = "".join(PAGES.values()) + (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    made = rendered("everything")
    release = made.the("StatefulSet")["metadata"]["name"].replace("plant-", "line-", 1)
    assert set(re.findall(r"line-framegate[\w-]*", text)) == {release, f"{release}-0"}
    components = set(re.findall(r"app\.kubernetes\.io/component=(\w+)", text))
    assert {"consumer", "training", "plan"} <= components <= made.pods.keys()
    lines = re.findall(r"^    (kubectl .*)$", text, re.MULTILINE)
    assert len(lines) > 20
    for line in lines:
        assert "--namespace framegate" in line or line.startswith(("kubectl drain", "kubectl create namespace")), line


def test_what_is_pushed_is_what_the_chart_pulls(tmp_path: Path) -> None:
    """The loop of deploy/README.md, with a `docker` that only says what it was told."""
    loop = re.search(r"^    for stage in .*?^    done$", PAGES["deploy/README.md"], re.MULTILINE | re.DOTALL)
    assert loop is not None
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@"\n')
    docker.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = subprocess.run(["/bin/sh", "-ec", loop[0]], env=env, capture_output=True, text=True, check=True).stdout
    pushed = set(re.findall(r"^push (\S+)$", said, re.MULTILINE))
    assert set(re.findall(r"^tag \S+ (\S+)$", said, re.MULTILINE)) == pushed
    pulled = set()
    for name in FILES:
        for pod in render(name, promote__enabled=name == "secured-kafka.yaml").pods.values():
            pulled |= {one["image"] for one in [*pod.get("initContainers", []), *pod["containers"]]}
    assert pulled == pushed


def test_the_prefix_for_brokers_with_acls_is_that_of_the_transactional_ids() -> None:
    prefix = re.search(r"--transactional-id (\S+) --resource-pattern-type prefixed", PAGE)
    assert prefix is not None
    own = Settings(bundle="x", group="press-hall-1", instance="line-framegate-0").transactional_id()
    assert own.startswith(prefix[1])


def test_the_figures_are_the_chart_s() -> None:
    made = render("cpu-small.yaml", consumer__workers=3)
    assert f"{made.pods['consumer']['terminationGracePeriodSeconds']} s for a drain of 20" in PAGE
    assert "256 MiB, and for each worker 512 MiB and `maxInFlightMib`" in PAGE
    assert made.consumer["resources"]["limits"]["memory"] == f"{256 + 3 * (512 + 256)}Mi"
    for name in FILES:
        assert f"`helm/values/{name}`" in PAGES["deploy/README.md"]
    limits = render("gpu-one-l4.yaml").consumer["resources"]["limits"]
    free = f"has {limits['cpu']} cores, {int(limits['memory'].removesuffix('Mi')):,} MiB and a GPU free"
    assert free in " ".join(PAGES["docs/sizing.md"].split())


def test_the_deadline_is_taken_away_by_what_the_page_says() -> None:
    """To Helm, null takes a key out of the file; the chart's own is none."""
    sets = re.search(r"--set (consumer\.deadlineSeconds)=null", PAGES["docs/sizing.md"])
    assert sets is not None
    name = "gpu-one-l4.yaml"
    assert any(word.startswith("--deadline-s=") for word in render(name).consumer["args"])
    changed = render(name, **{sets[1].replace(".", "__"): None})
    assert not any(word.startswith("--deadline-s") for word in changed.consumer["args"])


def test_what_a_log_is_expected_to_say_is_what_it_says() -> None:
    told = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "consumer").glob("*.py"))
    for words in ("all that was fetched is answered and committed", "as transactional id", "engine warm", "judging"):
        assert words in PAGES["deploy/README.md"]
        assert words in told


def test_the_time_slicing_config_is_yaml() -> None:
    block = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    shared = yaml.safe_load(block[1])["sharing"]["timeSlicing"]["resources"][0]
    assert shared["name"] in render("gpu-one-l4.yaml").consumer["resources"]["limits"]
    assert shared["replicas"] > 1


def test_a_changed_routing_reaches_a_running_pod(tmp_path: Path) -> None:
    """A kubelet writes a ConfigMap's new content beside and turns one symlink; the pod's own file never changes."""
    for stamp, text in (("..1", "old"), ("..2", "new")):
        (tmp_path / stamp).mkdir()
        (tmp_path / stamp / "routes.toml").write_text(text, encoding="utf-8")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "routes.toml").symlink_to("..data/routes.toml")
    before = sight(tmp_path / "routes.toml")
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert sight(tmp_path / "routes.toml") not in {before, ()}
    mount = next(one for one in render("gpu-fleet.yaml").consumer["volumeMounts"] if one["name"] == "routing")
    assert "subPath" not in mount, "which would pin what was there at the start"
