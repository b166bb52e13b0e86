"""What the chart promises about a pod's life: how it ends, who asks it what, how many there are, what they may do."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from prometheus_client import CollectorRegistry

from consumer.health import Health, _Routes
from consumer.metrics import metric_docs
from consumer.supervision import KILL_S, Patience
from consumer.workers import STOP_SPARE_S
from tests.chart import CASES, render, rendered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chart import Manifest, Rendered

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.timeout(3600)]

every_case = pytest.mark.parametrize("case", CASES)


def containers(made: Rendered) -> Iterator[tuple[Manifest, Manifest]]:
    """(pod, container) of all."""
    for pod in made.pods.values():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield pod, container


@pytest.mark.parametrize("drain_s", [0, 20, 45.5])
def test_a_pod_is_given_longer_than_its_slowest_stop(drain_s: float) -> None:
    made = render("gpu-fleet.yaml", consumer__drainSeconds=drain_s)
    assert f"--drain-s={drain_s}" in made.consumer["args"]
    workers_then_their_engine_s = 2 * (drain_s + STOP_SPARE_S)
    assert made.pods["consumer"]["terminationGracePeriodSeconds"] > workers_then_their_engine_s + KILL_S


@every_case
def test_probes_ask_what_the_consumer_answers(case: str) -> None:
    made = rendered(case)
    routes = _Routes(CollectorRegistry(), Health(), lambda: 0.0)
    asked = {name: made.consumer[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {get["port"] for get in asked.values()} == {made.consumer["ports"][0]["name"]}
    # A consumer that has just begun lives and is not ready: so a probe on the wrong path is told apart.
    answers = {name: int(routes.answer(get["path"], "")[0]) for name, get in asked.items()}
    assert answers == {"startupProbe": 503, "livenessProbe": 200, "readinessProbe": 503}
    for monitor in made.of("ServiceMonitor"):
        assert routes.answer(monitor["spec"]["endpoints"][0]["path"], "")[0] == 200


@every_case
def test_a_start_may_take_what_a_plan_takes(case: str) -> None:
    consumer = rendered(case).consumer
    allowed_s = consumer["startupProbe"]["periodSeconds"] * consumer["startupProbe"]["failureThreshold"]
    assert allowed_s >= (Patience().start_s if consumer["image"].endswith("-gpu") else 300)


@pytest.mark.parametrize(("partitions", "workers", "most"), [(12, 1, 12), (12, 4, 3), (96, 8, 12), (13, 4, 4)])
def test_keda_stops_where_the_partitions_do(partitions: int, workers: int, most: int) -> None:
    values = {"kafka__partitions": partitions, "consumer__workers": workers, "keda__enabled": True}
    spec = render("cpu-small.yaml", **values).the("ScaledObject")["spec"]
    assert spec["maxReplicaCount"] == most
    assert workers * (most - 1) < partitions <= workers * most
    assert spec["minReplicaCount"] == 1, "without a consumer nobody tells the lag"


def test_keda_scales_the_consumer_by_metrics_that_it_has() -> None:
    made = rendered("gpu-fleet.yaml")
    spec, workload = made.the("ScaledObject")["spec"], made.the("StatefulSet")
    target = spec["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (workload["apiVersion"], workload["kind"])
    assert target["name"] == workload["metadata"]["name"]
    assert "replicas" not in workload["spec"], "an upgrade would undo what KEDA has done"
    lag, frames = spec["triggers"]
    assert (lag["metricType"], frames["metricType"]) == ("Value", "AverageValue")
    declared = {doc.name for doc in metric_docs()}
    selects = f'{{namespace="line", service="{made.the("Service")["metadata"]["name"]}"}}'
    for trigger in (lag, frames):
        query = trigger["metadata"]["query"]
        assert set(re.findall(r"framegate_[a-z_]+", query)) <= declared
        assert selects in query
    assert "framegate_lag_seconds" in lag["metadata"]["query"]


def test_prometheus_answers_what_keda_asks(tmp_path: Path) -> None:
    """The worst worker's lag, and the frames of all, of this release and of no other."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool here: Debian's package prometheus brings it")
    lag, frames = (trigger["metadata"] for trigger in render("gpu-fleet.yaml").the("ScaledObject")["spec"]["triggers"])
    ours = 'namespace="line",service="plant-framegate",pod="plant-framegate-{}",worker="{}"'
    other = 'namespace="line",service="other",pod="other-0",worker="0"'
    series = [
        (f"framegate_lag_seconds{{{ours.format(0, 0)}}}", "0.2x20"),
        (f"framegate_lag_seconds{{{ours.format(1, 1)}}}", "3.5x20"),
        (f"framegate_lag_seconds{{{other}}}", "99x20"),
        (f'framegate_frames_total{{{ours.format(0, 0)},station="a"}}', "0+600x20"),
        (f'framegate_frames_total{{{ours.format(1, 1)},station="b"}}', "0+1200x20"),
        (f'framegate_frames_total{{{other},station="c"}}', "0+6000x20"),
    ]
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "promql_expr_test": [
                    {"expr": asked["query"], "eval_time": "15m", "exp_samples": [{"labels": "{}", "value": value}]}
                    for asked, value in ((lag, 3.5), (frames, 30))
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_keda_there_are_as_many_as_said() -> None:
    assert render("secured-kafka.yaml").the("StatefulSet")["spec"]["replicas"] == 2
    assert not render("secured-kafka.yaml").of("ScaledObject")


@every_case
def test_every_pod_is_one_that_the_strictest_namespace_takes(case: str) -> None:
    """Pod Security Standards, restricted; and a root file system that nobody can write to."""
    for pod, container in containers(rendered(case)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service's variables look like settings"
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "configMap", "projected", "persistentVolumeClaim"}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@every_case
def test_every_mount_has_its_volume_and_every_path_its_mount(case: str) -> None:
    made = rendered(case)
    own_claims = {
        claim["metadata"]["name"] for claim in made.the("StatefulSet")["spec"].get("volumeClaimTemplates", [])
    }
    for pod, container in containers(made):
        names = [volume["name"] for volume in pod["volumes"]]
        assert len(set(names)) == len(names)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) <= {*names, *own_claims}
        said = [*container.get("args", []), *(variable.get("value", "") for variable in container.get("env", []))]
        paths = [path for word in said for path in re.findall(r"(?:^|(?<==))/[\w/.-]+", word)]
        assert paths
        for path in paths:
            assert any(f"{path}/".startswith(f"{place}/") for place in mounts), f"{path} would lie in the image"


