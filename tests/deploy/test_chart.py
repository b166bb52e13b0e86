"""The Helm chart: lint, every file of values, and the schemas of Kubernetes, KEDA and the Prometheus operator."""

from __future__ import annotations

import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.chart import CASES, CHART, FILES, ROOT, VALUES, check_custom, helm, render, rendered

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
]  # the first may build Helm

OLDEST_KUBERNETES = "1.31"
CUSTOM = ("keda.sh/", "monitoring.coreos.com/")
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"


@pytest.mark.parametrize("name", FILES)
def test_helm_finds_nothing_to_say(name: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(VALUES / name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


def test_the_chart_carries_the_version_of_the_application() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert chart["appVersion"] == version[1]
    assert chart["kubeVersion"] == f">={OLDEST_KUBERNETES}.0-0"


def test_the_rules_are_those_of_deploy_prometheus() -> None:
    if not RULES.exists():
        pytest.skip(f"there is no {RULES.relative_to(ROOT)} yet")
    assert (CHART / "files" / "rules.yaml").read_bytes() == RULES.read_bytes(), "copy it into the chart's files"


def test_the_rules_arrive_as_they_are() -> None:
    own = yaml.safe_load((CHART / "files" / "rules.yaml").read_text(encoding="utf-8"))
    assert render("gpu-fleet.yaml").the("PrometheusRule")["spec"] == own
    assert own["groups"]


def test_an_alert_leads_to_its_section_by_a_link() -> None:
    page = "https://git.plant.example/framegate/docs/runbook.md"
    made = render("gpu-fleet.yaml", monitoring__rules__runbookUrl=page).the("PrometheusRule")
    check_custom(made)
    told = [rule for group in made["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert told
    for rule in told:
        assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("case", CASES)
def test_a_cluster_takes_every_manifest(case: str, version: str) -> None:
    manifests = rendered(case).manifests
    assert "StatefulSet" in {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        if manifest["apiVersion"].startswith(CUSTOM):
            check_custom(manifest)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_not_pass() -> None:
    monitor = render("gpu-fleet.yaml").the("ServiceMonitor")
    with pytest.raises(jsonschema.ValidationError, match="endpoint"):
        check_custom({**monitor, "spec": {**monitor["spec"], "endpoint": []}})
    scaled = render("gpu-fleet.yaml").the("ScaledObject")
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        check_custom({**scaled, "spec": {**scaled["spec"], "maxReplicas": 3}})
    budget = render("gpu-fleet.yaml").the("PodDisruptionBudget")
    with pytest.raises(jsonschema.ValidationError, match="maxUnavailabl"):
        kubernetes_validate.validate({**budget, "spec": {"maxUnavailabl": 1}}, OLDEST_KUBERNETES, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_names_are_unique_and_selectors_find_the_consumer_alone(case: str) -> None:
    made = rendered(case)
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in made.manifests]
    assert len(set(names)) == len(names)
    assert max(len(name) for _, name in names) <= 63
    workload, service = made.the("StatefulSet")["spec"], made.the("Service")
    selector = workload["selector"]["matchLabels"]
    others = [job["spec"]["template"]["metadata"]["labels"] for job in made.of("Job")]
    assert selector.items() <= workload["template"]["metadata"]["labels"].items()
    assert not any(selector.items() <= labels.items() for labels in others)
    assert service["spec"]["selector"] == selector
    assert workload["serviceName"] == service["metadata"]["name"]
    assert made.the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selector
    for monitor in made.of("ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    spread = made.pods["consumer"]["topologySpreadConstraints"]
    assert {one["topologyKey"] for one in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    assert all(one["labelSelector"]["matchLabels"] == selector for one in spread)


def test_an_image_is_that_of_its_stage_by_tag_or_by_digest() -> None:
    stages = {"consumer": "gpu", "topics": "gpu", "training": "trainer", "promote": "cpu", "plan": "gpu"}
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    images = {name: pod["containers"][0]["image"] for name, pod in rendered("everything").pods.items()}
    assert images == {name: f"registry.plant.example/framegate:{version}-{stage}" for name, stage in stages.items()}
    digest = f"sha256:{'a' * 64}"
    pinned = render("cpu-small.yaml", image__digests__cpu=digest, image__repository="hub.plant.example/framegate")
    assert pinned.consumer["image"] == f"hub.plant.example/framegate@{digest}"


def test_a_long_name_of_a_release_still_makes_names_that_a_cluster_takes() -> None:
    done = helm("template", "a" * 53, str(CHART), "--values", str(VALUES / "secured-kafka.yaml"))
    assert done.returncode == 0, done.stderr
    names = [manifest["metadata"]["name"] for manifest in yaml.safe_load_all(done.stdout) if manifest]
    assert max(map(len, names)) <= 63


def test_another_task_is_another_job() -> None:
    """A Job cannot be changed: an upgrade that tries fails."""

    def name(**sets: str) -> str:
        jobs = render("secured-kafka.yaml", **sets).of("Job")
        found: str = next(job["metadata"]["name"] for job in jobs if "-train-" in job["metadata"]["name"])
        return found

    assert name() == name(kafka__group="another")
    assert len({name(), name(training__out="candidates/parts-3.zip"), name(training__source="s3://x/y.zip")}) == 3
