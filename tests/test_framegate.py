"""The front door: where settings come from, and what a wrong word costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import pytest

import framegate
from engine.command import VERB
from engine.errors import InputError, WorkError

if TYPE_CHECKING:
    from pathlib import Path


@click.command(context_settings=VERB)
@click.option("--group", default="built-in")
@click.option("--batch-size", default=8)
@click.option("--wrong", type=click.Choice(["input", "work"]))
def probe(*, group: str, batch_size: int, wrong: str | None) -> None:
    """Example of a verb."""
    errors = {"input": InputError("the lens is capped"), "work": WorkError("the disk is full")}
    if wrong is not None:
        raise errors[wrong]
    click.echo(json.dumps([group, batch_size]))


@pytest.fixture(autouse=True)
def with_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(framegate.VERBS, "probe", (__name__, "probe"))
    monkeypatch.setitem(__import__("sys").modules, __name__, type("room", (), {"probe": probe}))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as end:
        framegate.main(list(arguments))
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_flags_go_before_environment_before_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "line.toml"
    file.write_text('group = "file"\nbatch-size = 3\n\n[probe]\nbatch_size = 4\n[run]\nbatch_size = 99\n')
    config = ("--config", str(file))
    assert run(capsys, "probe") == (0, '["built-in", 8]\n', "")
    assert run(capsys, *config, "probe") == (0, '["file", 4]\n', "")
    monkeypatch.setenv("FRAMEGATE_GROUP", "environment")
    assert run(capsys, *config, "probe") == (0, '["environment", 4]\n', "")
    assert run(capsys, *config, "probe", "--group", "flag") == (0, '["flag", 4]\n', "")
    monkeypatch.setenv("FRAMEGATE_CONFIG", str(file))
    assert run(capsys, "probe") == (0, '["environment", 4]\n', "")


@pytest.mark.parametrize(("wrong", "status"), [("input", 2), ("work", 1)])
def test_an_error_is_one_line_and_its_status(capsys: pytest.CaptureFixture[str], wrong: str, status: int) -> None:
    code, out, err = run(capsys, "probe", "--wrong", wrong)
    assert (code, out) == (status, "")
    assert err.startswith("framegate: error: the ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nothing"], ["probe", "--no-such"], ["probe", "--batch-size", "many"]])
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), ("a = ", "is not TOML"), (b"\xff", "is not TOML")]
)
def test_a_bad_config_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | bytes | None, words: str
) -> None:
    file = tmp_path / "line.toml"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content)
    code, _, err = run(capsys, "--config", str(file), "probe")
    assert code == 2
    assert f"config file {file}" in err
    assert words in err


@pytest.mark.parametrize("content", ["probe = 3\n", "[prob]\ngroup = 'x'\n", "[probe]\ngrop = 'x'\n"])
def test_a_typo_in_the_config_file_does_not_go_unnoticed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str
) -> None:
    file = tmp_path / "line.toml"
    file.write_text(content)
    code, _, err = run(capsys, "--config", str(file), "probe")
    assert code == 2
    assert "config file" in err
    assert err.count("\n") == 1
