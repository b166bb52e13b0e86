"""The chart as Helm renders it, and what its manifests are held against. Helm is built once, from pinned sources."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jsonschema
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "framegate"
VALUES = ROOT / "deploy" / "helm" / "values"
GO = ROOT / "tests" / "deploy" / "go"
TOOLS = ROOT / ".tools"

BUILD_S = 3600
"""Helm and Kubernetes' client are 5 to 10 minutes of a processor's time, once."""

NOT_HERE = ("dial tcp", "no such host", "i/o timeout", "proxyconnect", "Forbidden", "Bad Gateway", "requires go >=")
"""What Go says without a network, or where it is too old."""

RELEASE, NAMESPACE = "plant", "line"
CRD_FOLDERS = {
    "github.com/kedacore/keda/v2": "config/crd/bases",
    "github.com/prometheus-operator/prometheus-operator": "example/prometheus-operator-crd",
}

FILES = sorted(path.name for path in VALUES.glob("*.yaml"))
EVERYTHING: dict[str, Any] = {
    "consumer__device": "gpu",
    "bundle__claim": "models",
    "bundle__location": "/bundles/parts.zip",
    "bundle__routing": "[[route]]\nstation = 'a'\nbundle = '/bundles/a.zip'\n",
    "bundle__shadow": "https://models.plant.example/next.zip",
    "kafka__createTopics__enabled": True,
    "kafka__client": {"security.protocol": "SSL", "ssl.ca.location": "/etc/framegate/secrets/ca.crt"},
    "kafka__secrets": [{"name": "ca"}],
    "consumer__deadlineSeconds": 1.5,
    "consumer__batchSize": 16,
    "consumer__cameraChecks": False,
    "consumer__env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    "gpu__memoryMb": 4096,
    "keda__enabled": True,
    "keda__lagSeconds": 0.5,
    "keda__framesPerSecondPerReplica": 120.5,
    "keda__prometheus__authenticationRef": "prometheus",
    "monitoring__serviceMonitor__enabled": True,
    "monitoring__rules__enabled": True,
    "networkPolicy__enabled": True,
    "training": {"enabled": True, "source": "s3://images/parts.zip", "out": "candidates/p.zip"},
    "promote": {"enabled": True, "from": "candidates/p.zip", "to": "parts.zip"},
    "plan__enabled": True,
    "cache__plans__kind": "shared",
    "cache__bundles__kind": "perPod",
}
"""Everything that the chart can make, at once."""

CASES: dict[str, dict[str, Any]] = {**{name: {} for name in FILES}, "everything": EVERYTHING}
"""What the tests render: each file of values, and everything at once."""

COMMON = {"apiVersion", "kind", "metadata"}
"""What every object has, and Kubernetes checks."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """All that one release is made of."""

    manifests: tuple[Manifest, ...]

    def of(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def the(self, kind: str) -> Manifest:
        found = self.of(kind)
        assert len(found) == 1, f"{len(found)} manifests of kind {kind}"
        return found[0]

    @property
    def pods(self) -> dict[str, Manifest]:
        """Component -> a pod's spec, of everything that makes pods."""
        made = [*self.of("StatefulSet"), *self.of("Job")]
        return {
            manifest["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: manifest["spec"][
                "template"
            ]["spec"]
            for manifest in made
        }

    @property
    def consumer(self) -> Manifest:
        """The consumer's container."""
        container: Manifest = self.pods["consumer"]["containers"][0]
        return container


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm, away from what the user has set up."""
    home = TOOLS / "helm-home"
    home.mkdir(parents=True, exist_ok=True)
    env = {"PATH": os.environ.get("PATH", ""), "HOME": str(home)}
    return subprocess.run([str(_built()), *arguments], env=env, capture_output=True, text=True, check=False)


def render(*files: str, **sets: Any) -> Rendered:
    """The manifests with these files of deploy/helm/values, and with values by their path (`consumer__workers=2`).

    Rendered once for each; a caller must not change what it gets.
    """
    return _rendered(files, json.dumps(sets, sort_keys=True))


def rendered(case: str) -> Rendered:
    """One of `CASES`."""
    return render("cpu-small.yaml" if case == "everything" else case, **CASES[case])


def refused(*files: str, **sets: Any) -> str:
    """What Helm says instead, in one line."""
    done = helm("template", RELEASE, str(CHART), *_options(files, sets))
    assert done.returncode != 0, "Helm took it"
    return " ".join(done.stderr.split())


@cache
def _rendered(files: tuple[str, ...], sets: str) -> Rendered:
    done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *_options(files, json.loads(sets)))
    assert done.returncode == 0, done.stderr
    return Rendered(tuple(manifest for manifest in yaml.safe_load_all(done.stdout) if manifest))


def _options(files: Iterable[str], sets: Mapping[str, Any]) -> Iterator[str]:
    for name in files:
        yield from ("--values", str(VALUES / name))
    for path, value in sets.items():
        yield from ("--set-json", f"{path.replace('__', '.')}={json.dumps(value)}")


def check_custom(manifest: Manifest) -> None:
    """Raises jsonschema.ValidationError where a custom resource is not what its definition says."""
    schema = _definition(manifest["apiVersion"], manifest["kind"])
    jsonschema.Draft202012Validator(_closed(schema)).validate(
        {key: value for key, value in manifest.items() if key not in COMMON}
    )


def _closed(schema: Any) -> Any:
    """An API server drops what a schema does not name; here it is a mistake."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not free:
        closed["additionalProperties"] = False
    return closed


