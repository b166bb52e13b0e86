"""A real Prometheus with the shipped configuration and rules, in a hurry: for tests on a line that runs."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import yaml

from consumer.broker import free_port
from consumer.children import bound_command
from tests.deploy.prometheus import CONFIG, RULES, tool

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HURRY = 20
"""Durations are this much shorter: 5 minutes are 15 s."""

SCRAPE_S = 2
"""Also what a scrape may take: on a busy machine the consumer may have to wait a second for its turn."""

SHORTEST_WINDOW_S = 4 * SCRAPE_S
"""No window is shorter: as many scrapes as the shortest has on a line."""

SHORTEST_PENDING_S = 5
"""Nor any `for`: one scrape that comes to nothing is no consumer that is down."""

READY_S = 60.0
UNITS_S = {"s": 1, "m": 60, "h": 3600}
WINDOW = re.compile(r"(\[|\boffset )(\d+)([smh])")

Told = tuple[str, str]
"""An alert's name, and the station, worker or consumer that it is about."""


def hurried(rules: dict[str, Any]) -> dict[str, Any]:
    """The rules with every `for`, window and offset `HURRY` times shorter, and no threshold moved."""
    groups = []
    for group in rules["groups"]:
        told = [
            {
                **rule,
                "expr": WINDOW.sub(_window, rule["expr"]),
                **({"for": _pending(rule["for"])} if "for" in rule else {}),
            }
            for rule in group["rules"]
        ]
        groups.append({"name": group["name"], "rules": told})
    return {"groups": groups}


def _window(found: re.Match[str]) -> str:
    seconds = int(found[2]) * UNITS_S[found[3]] // HURRY
    return f"{found[1]}{max(SHORTEST_WINDOW_S, seconds)}s"


def _pending(duration: str) -> str:
    return f"{max(SHORTEST_PENDING_S, int(duration[:-1]) * UNITS_S[duration[-1]] // HURRY)}s"


class Server:
    """One server on loopback, with its data in `folder/data`. A context manager: leaving it ends the process."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._folder = folder
        self._port = free_port()
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        command = [
            tool("prometheus"),
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        ]
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(bound_command(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                msg = f"Prometheus did not start: {(self._folder / 'prometheus.log').read_text()}"
                raise RuntimeError(msg)
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5):
                return self._ready()
        except OSError:
            return False

    def _ready(self) -> bool:
        """Whether it can be asked, now that it answers."""
        return True

    def ask(self, path: str, **values: str) -> Any:
        """The data of an answer of its API."""
        query = urllib.parse.urlencode(values)
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.loads(answer.read())["data"]


class Prometheus(Server):
    """One that scrapes, with the shipped configuration and rules in a hurry."""

    def __init__(self, folder: Path, targets: Iterable[str]) -> None:
        folder.mkdir(parents=True)
        rules = hurried(yaml.safe_load(RULES.read_text(encoding="utf-8")))
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"] = {
            "scrape_interval": f"{SCRAPE_S}s",
            "scrape_timeout": f"{SCRAPE_S}s",
            "evaluation_interval": "1s",
        }
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [*targets]}]
        super().__init__(folder, config)

    def _ready(self) -> bool:
        """Whether it has begun to scrape: it takes 5 s to its first, and in a hurry that alone is FramegateDown."""
        ups = [sample["value"][1] for sample in self.ask("query", query="up")["result"]]
        return bool(ups) and set(ups) == {"1"} and not self.firing()

    def firing(self) -> dict[Told, dict[str, Any]]:
        """The alerts that fire now, with all that is told of each."""
        alerts = [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]
        return {(alert["labels"]["alertname"], about(alert["labels"])): alert for alert in alerts}

    def broken_rules(self) -> list[str]:
        """What rules said that could not be evaluated."""
        groups = self.ask("rules")["groups"]
        return [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")]


def about(labels: dict[str, str]) -> str:
    """The station, else the worker, else nothing: there is one consumer."""
    return labels.get("station") or labels.get("worker") or ""
