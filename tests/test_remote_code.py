"""Code taken from the saved folder gives the numbers of the package, which is not installed there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_bytes, random_images
from test_transformers import CONTEXT, assert_same_tensors, inputs_of, trained_model
from test_variants import VARIANTS, conditions_of, noise_of, scores, variant

import jet_hf.model
from jet_hf import JetForDensityEstimation, JetImageProcessor


REMOTE = """
import gc, importlib.abc, os, shutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jet_hf":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
try:
    import jet_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("jet_hf could be imported")

gc.disable()
import torch
from functools import partial
from pathlib import Path
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.dynamic_module_utils import HF_MODULES_CACHE
from transformers.models.auto.image_processing_auto import AutoImageProcessor

inputs = torch.load("inputs.pt")
trust = {"trust_remote_code": True}

def results(density, bare):
    with torch.no_grad():
        latents, log_det = bare.encode(inputs["pixel_values"], inputs["context"])
        return {
            "bits_per_dim": density(inputs["pixel_values"], inputs["context"], noise=inputs["noise"]).bits_per_dim,
            "sample": density.sample(2, generator=torch.Generator().manual_seed(3), context=inputs["context"]),
            "latents": latents,
            "log_det": log_det,
        }

def next_generation(source, target, file):
    density, bare = (AutoModel.from_pretrained(source / name, **trust) for name in ("density", "bare"))
    assert type(density).__name__ == "JetForDensityEstimation" and type(bare).__name__ == "JetModel"
    assert type(AutoConfig.from_pretrained(source / "bare", **trust)) is type(bare.config)
    processor = AutoImageProcessor.from_pretrained(source / "density", **trust)
    pixels = {"pixels": processor(list(inputs["bytes"]), return_tensors="pt").pixel_values}
    loaded = results(density, bare) | pixels

    with torch.no_grad():
        for model in (density, bare):
            for parameter in model.parameters():
                parameter.mul_(1.25)
    for folder, parts in {"density": (density, processor), "bare": (bare,)}.items():
        for part in parts:
            part.save_pretrained(target / folder)
    torch.save({"loaded": loaded, "changed": results(density, bare) | pixels}, file)

def score_variants(folders):
    remote_class = type(AutoModel.from_pretrained(folders[0], **trust))
    for folder in folders:  # all have the same code, which is imported once
        model = remote_class.from_pretrained(folder)
        with torch.no_grad():
            output = model(**torch.load(folder / "inputs.pt"))
        torch.save(output.to_tuple()[1], folder / "bits.pt")

generations = [partial(next_generation, Path(str(i)), Path(str(i + 1)), f"results_{i}.pt") for i in (1, 2)]
for work in (*generations, partial(score_variants, sorted(Path("models").iterdir()))):
    shutil.rmtree(HF_MODULES_CACHE, ignore_errors=True)
    if process := os.fork():  # torch and transformers are imported once, and code of the Hub by each
        assert os.waitpid(process, 0)[1] == 0
    else:
        work()
        assert not any(name.split(".")[0] == "jet_hf" for name in sys.modules)
        os._exit(0)
os._exit(0)  # Python takes a second to end a process with so many objects
"""


@pytest.fixture(scope="module")
def saved():
    return trained_model(**CONTEXT), {name: variant(name, num_coupling_layers=3) for name in VARIANTS}


@pytest.fixture(scope="module")
def folder(saved, tmp_path_factory):
    """Save models, run code of their folders in a process without jet_hf, and return the folder with its results."""
    folder = tmp_path_factory.mktemp("remote")
    model, models = saved
    model.save_pretrained(folder / "1/density")
    JetImageProcessor(size=model.config.image_size).save_pretrained(folder / "1/density")
    model.jet.save_pretrained(folder / "1/bare")
    torch.save(inputs_of(model.config) | {"bytes": random_bytes(2, model.config)}, folder / "inputs.pt")
    for name, model in models.items():
        model.save_pretrained(folder / "models" / name)
        images = random_images(4, model.config)
        inputs = {"pixel_values": images, "noise": noise_of(images), **conditions_of(model, 4)}
        torch.save(inputs, folder / "models" / name / "inputs.pt")
    environment = os.environ | {
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    environment.pop("PYTHONPATH", None)
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, "-c", REMOTE]
    process = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_score_alike(saved, folder, name):
    found = torch.load(folder / "models" / name / "bits.pt")
    torch.testing.assert_close(found, scores(saved[1][name]), rtol=1e-6, atol=1e-6)


def test_two_generations(saved, folder):
    model, _ = saved
    processor = JetImageProcessor(size=model.config.image_size)
    inputs = torch.load(folder / "inputs.pt")
    with torch.no_grad():
        latents, log_det = model.encode(inputs["pixel_values"], inputs["context"])
        expected = {
            "bits_per_dim": model(inputs["pixel_values"], inputs["context"], noise=inputs["noise"]).bits_per_dim,
            "sample": model.sample(2, generator=torch.Generator().manual_seed(3), context=inputs["context"]),
            "latents": latents,
            "log_det": log_det,
            "pixels": processor(list(inputs["bytes"]), return_tensors="pt").pixel_values,
        }
    sources = {file.name: file.read_bytes() for file in Path(jet_hf.model.__path__[0]).glob("*_jet.py")}
    assert "modeling_jet.py" in sources and "image_processing_jet.py" in sources
    for generation in (1, 2):
        parent = folder / str(generation)
        assert {file.name: file.read_bytes() for file in (parent / "density").glob("*.py")} == sources
        results = torch.load(folder / f"results_{generation}.pt")
        assert_same_tensors(results["loaded"], expected)
        assert not torch.equal(results["changed"]["sample"], expected["sample"])
        expected = results["changed"]

    # The package loads a model that remote code saved.
    final = JetForDensityEstimation.from_pretrained(folder / "3/density")
    with torch.no_grad():
        bits = final(inputs["pixel_values"], inputs["context"], noise=inputs["noise"]).bits_per_dim
    assert torch.equal(bits, expected["bits_per_dim"])
