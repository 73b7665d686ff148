# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Contenders of the benchmark: jet_hf, jet-pytorch, and the matrix products and attention alone."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.optim import AdamW, Optimizer

from jet_hf import JetConfig, JetForDensityEstimation
from jet_hf.analysis.cost import forward_flops, training_flops
from jet_hf.analysis.inference import prepare_for_inference
from jet_hf.model.modeling_jet import bits_per_dim, dequantize, scale_bytes, standard_normal_log_prob
from jet_hf.training import build_optimizer


OPERATIONS = ("encode", "decode", "train")
# Each name is a library with its options. Those of STANDARD run unless others are chosen.
FLOAT32 = ("jet_hf", "jet_hf-prepared", "jet_pytorch", "floor", "jet_hf-compiled", "jet_pytorch-compiled")
STANDARD = (*FLOAT32, *(f"{name}-bf16" for name in FLOAT32))
CONTENDERS = (*STANDARD, "jet_hf-checkpointed")
HAS_PEER = all(map(find_spec, ("jet_pytorch", "einops")))


@dataclass(frozen=True)
class Task:
    """The operation to measure, and its sizes; `train` is a whole step with clipping and the library's optimizer."""

    operation: str
    config: JetConfig
    batch_size: int
    device: str = "cpu"
    compile_mode: str | None = None

    @property
    def flops(self) -> int:
        """The floating-point operations of the batch."""
        count = training_flops if self.operation == "train" else forward_flops
        return self.batch_size * count(self.config)


@dataclass
class Work:
    """A contender ready to be measured."""

    model: nn.Module
    run: Callable[[], None]
    optimizer: Optimizer | None


# Model, function that computes the task and, in training, returns the tensors to differentiate, and optimizer.
Contender = tuple[nn.Module, Callable[[], Sequence[torch.Tensor]], Optimizer | None]


def build(contender: str, task: Task) -> Work:
    """Set up a contender for a task, with random weights and random images."""
    torch.manual_seed(0)
    shape = (task.batch_size, *task.config.image_shape)
    pixel_values = scale_bytes(torch.randint(256, shape, dtype=torch.uint8)).to(task.device)
    noise = torch.rand(shape).to(task.device)
    builder = {"jet_hf": _jet_hf, "jet_pytorch": _jet_pytorch, "floor": _floor}[contender.split("-")[0]]
    model, compute, optimizer = builder(contender, task, pixel_values, noise)
    with torch.no_grad():  # conditioners end in layers of zeros, with which a new model is the identity
        for name, parameter in model.named_parameters():
            if name.split(".")[-2] in ("out_proj", "final_proj"):
                parameter.normal_(std=0.02)
    is_training = task.operation == "train"
    model.train(is_training)
    is_autocast = "bf16" in contender and next(model.parameters()).dtype == torch.float32

    def run() -> None:
        with torch.set_grad_enabled(is_training), torch.autocast(task.device, torch.bfloat16, enabled=is_autocast):
            outputs = compute()
        if is_training:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            if optimizer is not None:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            model.zero_grad()

    return Work(model, run, optimizer)


def _jet_hf(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Contender:
    model = JetForDensityEstimation(copy.deepcopy(task.config)).to(task.device)
    if "compiled" in contender:
        model.compile_couplings(mode=task.compile_mode)
    if "checkpointed" in contender:
        model.gradient_checkpointing_enable()
    if task.operation == "train":
        return model, lambda: [model(pixel_values, noise=noise).loss], build_optimizer(model)
    if "bf16" in contender:
        model.bfloat16()
    if "prepared" in contender:
        prepare_for_inference(model.eval())
    function, images = getattr(model, task.operation), dequantize(pixel_values, noise)
    return model, lambda: function(images), None


def _jet_pytorch(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Contender:
    from jet_pytorch import Jet

    config = task.config
    model = Jet(
        patch_size=config.patch_size,
        patch_dim=config.patch_dim,
        n_patches=config.num_patches,
        img_dims=(config.image_size, config.image_size),
        coupling_layers=config.num_coupling_layers,
        block_depth=config.num_hidden_layers,
        block_width=config.hidden_size,
        num_heads=config.num_attention_heads,
        scale_factor=config.scale_factor,
        coupling_types=tuple(config.coupling_kinds),
        spatial_coupling_projs=tuple(config.spatial_couplings),
    ).to(task.device)
    images = dequantize(pixel_values, noise).permute(0, 2, 3, 1).contiguous()
    function, inputs = (model.inverse, model.patchify(images)) if task.operation == "decode" else (model, images)
    if "compiled" in contender:
        function = torch.compile(function, mode=task.compile_mode)
    if task.operation != "train":
        return model, lambda: function(inputs), None

    def loss() -> list[torch.Tensor]:
        latents, log_det = function(inputs)
        return [bits_per_dim(standard_normal_log_prob(latents) + log_det[:, 0], config.num_dims).mean()]

    return model, loss, AdamW(model.parameters(), lr=3e-4, weight_decay=1e-5)


class Attention(nn.Module):
    """Map the queries, keys and values of H heads (B, N, 3, H, W / H) to attended values (B, N, W)."""

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)


def _floor(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Contender:
    """
    Compute the matrix products and attention of all coupling layers, and nothing else.

    All coupling layers read the same input: without norms and residuals, values would vanish along a chain.
    """
    config, product = task.config, partial(nn.Linear, bias=False)
    width, inner, half = config.hidden_size, config.intermediate_size, config.patch_dim // 2
    attention = [product(width, 3 * width), nn.Unflatten(2, (3, config.num_attention_heads, -1)), Attention()]
    block = [*attention, product(width, width), product(width, inner), product(inner, width)]
    layers = [product(half, width), *(config.num_hidden_layers * block), product(width, 2 * half)]
    chains = (nn.Sequential(*map(copy.deepcopy, layers)) for _ in range(config.num_coupling_layers))
    options = {"device": task.device, "dtype": torch.bfloat16 if "bf16" in contender else torch.float32}
    couplings = nn.ModuleList(chains).to(**options)
    tokens = torch.rand(len(noise), config.num_patches, half, **options)

    def run() -> list[torch.Tensor]:
        states = tokens.detach().requires_grad_(task.operation == "train")
        return [coupling(states) for coupling in couplings]

    return couplings, run, None
