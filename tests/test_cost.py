"""What a run takes, against formulas and against real passes."""

import warnings

import pytest
import torch
from conftest import random_images, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from jet_hf import JetConfig, JetForDensityEstimation
from jet_hf.analysis.cost import (
    activation_bytes,
    estimate_cost,
    format_estimate,
    forward_flops,
    measure_peaks,
    peak_flops,
    training_flops,
)


PAPER = {"num_coupling_layers": 64, "hidden_size": 512, "num_hidden_layers": 5, "num_attention_heads": 8}
SMALL = {"image_size": 16, "patch_size": 4, "num_coupling_layers": 7, "hidden_size": 64, "num_hidden_layers": 2}


def matrix_products(config: JetConfig) -> int:
    """Twice the multiplications of one image: projections in and out, and blocks with attention over all tokens."""
    tokens, width = config.num_patches, config.hidden_size
    ends = width * config.patch_dim // 2 + width * config.patch_dim
    block = 4 * width * width + 2 * width * config.intermediate_size + 2 * tokens * width
    return 2 * tokens * config.num_coupling_layers * (ends + config.num_hidden_layers * block)


@pytest.mark.parametrize("fields", [{}, {"num_coupling_layers": 1}, {"intermediate_size": 24, "num_hidden_layers": 3}])
def test_operations_are_those_of_the_formula(fields):
    config = tiny_config(**fields)
    assert forward_flops(config) == matrix_products(config)
    assert training_flops(config) == 3 * forward_flops(config)
    assert training_flops(config, gradient_checkpointing=True) == 4 * forward_flops(config)


def test_the_papers_model():
    config = JetConfig(**PAPER)
    estimate = estimate_cost(config, 1024, 16, 250_224, "bf16")
    assert forward_flops(config) == matrix_products(config)
    block = 12 * 512**2 + 13 * 512
    assert estimate.num_parameters == 64 * (24 * 512 + 512 + 256 * 512 + 5 * block + 2 * 512 + 512 * 48 + 48)
    assert (estimate.num_dims, estimate.num_tokens) == (3 * 64 * 64, 256)
    assert estimate.flops_per_step == 1024 * 3 * matrix_products(config)
    assert estimate.total_flops == 250_224 * estimate.flops_per_step
    assert estimate.hours(1e15, 0.5) == pytest.approx(estimate.total_flops / 0.5e15 / 3600)
    assert estimate.weight_bytes == estimate.gradient_bytes == 4 * estimate.num_parameters
    assert estimate.optimizer_bytes == 8 * estimate.num_parameters and estimate.ema_bytes == 0
    assert estimate.total_bytes == 16 * estimate.num_parameters + estimate.activation_bytes
    text = format_estimate(estimate)
    assert "1,019,612,160" in text and "250,224 steps" in text and "FLOP" in text and "at 40%" in text


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_training_step_does_as_many_operations(checkpointing):
    model = tiny_model(attn_implementation="eager").train()  # the fused CPU kernel is unknown to the counter
    if checkpointing:
        model.gradient_checkpointing_enable()
    with FlopCounterMode(display=False) as counter:
        # The estimate counts the gradient for the first layer's input, which is not needed otherwise.
        model(random_images(2, model.config).requires_grad_()).loss.backward()
    assert counter.get_total_flops() == 2 * training_flops(model.config, checkpointing)


def test_each_layer_kind_is_counted():
    model = JetForDensityEstimation(tiny_config(num_coupling_layers=11))
    assert estimate_cost(model.config, 1, 1, 1).num_parameters == model.num_parameters()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_activations_are_those_of_a_real_pass(precision, checkpointing):
    config = JetConfig(**SMALL)
    model = JetForDensityEstimation(config).train()
    real = max(measure_peaks(model, {"pixel_values": random_images(12, config)}, precision == "bf16", checkpointing))
    assert activation_bytes(config, 12, precision, checkpointing) == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_saved_tensors_are_among_the_activations(precision):
    """Autograd's own account: unique storages that it keeps for the backward pass."""
    config = JetConfig(**SMALL)
    model = JetForDensityEstimation(config).train()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(random_images(12, config)).loss  # alive, so no storage's place is used twice
    saved = sum(size for place, size in kept.items() if place not in weights)
    assert loss.requires_grad and saved <= activation_bytes(config, 12, precision) <= 1.15 * saved


def test_what_saves_memory():
    config = JetConfig(**SMALL)
    options = {"batch_size": 64, "num_steps": 1}
    plain = estimate_cost(config, micro_batch_size=64, **options)
    assert estimate_cost(config, micro_batch_size=16, **options).activation_bytes < 0.3 * plain.activation_bytes
    for fields in ({"mixed_precision": "bf16"}, {"gradient_checkpointing": True}):
        assert estimate_cost(config, micro_batch_size=64, **options, **fields).total_bytes < plain.total_bytes
    averaged = estimate_cost(config, micro_batch_size=64, **options, use_ema=True)
    assert averaged.total_bytes - plain.total_bytes == averaged.ema_bytes == 4 * plain.num_parameters
    shared = estimate_cost(config, micro_batch_size=64, **options, num_shards=4)
    assert shared.weight_bytes == -(-plain.weight_bytes // 4) and shared.gathered_bytes > 0 == plain.gathered_bytes


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6e", 918e12),
        ("Some CPU", None),
    ],
)
def test_peaks_by_the_names_that_devices_give_themselves(name, peak):
    assert peak_flops(name) == peak


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
