"""The page on deploying: its commands are read, since most need a container engine to be run."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest

from tests.command_lines import read_command_line

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def in_images(text: str) -> list[list[str]]:
    """What containers are given in the `docker run` commands of a text."""
    joined = re.sub(r"\\\n#? *", "", text)
    calls = re.findall(r"docker run [^`\n]*?framegate:(?:cpu|gpu|trainer) ([^`;&\n]+)", joined)
    return [shlex.split(call) for call in calls]


def test_every_container_is_given_a_command_of_framegates() -> None:
    calls = in_images(TEXT) + in_images(DOCKERFILE)
    assert {call[0] for call in calls} == {"run", "verify", "--version"}
    for call in calls:
        with contextlib.suppress(click.exceptions.Exit):  # --version ends there, a wrong option as a UsageError
            read_command_line(call)


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", TEXT, flags=re.MULTILINE))
    assert {"images", "wheel"} <= named <= targets


def test_every_compose_command_names_our_file_and_a_profile_of_it() -> None:
    compose = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    profiles = set(re.findall(r"profiles: \[(\w+)\]", compose))
    commands = re.findall(r"docker compose ([^`\n&]+)", TEXT)
    assert len(commands) >= 5
    for command in commands:
        assert command.startswith("--file deploy/compose.yaml ")
        named = re.search(r"--profile (\S+)", command)
        assert named is None or named[1].strip("'") in profiles | {"*"}


@pytest.mark.parametrize("path", ["/var/cache/framegate", "/tmp"])  # noqa: S108 - a container's own
def test_what_is_written_is_told(path: str) -> None:
    assert f"| `{path}` |" in TEXT


def test_every_image_named_is_the_one_that_is_used() -> None:
    compose = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    named = re.findall(r"`((?:apache|prom|grafana)/\S+:\S+|nvcr\.io/\S+)`", TEXT)
    assert len(named) == 4
    for image in named:
        assert image in compose + DOCKERFILE


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    assert targets
    for target in targets:
        assert (ROOT / "deploy" / target).exists(), target
