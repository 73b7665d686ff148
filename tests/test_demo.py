"""The command behind `make demo`, on a small scale."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image

from jet_hf import JetForDensityEstimation, JetImageProcessor


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


def run(folder, **arguments) -> subprocess.CompletedProcess:
    flags = [part for name, value in (SMALL | arguments).items() for part in (f"--{name}", str(value))]
    command = [sys.executable, ROOT / "scripts/demo.py", "--output_dir", folder, *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = run(folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_results(demo):
    folder, output = demo
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
    assert f"{bits['Jet after training']:.3f}" in output.stdout and "WebP" in (folder / "results.md").read_text()
    assert "bits/dim" in output.stderr  # the progress bar


def test_the_model_folder_loads_and_scores_as_in_the_table(demo):
    folder, _ = demo
    model = JetForDensityEstimation.from_pretrained(folder / "model").eval()
    processor = JetImageProcessor.from_pretrained(folder / "model")
    assert processor.size["height"] == 8
    photograph = Image.open(folder / "photographs" / "validation" / "coffee.png")
    output = model(**processor(photograph, return_tensors="pt"), generator=torch.Generator().manual_seed(0))
    assert 2 < output.bits_per_dim.item() < 12


def test_pictures(demo):
    folder, _ = demo
    for name in ("samples", "reconstructions", "learning_curve"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_a_second_run_replaces_the_first_and_nothing_else(demo, tmp_path):
    folder, _ = demo
    before = (folder / "results.json").stat().st_ino
    assert run(folder, max_steps=2).returncode == 0
    assert json.loads((folder / "results.json").read_text())["steps"] == 2
    assert (folder / "results.json").stat().st_ino != before and [p.name for p in folder.parent.iterdir()] == ["out"]

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    refused = run(precious)
    assert refused.returncode == 1 and "already exists" in refused.stderr and "Traceback" not in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"] and (precious / "thesis.tex").read_text()


def test_training_stops_at_the_time_limit(tmp_path):
    """The speed that the trial steps promised need not hold."""
    slow = (
        "import examples.demo as demo; "
        "demo.affordable_steps = lambda *_: 10**6; from transformers import HfArgumentParser; "
        "demo.run_demo(*HfArgumentParser(demo.DemoArguments).parse_args_into_dataclasses())"
    )
    flags = [f"--{name}={value}" for name, value in (SMALL | {"max_minutes": 0.02}).items()]
    command = [sys.executable, "-c", slow, f"--output_dir={tmp_path / 'out'}", *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "stopped after" in result.stdout and results["training_seconds"] >= 1.2 and results["steps"] < 10**6
    assert (tmp_path / "out" / "learning_curve.png").is_file()


def test_unknown_and_wrong_arguments_are_named(tmp_path):
    assert "--num_layers" in run(tmp_path / "out", num_layers=3).stderr
    wrong = run(tmp_path / "out", image_size=10)
    assert wrong.returncode == 1 and "image_size" in wrong.stderr
    assert list(tmp_path.iterdir()) == []
