"""Values that cannot work: one clear error each, from the schema or from the chart's own checks."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from consumer.config import CLIENT_KEYS, OTHER_NAMES, SECRETS
from engine.choice import BACKENDS
from tests.chart import CHART, FILES, VALUES, refused, render

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.timeout(3600)]

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SECRET_URL = "https://store.example/parts.zip?se=2030&sig=c2VjcmV0"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"consumer__workers": 0}, r"/consumer/workers': minimum: got 0, want 1"),
        ({"consumer__wokers": 2}, r"/consumer': additional properties 'wokers' not allowed"),
        ({"consumer__device": "tpu"}, r"/consumer/device': value must be one of 'cpu', 'gpu'"),
        ({"kafka__bootstrapServers": []}, r"/kafka/bootstrapServers': minItems: got 0, want 1"),
        ({"kafka__bootstrapServers": ["kafka-1"]}, r"/kafka/bootstrapServers/0': 'kafka-1' does not match pattern"),
        ({"kafka__bootstrapServers": "kafka-1:9092"}, r"/kafka/bootstrapServers': got string, want array"),
        ({"kafka__client": {"sasl.password": "hunter2"}}, r"/kafka/client/sasl.password': .*does not match pattern"),
        ({"consumer__deadlineSeconds": 0}, r"/consumer/deadlineSeconds': exclusiveMinimum: got 0, want 0"),
        ({"consumer__env": [{"name": "A"}]}, r"/consumer/env/0': missing property 'valueFrom'"),
        ({"keda__minReplicas": 0}, r"/keda/minReplicas': minimum: got 0, want 1"),
        ({"cache__plans__kind": "hostPath"}, r"/cache/plans/kind': value must be one of"),
        ({"cache__plans__size": "2"}, r"/cache/plans/size': '2' does not match pattern"),
        ({"bundle__location": "parts.zip"}, r"/bundle/location': 'parts.zip' does not match pattern"),
        ({"promote__to": "../parts.zip"}, r"/promote/to': '../parts.zip' does not match pattern"),
        (
            {"bundle__location": ""},
            r"no bundle to judge by: set bundle.location, bundle.locationFrom or",
        ),
        (
            {"bundle__locationFrom": {"name": "s", "key": "k"}},
            r"bundle.location and bundle.locationFrom are both set: expected one",
        ),
        ({"bundle__location": "/bundles/p.zip"}, r"nothing is mounted there: set bundle.claim"),
        ({"bundle__location": SECRET_URL}, r"bundle.location holds a secret in its URL"),
        ({"bundle__shadow": "https://me:pass@store.example/p.zip"}, r"bundle.shadow holds a secret in its URL"),
        ({"consumer__workers": 13}, r"consumer.workers is 13 for kafka.partitions 12: .* no more workers than"),
        ({"consumer__workers": 4, "consumer__replicas": 4}, r"consumer.replicas is 4 with 4 workers .* at most 3"),
        ({"keda__enabled": True, "keda__maxReplicas": 13}, r"keda.maxReplicas is 13 .* expected at most 12"),
        (
            {"keda__enabled": True, "consumer__deadlineSeconds": 2},
            r"keda.lagSeconds is 2 and consumer.deadlineSeconds 2: .* never be more late",
        ),
        ({"keda__enabled": True, "keda__minReplicas": 13}, r"keda.minReplicas is 13 and no more than 12 are possible"),
        ({"cache__bundles__existingClaim": "b"}, r"cache.bundles.existingClaim is set .* expected kind shared"),
        (
            {"kafka__client": {"ssl.ca.location": "/etc/framegate/secrets/ca.crt"}},
            r"kafka.client has ssl.ca.location in /etc/framegate/secrets/ca.crt and kafka.secrets is empty",
        ),
        ({"consumer__backend": "tensorrt"}, r"consumer.backend is tensorrt on a cpu: set consumer.device to gpu"),
        ({"plan__enabled": True}, r"plan.enabled without a GPU"),
        ({"plan__enabled": True, "consumer__device": "gpu"}, r"plan.enabled with cache.plans.kind ephemeral"),
        (
            {"plan__enabled": True, "consumer__device": "gpu", "consumer__backend": "tensorrt-int8"},
            r"whose plans cannot be built ahead",
        ),
        ({"training__enabled": True}, r"training.enabled and nowhere to write: set bundle.claim"),
        (
            {"training__enabled": True, "bundle__claim": "m"},
            r"training.enabled without training.source and",
        ),
        ({"promote__enabled": True, "bundle__claim": "m"}, r"promote.enabled without promote.from and promote.to"),
    ],
)
def test_what_cannot_work_is_refused_with_its_cure(sets: dict[str, Any], words: str) -> None:
    said = refused("cpu-small.yaml", **sets)
    assert re.search(words, said), said
    assert "c2VjcmV0" not in said


def test_the_defaults_lack_nothing_but_what_only_the_user_knows() -> None:
    assert "bootstrapServers" in refused()
    assert "no bundle to judge by" in refused(kafka__bootstrapServers=["kafka:9092"])
    assert render(kafka__bootstrapServers=["kafka:9092"], bundle__location="https://x.example/p.zip").consumer


@pytest.mark.parametrize("name", FILES)
def test_the_schema_is_what_the_files_are_held_against(name: str) -> None:
    """Also by another reader than Helm."""
    own = yaml.safe_load((VALUES / name).read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(own)


def keys(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{above}{key}.")


def schema_keys(schema: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, part in schema.get("properties", {}).items():
        yield f"{above}{key}"
        yield from schema_keys(part, f"{above}{key}.")


def test_values_and_schema_name_the_same() -> None:
    free = ("training.resources.", "promote.resources.", "plan.resources.", "consumer.resources.")
    told = {key for key in keys(DEFAULTS) if not key.startswith(free)}
    held = {key for key in schema_keys(SCHEMA) if not key.startswith(free)}
    assert told == held - {"global"}


def test_backends_are_those_that_the_consumer_knows() -> None:
    held = SCHEMA["properties"]["consumer"]["properties"]["backend"]["enum"]
    assert set(held) == {"", *BACKENDS}


def test_no_spelling_of_a_secret_is_taken_in_plain_sight() -> None:
    """As `read_client_config` has them: with dots, dashes or underscores, and by the names of other clients."""
    client = jsonschema.Draft7Validator(SCHEMA["properties"]["kafka"]["properties"]["client"])
    plain = {*SECRETS, *(name for name, meant in OTHER_NAMES.items() if meant in SECRETS)}
    assert len(plain) >= 4
    for name in plain:
        for spelled in {name, name.replace("_", "."), name.replace("_", "-"), name.replace("_", ".", 1)}:
            assert not client.is_valid({spelled: "hunter2"}), spelled
            assert client.is_valid({spelled: "${KAFKA_PASSWORD}"}), spelled
            assert client.is_valid({f"{spelled}.file": "/etc/framegate/secrets/password"}), spelled
    assert not client.is_valid({"proxy_url": "socks5://me:pass@proxy:1080"})
    assert all(client.is_valid({name: "x"}) for name in CLIENT_KEYS - SECRETS - {"proxy_url"})
