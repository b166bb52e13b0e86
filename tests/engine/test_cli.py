"""`framegate score`: decided as at a station, where it is told at which."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from click.testing import CliRunner

from engine.cli import score
from engine.prediction import OperatingPoint
from tests.lineups import bundle_of, jpegs, put

if TYPE_CHECKING:
    from pathlib import Path


def test_a_station_is_scored_at_its_own_operating_point(tmp_path: Path) -> None:
    own = {"strict": OperatingPoint(0.0, (0.0, 0.0)), "lax": OperatingPoint(1.0, (1.0, 1.0))}
    bundle = bundle_of(1)
    put(tmp_path / "parts", replace(bundle, head=replace(bundle.head, stations=own)))
    (tmp_path / "frame.jpg").write_bytes(jpegs(1)[0])

    def line(*options: str) -> dict[str, object]:
        arguments = [str(tmp_path / "parts"), str(tmp_path / "frame.jpg"), "--backend", "onnxruntime", *options]
        result = CliRunner().invoke(score, arguments)
        assert result.exit_code == 0, result.output
        said: dict[str, object] = json.loads(result.stdout)
        return said

    strict, lax, nowhere = line("--station", "strict"), line("--station", "lax"), line()
    assert (strict["decision"], lax["decision"]) == ("fail", "pass")
    assert strict["defect_probability"] == lax["defect_probability"] == nowhere["defect_probability"]
    assert line("--station", "another") == nowhere
