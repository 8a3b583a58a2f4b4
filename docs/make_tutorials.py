"""Make the notebooks of docs/tutorials: `python docs/make_tutorials.py`, which `make tutorials` calls.

A tutorial is a script, examples/tutorials/NAME.py, whose comments are its text (jupytext's percent format). It is run from top to
bottom in an empty folder, and what its cells print and draw is kept. Tests hold the notebooks to the scripts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples" / "tutorials").glob("*.py"))


def run(script: Path) -> NotebookNode:
    """The notebook of a script, with what its cells printed and drew."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=900, record_timing=False, resources={"metadata": {"path": folder}})
        client.execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # drawn at random otherwise
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
            cell.metadata = {}
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    nbformat.validate(notebook)
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """One block of text for what a cell printed, and no textual twin of a picture."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            output.name = "stdout"
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif "image/png" in output.get("data", {}):
            output.data = {"image/png": output.data["image/png"]}
        kept.append(output)
    return kept


if __name__ == "__main__":
    for script in SCRIPTS:
        if sys.argv[1:] and script.stem not in sys.argv[1:]:
            continue
        started = time.monotonic()
        target = ROOT / "docs" / "tutorials" / f"{script.stem}.ipynb"
        target.parent.mkdir(exist_ok=True)
        nbformat.write(run(script), target)
        print(f"{target.relative_to(ROOT)}: {time.monotonic() - started:.0f} s")
