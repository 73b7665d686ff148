"""Refusals and settings of TPUs, with a stand-in for torch_xla. `make test-xla` trains through the real one."""

import os
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import random_images, tiny_model
from script_runner import run_script
from torch.utils.checkpoint import checkpoint

from jet_hf.analysis.cost import peak_flops
from jet_hf.training import parse_arguments
from jet_hf.training.dry_run import device_memory
from jet_hf.training.environment import device_name
from jet_hf.training.monitor import peak_memory
from jet_hf.training.setup import enable_gradient_checkpointing, make_accelerator
from jet_hf.utils.console import rank
from jet_hf.utils.xla import check_device


XLA = torch.device("xla:0")


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    prefixes = ("TPU_", "PJRT_", "XLA_", "ACCELERATE_", "USE_TORCH_XLA")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)


@pytest.fixture
def torch_xla(monkeypatch):
    """Put a stand-in for torch_xla on a TPU in its place, and return what it says of its device."""
    told = SimpleNamespace(kind="TPU v4", memory={"bytes_limit": 2**35, "peak_bytes_used": 2**30})
    names = (
        "torch_xla",
        "torch_xla.core",
        "torch_xla.core.xla_model",
        "torch_xla.utils",
        "torch_xla.utils.checkpoint",
    )
    modules = {name: ModuleType(name) for name in names}
    modules["torch_xla.core"].xla_model = modules["torch_xla.core.xla_model"]

    def get_memory_info(device):
        if told.memory is None:
            raise RuntimeError("GetAllocatorStats is not supported")
        return told.memory

    modules["torch_xla.core.xla_model"].xla_device_kind = lambda device: told.kind
    modules["torch_xla.core.xla_model"].get_memory_info = get_memory_info
    modules["torch_xla.utils.checkpoint"].checkpoint = partial(checkpoint, use_reentrant=True)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return told


def install(folder, monkeypatch, name: str) -> None:
    """Install a package that cannot be imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise ImportError('libtpu.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("sign", ["PJRT_DEVICE is TPU", "TPU_WORKER_ID is set", "torch_xla is in", "torch_tpu is in"])
def test_a_missed_accelerator_ends_the_run(tmp_path, monkeypatch, capsys, sign):
    name, _, value = sign.split()
    if value == "in":
        install(tmp_path, monkeypatch, name)
    else:
        monkeypatch.setenv(name, "TPU" if value == "TPU" else "0")
    for script in ("train.py", "evaluate.py"):
        folders = ["--output_dir", tmp_path / "run", "--dataset_path", tmp_path]
        words = folders if script == "train.py" else ["--model", tmp_path, "--dataset", tmp_path]
        assert run_script(script, *words) == 1
        assert f"error: {sign}" in (error := capsys.readouterr().err) and "ACCELERATE_USE_CPU=true" in error
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert make_accelerator(parse_arguments([])).device.type == "cpu"


def test_a_cpu_that_was_asked_for_is_no_error(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "torch_xla")
    monkeypatch.setenv("USE_TORCH_XLA", "0")
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    check_device(torch.device("cpu"), "bf16")
    monkeypatch.setenv("PJRT_DEVICE", "CUDA")
    check_device(torch.device("cuda"), "bf16")


def test_torch_xla_needs_an_accelerator_and_float32(torch_xla, monkeypatch):
    check_device(XLA, "no")
    with pytest.raises(ValueError, match="mixed precision must be 'no' under torch_xla, got bf16"):
        check_device(XLA, "bf16")
    monkeypatch.setenv("XLA_USE_BF16", "1")
    with pytest.raises(ValueError, match="got no and XLA_USE_BF16"):
        check_device(XLA, "no")
    torch_xla.kind = "cpu"
    monkeypatch.setenv("PJRT_DEVICE", "CPU")  # as torch_xla does itself; the process was not started with it
    with pytest.raises(ValueError, match="torch_xla is installed and has found no accelerator, but"):
        check_device(XLA, "no")


def test_figures_of_a_tpu_are_those_of_the_device(torch_xla):
    assert device_name(XLA) == "TPU v4" and peak_flops(device_name(XLA)) == 275e12
    assert (device_memory(SimpleNamespace(device=XLA)), peak_memory(XLA)) == (2**35, 2**30)
    torch_xla.memory = None
    assert device_memory(SimpleNamespace(device=XLA)) is None and peak_memory(XLA) > 2**20  # of the process


def test_gradient_checkpointing_is_that_of_torch_xla(torch_xla):
    gradients = []
    for enable in (False, True):
        model = tiny_model().train()
        if enable:
            enable_gradient_checkpointing(model, XLA)
        model(random_images(2, model.config), noise=torch.full((2, 3, 8, 8), 0.5)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_processes_of_torch_xla_have_ranks(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert rank() == 0
    monkeypatch.setenv("PJRT_LOCAL_PROCESS_RANK", "2")
    assert rank() == 2
    monkeypatch.setenv("RANK", "0")
    assert rank() == 0
