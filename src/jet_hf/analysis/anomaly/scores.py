# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Anomaly scores, one function each: a larger value means a stranger image.

All but the gradient's derive from the bits per patch, so that several scores share a pass through the model.
Shapes: B images, d dimensions of an image, K classes.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from ...model.modeling_jet import JetForDensityEstimation
from ..baselines import available_codecs, codec_bits_per_dim
from ..density import PatchBits, bits_per_patch


def bits_of_images(
    model: JetForDensityEstimation,
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> PatchBits:
    """
    Return the bits per patch of images, from which all other scores but the gradient's derive, see [`bits_per_patch`].

    A class-conditional model without labels gives those of the mixture of all classes, `p(x) = mean over y of
    p(x | y)`. Both terms are means over the posterior `p(y | x)`, and the log-determinant's includes the divergence of
    the posterior from equal frequencies in equal parts for all patches, so that the sum is exactly `-log2 p(x)`. This
    takes K passes.

    Args:
        model: Model in evaluation mode.
        pixel_values: 8-bit images (B, C, S, S), as [`JetForDensityEstimation`] takes them.
        noise: Uniform noise in [0, 1), float32 tensor (B, C, S, S).
        labels: int64 tensor (B,) of classes, for `p(x | y)` instead of the mixture.

    Raises:
        ValueError: see [`bits_per_patch`].
    """
    num_classes = model.config.num_classes
    if num_classes is None or labels is not None:
        return bits_per_patch(model, pixel_values, noise, labels=labels)
    bits = [bits_per_patch(model, pixel_values, noise, labels=label) for label in _all_labels(model, pixel_values)]
    latent, log_det = (torch.stack([getattr(part, name) for part in bits]) for name in ("latent", "log_det"))
    log_posterior = torch.log_softmax(-math.log(2) * (latent + log_det).sum((2, 3)), dim=0)  # (K, B)
    posterior = log_posterior.exp()[..., None, None]
    divergence = (posterior[..., 0, 0] * (log_posterior + math.log(num_classes))).sum(0) / math.log(2)
    divergence_of_patch = divergence[:, None, None] / math.prod(latent.shape[2:])
    return PatchBits(
        (posterior * latent).sum(0), (posterior * log_det).sum(0) + divergence_of_patch, bits[0].patch_dim
    )


def _all_labels(model: JetForDensityEstimation, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return labels (K, B): each class for all images."""
    assert model.config.num_classes is not None
    classes = torch.arange(model.config.num_classes, device=pixel_values.device)
    return classes[:, None].expand(-1, len(pixel_values))


def negative_log_likelihood(bits: PatchBits) -> torch.Tensor:
    """Return `-log2 p(x) / d`, float64 (B,), in bits per dimension."""
    return bits.total.sum((1, 2)) / bits.num_dims


def complexity_corrected(bits: PatchBits, levels: np.ndarray, codecs: Sequence[str] | None = None) -> torch.Tensor:
    """
    Return the bits per dimension of the model minus those of lossless codecs, float64 (B,) (Serra et al., "Input
    complexity and out-of-distribution detection with likelihood-based generative models", 2020).

    The codecs' part is the size of the smallest file. From the size of each file, that of a constant image of the same
    shape is subtracted, since headers are most of the file of a small image: a constant image has no complexity.

    Args:
        bits: Bits of the images.
        levels: Gray levels of the images, uint8 (B, C, H, W) with 1 or 3 channels.
        codecs: Codecs out of [`available_codecs`]; by default all of them.
    """
    complexity = complexity_bits_per_dim(levels, available_codecs() if codecs is None else codecs)
    return negative_log_likelihood(bits) - torch.from_numpy(complexity).to(bits.latent.device)


def complexity_bits_per_dim(levels: np.ndarray, codecs: Sequence[str]) -> np.ndarray:
    """Return the bits per dimension of the smallest lossless files, less headers, see [`complexity_corrected`]."""
    files = [
        codec_bits_per_dim(levels, codec, fast=True) - header_bits_per_dim(codec, levels.shape[1:]) for codec in codecs
    ]
    return np.min(files, axis=0)


@cache
def header_bits_per_dim(codec: str, shape: tuple[int, int, int]) -> float:
    """Return the bits per dimension of the file of a constant image (C, H, W)."""
    return float(codec_bits_per_dim(np.full((1, *shape), 128, dtype=np.uint8), codec, fast=True)[0])


def typicality(bits_per_dim: np.ndarray, mean_bits_per_dim: float) -> np.ndarray:
    """
    Return the distance of the bits per dimension (B,) of images from the mean of reference images, float64 (B,)
    (Nalisnick et al., "Detecting out-of-distribution inputs to deep generative models using typicality", 2019).
    """
    return np.abs(bits_per_dim - mean_bits_per_dim)


def latent_norm(bits: PatchBits) -> torch.Tensor:
    """
    Return the distance of the norm of the latents from that of the model's own samples, `abs(|z| / sqrt(d) - 1)`,
    float64 (B,).

    In many dimensions, the norm of a standard normal vector is close to `sqrt(d)`. The norm itself, without the
    distance, would call constant and blurred images normal, since their latents are small.
    """
    squares = 2 * math.log(2) * bits.latent.sum((1, 2)) - bits.num_dims * math.log(2 * math.pi)
    return ((squares / bits.num_dims).clamp(min=0).sqrt() - 1).abs()


def gradient_norm(
    model: JetForDensityEstimation,
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Return the norm of the gradient of `log p` at the dequantized images, `|grad log p(x)| / sqrt(d)`, float64 (B,), in
    nats per unit of the model's scale.

    The gradient of the mixture of all classes is the mean of theirs over the posterior.

    Args:
        model, pixel_values, noise, labels: See [`bits_of_images`].
    """
    with torch.no_grad():
        dequantization = noise if model.dequantizer is None else model.dequantizer(pixel_values, noise)[0]
        images = model.add_noise(pixel_values, dequantization)
        if model.config.num_classes is None or labels is not None:
            score = model.score(images, labels=labels)
        else:
            score = _score_of_mixture(model, pixel_values, noise, images)
    return score.double().flatten(1).norm(dim=1) / math.sqrt(model.config.num_dims)


def _score_of_mixture(
    model: JetForDensityEstimation, pixel_values: torch.Tensor, noise: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    labels = _all_labels(model, pixel_values)
    bits = torch.stack(
        [bits_per_patch(model, pixel_values, noise, labels=label).total.sum((1, 2)) for label in labels]
    )
    posterior = torch.softmax(-math.log(2) * bits, dim=0)[..., None, None, None]
    return sum(weight * model.score(images, labels=label) for weight, label in zip(posterior, labels, strict=True))


def likelihood_ratio(bits: PatchBits, background_bits: PatchBits) -> torch.Tensor:
    """
    Return the bits per dimension of the model minus those of a background model, float64 (B,) (Ren et al., "Likelihood
    ratios for out-of-distribution detection", 2019).

    The background model is trained on perturbed images, which keep the general statistics but not the contents, see
    `mutation_rate` of `jet-hf train`.
    """
    return negative_log_likelihood(bits) - negative_log_likelihood(background_bits)


def patch_bits_per_dim(bits: PatchBits) -> torch.Tensor:
    """Return the bits per dimension of each patch, float64 (B, h, w)."""
    return bits.total / bits.patch_dim


def largest_patch(patch_bits: np.ndarray, mean_patch_bits: np.ndarray) -> np.ndarray:
    """
    Return the largest excess of a patch over the reference images, float64 (B,), in bits per dimension.

    The bits of a patch also depend on its place in the spatial couplings, so that patches are compared with those of
    the reference images at the same place.

    Args:
        patch_bits: Bits per dimension of the patches, float64 (B, h, w), see [`patch_bits_per_dim`].
        mean_patch_bits: Their mean over reference images, float64 (h, w).
    """
    return (patch_bits - mean_patch_bits).max(axis=(1, 2))
