"""Pages for people, and their command blocks, which tests run as they stand there.

A fenced block says behind its language what becomes of it. `bash test=watch`: a test runs it, under that name. `bash
not-run`: nothing does, and the page says why. Kafka's own scripts are stood in for by the classes that they start.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "connecting"
KAFKA_SCRIPTS = {
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
    "kafka-configs.sh": "org.apache.kafka.tools.ConfigCommand",
    "kafka-server-start.sh": "kafka.Kafka",
    "kafka-storage.sh": "kafka.tools.StorageTool",
    "connect-standalone.sh": "org.apache.kafka.connect.cli.ConnectStandalone",
}
_FENCED = re.compile(r"^```([a-z]+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        mark: `test=NAME` or `not-run`; empty where there is none.
        before: the page's text ahead of it.
    """

    page: str
    language: str
    mark: str
    text: str
    before: str

    @property
    def name(self) -> str | None:
        """What tests call it."""
        return self.mark.removeprefix("test=") if self.mark.startswith("test=") else None


def blocks(page: Path) -> list[Block]:
    """All of a page's."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.name, found[1], found[2] or "", found[3], text[: found.start()]) for found in _FENCED.finditer(text)
    ]


def block(page: str, name: str, replace: Mapping[str, object] | None = None) -> str:
    """A block's text, with what the test has elsewhere: each of these has to stand in it."""
    (found,) = (one for one in blocks(PAGES / page) if one.name == name)
    text = found.text
    for here, there in (replace or {}).items():
        assert here in text, f"{page}, {name}: no {here!r}"
        text = text.replace(here, str(there))
    return text


def commands(folder: Path, jars: Path | None = None) -> dict[str, str]:
    """An environment in which `framegate` is this checkout's, and Kafka's scripts are those of the jars."""
    folder.mkdir(exist_ok=True)
    scripts = {"framegate": f'exec "{sys.executable}" -m framegate "$@"'}
    if jars is not None:
        logging = folder / "log4j2.properties"
        logging.write_text("status = error\nrootLogger.level = off\n")
        java = f'exec java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile="{logging}"'
        scripts |= {name: f'{java} -cp "{jars}/*" {main} "$@"' for name, main in KAFKA_SCRIPTS.items()}
    for name, line in scripts.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
