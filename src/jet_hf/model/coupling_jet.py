# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The affine coupling layer (paper, section 2.1 and 2.3)."""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_jet import JetConfig
from .splits_jet import channel_permutation, merge, spatial_permutation, split
from .vit_jet import JetViT


class JetCoupling(GradientCheckpointingLayer):
    """
    One bijection of the flow: a half `x1` of the state passes unchanged and sets the affine map of the other half,
    `y2 = (x2 + bias) * scale` with `scale = scale_factor * sigmoid(raw_scale)`.

    Args:
        config: The model's configuration.
        layer_index: Position of the layer in the flow, which settles its split.
    """

    def __init__(self, config: JetConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.pattern = config.layer_splits[layer_index]
        self.spatial = self.pattern != "channels"
        self.log_scale_factor = math.log(config.scale_factor)
        self.scale_factor = config.scale_factor
        self.register_buffer("permutation", self.make_permutation())
        self.conditioner = JetViT(config)

    def make_permutation(self) -> torch.Tensor:
        """The permutation that the configuration asks for: int64, (N,) for a spatial split, else (D,)."""
        if self.spatial:
            return spatial_permutation(self.pattern, self.config.grid_size)
        return channel_permutation(self.config.permutation_seed, self.layer_index, self.config.patch_dim)

    def forward(
        self, state: torch.Tensor, context: torch.Tensor | None = None, inverse: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            state: float32 tensor of shape (B, N, D).
            context: Tensor of shape (B, L, context_size), for a model with a context.
            inverse: Whether to invert the layer, `x2 = y2 / scale - bias`.

        Returns:
            The mapped state (B, N, D), and the log-determinant of the Jacobian of this map (B,), in nats.
        """
        state, log_scale = self.transform(state, context, inverse)
        log_det = log_scale.sum(dim=(1, 2))
        return state, -log_det if inverse else log_det

    def transform(
        self, state: torch.Tensor, context: torch.Tensor | None, inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mapped state, and the logarithm of `scale`, in nats, for each number of the half that is mapped."""
        x1, x2 = split(state, self.permutation, self.spatial)
        bias, raw_scale = self.conditioner(x1, context)
        scale = self.scale_factor * torch.sigmoid(raw_scale)
        log_scale = nn.functional.logsigmoid(raw_scale) + self.log_scale_factor
        x2 = x2 / scale - bias if inverse else (x2 + bias) * scale
        return merge(x1, x2, self.permutation, self.spatial), log_scale

    def log_scale_map(self, log_scale: torch.Tensor) -> torch.Tensor:
        """The logarithms of [`transform`] where their numbers are in the state, (B, N, D); zero elsewhere."""
        return merge(torch.zeros_like(log_scale), log_scale, self.permutation, self.spatial)
