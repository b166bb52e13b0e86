"""The chart's command lines, read by the product's own commands, with the files that the pods would see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import pytest

import framegate
from consumer.config import SECRETS, Settings
from consumer.workers import settings_of
from engine.backend import GPU_BACKENDS
from tests.chart import CASES, EVERYTHING, render, rendered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chart import Manifest, Rendered

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.timeout(3600)]

PASSWORD = "nobody knows"
PLACE = "/etc/framegate"


def lay_out(made: Rendered, root: Path) -> None:
    """ConfigMaps as files, and a secret of our own, below `root`."""
    for manifest in made.of("ConfigMap"):
        folder = root / manifest["metadata"]["name"].rsplit("-", 1)[1]
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in manifest["data"].items():
            (folder / name).write_text(content.replace(PLACE, str(root)), encoding="utf-8")
    (root / "secrets").mkdir(parents=True, exist_ok=True)
    (root / "secrets" / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")


def words(container: Manifest, root: Path, pod: str = "plant-framegate-0") -> list[str]:
    """What the container is started with."""
    return [word.replace("$(POD_NAME)", pod).replace(PLACE, str(root)) for word in container["args"]]


def settings(made: Rendered, root: Path, monkeypatch: pytest.MonkeyPatch, pod: str = "plant-framegate-0") -> Settings:
    """What `framegate run` makes of it."""
    taken: list[Settings] = []
    monkeypatch.setattr("consumer.app.run_consumer", taken.append)
    monkeypatch.setattr("consumer.app.log_to_stderr", lambda *_, **__: None)
    lay_out(made, root)
    framegate.cli.main(words(made.consumer, root, pod), standalone_mode=False)
    assert len(taken) == 1
    return taken[0]


@pytest.mark.parametrize("case", CASES)
def test_the_consumer_starts_with_settings_that_hold(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rendered(case)
    found = settings(made, tmp_path, monkeypatch)
    assert found.delivers(embedded=False) == "exactly-once"
    assert (found.http_host, found.http_port) == ("0.0.0.0", made.consumer["ports"][0]["containerPort"])  # noqa: S104
    assert found.bundle or found.routing
    on_gpu = made.consumer["image"].endswith("-gpu")
    assert (found.backend in GPU_BACKENDS) == on_gpu
    assert found.workers is not None, "as many as the node has cores would be a surprise"


def test_everything_that_can_be_set_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(rendered("everything"), tmp_path, monkeypatch)
    assert (found.deadline_s, found.batch_size, found.camera_checks) == (1.5, 16, False)
    assert (found.bundle, found.shadow) == ("/bundles/parts.zip", "https://models.plant.example/next.zip")
    assert found.routing is not None
    assert found.routing.read_text(encoding="utf-8") == EVERYTHING["bundle__routing"]
    assert found.tensorrt is not None
    assert found.tensorrt.memory_limit_bytes == 4096 << 20
    assert found.client["security_protocol"] == "SSL"


def test_a_location_may_come_out_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"bundle__location": "", "bundle__locationFrom": {"name": "store", "key": "url"}}
    made = render("cpu-small.yaml", **sets)
    variable = next(variable for variable in made.consumer["env"] if "secretKeyRef" in variable.get("valueFrom", {}))
    monkeypatch.setenv(variable["name"], "https://store.example/parts.zip?sig=0")
    assert settings(made, tmp_path, monkeypatch).bundle == "https://store.example/parts.zip?sig=0"
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "store", "key": "url"}


@pytest.mark.parametrize("case", CASES)
def test_transactional_ids_outlive_a_pod_and_are_its_own(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rendered(case)
    name = made.the("StatefulSet")["metadata"]["name"]
    assert {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}} in made.consumer["env"]

    def ids() -> list[str]:
        found = []
        for pod in range(3):
            own = settings(made, tmp_path, monkeypatch, f"{name}-{pod}")
            workers = own.workers or 1
            each = [settings_of(own, number, own.own_instance()) for number in range(workers)] if workers > 1 else [own]
            found += [worker.transactional_id() for worker in each]
        return found

    first = ids()
    assert len(set(first)) == len(first), "none has another's"
    assert ids() == first, "the same after a restart"


def test_a_password_comes_out_of_its_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = render("secured-kafka.yaml")
    client = settings(made, tmp_path, monkeypatch).client
    assert {key: client[key] for key in SECRETS & client.keys()} == {"sasl_plain_password": PASSWORD}
    assert client["sasl_mechanism"] == "SCRAM-SHA-512"
    volume = next(volume for volume in made.pods["consumer"]["volumes"] if volume["name"] == "secrets")
    named = [source["secret"]["name"] for source in volume["projected"]["sources"]]
    assert named == ["plant-cluster-ca-cert", "press-hall-1"]


def test_the_topics_are_made_with_the_partitions_that_bound_the_scaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rendered("everything")
    lay_out(made, tmp_path)
    taken: dict[str, Any] = {}

    def take(servers: str, **named: Any) -> list[str]:
        taken.update(named, servers=servers)
        return []

    monkeypatch.setattr("consumer.topics.ensure_topics", take)
    framegate.cli.main(words(made.pods["topics"]["containers"][0], tmp_path), standalone_mode=False)
    assert (taken["partitions"], taken["replication"]) == (12, 1)
    assert taken["client"]["security_protocol"] == "SSL"
    own = settings(made, tmp_path, monkeypatch)
    assert (taken["frames"], taken["verdicts"], taken["dead"]) == (own.frames_topic, own.verdicts_topic, own.dead_topic)
    assert taken["servers"] == own.bootstrap_servers


@pytest.mark.parametrize(
    ("case", "component", "verb", "expected"),
    [
        ("everything", "training", "train", {"source": "s3://images/parts.zip"}),
        ("secured-kafka.yaml", "training", "train", {"defect_rate": 0.01, "seed": 7}),
        ("everything", "promote", "verify", {"backend": "onnxruntime"}),
        ("gpu-fleet.yaml", "plan", "build", {"backend": "tensorrt", "as_json": True}),
    ],
)
def test_the_jobs_say_what_their_verbs_take(
    case: str, component: str, verb: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    made = rendered(case)
    pod = made.pods[component]
    line = words([*pod.get("initContainers", []), *pod["containers"]][0], tmp_path)
    assert line[0] == verb
    command = framegate.cli.get_command(click.Context(framegate.cli), verb)
    assert command is not None
    given = command.make_context(verb, line[1:]).params
    assert expected.items() <= given.items()


def test_an_option_that_does_not_exist_is_found() -> None:
    made = render("cpu-small.yaml", consumer__extraArgs=["--no-such-option"])
    with pytest.raises(click.NoSuchOption):
        framegate.cli.main(made.consumer["args"], standalone_mode=False)
