# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Where in an image its bits are."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..model.conditioners_jet import Conditioning
from ..model.configuration_jet import LEVELS_PER_UNIT
from ..model.flow_jet import steps
from ..model.modeling_jet import JetForDensityEstimation, dequantize, standard_normal_log_prob
from ..model.validation_jet import check_8bit_images, check_noise


@dataclass(frozen=True)
class PatchBits:
    """
    The two terms of the bits of an image, patch by patch; all of them together are `bits_per_dim * num_dims`.

    Args:
        latent: `-log2` of the standard normal density of the patch's latents, float64 (B, S/p, S/p), bits.
        log_det: `-log2` of the change of volume from one grey level a number to the latents, likewise; with a
            dequantisation flow, from its normal noise.
    """

    latent: torch.Tensor
    log_det: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.latent + self.log_det


@torch.no_grad()
def bits_per_patch(
    model: JetForDensityEstimation,
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    context: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    context_mask: torch.Tensor | None = None,
) -> PatchBits:
    """
    Splits the bits of 8-bit images over their patches.

    A coupling layer scales each number of the state at its own place, so that the log-determinant is a sum over
    places, as the density of the latents is. A patch's share is what the model spends there after it has seen, through
    the conditioners, other patches as well: it is no likelihood of the patch by itself.

    Args:
        model: In evaluation mode.
        pixel_values: 8-bit images (B, C, S, S), as [`JetForDensityEstimation`] takes them.
        noise: Uniform noise in [0, 1), float32 tensor (B, C, S, S).
        context, labels, context_mask: What a conditional model needs, see [`JetModel.condition`].

    Raises:
        ValueError: for a wrong shape or dtype, or values that are not those of bytes.
    """
    jet, config = model.jet, model.config
    pixel_values = check_8bit_images(pixel_values, config, jet.state_dtype)
    noise = check_noise(noise, pixel_values)
    conditioning = jet.condition(len(pixel_values), context, labels, context_mask)
    noise_log_det = 0
    if model.dequantizer is not None:
        start, tokens = model.dequantizer.embed(pixel_values, noise)
        state, noise_log_det = _follow(model.dequantizer.couplings, start, tokens)
        noise_log_det = noise_log_det + _log_prob_per_patch(state) - _log_prob_per_patch(start)
        noise = model.dequantizer.to_noise(state)
    state, log_det = _follow(jet.couplings, jet.patchify(dequantize(pixel_values, noise)), conditioning)
    latent = _log_prob_per_patch(state)
    log_det = log_det + noise_log_det - config.patch_dim * math.log(LEVELS_PER_UNIT)
    grid = (-1, config.grid_size, config.grid_size)
    return PatchBits(*(-(term / math.log(2)).reshape(grid) for term in (latent, log_det)))


def _follow(
    couplings: nn.ModuleList, state: torch.Tensor, conditioning: Conditioning
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the state after the coupling layers, and the log-determinant of each patch, float64 (B, N)."""
    log_det = torch.zeros(state.shape[:2], dtype=torch.float64, device=state.device)
    for step in steps(couplings, state, conditioning):
        log_det += step.log_det_of_patches()
    return step.state, log_det


def _log_prob_per_patch(state: torch.Tensor) -> torch.Tensor:
    """Log-density of each patch (B, N, D) under N(0, I), in nats: float64 (B, N)."""
    return standard_normal_log_prob(state.double().flatten(0, 1)).reshape(state.shape[:2])
