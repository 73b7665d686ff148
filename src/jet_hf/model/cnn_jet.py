# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The CNN that can take the ViT's place inside a coupling layer (paper, section 3.2.3).

The paper names "Big Transfer" (BiT, Kolesnikov et al., 2020) and leaves the rest open. As there: pre-activation
bottlenecks (group norm, ReLU, convolution; 1x1, 3x3, 1x1), a quarter of the width between the 1x1 convolutions,
weight-standardised convolutions without biases, zero padding, a group norm and ReLU after the last block. There is no
downsampling, as every token needs an output, and no position embedding: zero padding shows where the borders are.

Shapes: B batch, N = G * G tokens, F numbers of a token, E hidden size.
"""

import torch
from torch import nn

from .configuration_jet import JetConfig
from .vit_jet import JetConditioner, JetCrossAttention


class JetStandardizedConv2d(nn.Conv2d):
    """Convolution whose filters have mean zero and variance one (Qiao et al., 2019), with BiT's epsilon."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.weight.float()
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = ((weight - mean) * torch.rsqrt(variance + 1e-10)).to(hidden_states.dtype)
        return nn.functional.conv2d(hidden_states, weight, None, self.stride, self.padding)


class JetCNNLayer(nn.Module):
    """Pre-activation bottleneck block."""

    def __init__(self, config: JetConfig):
        super().__init__()
        width, bottleneck = config.hidden_size, config.hidden_size // 4
        self.norm1 = nn.GroupNorm(config.num_groups, width)
        self.conv1 = JetStandardizedConv2d(width, bottleneck, 1, bias=False)
        self.norm2 = nn.GroupNorm(config.num_groups, bottleneck)
        self.conv2 = JetStandardizedConv2d(bottleneck, bottleneck, 3, padding=1, bias=False)
        self.norm3 = nn.GroupNorm(config.num_groups, bottleneck)
        self.conv3 = JetStandardizedConv2d(bottleneck, width, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2), (self.norm3, self.conv3)):
            hidden_states = conv(torch.relu(norm(hidden_states)))
        return residual + hidden_states


class JetCNN(JetConditioner):
    """
    Conditioner of a coupling layer that works on the grid of the tokens.

    Args:
        config: The model's configuration.
        num_features: Numbers F of a token.
        cut_rows: Whether the tokens are the patches of every other row, each cut in two. Its parts then go below one
            another, which fills the grid as the image is; tokens of all other splits do so in their own order.
    """

    def __init__(self, config: JetConfig, num_features: int, cut_rows: bool = False):
        super().__init__()
        self.grid_size, self.cut_rows = config.grid_size, cut_rows
        self.in_proj = nn.Linear(num_features, config.hidden_size)
        self.cross_attention = JetCrossAttention(config) if config.context_width is not None else None
        self.layers = nn.ModuleList([JetCNNLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.GroupNorm(config.num_groups, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, 2 * num_features)

    def to_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, E) -> (B, E, G, G)."""
        size = self.grid_size
        if self.cut_rows:
            tokens = tokens.unflatten(1, (size // 2, size, 2)).transpose(2, 3)
        # Contiguous, since group norms of channels-last grids have no rule for torch.func.vmap.
        return tokens.reshape(-1, size, size, tokens.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def to_tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """(B, E, G, G) -> (B, N, E), the inverse of [`to_grid`]."""
        tokens = grid.permute(0, 2, 3, 1)
        if self.cut_rows:
            tokens = tokens.unflatten(1, (self.grid_size // 2, 2)).transpose(2, 3)
        return tokens.reshape(grid.shape[0], -1, grid.shape[1])

    def run_blocks(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.to_grid(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.to_tokens(torch.relu(self.norm(hidden_states)))
