"""`framegate report`: the page out of a folder or a zip, and what it says where there is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from engine.bundle import write_bundle
from engine.errors import BundleError
from tests.bundles import small_bundle
from trainer.cli_report import report

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"index.html": b"<p>page</p>", "report.json": b'{"schema": 1}\n'}


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_the_page_and_its_figures_come_out_as_they_went_in(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path / name, small_bundle(), FILES)
    done = CliRunner().invoke(report, [str(tmp_path / name), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").read_bytes() == FILES["index.html"]
    told = CliRunner().invoke(report, [str(tmp_path / name), "--json"])
    assert json.loads(told.output) == {"schema": 1}


def test_the_page_is_named_after_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "parts-1.zip", small_bundle(), FILES)
    assert CliRunner().invoke(report, ["parts-1.zip"]).exit_code == 0
    assert (tmp_path / "parts-1-report.html").exists()


def test_nothing_is_written_over_and_no_report_is_one_clear_error(tmp_path: Path) -> None:
    write_bundle(tmp_path / "with", small_bundle(), FILES)
    write_bundle(tmp_path / "without", small_bundle())
    (tmp_path / "page.html").write_bytes(b"mine")
    cases = (
        (["with", "--out", str(tmp_path / "page.html")], "exists already"),
        (["with", "--out", str(tmp_path / "no" / "page.html")], "cannot be written"),
        (["without", "--out", str(tmp_path / "other.html")], "index.html in its report"),
        (["nothing"], "is not there"),
    )
    for (name, *options), words in cases:
        failed = CliRunner().invoke(report, [str(tmp_path / name), *options])
        assert isinstance(failed.exception, BundleError)
        assert words in str(failed.exception)
    assert (tmp_path / "page.html").read_bytes() == b"mine"
