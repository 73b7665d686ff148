# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Maps of an image's bits: the terms of its negative log-likelihood, patch by patch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from ..model.conditioners_jet import Conditioning
from ..model.flow_jet import JetCoupling, steps
from ..model.modeling_jet import JetForDensityEstimation, standard_normal_log_prob
from ..model.validation_jet import check_noise, check_quantized_images


@dataclass(frozen=True)
class PatchBits:
    """
    The two terms of an image's bits in each patch. Together they sum to `bits_per_dim * num_dims`.

    Args:
        latent: `-log2` of the standard normal density of the patch's latents, float64 (B, S/p, S/p), in bits.
        log_det: `-log2` of the change of volume from gray levels to latents, float64 (B, S/p, S/p), in bits. With a
            dequantization flow, it includes the density of that flow's noise.
        patch_dim: Number of dimensions of a patch.
    """

    latent: torch.Tensor
    log_det: torch.Tensor
    patch_dim: int

    @property
    def total(self) -> torch.Tensor:
        """Bits of each patch, float64 (B, S/p, S/p)."""
        return self.latent + self.log_det

    @property
    def num_dims(self) -> int:
        """Number of dimensions of an image."""
        return self.patch_dim * math.prod(self.latent.shape[1:])


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
    Attribute the bits of 8-bit images to their patches.

    Coupling layers scale each number of the state in place, so the log-determinant is a sum over patches, as is the
    log-density of the latents. The conditioners look at other patches too, so a patch's bits are not the likelihood of
    that patch alone.

    Args:
        model: Model in evaluation mode.
        pixel_values: 8-bit images (B, C, S, S), as [`JetForDensityEstimation`] takes them.
        noise: Uniform noise in [0, 1), float32 tensor (B, C, S, S).
        context, labels, context_mask: Inputs of a conditional model, see [`JetModel.condition`].

    Raises:
        ValueError: for a wrong shape or dtype, values that are not those of bytes, or a model with `noise_std`.
    """
    jet, config = model.jet, model.config
    config.check_bits_per_dim()
    pixel_values = check_quantized_images(pixel_values, config, jet.state_dtype)
    noise = check_noise(noise, pixel_values)
    conditioning = jet.condition(len(pixel_values), context, labels, context_mask)
    log_det = torch.zeros(len(pixel_values), config.num_patches, dtype=torch.float64, device=pixel_values.device)
    if model.dequantizer is not None:
        start, tokens = model.dequantizer.embed(pixel_values, noise)
        state, log_det = _transform(model.dequantizer.couplings, start, tokens)
        log_det += _log_prob_per_patch(state) - _log_prob_per_patch(start)
        noise = model.dequantizer.to_noise(state)
    state, image_log_det = _transform(jet.couplings, jet.patchify(model.add_noise(pixel_values, noise)), conditioning)
    latent = _log_prob_per_patch(state)
    log_det = log_det + image_log_det - config.patch_dim * math.log(config.levels_per_unit)
    grid = (-1, *config.grid_shape)
    latent, log_det = (-(term / math.log(2)).reshape(grid) for term in (latent, log_det))
    return PatchBits(latent, log_det, config.patch_dim)


def _transform(
    couplings: Iterable[nn.Module], state: torch.Tensor, conditioning: Conditioning
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the state after the coupling layers, and the log-determinant of each patch, float64 (B, N), in nats."""
    log_det = torch.zeros(state.shape[:2], dtype=torch.float64, device=state.device)
    for step in steps(cast(Sequence[JetCoupling], couplings), state, conditioning):
        log_det += step.log_det_of_patches()
    return step.state, log_det


def _log_prob_per_patch(state: torch.Tensor) -> torch.Tensor:
    """Return the log-density of each patch (B, N, D) under N(0, I), float64 (B, N), in nats."""
    return standard_normal_log_prob(state.double().flatten(0, 1)).reshape(state.shape[:2])
