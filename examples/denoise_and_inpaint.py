# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Restore a picture with a model as the prior: remove noise, and fill in missing pixels.

    python -m examples.denoise_and_inpaint --model space/model

Both are the same problem: find the image `x` that a linear operator `A` turned into the measurements `A x + noise`.
The most probable image weighs the measurements against `log p(x)`, whose gradient a flow gives exactly. Langevin
sampling draws from `p(x | measurements)` instead, and says by how much the filled-in pixels could differ; a short
chain says too little.
"""

import argparse

import torch
from torch import nn

from jet_hf import JetForDensityEstimation
from jet_hf.prior import JetPrior, mask

from .photographs import load_photograph


GRAY_LEVEL = 2 / 255  # on the model's scale from -1 to 1


def psnr(image: torch.Tensor, clean: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels."""
    return float(10 * torch.log10(4 / (image.clamp(-1, 1) - clean).square().mean()))


def mean_of_neighbors(image: torch.Tensor, is_kept: torch.Tensor) -> torch.Tensor:
    """Fill missing pixels of an image (1, C, H, W) with the mean of the kept ones in the 5 x 5 around them."""
    means, shares = (nn.functional.avg_pool2d(part, 5, 1, padding=2) for part in (image, is_kept[None, None].float()))
    return torch.where(is_kept, image, means / shares.clamp(min=1 / 25))


def main(
    model: str = "space/model", sigma: float = 25.0, missing: float = 0.5, steps: int = 100, seed: int = 0
) -> dict[str, float]:
    """
    Print and return the decibels before and after.

    Args:
        model: Folder of a saved model of color images.
        sigma: Standard deviation of the noise, in gray levels.
        missing: Share of the pixels that are missing.
        steps: Number of steps of the optimizer, and of Langevin sampling.
        seed: Seed of the noise and of the missing pixels.
    """
    prior = JetPrior(JetForDensityEstimation.from_pretrained(model).eval())
    generator = torch.Generator().manual_seed(seed)
    # A detail of a photograph that the shipped model was not trained on.
    detail = torch.from_numpy(load_photograph("coffee")[120:168, 200:248].copy())
    clean = (detail.permute(2, 0, 1)[None].float() + 0.5) / 127.5 - 1

    noisy = clean + sigma * GRAY_LEVEL * torch.randn(clean.shape, generator=generator)
    denoised = prior.denoise(noisy, sigma * GRAY_LEVEL, num_steps=steps)

    is_kept = torch.rand(clean.shape[2:], generator=generator) >= missing
    operator, precision = mask(is_kept), 2 * GRAY_LEVEL
    measured = operator.forward(clean + precision * torch.randn(clean.shape, generator=generator))
    neighbors = mean_of_neighbors(measured, is_kept)
    filled = prior.restore(measured, operator, precision, num_steps=steps).images
    posterior = prior.sample_posterior(
        measured, operator, precision, num_steps=steps, start=filled, generator=generator
    )

    results = {
        "noisy": psnr(noisy, clean),
        "denoised": psnr(denoised, clean),
        "mean of neighbors": psnr(neighbors, clean),
        "filled in": psnr(filled, clean),
    }
    for name, value in results.items():
        print(f"{name:20} {value:5.2f} dB")
    error, expected = ((posterior.mean - clean).square().mean().sqrt(), posterior.std.square().mean().sqrt())
    print(f"error of the mean sample: {error / GRAY_LEVEL:.1f} gray levels; expected: {expected / GRAY_LEVEL:.1f}")
    # Near 1, the expected error is right. A short chain has seen a small part of the distribution, and expects less.
    print(f"R-hat of the chain: {posterior.r_hat.item():.1f}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Denoise and inpaint a picture with a model as the prior.")
    parser.add_argument("--model", default="space/model", help="folder of a saved model, or its name on the Hub")
    parser.add_argument("--sigma", type=float, default=25.0, help="standard deviation of the noise, in gray levels")
    parser.add_argument("--missing", type=float, default=0.5, help="share of the pixels that are missing")
    parser.add_argument("--steps", type=int, default=100, help="number of steps of the optimizer")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and of the missing pixels")
    main(**vars(parser.parse_args()))
