"""
The paper's model of 1.02 billion parameters: sharded files, remote code, `device_map="auto"` and the memory of all.

It needs 9 GiB of memory, 4 GiB of disk and some minutes, so that it runs on request only:
`pytest tests/test_large_models.py --large-models -s`, which prints times and memory.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, random_images

from jet_hf import JetConfig, JetForDensityEstimation


# Loads the model with the code of its folder, and prints what the test checks as JSON.
LOAD = """
import json, resource, sys, time
import torch
from transformers import AutoModel

folder, arguments = sys.argv[1], json.loads(sys.argv[2])
inputs = torch.load(f"{folder}/inputs.pt")
start = time.monotonic()
model = AutoModel.from_pretrained(folder, trust_remote_code=True, **arguments)
loaded = time.monotonic()
with open("/proc/self/maps") as maps:
    shards = {line.split()[-1] for line in maps if line.rstrip().endswith(".safetensors")}
devices = sorted({parameter.device.type for parameter in model.parameters()})
with torch.no_grad():
    output = model(**inputs)
    images, _ = model.decode(output.latents)
scored = time.monotonic()
print(json.dumps({
    "bits": output.bits_per_dim.tolist(),
    "error": (images - inputs["pixel_values"] - inputs["noise"] / 127.5).abs().max().item(),
    "code": type(model).__module__,
    "installed": "jet_hf" in sys.modules,
    "devices": devices,
    "shards_mapped": len(shards),
    "load_seconds": round(loaded - start, 1),
    "score_and_decode_seconds": round(scored - loaded, 1),
    "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
}))
"""


@pytest.fixture(scope="module")
def large(request, tmp_path_factory):
    """Save the model of the recipe in shards, with two inputs, and return its folder and its score."""
    if not request.config.getoption("--large-models"):
        pytest.skip("runs with --large-models")
    recipe = yaml.safe_load((ROOT / "recipes/imagenet1k_64.yaml").read_text())
    config = JetConfig(**{name: value for name, value in recipe.items() if name in JetConfig.__annotations__})
    torch.manual_seed(0)
    start = time.monotonic()
    model = JetForDensityEstimation(config)
    built = time.monotonic()
    for coupling in model.jet.couplings:  # a new flow is the identity
        torch.nn.init.normal_(coupling.conditioner.out_proj.weight, std=0.01)
    folder = tmp_path_factory.mktemp("large")
    images = random_images(1, config)
    inputs = {"pixel_values": images, "noise": torch.rand(images.shape)}
    torch.save(inputs, folder / "inputs.pt")
    with torch.no_grad():
        bits = model(**inputs).bits_per_dim.tolist()
    scored = time.monotonic()
    model.save_pretrained(folder, max_shard_size="1GB")
    saved = time.monotonic()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"\n{count:,} parameters: built in {built - start:.1f} s, saved in {saved - scored:.1f} s")
    del model
    gc.collect()
    yield folder, bits, count
    shutil.rmtree(folder)


def load(folder: Path, **arguments) -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", LOAD, folder, json.dumps({"device_map": "auto"} | arguments)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    print(arguments, result)
    assert result["code"].startswith("transformers_modules.") and not result["installed"]
    return result


def test_a_billion_parameters_in_shards(large):
    folder, _, count = large
    assert count == 1_019_612_160
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert set(index["weight_map"].values()) == {file.name for file in files} and len(files) == 5
    assert max(file.stat().st_size for file in files) < 1.01e9


def test_a_billion_parameters_on_the_cpu_and_the_disk(large, tmp_path):
    folder, bits, _ = large
    result = load(folder, max_memory={"cpu": "2GiB"}, offload_folder=str(tmp_path))
    assert result["devices"] == ["cpu", "meta"], "weights on the disk are on the meta device between their uses"
    assert result["bits"] == bits and result["error"] < 1e-4


def test_a_billion_parameters_in_bfloat16(large):
    folder, bits, _ = large
    result = load(folder, dtype="bfloat16")
    assert result["devices"] == ["cpu"] and result["shards_mapped"] == 0
    assert result["bits"] == pytest.approx(bits, abs=0.02)
