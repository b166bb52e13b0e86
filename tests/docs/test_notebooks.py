"""The notebooks: committed clean, and run from top to bottom on real parts and on what they render themselves.

They run where a reader opens them, in docs/notebooks, each in a kernel of its own that is gone afterwards.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
DATA, TRAIN, DEPLOY = "1_data.ipynb", "2_train_and_evaluate.ipynb", "3_deploy_and_score.ipynb"
PER_CLASS = 40
FRAMES = 24
CELL_TIMEOUT_S = 240
SMALL = {"SIZE_PX": (96, 96)}


@pytest.fixture(autouse=True, scope="module")
def jupyter_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jupyter, IPython and matplotlib keep nothing in the user's home; kernels import from this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("MPLBACKEND", raising=False)
        yield


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=nbformat.NO_CONVERT)


def with_parameters(notebook: Any, parameters: Mapping[str, object]) -> Any:
    """As papermill does it: one more cell after the one with the tag."""
    (place,) = (at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    known = set(re.findall(r"^(\w+) = ", notebook.cells[place].source, flags=re.MULTILINE))
    assert set(parameters) <= known, "a parameter that the notebook does not have"
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return notebook


def execute(notebook: Any) -> None:
    """Run it in place; whatever the kernel started has to be gone with it."""
    from nbclient import NotebookClient  # noqa: PLC0415 - the files' own tests do without

    client = NotebookClient(notebook, timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": str(FOLDER)}})
    before = set(psutil.Process().children(recursive=True))
    there = set(FOLDER.iterdir())
    try:
        client.execute()
    finally:
        _, left = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=20)
        assert left == []
        assert set(FOLDER.iterdir()) == there


def run(name: str, **parameters: object) -> Any:
    """The notebook as it ran: every code cell, none with an error or a word on standard error."""
    notebook = with_parameters(read(name), parameters)
    execute(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [out.text for cell in code for out in cell.outputs if out.get("name") == "stderr"] == []
    return notebook


def pictures(notebook: Any) -> list[str]:
    """Ids of the cells that show a PNG, once for each."""
    return [
        cell.id
        for cell in notebook.cells
        for out in cell.get("outputs", [])
        if out.get("data", {}).get("image/png", "").startswith("iVBOR")
    ]


def printed(notebook: Any, cell_id: str = "") -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell_id in {"", cell.id}]
    return "".join(out.text for cell in cells for out in cell.outputs if out.output_type == "stream")


def named_processes(notebook: Any) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"(\w+) is process (\d+)", printed(notebook))}


@pytest.fixture(scope="module")
def screws(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of real parts, some of each class, with one file twice."""
    folder = shared_data / "data" / "screws"
    archive = tmp_path_factory.mktemp("screws") / "screws.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for label in ("good", "fail"):
            paths = sorted((folder / label).iterdir())[:PER_CLASS]
            for path in paths:
                file.write(path, f"{label}/{path.name}")
            file.write(paths[0], f"{label}/{paths[0].stem}_again{paths[0].suffix}")
    return archive


@pytest.fixture(scope="module")
def trained(screws: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The second notebook as it ran on real parts, and the folder it wrote for the third."""
    out = tmp_path_factory.mktemp("trained")
    return run(TRAIN, SOURCE=str(screws), OUT=str(out), **SMALL), out


def test_there_are_three() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == [DATA, TRAIN, DEPLOY]


@pytest.mark.parametrize("name", [DATA, TRAIN, DEPLOY])
def test_is_committed_in_normal_form_and_without_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text == nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", cell_id) for cell_id in ids), "ids say what the cell is"
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None), cell.id
        assert cell.metadata == ({"tags": ["parameters"]} if cell.id == "parameters" else {}), cell.id
    assert "committed without outputs" in notebook.cells[0].source


@pytest.mark.slow
def test_the_data_of_a_zip_is_opened_labelled_and_split(screws: Path) -> None:
    notebook = run(DATA, SOURCE=str(screws), **SMALL)
    assert pictures(notebook) == ["label", "pictures", "duplicates", "split"]
    assert f"{2 * PER_CLASS + 2} files that may be images" in printed(notebook, "open")
    assert "2 files are byte-for-byte copies" in printed(notebook, "duplicates")
    assert f"{2 * PER_CLASS} images are used" in printed(notebook, "duplicates")
    assert "groups on both sides: 0" in printed(notebook, "split")


@pytest.mark.slow
def test_training_draws_its_figures_and_shows_its_report(trained: tuple[Any, Path]) -> None:
    notebook, out = trained
    assert pictures(notebook) == ["ranking", "calibration", "confusion", *["heatmaps"] * 4]
    intervals = re.findall(r"AUROC \d\.\d+ \[(\d\.\d+), (\d\.\d+)\]", printed(notebook, "ranking"))
    assert len(intervals) == 2
    assert all(float(low) < float(high) for low, high in intervals)
    assert "at most" in printed(notebook, "confusion")
    (page,) = (cell for cell in notebook.cells if cell.id == "report")
    (frame,) = (output.data["text/html"] for output in page.outputs if "data" in output)
    assert "sandbox" in frame
    assert "&lt;/html&gt;" in frame
    assert (out / "bundle" / "manifest.json").is_file()
    assert (out / "held-out" / "groups.csv").is_file()


@pytest.mark.slow
def test_it_makes_the_split_that_the_first_one_shows(trained: tuple[Any, Path], screws: Path) -> None:
    shown = re.search(
        r"held out: (\d+) images, (\d+) defects", printed(run(DATA, SOURCE=str(screws), **SMALL), "split")
    )
    held = trained[1] / "held-out"
    assert shown is not None
    counts = {label: len(list((held / label).iterdir())) for label in ("good", "fail")}
    assert shown.groups() == (str(sum(counts.values())), str(counts["fail"]))


@pytest.mark.slow
@pytest.mark.kafka
def test_a_line_is_started_judges_and_is_gone(trained: tuple[Any, Path]) -> None:
    notebook = run(DEPLOY, FOLDER=str(trained[1]), FRAMES=FRAMES)
    assert pictures(notebook) == ["verdicts", "latency"]
    assert f"{FRAMES} frames sent, 0 without a verdict" in printed(notebook, "stream")
    difference = re.search(rf"{FRAMES} probabilities, at most (\d\.\d+)", printed(notebook, "verdicts"))
    assert difference is not None
    assert float(difference[1]) < 1e-3
    assert re.search(r"total +p50 +\d+\.\d+ ms +p99", printed(notebook, "latency"))
    assert "ended with status 0, broker runs: False" in printed(notebook, "stop")
    processes = named_processes(notebook)
    assert set(processes) == {"broker", "consumer", "camera"}
    assert [name for name, number in processes.items() if psutil.pid_exists(number)] == []


@pytest.mark.slow
@pytest.mark.kafka
def test_a_line_that_is_left_running_ends_with_its_kernel(trained: tuple[Any, Path]) -> None:
    notebook = with_parameters(read(DEPLOY), {"FOLDER": str(trained[1])})
    (place,) = (at for at, cell in enumerate(notebook.cells) if cell.id == "ready")
    del notebook.cells[place + 1 :]
    execute(notebook)
    processes = named_processes(notebook)
    assert set(processes) == {"broker", "consumer"}
    running = [psutil.Process(number) for number in processes.values() if psutil.pid_exists(number)]
    assert psutil.wait_procs(running, timeout=20)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [DATA, TRAIN, pytest.param(DEPLOY, marks=pytest.mark.kafka)])
def test_it_needs_no_data(name: str) -> None:
    assert pictures(run(name, RENDERED=30, **SMALL)) != []
