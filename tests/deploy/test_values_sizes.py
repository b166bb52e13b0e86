"""Each file of values says which plant it is for, and has the numbers that `framegate size` gives for that plant."""

from __future__ import annotations

import json
import re
import shlex
import textwrap

import pytest
import yaml
from click.testing import CliRunner

import framegate
from consumer.sizing import ALL_ON_A_CORE, BESIDE_A_GPU, busiest_stations
from tests.chart import FILES, ROOT, VALUES

PAGE = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")


def told(words: str) -> str:
    """What `framegate` prints."""
    done = CliRunner().invoke(framegate.cli, shlex.split(words))
    assert done.exit_code == 0, done.output
    return done.output


def sized(name: str) -> dict[str, float]:
    """What `framegate size` says for the plant in the file's head."""
    found = re.search(r"`framegate (size [^`]*)`", (VALUES / name).read_text(encoding="utf-8"))
    assert found is not None
    plan: dict[str, float] = json.loads(told(f"{found[1]} --json"))
    return plan


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_numbers_of_its_plant(name: str) -> None:
    values = yaml.safe_load((VALUES / name).read_text(encoding="utf-8"))
    plan = sized(name)
    assert values["kafka"]["partitions"] == plan["partitions"]
    assert values["consumer"]["workers"] == plan["workers"]
    if values.get("keda", {}).get("enabled"):
        assert values["keda"]["framesPerSecondPerReplica"] == plan["frames_per_s_replica"]
        assert values["keda"]["minReplicas"] <= plan["replicas"]
    else:
        assert values["consumer"]["replicas"] == plan["replicas"]
    assert (values["consumer"].get("device", "cpu") == "gpu") == (plan["gpus"] > 0)


def test_the_page_answers_with_the_file_itself() -> None:
    """ "I have 12 cameras at 8 frames/s and one L4: what do I write in values.yaml?" """
    own = (VALUES / "gpu-one-l4.yaml").read_text(encoding="utf-8")
    assert f"```yaml\n{own}```" in PAGE


def test_the_page_shows_what_the_command_says() -> None:
    shown = re.search(r"    \$ framegate (size [^\n]*)\n((?:    .*\n)+)", PAGE)
    assert shown is not None
    assert textwrap.dedent(shown[2]) == told(shown[1])
    assert f"`framegate {shown[1]}`" in (VALUES / "gpu-one-l4.yaml").read_text(encoding="utf-8")


def test_the_page_s_table_is_what_the_command_says() -> None:
    rows = re.findall(r"^\| `(--stations [^`]*)` \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(rows) >= 8
    for words, cells in rows:
        plan = json.loads(told(f"size {words} --json"))
        holds = plan["holds_from_images_per_s"]
        assert [cell.strip() for cell in cells.split("|")] == [
            *(str(plan[key]) for key in ("partitions", "replicas", "workers", "gpus")),
            f"{plan['busiest_load']:.0%}",
            "-" if holds is None else f"{holds:,.0f}",
            f"{plan['kafka_mib_per_s']:.0f}",
        ]


def test_the_page_s_other_figures_are_the_function_s() -> None:
    large = json.loads(told("size --stations 12 --rate 8 --frame-px 2592x1944 --gpu L4 --json"))
    text = " ".join(PAGE.split())
    assert f"need {large['workers']} workers and {large['partitions']} partitions instead of 2 and 12" in text
    assert f"{ALL_ON_A_CORE.frames_per_s:.0f} frames/s a core that also infers" in text
    assert f"so {BESIDE_A_GPU.frames_per_s:.0f}." in text
    assert f"with 100 stations on 3 pods that is {busiest_stations(100, 3, 24)} instead of 34" in text
    assert f"{ALL_ON_A_CORE.growing_us / 1000:.2f} and {BESIDE_A_GPU.growing_us / 1000:.2f} ms" in text
