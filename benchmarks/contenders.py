# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Contenders of the benchmark: jet_hf, jet-pytorch, and the matrix products and attention alone."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.optim import AdamW, Optimizer

from jet_hf.analysis.cost import forward_flops, training_flops
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
# Each name is a library with its options. The contenders that run unless others are chosen:
STANDARD = (
    *("jet_hf", "jet_hf-prepared", "jet_pytorch", "floor", "jet_hf-compiled", "jet_pytorch-compiled"),
    *("jet_hf-bf16", "jet_hf-prepared-bf16", "jet_pytorch-bf16", "floor-bf16"),
    *("jet_hf-compiled-bf16", "jet_pytorch-compiled-bf16"),
)
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
    """A contender ready to be measured; before [`build`] completes it, `run` returns the tensors to differentiate."""

    model: nn.Module
    run: Callable[[], object]
    optimizer: Optimizer | None = None


def build(contender: str, task: Task) -> Work:
    """Set up a contender for a task, with random weights and random images."""
    torch.manual_seed(0)
    shape = (task.batch_size, task.config.num_channels, task.config.image_size, task.config.image_size)
    pixel_values = scale_bytes(torch.randint(256, shape, dtype=torch.uint8)).to(task.device)
    noise = torch.rand(shape).to(task.device)
    builder = {"jet_hf": _jet_hf, "jet_pytorch": _jet_pytorch, "floor": _floor}[contender.split("-")[0]]
    work = builder(contender, task, pixel_values, noise)
    is_training = task.operation == "train"
    work.model.train(is_training)
    is_autocast = "bf16" in contender and next(work.model.parameters()).dtype == torch.float32

    def run() -> None:
        with torch.set_grad_enabled(is_training), torch.autocast(task.device, torch.bfloat16, enabled=is_autocast):
            outputs = work.run()
        if is_training:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            if work.optimizer is not None:
                nn.utils.clip_grad_norm_(work.model.parameters(), 1.0)
                work.optimizer.step()
            work.model.zero_grad()

    return replace(work, run=run)


def _jet_hf(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Work:
    model = JetForDensityEstimation(copy.deepcopy(task.config)).to(task.device)
    _randomize_outputs(model)
    if "compiled" in contender:
        model.compile_couplings(mode=task.compile_mode)
    if "checkpointed" in contender:
        model.gradient_checkpointing_enable()
    if task.operation == "train":
        return Work(model, lambda: [model(pixel_values, noise=noise).loss], build_optimizer(model))
    if "bf16" in contender:
        model.bfloat16()
    if "prepared" in contender:
        prepare_for_inference(model.eval())
    function, images = getattr(model, task.operation), dequantize(pixel_values, noise)
    return Work(model, lambda: function(images))


def _jet_pytorch(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Work:
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
    _randomize_outputs(model)
    function, inputs = model, dequantize(pixel_values, noise).permute(0, 2, 3, 1).contiguous()
    if task.operation == "decode":
        function, inputs = model.inverse, torch.randn_like(model.patchify(inputs))
    if "compiled" in contender:
        function = torch.compile(function, mode=task.compile_mode)
    if task.operation != "train":
        return Work(model, lambda: function(inputs))

    def loss() -> list[torch.Tensor]:
        latents, log_det = function(inputs)
        return [bits_per_dim(standard_normal_log_prob(latents) + log_det[:, 0], config.num_dims).mean()]

    return Work(model, loss, AdamW(model.parameters(), lr=3e-4, weight_decay=1e-5))


@torch.no_grad()
def _randomize_outputs(model: nn.Module) -> None:
    """Randomize the zero-initialized output layers of the conditioners, which make a new model the identity."""
    for name, parameter in model.named_parameters():
        if name.split(".")[-2] in ("out_proj", "final_proj"):
            parameter.normal_(std=0.02)


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
            for i in range(0, len(blocks), 4):
                qkv_proj, o_proj, fc1, fc2 = blocks[i : i + 4]
                heads = qkv_proj(states).unflatten(2, (3, self.num_heads, -1))
                attended = scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4)).transpose(1, 2)
                states = fc2(fc1(o_proj(attended.flatten(2))))
            outputs.append(out_proj(states))
        return outputs


def _floor(contender: str, task: Task, pixel_values: torch.Tensor, noise: torch.Tensor) -> Work:
    dtype = torch.bfloat16 if "bf16" in contender else torch.float32
    model = Floor(task.config).to(task.device, dtype)
    tokens = noise.reshape(len(noise), task.config.num_patches, task.config.patch_dim)[..., ::2].to(dtype).contiguous()
    return Work(model, lambda: model(tokens.detach().requires_grad_(task.operation == "train")))
