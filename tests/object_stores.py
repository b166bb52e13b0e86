"""Object stores on loopback for tests: Azurite (Azure's blobs), moto (Amazon's S3), and a way to them that can break.

Each has keys of its own, which the code under test finds where a user puts them: in the environment.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import pytest
import requests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOST = "127.0.0.1"
START_S = 60.0
AZURITE = Path(__file__).parent / "node" / "node_modules" / ".bin" / "azurite-blob"


class ObjectStore(Protocol):
    """A running server."""

    scheme: str
    port: int

    def env(self, *, port: int | None = None, key: str | None = None) -> dict[str, str]:
        """What a user sets; to go by another port, or with another key."""

    def put(self, container: str, files: Mapping[str, bytes]) -> str:
        """Make a container with these files; returns its URL."""

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """Within it, keys are looked at."""


class _Process:
    """A server in a process of its own: a context manager."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "server.log"
        self._folder = folder

    def _begin(self, command: list[str], env: Mapping[str, str]) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env={**env}, stdout=log, stderr=subprocess.STDOUT)
        end_s = time.monotonic() + START_S
        while not listens(self.port):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end_s, f"{command[0]} does not listen"
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Azurite(_Process):
    """Azure's blob service, as Microsoft gives it to developers."""

    scheme = "az"
    account = "plant"

    def __enter__(self) -> Self:
        if not AZURITE.exists() or shutil.which("node") is None:
            pytest.skip("no Azurite: `make pytest` installs it where npm is (tests/node)")
        self.key = base64.b64encode(secrets.token_bytes(32)).decode()
        # Its clients may speak a newer version than it knows; what is used here is as it was.
        options = ["--disableTelemetry", "--silent", "--skipApiVersionCheck", "--location", str(self._folder)]
        env = {"PATH": os.environ["PATH"], "AZURITE_ACCOUNTS": f"{self.account}:{self.key}"}
        self._begin([str(AZURITE), "--blobPort", str(self.port), *options], env)
        return self

    def env(self, *, port: int | None = None, key: str | None = None) -> dict[str, str]:
        """See `ObjectStore`. An address on loopback can be given by a connection string only."""
        return {
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={key or self.key};"
                f"BlobEndpoint=http://{HOST}:{port or self.port}/{self.account};"
            )
        }

    def put(self, container: str, files: Mapping[str, bytes]) -> str:
        """See `ObjectStore`."""
        from azure.storage.blob import BlobServiceClient  # noqa: PLC0415 - an extra

        with BlobServiceClient.from_connection_string(*self.env().values()) as service:
            made = service.create_container(container)
            for name, content in files.items():
                made.upload_blob(name, content)
        return f"az://{container}"

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """It always does."""
        return contextlib.nullcontext()


class Moto(_Process):
    """Amazon's S3, as moto plays it."""

    scheme = "s3"

    def __enter__(self) -> Self:
        self._begin([sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)], os.environ)
        return self

    def env(self, *, port: int | None = None, key: str | None = None) -> dict[str, str]:
        """See `ObjectStore`."""
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port or self.port}",
            "AWS_ACCESS_KEY_ID": "plant",
            "AWS_SECRET_ACCESS_KEY": key or "of this test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, container: str, files: Mapping[str, bytes]) -> str:
        """See `ObjectStore`."""
        import boto3  # noqa: PLC0415 - an extra

        given = self.env()
        client = boto3.client(
            "s3",
            endpoint_url=given["AWS_ENDPOINT_URL"],
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
            region_name=given["AWS_DEFAULT_REGION"],
        )
        with contextlib.closing(client):
            client.create_bucket(Bucket=container)
            for name, content in files.items():
                client.put_object(Bucket=container, Key=name, Body=content)
        return f"s3://{container}"

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """It knows no user, so whoever comes is refused."""
        self._look_at_keys_from("0")
        try:
            yield
        finally:
            self._look_at_keys_from("inf")

    def _look_at_keys_from(self, request: str) -> None:
        requests.post(f"http://{HOST}:{self.port}/moto-api/reset-auth", data=request, timeout=10).raise_for_status()


class Way:
    """A TCP proxy to a server: counts what it answers, breaks off, and refuses. A context manager.

    Attributes:
        answered_bytes: what the server has sent, through this.
        asked: every request's first line.
        cuts: after how many bytes of answers a connection is broken off; one entry for each time.
        refuses: no connection gets through any more, and none that is open.
        ends: the last of the cuts is followed by refusing.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.answered_bytes = 0
        self.asked: list[str] = []
        self.cuts: list[int] = []
        self.refuses = False
        self.ends = False

    def __enter__(self) -> Self:
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._over:
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._carry, args=(client,))
                thread.start()
                self._threads.append(thread)

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), selectors.DefaultSelector() as ready:
            if self.refuses:
                return
            with socket.create_connection((HOST, self._target)) as server:
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                while not self._over and not self.refuses:
                    for key, _ in ready.select(0.05):
                        source: socket.socket = key.fileobj  # type: ignore[assignment] # registered above
                        content = source.recv(65536)
                        if not content or (source is server and self._is_cut(len(content))):
                            return
                        if source is client:
                            self._note(content)
                        key.data.sendall(content)

    def _is_cut(self, count: int) -> bool:
        self.answered_bytes += count
        if self.cuts and self.answered_bytes > self.cuts[0]:
            self.cuts.pop(0)
            self.refuses = self.ends and not self.cuts
            return True
        return False

    def _note(self, content: bytes) -> None:
        line = content.partition(b"\r\n")[0]
        if line.endswith(b"HTTP/1.1"):
            self.asked.append(line.decode())


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
