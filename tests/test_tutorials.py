"""The tutorials run from top to bottom, with smaller numbers, and the notebooks of docs/tutorials are made from them."""

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "examples/tutorials").glob("*.py"))
SMALL = {"STEPS": "4", "EPISODES": "2", "DRAWS": "4", "SEEDS": "range(200_000, 200_001)"}
BEFORE = 'import matplotlib\nmatplotlib.use("Agg")\n'  # nobody looks

each = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)


def small(text):
    """The same program with a few steps, episodes and draws."""
    for name, value in SMALL.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    return text


@pytest.mark.slow  # they train and act
@each
def test_a_tutorial_runs(tutorial, tmp_path):
    script = tmp_path / "tutorial.py"
    script.write_text(BEFORE + small(tutorial.read_text()))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr
    assert not re.search(r"^isdt \w+.*: ", done.stderr, flags=re.MULTILINE), done.stderr  # a verb that refused


@each
def test_its_notebook_is_made_from_it(tutorial):
    """The code and the words are those of the script, and every cell was run; `make tutorials` makes them again."""
    notebook = nbformat.read(ROOT / "docs/tutorials" / f"{tutorial.stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    script = [(cell.cell_type, cell.source) for cell in jupytext.read(tutorial).cells]
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == script
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    printed = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert not re.search(r"Warning|Traceback|/work/|/home/|/tmp/", printed)


def test_there_are_tutorials():
    assert len(TUTORIALS) == 4