@every_case
def test_no_secret_stands_in_a_manifest(case: str) -> None:
    made = rendered(case)
    assert not made.of("Secret")
    for _, container in containers(made):
        in_sight = {variable["name"] for variable in container.get("env", []) if "valueFrom" not in variable}
        assert in_sight <= {"HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "FROM", "TO", "OUT", "TASK"}
    for config in made.of("ConfigMap"):
        for line in config["data"].get("kafka.properties", "").splitlines():
            name, _, value = line.partition("=")
            if "password" in name:
                assert name.endswith(".file") or re.fullmatch(r"\$\{\w+\}", value)


def test_nobody_is_let_in_but_to_the_metrics_and_out_to_the_brokers() -> None:
    made = render("secured-kafka.yaml")
    policy = made.the("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"protocol": "TCP", "port": 9108}]]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 9093, 443}, "names, the brokers as bootstrapServers says, the store"
    for workload in [*made.of("StatefulSet"), *made.of("Job")]:
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()


@every_case
def test_a_gpu_is_asked_for_where_one_computes_and_nowhere_else(case: str) -> None:
    for _, container in containers(rendered(case)):
        computes = container["image"].endswith("-gpu") and container["name"] in {"consumer", "plan"}
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == computes, container["name"]


@every_case
def test_a_worker_has_a_core_and_room_for_its_frames(case: str) -> None:
    """`cores()` counts by the limit, so that this decides how many threads there are."""
    made = rendered(case)
    given = dict(word.removeprefix("--").split("=", 1) for word in made.consumer["args"][1:] if "=" in word)
    workers = int(given["workers"])
    for kind in ("requests", "limits"):
        resources = made.consumer["resources"][kind]
        assert int(resources["cpu"]) >= workers
        assert int(resources["memory"].removesuffix("Mi")) >= workers * (int(given["max-in-flight-mib"]) + 256)


def test_the_plan_is_built_where_the_consumer_looks_for_it() -> None:
    pods = render("gpu-fleet.yaml").pods
    consumer, job = pods["consumer"], pods["plan"]
    for key in ("runtimeClassName", "nodeSelector", "tolerations"):
        assert job[key] == consumer[key]
    claims = []
    for pod in (consumer, job):
        assert "--plans=/var/cache/framegate/plans" in pod["containers"][0]["args"]
        mount = next(one for one in pod["containers"][0]["volumeMounts"] if one["mountPath"].endswith("/plans"))
        claims.append(next(volume for volume in pod["volumes"] if volume["name"] == mount["name"]))
    assert claims[0] == claims[1]
    assert "persistentVolumeClaim" in claims[0]
