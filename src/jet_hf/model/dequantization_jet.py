# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Variational dequantisation (Ho et al., 2019; paper, section 3.2.6)."""

import torch
from torch import nn

from .configuration_jet import JetConfig
from .coupling_jet import JetCoupling
from .likelihood_jet import standard_normal_log_prob
from .splits_jet import patchify, unpatchify


# Smallest distance of noise from 0 and from 1, where the normal distribution's quantiles are infinite.
MARGIN = 2.0**-24


class JetDequantizationFlow(nn.Module):
    """
    Turns uniform noise into noise that the image suggests: through the normal distribution's quantile function, a
    flow whose coupling layers attend to the image's tokens, and the distribution function.

    Flow++ ends its dequantisation flow with a sigmoid. The distribution function makes a new flow the identity, so
    that training starts from uniform dequantisation, and the same uniform noise serves both.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        self.config = config.dequantization_config
        self.in_proj = nn.Linear(config.patch_dim, self.config.hidden_size)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches, self.config.hidden_size))
        self.couplings = nn.ModuleList([JetCoupling(self.config, i) for i in range(self.config.num_coupling_layers)])

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            pixel_values: 8-bit images on the model's scale, float32 (B, C, S, S).
            noise: Uniform noise in [0, 1), of the same shape.

        Returns:
            The image's noise, of the same shape, in (0, 1), and the log-determinant of the Jacobian of this map (B,),
            in nats: minus the log-density of that noise.
        """
        start, context = self.embed(pixel_values, noise)
        state, log_det = start, -standard_normal_log_prob(start)
        for coupling in self.couplings:
            state, layer_log_det = coupling(state, context)
            log_det = log_det.to(layer_log_det.device) + layer_log_det
        return self.to_noise(state), log_det + standard_normal_log_prob(state)

    def embed(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the coupling layers start from: normal noise (B, N, D), and the image's tokens (B, N, E)."""
        tokens = patchify(pixel_values, self.config)
        context = self.in_proj(tokens.to(self.in_proj.weight.dtype)) + self.position_embeddings
        return patchify(torch.special.ndtri(noise.clamp(MARGIN, 1 - MARGIN)), self.config), context

    def to_noise(self, state: torch.Tensor) -> torch.Tensor:
        """What the coupling layers end with (B, N, D) as noise in (0, 1), of the shape of images."""
        return torch.special.ndtr(unpatchify(state, self.config)).clamp(MARGIN, 1 - MARGIN)
