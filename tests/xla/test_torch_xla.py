"""
Training through torch_xla, on its CPU runtime and in one process: `make test-xla`.

`make test` leaves this folder out, since torch_xla needs a release of torch of its own.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT, random_bytes, tiny_model
from safetensors.torch import load_file
from test_parity import BIG_VISION, SCORED, check_transforms, convert, inputs, largest_relative, to_nchw
from train_process import TINY, list_flags, rows

from examples.digits import write_digits
from jet_hf.data import Batch
from jet_hf.training import Trainer, parse_arguments, train
from jet_hf.training.checkpoints import read_manifest
from jet_hf.training.setup import enable_gradient_checkpointing, make_accelerator


metrics = pytest.importorskip("torch_xla.debug.metrics")

DIGITS = TINY | {
    "num_channels": 1,
    "num_coupling_layers": 3,
    "num_levels": 17,
    "num_classes": 10,
    "max_steps": 6,
    "eval_split": "test",
    "max_eval_images": 32,
    "num_samples": 2,
    "use_ema": True,
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Return the options of a run, which has ended in `output_dir`."""
    root = tmp_path_factory.mktemp("runs")
    fields = DIGITS | {"dataset_path": write_digits(root / "digits"), "output_dir": root / "straight"}
    train(parse_arguments(list_flags(fields)))
    return fields


def start(**fields) -> subprocess.Popen:
    variables = {name: fields.pop(name) for name in list(fields) if name.isupper()}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *list_flags(fields)]
    return subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.PIPE, text=True)


def weights(folder) -> dict[str, bytes]:
    """Return the bytes of all weights and moments of a checkpoint."""
    tensors = {
        f"{name}/{key}": value
        for name in (".", "training_weights")
        for key, value in load_file(folder / name / "model.safetensors").items()
    }
    optimizer = torch.load(folder / "optimizer.bin")["state"]
    tensors |= {f"{i}/{key}": value for i, state in optimizer.items() for key, value in state.items()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_killed_run_resumes_bit_for_bit(options):
    straight, killed = options["output_dir"], options["output_dir"].with_name("killed")
    process = start(**options | {"output_dir": killed})
    while not (killed / "checkpoint-3").exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert not (killed / "config.json").exists()
    train(parse_arguments(list_flags(options | {"output_dir": killed, "resume_from_checkpoint": "latest"})))
    for name in ("checkpoint-3", "checkpoint-6"):
        assert weights(killed / name) == weights(straight / name), name
        read_manifest(killed / name)
    losses = [[row["loss"] for row in rows(folder)] for folder in (straight, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_a_run_equals_that_of_a_cpu(options):
    straight, cpu = options["output_dir"], options["output_dir"].with_name("cpu")
    fields = options | {"output_dir": cpu, "sample_steps": 0, "USE_TORCH_XLA": "0", "ACCELERATE_USE_CPU": "true"}
    process = start(**fields)
    assert process.wait() == 0, process.stderr.read()
    for ours, theirs in zip(rows(straight), rows(cpu), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    for ours, theirs in zip(rows(straight, "evaluations.jsonl"), rows(cpu, "evaluations.jsonl"), strict=True):
        assert ours["bits_per_dim"] == pytest.approx(theirs["bits_per_dim"], rel=2e-5)
    assert len(list((straight / "samples").glob("samples-*.png"))) == 2
    (environment,) = rows(straight, "environments.jsonl")
    assert environment["torch_xla"].startswith("2.9.") and "torch_xla" not in rows(cpu, "environments.jsonl")[0]


def count(name: str) -> int:
    """Return how often torch_xla has compiled, run or transferred something."""
    return (metrics.metric_data(name) or (0,))[0]


def take_steps(num_micro_batches: int, gradient_checkpointing: bool = False) -> tuple[list, list[int], list[int]]:
    """Return the metrics of five steps of eight images, the graphs that each compiled, and the values that it read."""
    accelerator = make_accelerator(parse_arguments([f"--gradient_accumulation_steps={num_micro_batches}"]))
    accelerator.gradient_accumulation_steps = num_micro_batches
    model = tiny_model(num_coupling_layers=2)
    if gradient_checkpointing:
        enable_gradient_checkpointing(model, accelerator.device)
    trainer = Trainer(model, 30, learning_rate=1e-2, accelerator=accelerator)
    tensors, size = (random_bytes(8, model.config), torch.arange(8)), 8 // num_micro_batches
    parts = [Batch(*part) for part in zip(*(tensor.split(size) for tensor in tensors), strict=True)]
    steps, compiled, read = [], [], []
    for _ in range(5):
        before = count("CompileTime"), count("TransferFromDeviceTime")
        steps.append(trainer.step(parts))
        compiled.append(count("CompileTime") - before[0])
        read.append(count("TransferFromDeviceTime") - before[1])
    return steps, compiled, read


@pytest.fixture(scope="module")
def plain():
    return take_steps(1)


def test_a_step_compiles_nothing_after_the_third_and_reads_the_device_once(plain):
    _, compiled, read = plain
    assert sum(compiled[:3]) > 0 and compiled[3:] == [0, 0]
    assert read == [1] * 5


def test_micro_batches_share_a_graph(plain):
    two, compiled_for_two, _ = take_steps(2)
    four, compiled_for_four, _ = take_steps(4)
    assert sum(compiled_for_four) <= sum(compiled_for_two) + 1  # the stacked losses
    for steps in (two, four):
        for ours, theirs in zip(steps, plain[0], strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=2e-5)


def test_gradient_checkpointing_changes_nothing_but_the_graph(plain):
    steps, compiled, _ = take_steps(1, gradient_checkpointing=True)
    assert compiled[0] > 0
    for ours, theirs in zip(steps, plain[0], strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=2e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)


def test_torch_compile_is_refused():
    with pytest.raises(ValueError, match="`torch_compile` must be false under torch_xla"):
        make_accelerator(parse_arguments(["--torch_compile", "true"]))


@pytest.mark.parametrize("name", [*SCORED, "jet_pytorch_16px"])
@torch.no_grad()
def test_parity_with_the_original(tmp_path, within, name):
    if name in SCORED:
        model = convert(tmp_path / "model", "big_vision", FIXTURES / f"{name}.npz", *BIG_VISION[name])
    else:
        flags = ["--num-attention-heads", "4", "--coupling-kinds", "channels", "channels", "spatial"]
        model = convert(tmp_path / "model", "jet_pytorch", FIXTURES / f"{name}.safetensors", *flags)
    reference = np.load(FIXTURES / f"{name}.npz")
    pixel_values, noise, context = (None if x is None else x.to("xla") for x in inputs(reference))
    model.to("xla")
    output = model(pixel_values, context=context, noise=noise)
    decoded = model.decode(to_nchw(reference["in/latent"]).to("xla"), context)
    output.latents, output.log_det = output.latents.cpu(), output.log_det.cpu()
    check_transforms(within, name, output, [tensor.cpu() for tensor in decoded], reference)
    if name in SCORED:
        bits = torch.from_numpy(reference["out/bits_per_dim"])
        within(f"{name}: bits per dimension, relative", largest_relative(output.bits_per_dim.cpu(), bits), 1e-6)
