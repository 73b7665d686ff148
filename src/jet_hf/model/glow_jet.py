# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Glow's parts of a flow's step, which Jet does without (Kingma & Dhariwal, 2018; paper, section 3.2.5)."""

import torch
from torch import nn

from .configuration_jet import JetConfig


class JetActNorm(nn.Module):
    """
    Activation normalisation: a scale and a bias for each of the D numbers of a patch, `y = (x + bias) * scale`.

    A new layer is the identity, until [`initialize`] sets it to give the first batch mean zero and variance one.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.patch_dim))
        self.log_scale = nn.Parameter(torch.empty(config.patch_dim))
        # Collectives of some backends know no booleans.
        self.register_buffer("initialized", torch.tensor(0))

    def forward(self, state: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        bias, scale = self.bias.to(state.dtype), self.log_scale.to(state.dtype).exp()
        return state / scale - bias if inverse else (state + bias) * scale

    @torch.no_grad()
    def initialize(self, state: torch.Tensor) -> None:
        """Sets scale and bias from the state (B, N, D) of a first batch."""
        std, mean = torch.std_mean(state.double().flatten(0, 1), dim=0, correction=0)
        self.bias.copy_(-mean)
        # A number that never changes, as of images with a border, is not blown up.
        self.log_scale.copy_(-torch.log(torch.where(std > 1e-6, std, 1)))
        self.initialized.fill_(1)


class JetInvertibleDense(nn.Module):
    """
    Learned linear map of each patch, `y = x @ lower @ upper`, in Glow's LU form: `lower` has ones, `upper` has
    `exp(log_scale)` on the diagonal, so that the log-determinant of a patch is the sum of D numbers. A new layer is
    the identity; the fixed permutation of Glow's form is that of the coupling layer.

    The map is computed in float64: float32 products are rounded to narrower formats by many devices and by autocast,
    which would cost the flow its inverse.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        self.lower = nn.Parameter(torch.empty(config.patch_dim, config.patch_dim))
        self.upper = nn.Parameter(torch.empty(config.patch_dim, config.patch_dim))
        self.log_scale = nn.Parameter(torch.empty(config.patch_dim))

    def forward(self, state: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        lower = self.lower.double().tril(-1) + torch.eye(len(self.log_scale), device=state.device).double()
        upper = self.upper.double().triu(1) + self.log_scale.double().exp().diag()
        mapped = state.double()
        if inverse:
            mapped = torch.linalg.solve_triangular(upper, mapped, upper=True, left=False)
            mapped = torch.linalg.solve_triangular(lower, mapped, upper=False, left=False, unitriangular=True)
        else:
            mapped = mapped @ (lower @ upper)
        return mapped.to(state.dtype)


@torch.no_grad()
def initialize_actnorm(
    couplings: nn.ModuleList, state: torch.Tensor, context: torch.Tensor | None, context_mask: torch.Tensor | None
) -> None:
    """Sets the activation normalisation of each coupling layer from the state (B, N, D) of a first batch."""
    for coupling in couplings:
        coupling.actnorm.initialize(state)
        state, _ = coupling.transform(state, context, False, context_mask)
