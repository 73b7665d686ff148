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
    "digits_steps": 150,
    "photographs_steps": 60,
    "noisy_photographs_steps": 10,
    "image_size": 8,
    "num_coupling_layers": 3,
    "hidden_size": 32,
    "num_train_crops": 600,
    "num_eval_crops": 64,
    "num_samples": 100,
    "max_minutes": 20,
}
# Leaves out four of five digits.
FEW_FILES = {"digits": shutil.ignore_patterns("*[1-46-9].png"), "photographs": None}
TASKS = ("digits", "photographs", "noisy_photographs")


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
    assert results["reconstructions_bytes_equal"] is True
    assert results["steps"] == {name: SMALL[f"{name}_steps"] for name in TASKS}
    digits = results["figures"]["digits"]
    assert digits["bayes_accuracy"]["samples"] > 0.5 and digits["classifier_accuracy"]["real"] > 0.8
    seams = results["figures"]["noisy_photographs"]["seam_strength"]
    assert seams["samples"] > 0.5 and abs(seams["real"] - 1) < 4 * seams["real_standard_error"]
    assert f"{bits['Jet after training']:.3f}" in stdout and "WebP" in (folder / "results.md").read_text()
    assert "bits/dim" in stderr and "nats/dim" in stderr  # the progress bars
    for name in ("samples", "reconstructions", "learning_curve"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_the_model_folders_load_and_score(finished):
    folder, *_ = finished
    model = JetForDensityEstimation.from_pretrained(folder / "models" / "photographs").eval()
    processor = JetImageProcessor.from_pretrained(folder / "models" / "photographs")
    assert processor.size["height"] == 8
    photograph = Image.open(folder / "data" / "photographs" / "validation" / "coffee.png")
    output = model(**processor(photograph, return_tensors="pt"), generator=torch.Generator().manual_seed(0))
    assert 2 < output.bits_per_dim.item() < 12
    digits = JetForDensityEstimation.from_pretrained(folder / "models" / "digits").eval()
    assert digits.sample(2, labels=torch.tensor([3, 7])).shape == (2, 1, 8, 8)


def test_a_second_run_replaces_the_first_and_stops_at_the_time_limit(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    (folder / "stale.txt").touch()
    for name in ("digits", "photographs"):
        data, few = finished[0] / "data" / name, FEW_FILES[name]
        monkeypatch.setattr(
            demo, f"write_{name}", lambda path, data=data, few=few: shutil.copytree(data, path, ignore=few)
        )
    monkeypatch.setattr(demo, "affordable_steps", lambda *_: 10**6)  # the estimate may be too high
    results = demo.run_demo(demo.DemoArguments(str(folder), **SMALL | {"max_minutes": 0.02, "num_samples": 20}))
    assert results == json.loads((folder / "results.json").read_text())
    assert "The time limit stopped the training on noisy_photographs after" in capsys.readouterr().out
    assert sum(results["training_seconds"].values()) >= 1.2 and max(results["steps"].values()) < 10**6
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
