"""Fixtures that all tests share: brokers, real images, names of one's own.

A test that takes `broker` runs on the embedded broker and on Apache Kafka. Brokers are started once per test run and
shared: take names for topics and groups from `unique`, and start your own broker to stop or kill one.

Kafka is imported in the fixtures that need it: most tests do without, and kafka-python's import warns (see below).
"""

# ruff: noqa: PLC0415 - as said above

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import sys
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.image_root import BuiltImage
    from tests.kafka_cluster import ApacheKafka, RunningBroker
    from tests.object_stores import Azurite, Moto, ObjectStore

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests that use ONNX Runtime without the engine tell nobody anything either

ROOT = Path(__file__).resolve().parent.parent
DROPPED_SOCKET = "unclosed .*socket"
MARK_OF_FIXTURE = {"embedded_broker": "kafka", "apache_kafka": "apache", "apache_kafka_3": "apache"}


def pytest_configure(config: pytest.Config) -> None:
    """kafka-python 3.0.12 reads its schemas through functions that Python 3.11 and 3.12 call deprecated (3.13 not)."""
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what asks for a broker by name, so that `-m "not apache"` finds it; see `dropped_sockets` for the other.

    Several processes are handed whole files, in this order: those with slow tests first, or one process would still be
    at work on such a file when all others are done.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARK_OF_FIXTURE:
                item.add_marker(MARK_OF_FIXTURE[fixture])
            if fixture == "dropped_sockets":
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{DROPPED_SOCKET}:ResourceWarning"))


@pytest.fixture(autouse=True, scope="session")
def features_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests featurize through the command line is not left in the user's cache, nor found there."""
    os.environ["FRAMEGATE_FEATURES"] = str(tmp_path_factory.mktemp("features"))


@pytest.fixture(autouse=True)
def kafka_log_level() -> Iterator[None]:
    """Commands silence kafka-python's log in their process; one that a test runs in this process does so for itself."""
    logger = logging.getLogger("kafka")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def unique() -> str:
    """Letters that no other test has: for the names of topics and groups on a shared broker."""
    return uuid.uuid4().hex[:12]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect what a test with `dropped_sockets` has dropped, once nothing of that test holds it any more."""
    result = yield
    if "dropped_sockets" in getattr(item, "fixturenames", ()):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", DROPPED_SOCKET, ResourceWarning)
            gc.collect()
    return result


@pytest.fixture
def dropped_sockets() -> None:
    """For a test that takes a broker from under a live client.

    kafka-python 3.0.12 drops the socket of each refused connection without closing it. Around such a test its warning
    is ignored (see the hooks above), and no other test fails for it.
    """


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real images: FRAMEGATE_TEST_DATA, else `shared` beside the repository. Read-only."""
    folder = Path(os.environ.get("FRAMEGATE_TEST_DATA") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real images at {folder}: set FRAMEGATE_TEST_DATA to a folder that has data/ and badimages/")
    return folder


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """The embedded broker, shared by all tests of this run."""
    from consumer.broker import EmbeddedBroker
    from tests.kafka_cluster import RunningBroker

    with EmbeddedBroker(log=tmp_path_factory.mktemp("embedded") / "broker.log") as broker:
        yield RunningBroker("embedded", broker.bootstrap_servers)


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """Apache Kafka: the one that FRAMEGATE_TEST_BOOTSTRAP names, else one broker of our own, shared by all tests."""
    from tests.kafka_cluster import RunningBroker

    given = os.environ.get("FRAMEGATE_TEST_BOOTSTRAP")
    if given:
        yield RunningBroker("apache", given)
        return
    with _cluster(1, tmp_path_factory) as cluster:
        yield RunningBroker("apache", cluster.bootstrap_servers)


@pytest.fixture(scope="session")
def apache_kafka_3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Apache Kafka with three brokers of our own; a test that stops one starts it again before it ends."""
    if os.environ.get("FRAMEGATE_TEST_BOOTSTRAP"):
        pytest.skip("needs brokers that it may kill; FRAMEGATE_TEST_BOOTSTRAP names somebody else's")
    with _cluster(3, tmp_path_factory) as cluster:
        yield cluster


@pytest.fixture(
    params=[
        pytest.param("embedded_broker", marks=pytest.mark.kafka, id="embedded"),
        pytest.param("apache_kafka", marks=pytest.mark.apache, id="apache"),
    ]
)
def broker(request: pytest.FixtureRequest) -> RunningBroker:
    """Each kind of broker in turn."""
    running: RunningBroker = request.getfixturevalue(request.param)
    return running


@pytest.fixture(scope="session")
def cpu_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImage]:
    """The image `cpu`, made by what its Dockerfile runs, without a container engine; takes a minute or two."""
    from tests.image_plan import plan_image
    from tests.image_root import BuiltImage, base_python, build_image, require_namespaces, version_of_base

    require_namespaces()
    folder = tmp_path_factory.mktemp("cpu-image")
    try:
        python = base_python(version_of_base("PYTHON"), Path(sys.base_prefix), folder / "pip")
        plan = plan_image("cpu")
        yield BuiltImage(plan, build_image(plan, folder, python), python, folder / "volumes")
    finally:
        shutil.rmtree(folder)  # a gigabyte that pytest would keep for three runs


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azure's blob storage on loopback, shared by all tests; skips where it is not installed."""
    from tests.object_stores import Azurite

    with Azurite(tmp_path_factory.mktemp("azurite")) as store:
        yield store


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """Amazon's S3 on loopback, shared by all tests."""
    from tests.object_stores import Moto

    pytest.importorskip("moto", reason="needs moto[server]")
    with Moto(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture(params=["azurite", "moto"])
def object_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Each kind of object store in turn, with its keys in the environment."""
    store: ObjectStore = request.getfixturevalue(request.param)
    for name, value in store.env().items():
        monkeypatch.setenv(name, value)
    return store


@contextlib.contextmanager
def _cluster(brokers: Literal[1, 3], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A started cluster; skips where it cannot be had on this machine."""
    from tests.kafka_cluster import ApacheKafka, started

    with started(ApacheKafka(brokers, tmp_path_factory.mktemp(f"apache-{brokers}"))) as cluster:
        yield cluster
