# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Contenders of the benchmark: jet_hf, jet-pytorch, and the matrix products and attention alone."""

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.optim import AdamW, Optimizer

from jet_hf.analysis.inference import prepare_for_inference
from jet_hf.model.configuration_jet import JetConfig
from jet_hf.model.modeling_jet import (
    JetForDensityEstimation,
    bits_per_dim,
    dequantize,
    scale_bytes,
    standard_normal_log_prob,
)
from jet_hf.training import build_optimizer


OPERATIONS = ("encode", "decode", "train")
# Each name is a library with its options. A contender with `bf16` has bfloat16 weights if it is the floor or if jet_hf
# encodes or decodes; otherwise it runs under autocast. A further way to run jet_hf is one more name, and one line in
# `_jet_hf`.
CONTENDERS = (
    "jet_hf",
    "jet_hf-prepared",
    "jet_hf-compiled",
    "jet_hf-bf16",
    "jet_hf-prepared-bf16",
    "jet_hf-compiled-bf16",
    "jet_hf-checkpointed",
    "jet_hf-compiled-checkpointed",
    "jet_hf-bf16-checkpointed",
    "jet_hf-compiled-bf16-checkpointed",
    "jet_pytorch",
    "jet_pytorch-compiled",
    "jet_pytorch-bf16",
    "jet_pytorch-compiled-bf16",
    "floor",
    "floor-bf16",
)
MAX_GRAD_NORM = 1.0


def is_installed(contender: str) -> bool:
    """Return whether the packages of a contender are installed."""
    return "jet_pytorch" not in contender or all(map(importlib.util.find_spec, ("jet_pytorch", "einops")))


def supports(contender: str, operation: str) -> bool:
    """
    Return whether a contender takes part in an operation.

    Gradient checkpointing concerns training only, and the preparation of a model concerns inference only.
    """
    return ("prepared" if operation == "train" else "checkpointed") not in contender


@dataclass(frozen=True)
class Task:
    """
    The operation that contenders perform, and its sizes.

    Args:
        operation: One of `OPERATIONS`. `train` is a whole step on one device: likelihood, gradients, clipping of
            their norm, and an update by the library's own optimizer.
        config: Configuration of the model.
        batch_size: Number of images in a batch.
        device: Device to run on.
        compile_mode: The `mode` argument of `torch.compile`, for compiled contenders.
    """

    operation: str
    config: JetConfig
    batch_size: int
    device: str = "cpu"
    compile_mode: str | None = None


@dataclass
class Work:
    """A contender ready to be measured: `run` performs its task once."""

    run: Callable[[], object]
    model: nn.Module
    optimizer: Optimizer | None


# A model, a function of no arguments that encodes, decodes or returns the tensors to differentiate, and an optimizer.
Parts = tuple[nn.Module, Callable[[], Sequence[torch.Tensor]], Optimizer | None]


def build(contender: str, task: Task) -> Work:
    """Set up a contender for a task, with random weights and random images."""
    torch.manual_seed(0)
    shape = (task.batch_size, task.config.num_channels, task.config.image_size, task.config.image_size)
    pixel_values = scale_bytes(torch.randint(256, shape, dtype=torch.uint8)).to(task.device)
    noise = torch.rand(shape).to(task.device)
    builder = {"jet_hf": _jet_hf, "jet_pytorch": _jet_pytorch, "floor": _floor}[contender.split("-")[0]]
    model, call, optimizer = builder(contender, task, pixel_values, noise)
    model.train(task.operation == "train")
    is_autocast = "bf16" in contender and next(model.parameters()).dtype == torch.float32
    autocast = torch.autocast(noise.device.type, torch.bfloat16, enabled=is_autocast)

    @torch.no_grad()
    def infer():
        with autocast:
            return call()

    def train():
        with autocast:
            outputs = call()
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        if optimizer is not None:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
        model.zero_grad()

    return Work(train if task.operation == "train" else infer, model, optimizer)


def _jet_hf(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Parts:
    model = JetForDensityEstimation(copy.deepcopy(task.config)).to(noise.device)
    _randomize_outputs(model)
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


def _jet_pytorch(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Parts:
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
    ).to(noise.device)
    _randomize_outputs(model)
    inputs = dequantize(pixel_values, noise).permute(0, 2, 3, 1).contiguous()
    function = model
    if task.operation == "decode":
        function, inputs = model.inverse, torch.randn_like(model.patchify(inputs))
    if "compiled" in contender:
        function = torch.compile(function, mode=task.compile_mode)
    if task.operation != "train":
        return model, lambda: function(inputs), None

    def loss() -> list[torch.Tensor]:
        latents, log_det = function(inputs)
        return [bits_per_dim(standard_normal_log_prob(latents) + log_det[:, 0], config.num_dims).mean()]

    return model, loss, AdamW(model.parameters(), lr=3e-4, weight_decay=1e-5)


class Floor(nn.Module):
    """
    The matrix products and attention of all coupling layers, and nothing else.

    All coupling layers read the same input: without norms and residuals, values would vanish along a chain.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        width, inner, half = config.hidden_size, config.intermediate_size, config.patch_dim // 2
        block = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
        sizes = [(half, width), *(config.num_hidden_layers * block), (width, 2 * half)]
        self.num_heads = config.num_attention_heads
        self.couplings = nn.ModuleList(
            nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes) for _ in range(config.num_coupling_layers)
        )

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Map tokens (B, N, D/2) to an output (B, N, D) for each coupling layer."""
        outputs = []
        for in_proj, *blocks, out_proj in self.couplings:
            states = in_proj(tokens)
            for qkv_proj, o_proj, fc1, fc2 in zip(*(blocks[i::4] for i in range(4)), strict=True):
                heads = qkv_proj(states).unflatten(2, (3, self.num_heads, -1))
                attended = scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4)).transpose(1, 2)
                states = fc2(fc1(o_proj(attended.flatten(2))))
            outputs.append(out_proj(states))
        return outputs


def _floor(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Parts:
    model = Floor(task.config).to(noise.device, torch.bfloat16 if "bf16" in contender else torch.float32)
    tokens = noise.reshape(len(noise), task.config.num_patches, task.config.patch_dim)[..., ::2].contiguous()
    tokens = tokens.to(next(model.parameters()).dtype)
    return model, lambda: model(tokens.detach().requires_grad_(task.operation == "train")), None


@torch.no_grad()
def _randomize_outputs(model: nn.Module) -> None:
    """Randomize the zero-initialized output layers of the conditioners, which make a new model the identity."""
    for name, parameter in model.named_parameters():
        if name.split(".")[-2] in ("out_proj", "final_proj"):
            parameter.normal_(std=0.02)
