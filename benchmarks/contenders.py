# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""What is timed: the same work, done by jet_hf, by jet-pytorch and by the matrix products and attention alone."""

import copy
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from jet_hf.model.configuration_jet import JetConfig
from jet_hf.model.modeling_jet import (
    JetForDensityEstimation,
    bits_per_dim,
    dequantize,
    scale_bytes,
    standard_normal_log_prob,
)
from jet_hf.training import build_optimizer


JET_HF, JET_PYTORCH, FLOOR = "jet_hf", "jet_pytorch", "floor"
COMPILED, BF16, CHECKPOINTED = ("compiled", "bf16", "checkpointed")
OPTIONS = {
    JET_HF: (COMPILED, BF16, CHECKPOINTED),
    JET_PYTORCH: (COMPILED, BF16),
    FLOOR: (BF16,),
}
NAMES = "; ".join(f"{library} with any of -{', -'.join(options)}" for library, options in OPTIONS.items())
OPERATIONS = ("encode", "decode", "train")
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Contender:
    """
    An implementation and how it is run.

    Args:
        library: One of `OPTIONS`.
        options: Of those listed there. `bf16` narrows the conditioners: jet_hf's weights for encoding and decoding,
            autocast for training and for others. `checkpointed` is jet_hf's gradient checkpointing.
    """

    library: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str) -> "Contender":
        """
        From a name as `jet_hf-compiled-bf16`.

        Raises:
            ValueError: for an unknown name.
        """
        library, *options = name.split("-")
        if library not in OPTIONS or not set(options) <= set(OPTIONS[library]):
            raise ValueError(f"`contenders` must be {NAMES}; got {name}.")
        return cls(library, tuple(option for option in OPTIONS[library] if option in options))

    @property
    def name(self) -> str:
        return "-".join([self.library, *self.options])

    @property
    def installed(self) -> bool:
        return self.library != JET_PYTORCH or all(map(importlib.util.find_spec, (JET_PYTORCH, "einops")))

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if BF16 in self.options else torch.float32

    def can(self, operation: str) -> bool:
        """Whether it does an operation: checkpointing is for training."""
        return operation == "train" or CHECKPOINTED not in self.options


@dataclass
class Work:
    """
    A contender at work.

    Args:
        run: Does the operation once.
        model: With the parameters.
        optimizer: Of training.
    """

    run: Callable[[], object]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None


def build(
    contender: Contender, operation: str, config: JetConfig, batch_size: int, device: str, compile_mode: str | None
) -> Work:
    """
    Sets up a contender with random weights and images.

    Args:
        contender: Who.
        operation: One of `OPERATIONS`. `train` is a whole step on one device: likelihood, gradients, their norm
            clipped, and the library's own optimiser.
        config: Sizes.
        batch_size: Images at a time.
        device: Where.
        compile_mode: Of `torch.compile`, for compiled contenders.
    """
    torch.manual_seed(0)
    shape = (batch_size, config.num_channels, config.image_size, config.image_size)
    pixel_values = scale_bytes(torch.randint(256, shape, dtype=torch.uint8)).to(device)
    noise = torch.rand(shape).to(device)
    builder = {JET_HF: _jet_hf, JET_PYTORCH: _jet_pytorch, FLOOR: _floor}[contender.library]
    return builder(contender, operation, config, pixel_values, noise, {"mode": compile_mode})


def _jet_hf(contender, operation, config, pixel_values, noise, compiling) -> Work:
    config = copy.deepcopy(config)  # a model writes to it
    model = JetForDensityEstimation(config).to(pixel_values.device)
    _randomize(model)
    if COMPILED in contender.options:
        model.compile_couplings(**compiling)
    if operation != "train":
        model = model.to(contender.dtype).eval()
        function = getattr(model, operation)
        images = dequantize(pixel_values, noise)
        return Work(torch.no_grad()(lambda: function(images)), model)
    if CHECKPOINTED in contender.options:
        model.gradient_checkpointing_enable()
    optimizer = build_optimizer(model)
    return _training(contender, model, lambda: model(pixel_values, noise=noise).loss, optimizer)


def _jet_pytorch(contender, operation, config, pixel_values, noise, compiling) -> Work:
    from jet_pytorch import Jet

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
    ).to(pixel_values.device)
    _randomize(model)
    compiled = COMPILED in contender.options
    images = dequantize(pixel_values, noise).permute(0, 2, 3, 1).contiguous()
    if operation != "train":
        model.eval()
        function = model if operation == "encode" else model.inverse
        function = torch.compile(function, **compiling) if compiled else function
        inputs = images if operation == "encode" else torch.randn_like(model.patchify(images))

        @torch.no_grad()
        def run():
            with _autocast(contender, inputs.device):
                return function(inputs)

        return Work(run, model)
    encode = torch.compile(model, **compiling) if compiled else model

    def loss() -> torch.Tensor:
        latents, log_det = encode(images)
        return bits_per_dim(standard_normal_log_prob(latents) + log_det[:, 0], config.num_dims).mean()

    return _training(contender, model, loss, torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=1e-5))


class Floor(nn.Module):
    """
    The matrix products and attention of all coupling layers, and nothing else. Each coupling layer has the same
    input: one after the other, without norms and residuals, numbers would vanish.

    Args:
        config: Sizes.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        width, inner, tokens = config.hidden_size, config.intermediate_size, config.patch_dim // 2
        block = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
        sizes = [(tokens, width), *(config.num_hidden_layers * block), (width, 2 * tokens)]
        self.num_heads = config.num_attention_heads
        self.scaling = (width // config.num_attention_heads) ** -0.5
        self.couplings = nn.ModuleList(
            nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes) for _ in range(config.num_coupling_layers)
        )

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        return [self.products(projections, tokens) for projections in self.couplings]

    def products(self, projections: nn.ModuleList, tokens: torch.Tensor) -> torch.Tensor:
        """Those of one coupling layer, (B, N, D/2) -> (B, N, D)."""
        in_proj, *blocks, out_proj = projections
        states = in_proj(tokens)
        for qkv_proj, o_proj, fc1, fc2 in zip(*(blocks[i::4] for i in range(4)), strict=True):
            query, key, value = (
                part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in qkv_proj(states).chunk(3, dim=2)
            )
            attended = scaled_dot_product_attention(query, key, value).transpose(1, 2)
            states = fc2(fc1(o_proj(attended.flatten(2))))
        return out_proj(states)


def _floor(contender, operation, config, pixel_values, noise, compiling) -> Work:
    model = Floor(config).to(pixel_values.device, contender.dtype)
    tokens = noise.reshape(len(noise), config.num_patches, config.patch_dim)[..., ::2].to(contender.dtype)
    tokens = tokens.contiguous()
    if operation != "train":
        return Work(torch.no_grad()(lambda: model(tokens)), model)
    tokens.requires_grad_()

    def run():
        outputs = model(tokens)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        model.zero_grad()
        tokens.grad = None

    return Work(run, model)


def _training(contender: Contender, model: nn.Module, loss: Callable, optimizer: torch.optim.Optimizer) -> Work:
    model.train()
    device = next(model.parameters()).device

    def run():
        with _autocast(contender, device):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return Work(run, model, optimizer)


def _autocast(contender: Contender, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=BF16 in contender.options)


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """New models have zeros at the ends of their conditioners, after which numbers would be simpler than in use."""
    for name, parameter in model.named_parameters():
        if name.split(".")[-2] in ("out_proj", "final_proj"):
            parameter.normal_(std=0.02)
