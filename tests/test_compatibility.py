"""Models and checkpoints of an earlier release (commit 4ce298f) load, score and resume as they did there."""

import sys
import tarfile

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file
from transformers import dynamic_module_utils

from jet_hf import JetForDensityEstimation
from jet_hf.training import parse_arguments, train


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Folders that 4ce298f wrote, with the inputs and outputs of its models."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(FIXTURES / "jet_hf_4ce298f.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "jet_hf_4ce298f"


@torch.no_grad()
def assert_recorded_outputs(model: torch.nn.Module, folder) -> None:
    """Kernels of the two releases differ in rounding."""
    output = model.eval()(**load_file(folder / "inputs.safetensors"))
    for name, expected in load_file(folder / "outputs.safetensors").items():
        torch.testing.assert_close(output[name], expected, rtol=1e-5, atol=1e-4 if name == "log_det" else 1e-5)


def test_saved_models_load_in_this_code_and_in_their_own(release, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformers_modules", raising=False)
    for name in ("plain", "everything"):
        folder = release / name
        remote = dynamic_module_utils.get_class_from_dynamic_module(
            "modeling_jet.JetForDensityEstimation", str(folder)
        )
        assert remote is not JetForDensityEstimation
        for model_class in (JetForDensityEstimation, remote):
            assert_recorded_outputs(model_class.from_pretrained(folder), folder)
    monkeypatch.delitem(sys.modules, "transformers_modules")


def test_a_checkpoint_resumes_to_the_recorded_weights(release):
    settings = {
        "dataset_path": release / "data",
        "output_dir": release / "run",
        "resume_from_checkpoint": "latest",
        "image_size": 8,
        "patch_size": 2,
        "num_coupling_layers": 2,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "train_batch_size": 8,
        "learning_rate": 0.01,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
        "eval_steps": 0,
        "sample_steps": 0,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()] + ["--coupling_kinds", "channels", "spatial"]
    with pytest.raises(ValueError, match=r"`model.noise_std` was None and is now 0.1"):  # it had no such field
        train(parse_arguments([*flags, "--noise_std=0.1"]))
    train(parse_arguments(flags))
    expected = load_file(release / "final.safetensors")
    resumed = JetForDensityEstimation.from_pretrained(release / "run").state_dict()
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        given = resumed[name]
        if name.endswith("qkv_proj.bias"):  # Adam scales up the key's gradient, which is rounding noise
            given, tensor = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (given, tensor))
        torch.testing.assert_close(given, tensor, rtol=0, atol=1e-6, msg=name)
