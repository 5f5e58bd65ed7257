"""The notebooks of examples/ run from top to bottom."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.ipynb"))])
def test_a_notebook_runs_and_keeps_what_it_printed(name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    kept = [kinds(cell) for cell in notebook.cells]
    for cell in notebook.cells:
        cell.source = cell.source.replace("max_minutes=2,", "max_steps=4, cache_dir='cache', eval_every=2,")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert [kinds(cell) for cell in notebook.cells] == kept
    assert (tmp_path / "runs/quickstart/best_model.pt").exists()


def kinds(cell):
    """What a cell shows: text, a picture; nothing that a program writes to standard error."""
    outputs = cell.get("outputs", [])
    return {kind for output in outputs for kind in output.get("data", {output.get("name"): 0})} - {"stderr"}