@cache
def _definition(api_version: str, kind: str) -> Mapping[str, Any]:
    """The schema of a custom resource's kind, without what every object has, out of the pinned Go modules."""
    for path in _definitions():
        text = path.read_text(encoding="utf-8")
        if f"\n    kind: {kind}\n" not in text:
            continue
        spec = _read(text)["spec"]
        for version in spec["versions"]:
            if api_version == f"{spec['group']}/{version['name']}":
                schema = version["schema"]["openAPIV3Schema"]
                own = {name: part for name, part in schema["properties"].items() if name not in COMMON}
                return {"type": "object", "required": schema.get("required", []), "properties": own}
    pytest.fail(f"there is no definition of {api_version} {kind}")


@cache
def _definitions() -> tuple[Path, ...]:
    """The files with KEDA's and the Prometheus operator's custom resources."""
    done = _go("mod", "download", "-json", *CRD_FOLDERS, folder="crds")
    if done.returncode != 0:
        _give_up("the definitions of custom resources cannot be fetched", done.stderr + done.stdout)
    folders = [Path(module["Dir"]) / CRD_FOLDERS[module["Path"]] for module in _documents(done.stdout)]
    return tuple(path for folder in folders for path in sorted(folder.glob("*.yaml")))


def _read(text: str) -> Any:
    """One YAML document. Of a bare `=`, which stands in a list of operators, PyYAML makes nothing by itself."""
    loader = yaml.SafeLoader(text)
    plain = loader.yaml_constructors["tag:yaml.org,2002:str"]
    loader.yaml_constructors = {**loader.yaml_constructors, "tag:yaml.org,2002:value": plain}
    return loader.get_single_data()


def _documents(text: str) -> Iterator[Any]:
    """JSON documents, one behind the other."""
    decoder, rest = json.JSONDecoder(), text.lstrip()
    while rest:
        document, end = decoder.raw_decode(rest)
        yield document
        rest = rest[end:].lstrip()


@cache
def _built() -> Path:
    """Helm's binary, built where the pinned sources are others than those it was built from."""
    key = hashlib.sha256((GO / "helm" / "go.sum").read_bytes()).hexdigest()[:16]
    binary = TOOLS / f"helm-{key}"
    if not binary.exists():
        TOOLS.mkdir(exist_ok=True)
        part = binary.with_suffix(f".{os.getpid()}")
        done = _go("build", "-o", str(part), "helm.sh/helm/v4/cmd/helm", folder="helm")
        if done.returncode != 0:
            _give_up("Helm cannot be built", done.stderr)
        part.rename(binary)
    return binary


def _give_up(what: str, said: str) -> NoReturn:
    """Skip where this machine cannot do it; anything else, a wrong checksum above all, is a failure."""
    if any(word in said for word in NOT_HERE):
        pytest.skip(f"{what} here: {said.strip()}")
    pytest.fail(f"{what}: {said}")


def _go(verb: str, *arguments: str, folder: str) -> subprocess.CompletedProcess[str]:
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no Go here: the chart is rendered by a Helm that is built from its sources")
    command: Sequence[str] = [go, verb, *arguments]
    return subprocess.run(command, cwd=GO / folder, capture_output=True, text=True, check=False, timeout=BUILD_S)
