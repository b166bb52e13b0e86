from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from engine.command import PIXEL_SIZE
from engine.errors import InputError


@click.command()
@click.option("--size", default="640x480", **PIXEL_SIZE)
def told(size: tuple[int, int]) -> None:
    width, height = size
    click.echo(f"{width} wide, {height} high")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "640 wide, 480 high"),
        (["--size", "1920x1080"], "1920 wide, 1080 high"),
        (["--size", "1X9"], "1 wide, 9 high"),
    ],
)
def test_a_size_is_read_also_a_default(words: list[str], expected: str) -> None:
    assert CliRunner().invoke(told, words, catch_exceptions=False).output.strip() == expected


@pytest.mark.parametrize("text", ["large", "640", "640x", "0x9", "9x0", "-1x4", "6.5x4", "1x2x3", " 1x2", "٣x٤"])
def test_anything_else_is_refused_by_the_options_name(text: str) -> None:
    done = CliRunner().invoke(told, [f"--size={text}"])
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == f"--size {text} is no size: expected WIDTHxHEIGHT in pixels, for example 640x480"
