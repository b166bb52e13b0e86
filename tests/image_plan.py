"""How BuildKit would build an image of the `Dockerfile`: its operations, and the image's configuration.

BuildKit's own front end reads the file (`tests/deploy/go/dockerplan`), so stages, arguments, copies and environments
are what they are in a build. Without a container engine nothing is built by that; `tests.image_root` carries it out.
"""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.go_tools import go_tool

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Run:
    """A RUN line: `arguments` with just this environment, in `folder`; `mounts` are (where, of which step, from)."""

    arguments: tuple[str, ...]
    environment: tuple[str, ...]
    folder: str
    mounts: tuple[tuple[str, str, str], ...]

    @property
    def shell(self) -> str:
        """What the shell is given, its blanks put together."""
        return " ".join(self.arguments[-1].split())


@dataclass(frozen=True, slots=True)
class Copy:
    """`source` of another step, or of the build context where `step` is None, to `destination`."""

    step: str | None
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class File:
    """A file with this content, or a folder where `content` is None."""

    path: str
    content: bytes | None
    owner: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step, on what `base` left; None: on the base image."""

    name: str
    base: str | None
    actions: tuple[Run | Copy | File, ...]


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """All that makes one target, in an order in which it can be done; the last step's result is the image."""

    warnings: tuple[str, ...]
    bases: tuple[str, ...]
    config: dict[str, Any]
    steps: tuple[Step, ...]

    def runs(self) -> list[Run]:
        """Every RUN line that the target needs."""
        return [action for step in self.steps for action in step.actions if isinstance(action, Run)]

    def copied_from_context(self) -> set[str]:
        """What is taken from the build context, as paths of the repository."""
        copies = [action for step in self.steps for action in step.actions if isinstance(action, Copy)]
        return {action.source.lstrip("/") for action in copies if action.step is None}


def plan_image(target: str, dockerfile: Path = ROOT / "Dockerfile") -> ImagePlan:
    """Ask BuildKit's front end. Skips without Go."""
    done = subprocess.run([go_tool("dockerplan"), dockerfile, target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    operations = {entry["digest"]: entry["op"] for entry in content["operations"]}
    context = {name for name, op in operations.items() if op.get("source", {}).get("identifier") == "local://context"}
    steps = tuple(
        _step(name, op, context)
        for name, op in operations.items()
        if name not in context and ("exec" in op or "file" in op)
    )
    return ImagePlan(tuple(content["warnings"]), tuple(content["bases"]), content["image"]["config"], steps)


def context_files(folder: Path = ROOT) -> set[str]:
    """The files below a folder that its .dockerignore lets into a build. Skips without Go."""
    done = subprocess.run([go_tool("dockerplan"), "context", folder], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def _step(name: str, op: dict[str, Any], context: set[str]) -> Step:
    inputs = [entry["digest"] for entry in op.get("inputs", [])]
    if "exec" in op:
        meta, mounts = op["exec"]["meta"], op["exec"]["mounts"]
        (base,) = [mount for mount in mounts if mount["dest"] == "/"]
        others = tuple(
            (mount["dest"], inputs[int(mount.get("input", 0))], mount.get("selector", "/"))
            for mount in mounts
            if mount["dest"] != "/"
        )
        run = Run(tuple(meta["args"]), tuple(meta["env"]), meta["cwd"], others)
        return Step(name, _input(base, "input", inputs), (run,))
    actions = op["file"]["actions"]
    return Step(
        name, _input(actions[0], "input", inputs), tuple(_file_action(entry, inputs, context) for entry in actions)
    )


def _input(entry: dict[str, Any], key: str, inputs: list[str]) -> str | None:
    """Which step an operation takes; protocol buffers leave a zero out, and -1 is nothing."""
    number = int(entry.get(key, 0))
    return inputs[number] if 0 <= number < len(inputs) else None


def _file_action(action: dict[str, Any], inputs: list[str], context: set[str]) -> Copy | File:
    if "copy" in action:
        source = _input(action, "secondaryInput", inputs)
        assert source is not None
        return Copy(None if source in context else source, action["copy"]["src"], action["copy"]["dest"])
    if "mkdir" in action:
        owner = action["mkdir"].get("owner", {}).get("user", {}).get("byID", 0)
        return File(action["mkdir"]["path"], None, int(owner))
    return File(action["mkfile"]["path"], base64.b64decode(action["mkfile"]["data"]), 0)
