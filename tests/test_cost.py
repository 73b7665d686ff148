"""Cost estimates against formulas and against real passes."""

import pytest
import torch
from conftest import random_images, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from jet_hf import JetConfig, JetForDensityEstimation
from jet_hf.analysis.cost import (
    CostEstimate,
    activation_bytes,
    count_parameters,
    estimate_cost,
    format_estimate,
    forward_flops,
    measure_peaks,
    peak_flops,
    training_flops,
)


PAPER = {"num_coupling_layers": 64, "hidden_size": 512, "num_hidden_layers": 5, "num_attention_heads": 8}
SMALL = {"image_size": 16, "patch_size": 4, "num_coupling_layers": 6, "hidden_size": 64, "num_hidden_layers": 2}
FLAT = SMALL | {"num_coupling_layers": 4, "num_hidden_layers": 1}  # layers of one kind are quick to trace


def matrix_products(config: JetConfig) -> int:
    """Twice the multiplications of one image: projections in and out, and blocks with attention over all tokens."""
    tokens, width = config.num_patches, config.hidden_size
    ends = width * config.patch_dim // 2 + width * config.patch_dim
    block = 4 * width * width + 2 * width * config.intermediate_size + 2 * tokens * width
    return 2 * tokens * config.num_coupling_layers * (ends + config.num_hidden_layers * block)


def test_operations_follow_the_formula():
    small = tiny_config(num_coupling_layers=1, intermediate_size=24, num_hidden_layers=3)
    for config in (tiny_config(), small, JetConfig(**PAPER)):
        assert forward_flops(config) == matrix_products(config)
        assert training_flops(config) == 3 * forward_flops(config)
        assert training_flops(config, gradient_checkpointing=True) == 4 * forward_flops(config)


def test_parameters_of_the_papers_model_and_of_all_layer_kinds():
    block = 12 * 512**2 + 13 * 512
    expected = 64 * (24 * 512 + 512 + 256 * 512 + 5 * block + 2 * 512 + 512 * 48 + 48)
    assert count_parameters(JetConfig(**PAPER)) == expected
    model = JetForDensityEstimation(tiny_config(num_coupling_layers=11))
    assert count_parameters(model.config) == model.num_parameters()


def test_an_estimate_adds_up():
    memory = {"weight": 4, "gradient": 4, "optimizer": 8, "ema": 0, "gathered": 0, "activation": 2**30}
    config = JetConfig(**PAPER)
    estimate = CostEstimate(config, 1_019_612_160, 1024, 16, 250_224, 1, training_flops(config), memory)
    assert estimate.flops_per_step == 1024 * 3 * matrix_products(config)
    assert estimate.total_flops == 250_224 * estimate.flops_per_step
    assert estimate.hours(1e15, 0.5) == pytest.approx(estimate.total_flops / 0.5e15 / 3600)
    assert estimate.total_bytes == 2**30 + 16
    text = format_estimate(estimate)
    assert "1,019,612,160" in text and "12,288 dimensions, 256 tokens" in text and "250,224 steps" in text
    assert f"H100-hours      {estimate.hours(peak_flops('H100')):,.3g} at 40% of its peak" in text
    assert "1 GiB a process, 16 images at a time" in text and "ema" not in text


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_training_step_does_as_many_operations(checkpointing):
    model = tiny_model(attn_implementation="eager").train()  # the fused CPU kernel is unknown to the counter
    if checkpointing:
        model.gradient_checkpointing_enable()
    with FlopCounterMode(display=False) as counter:
        # The estimate counts the gradient for the first layer's input, which is not needed otherwise.
        model(random_images(2, model.config).requires_grad_()).loss.backward()
    assert counter.get_total_flops() == 2 * training_flops(model.config, checkpointing)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("precision", "checkpointing"), [(None, False), (None, True), ("bf16", False), ("bf16", True)]
)
def test_activations_match_a_real_pass_and_autograds_saved_tensors(precision, checkpointing):
    config = JetConfig(**SMALL)
    estimate = activation_bytes(config, 12, precision, checkpointing)
    model = JetForDensityEstimation(config).train()
    inputs = {"pixel_values": random_images(12, config)}
    assert estimate == pytest.approx(max(measure_peaks(model, inputs, precision == "bf16", checkpointing)), rel=0.03)
    if checkpointing:
        return
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(**inputs).loss  # alive, so that the address of a storage is not used twice
    saved = sum(size for address, size in kept.items() if address not in weights)
    assert loss.requires_grad and saved <= estimate <= 1.15 * saved


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_memory_by_options_of_training():
    config = JetConfig(**FLAT)
    options = {"batch_size": 64, "micro_batch_size": 64, "num_steps": 1}
    plain = estimate_cost(config, **options)
    weights = 4 * plain.num_parameters
    assert plain.memory | {"activation": 0} == {
        "weight": weights,
        "gradient": weights,
        "optimizer": 2 * weights,
        "ema": 0,
        "gathered": 0,
        "activation": 0,
    }
    small = estimate_cost(config, **options | {"micro_batch_size": 16})
    assert small.memory["activation"] < 0.3 * plain.memory["activation"]
    for fields in ({"mixed_precision": "bf16"}, {"gradient_checkpointing": True}):
        assert estimate_cost(config, **options, **fields).total_bytes < plain.total_bytes
    sharded = estimate_cost(config, **options, use_ema=True, num_shards=4)
    assert sharded.memory["ema"] == sharded.memory["weight"] == -(-weights // 4)
    assert sharded.memory["gathered"] > 0


def test_peaks_by_the_names_that_devices_give_themselves():
    peaks = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA B200": 2250e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA L40": None,
        "NVIDIA GeForce RTX 4090": 165e12,
        "NVIDIA GeForce RTX 4090 D": None,
        "Tesla V100-SXM2-16GB": 125e12,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v6e": 918e12,
        "Some CPU": None,
    }
    assert {name: peak_flops(name) for name in peaks} == peaks
