"""The notebook, executed with a tiny training."""

import re

import nbformat
import pytest
from conftest import ROOT
from PIL import Image
from train_process import like_a_process


@pytest.fixture(scope="module")
def notebook():
    notebook = nbformat.read(ROOT / "notebooks" / "jet.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_committed_without_outputs(notebook):
    assert not any(cell.outputs or cell.execution_count for cell in code_cells(notebook))


def test_the_notebook_runs(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    displayed: list = []
    names = {"__name__": "notebook", "display": displayed.append}
    with like_a_process(tmp_path):
        for cell in code_cells(notebook):
            tags = cell.metadata.get("tags", [])
            if "install" not in tags:
                source = "STEPS, CROPS = 4, 8" if "parameters" in tags else cell.source
                exec(compile(source, f"cell {cell.id}", "exec"), names)
    output = capsys.readouterr().out
    samples, figure, path, crops = displayed
    assert all(isinstance(image, Image.Image) for image in (samples, path, crops))
    assert samples.size == (3 * (12 * 34 - 2), 3 * (2 * 34 - 2))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert [title.partition(":")[0] for title in titles] == ["cup", "roofs", "blurred cup", "static"]
    assert re.search(r"^step +4  \d\.\d{3} bits per dimension$", output, re.MULTILINE)
    assert "bytes equal: True, largest error" in output and "bytes equal: True\n" in output
    size, png, raw = map(int, re.search(r"Jet (\d+) bytes, PNG (\d+) bytes, raw (\d+) bytes", output).groups())
    assert 0.5 * raw < size < raw == 9 * 32 * 32 * 3 and png < raw
