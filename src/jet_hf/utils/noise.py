# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Counter-based random numbers: the noise of a sample depends only on the seed and on the sample's index.

The generators of PyTorch are sequential, so a draw depends on all earlier draws, and thereby on the batch size, the
number of processes and the device. A counter-based generator computes each number independently.
"""

import math

import torch


MASK = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and low 32 bits of the product of two 32-bit numbers, within the range of int64."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b
    product = (low >> 16) + (high & 0xFFFF)
    return ((high >> 16) + (product >> 16)) & MASK, ((product << 16) | (low & 0xFFFF)) & MASK


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """
    Compute Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        counter: Four int64 tensors that broadcast, holding 32-bit numbers.
        key: Two 32-bit numbers.

    Returns:
        Four int64 tensors of random 32-bit numbers.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def normal_noise(seed: int, indices: torch.Tensor, shape: tuple[int, ...], stream: int = 0) -> torch.Tensor:
    """
    Return standard normal noise, float32 (B, *shape): the quantiles of the noise of [`uniform_noise`].

    The distribution is symmetric, with values from -5.42 to 5.42. Devices may differ in the last bits.
    """
    uniform = uniform_noise(seed, indices, shape, stream)
    is_low = uniform < 0.5
    # In the middle of its interval of width 2 ** -24, the smaller of both tails is exact in float32.
    tail = torch.where(is_low, uniform, 1 - 2**-24 - uniform) + 2**-25
    return torch.special.ndtri(tail) * torch.where(is_low, 1.0, -1.0)


def noise_levels(
    seed: int, indices: torch.Tensor, noise_range: tuple[float, float] | None, stream: int
) -> torch.Tensor | None:
    """
    Return the noise levels of images, float32 (B,), uniform in the range of a model, or `None` without a range.

    Args:
        seed, indices, stream: See [`uniform_noise`]. The stream must not be that of the noise itself.
        noise_range: Smallest and largest level, or `None`.
    """
    if noise_range is None:
        return None
    smallest, largest = noise_range
    return smallest + (largest - smallest) * uniform_noise(seed, indices, (), stream)


def uniform_noise(seed: int, indices: torch.Tensor, shape: tuple[int, ...], stream: int = 0) -> torch.Tensor:
    """
    Return uniform noise in [0, 1) for the samples with these indices, identical on every device.

    Args:
        seed: 64-bit seed.
        indices: Non-negative int64 tensor (B,), on the device of the result.
        shape: Shape of the noise of one sample.
        stream: Number of the draw, out of 2 ** 32 independent draws for each sample.

    Returns:
        float32 tensor (B, *shape), multiples of 2 ** -24.
    """
    size = math.prod(shape)
    blocks = torch.arange(-(-size // 4), device=indices.device)
    indices = indices[:, None]
    counter = (blocks, torch.tensor(stream & MASK, device=indices.device), indices & MASK, indices >> 32)
    numbers = philox(counter, (seed & MASK, (seed >> 32) & MASK))
    words = torch.stack([number.broadcast_to(len(indices), len(blocks)) for number in numbers], dim=-1)
    return ((words >> 8).float() * 2**-24).flatten(1)[:, :size].reshape(-1, *shape)
