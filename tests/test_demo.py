"""The command behind `make demo`, on a small scale."""

import io
import json
import runpy
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from conftest import ROOT
from PIL import Image
from script_runner import run_script

from examples import demo
from jet_hf import JetForDensityEstimation, JetImageProcessor


SCRIPT = str(ROOT / "scripts" / "demo.py")
SMALL = {
    "image_size": 8,
    "num_coupling_layers": 2,
    "hidden_size": 32,
    "num_train_crops": 600,
    "num_eval_crops": 64,
    "train_batch_size": 32,
    "max_steps": 40,
    "max_minutes": 0.5,
    "learning_rate": 3e-3,
}


def command(folder, **arguments) -> list[str]:
    return [SCRIPT, f"--output_dir={folder}", *(f"--{name}={value}" for name, value in (SMALL | arguments).items())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the demo and return its folder, its stdout and its stderr."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        assert run_script("demo.py", *command(folder)[1:]) == 0
    return folder, stdout.getvalue(), stderr.getvalue()


def test_results(finished):
    folder, stdout, stderr = finished
    results = json.loads((folder / "results.json").read_text())
    bits = {name: row["mean"] for name, row in results["bits_per_dim"].items()}
    assert set(bits) == {
        "Jet before training",
        "Jet after training",
        "PNG (Pillow)",
        "WebP lossless (Pillow)",
        "histogram of pixel values",
    }
    assert bits["Jet after training"] < bits["Jet before training"] - 0.5
    assert 1 < bits["WebP lossless (Pillow)"] < bits["PNG (Pillow)"] < 16
    assert 6 < bits["histogram of pixel values"] < 11
    assert results["reconstructions_bytes_equal"] is True and results["steps"] == 40
    assert f"{bits['Jet after training']:.3f}" in stdout and "WebP" in (folder / "results.md").read_text()
    assert "bits/dim" in stderr  # the progress bar
    for name in ("samples", "reconstructions", "learning_curve"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_the_model_folder_loads_and_scores(finished):
    folder, *_ = finished
    model = JetForDensityEstimation.from_pretrained(folder / "model").eval()
    processor = JetImageProcessor.from_pretrained(folder / "model")
    assert processor.size["height"] == 8
    photograph = Image.open(folder / "photographs" / "validation" / "coffee.png")
    output = model(**processor(photograph, return_tensors="pt"), generator=torch.Generator().manual_seed(0))
    assert 2 < output.bits_per_dim.item() < 12


def test_a_second_run_replaces_the_first_and_stops_at_the_time_limit(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    (folder / "stale.txt").touch()
    monkeypatch.setattr(demo, "write_photographs", lambda path: shutil.copytree(finished[0] / "photographs", path))
    monkeypatch.setattr(demo, "affordable_steps", lambda *_: 10**6)  # the estimate may be too high
    results = demo.run_demo(demo.DemoArguments(str(folder), **SMALL | {"max_minutes": 0.02}))
    assert results == json.loads((folder / "results.json").read_text())
    assert "The time limit stopped the training after" in capsys.readouterr().out
    assert results["training_seconds"] >= 1.2 and results["steps"] < 10**6
    assert (folder / "learning_curve.png").is_file() and not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_refusals_name_the_reason_and_leave_everything(tmp_path, monkeypatch):
    thesis = tmp_path / "thesis" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    for arguments, message in (
        (command(thesis.parent), "already exists"),
        (command(tmp_path / "out", image_size=10), "image_size"),
        (command(tmp_path / "out", num_layers=3), "--num_layers"),
    ):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            runpy.run_path(SCRIPT, run_name="__main__")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis"] and thesis.read_text() == "years of work"
