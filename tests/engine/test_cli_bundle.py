"""Every command that opens a bundle takes a URL, through one cache."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from engine.bundle import write_bundle
from engine.bundle_cache import open_located
from engine.cli import score, verify
from engine.cli_bench import engine
from engine.cli_build import build
from engine.errors import BundleError
from tests.lineups import bundle_of, jpegs
from tests.web import Web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import click


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    write_bundle(tmp_path / "parts.zip", bundle_of(1))
    with Web((tmp_path / "parts.zip").read_bytes()) as web:
        yield web


def test_score_takes_a_url_and_fetches_once(web: Web, tmp_path: Path) -> None:
    image, cache = tmp_path / "frame.jpg", tmp_path / "cache"
    image.write_bytes(jpegs(1)[0])
    lines = []
    for place in (web.url, web.url, str(tmp_path / "parts.zip")):
        arguments = [place, str(image), "--backend", "onnxruntime", "--bundle-cache", str(cache)]
        result = CliRunner().invoke(score, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        lines.append(json.loads(result.stdout))
    assert lines[0] == lines[1] == lines[2]
    assert web.asked.count("GET") == 1


@pytest.mark.parametrize(
    ("command", "arguments"), [(score, ["{}", "x"]), (verify, ["{}"]), (build, ["{}"]), (engine, ["--bundle", "{}"])]
)
def test_a_url_reaches_the_cache_in_every_command(
    web: Web, tmp_path: Path, command: click.Command, arguments: list[str]
) -> None:
    """Nothing lies there: the words are those of the fetching, not that a URL is none."""
    web.content = None
    given = [*(part.format(web.url) for part in arguments), "--bundle-cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(command, given)
    assert isinstance(result.exception, BundleError)
    assert f"bundle {web.url} is not there" in str(result.exception)


def test_without_a_cache_a_url_is_refused(web: Web) -> None:
    with pytest.raises(BundleError, match="is a URL: expected a folder or a zip"):
        open_located(web.url, None)
    assert web.asked == []
