"""A PostgreSQL of its own on loopback, from the distribution's package, without a service."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import pytest

from consumer.broker import free_port

USER = "postgres"
PASSWORDS = ("--auth-local=trust", "--auth-host=scram-sha-256")
"""Whoever comes over the network shows one."""


class Postgres:
    """A context manager: a cluster in a folder of its own, which goes with it. Skips where there is no PostgreSQL.

    PostgreSQL refuses to run as root: then it runs as the package's own user.
    """

    def __enter__(self) -> Self:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            pytest.skip("needs Debian's package postgresql: no initdb under /usr/lib/postgresql")
        self._bin = found[-1].parent
        self._as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        self._folder = Path(tempfile.mkdtemp(prefix="framegate-postgres-"))
        if self._as_user:
            shutil.chown(self._folder, USER)
        self.port = free_port()
        self._run("initdb", "-D", f"{self._folder}/data", "-U", USER, "-E", "UTF8", "--no-sync", *PASSWORDS)
        options = f"-p {self.port} -h 127.0.0.1 -k {self._folder} -F"
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-w", "-o", options, "-l", f"{self._folder}/log", "start")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(self._folder)

    def sql(self, text: str, database: str = "postgres") -> list[list[str]]:
        """What a statement gives: rows of texts."""
        where = ["-h", str(self._folder), "-p", str(self.port), "-U", USER, "-d", database]
        output = self._run("psql", *where, "-v", "ON_ERROR_STOP=1", "-q", "-A", "-t", "-F", "\t", "-c", text)
        return [line.split("\t") for line in output.splitlines() if line]

    def _run(self, program: str, *arguments: str) -> str:
        command = [*self._as_user, str(self._bin / program), *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True, timeout=60, cwd="/"
        )
        return done.stdout
