"""The notebook runs from both places where people start it, and is kept without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "demo" / "ovseg.ipynb"
#: In a process of its own: kernels talk over sockets, which this suite forbids.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
source, target, folder, cells = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
del notebook.cells[int(cells):]
NotebookClient(notebook, timeout=200, resources={"metadata": {"path": folder}}).execute()
nbformat.write(notebook, target)
"""


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_bytes())["cells"]


def execute(target: Path, folder: Path, count: int) -> list[dict]:
    """Its first cells, executed in a folder: the code cells."""
    command = [sys.executable, "-c", EXECUTE, *map(str, (NOTEBOOK, target, folder, count))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_bytes())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_it_is_valid_and_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) == 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.timeout(280)
def test_every_cell_shows_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    executed = execute(tmp_path / "done.ipynb", ROOT, len(cells()))
    assert len(executed) == 6
    for cell in executed:
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds, cell["outputs"]
        pictures = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert pictures, cell["source"]


@pytest.mark.timeout(280)
def test_it_finds_its_images_from_its_own_folder(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    first = 1 + next(index for index, cell in enumerate(cells()) if cell["cell_type"] == "code")
    (cell,) = execute(tmp_path / "done.ipynb", NOTEBOOK.parent, first)
    assert any("image/png" in output.get("data", {}) for output in cell["outputs"])
