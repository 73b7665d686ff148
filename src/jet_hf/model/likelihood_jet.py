# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""From latents to likelihoods: dequantisation, the base density, bits per dimension (paper, section 2.2)."""

import math

import torch


# An 8-bit value u becomes u / 127.5 - 1, so that one grey level is 1 / 127.5 wide.
LEVELS_PER_UNIT = 127.5


def scale_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """
    Return bytes `u`, a uint8 tensor, on the model's scale: `u / 127.5 - 1`, float32.

    Raises:
        ValueError: for another dtype, whose values may have been scaled already.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"`pixels` must be bytes (torch.uint8), got {pixels.dtype}.")
    return pixels / LEVELS_PER_UNIT - 1


def dequantize(pixel_values: torch.Tensor, noise: torch.Tensor | float) -> torch.Tensor:
    """Spreads each 8-bit value over its grey level: noise in [0, 1) is one level wide (Theis et al., 2015)."""
    return pixel_values + noise / LEVELS_PER_UNIT


def standard_normal_log_prob(latents: torch.Tensor) -> torch.Tensor:
    """Log-density of each latent (B, ...) under N(0, I), in nats: (B,)."""
    latents = latents.flatten(1)
    return -0.5 * latents.square().sum(dim=1) - 0.5 * latents.shape[1] * math.log(2 * math.pi)


def bits_per_dim(log_prob: torch.Tensor, num_dims: int) -> torch.Tensor:
    """
    Bits per dimension of 8-bit images from the log-density `log_prob` (B,), in nats, of their scaled, dequantised
    versions. A model that knows nothing, uniform over the 256 levels, gives 8.
    """
    return -(log_prob - num_dims * math.log(LEVELS_PER_UNIT)) / (num_dims * math.log(2))
