"""Certificates for tests: an authority, and what it signs for 127.0.0.1; made by the openssl program in a moment."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-x509", "-days", "2")


class Authority:
    """Signs certificates.

    Attributes:
        certificate: PEM file of its own.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Make it; skips where there is no openssl."""
        if shutil.which("openssl") is None:
            pytest.skip("certificates are made by the program openssl: none on the PATH")
        self._folder = folder
        self._key = folder / f"{name}.key"
        self.certificate = folder / f"{name}.pem"
        _openssl(*_KEY, "-keyout", str(self._key), "-out", str(self.certificate), "-subj", f"/CN={name}")

    def sign(self, name: str) -> tuple[Path, Path]:
        """(certificate, key) of a name, good for 127.0.0.1; PEM files."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        ours = ("-CA", str(self.certificate), "-CAkey", str(self._key), "-addext", "subjectAltName=IP:127.0.0.1")
        basics = ("-addext", "basicConstraints=critical,CA:FALSE")
        _openssl(*_KEY, *ours, *basics, "-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={name}")
        return certificate, key


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", "req", *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
