# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A prior as a `Prior` and a `Denoiser` of deepinv, whose images have the scale [0, 1]."""

import math
from typing import Any

import torch
from deepinv.models import Denoiser
from deepinv.optim import Prior

from .jet_prior import JetPrior


class DeepinvPrior(Prior):
    """
    Explicit prior of deepinv: the negative log-density of images on the scale [0, 1], times the weight of the prior.

    deepinv gives every method the parameters of its algorithms, of which a density needs none but the step size.

    Args:
        prior: Prior of images on the model's scale.
    """

    def __init__(self, prior: JetPrior):
        super().__init__()
        self.explicit_prior = True
        self.prior = prior

    def fn(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the negative log-density (B,) of images (B, C, H, W), in nats."""
        return -self.prior.weight * (self.prior.log_prob(_to_model(x)) + math.log(2) * x[0].numel())

    def grad(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the gradient (B, C, H, W) of [`fn`]."""
        return -2 * self.prior.weight * self.prior.score(_to_model(x))

    def prox(self, x: torch.Tensor, *args: Any, gamma: float | torch.Tensor = 1.0, **kwargs: Any) -> torch.Tensor:
        """Return `argmin_u gamma * fn(u) + |u - x|^2 / 2`: the most probable image, given noise of variance gamma."""
        return _to_unit(self.prior.denoise(_to_model(x), _to_sigma(gamma**0.5, x), method="map"))


class DeepinvDenoiser(Denoiser):
    """
    Denoiser of deepinv: [`JetPrior.denoise`] of images on the scale [0, 1].

    Args:
        prior: Prior of images on the model's scale.
        options: Arguments of [`JetPrior.denoise`].
    """

    def __init__(self, prior: JetPrior, **options: Any):
        super().__init__(device=prior.model.jet.input_device)
        self.prior = prior
        self.options = options

    def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Remove noise of the standard deviation `sigma`, a number or a tensor (B,), from images (B, C, H, W)."""
        return _to_unit(self.prior.denoise(_to_model(x), _to_sigma(sigma, x), **self.options))


def _to_model(images: torch.Tensor) -> torch.Tensor:
    return 2 * images - 1


def _to_unit(images: torch.Tensor) -> torch.Tensor:
    return (images + 1) / 2


def _to_sigma(sigma: float | torch.Tensor | list[float], images: torch.Tensor) -> torch.Tensor:
    """Return noise levels on the model's scale, a tensor () or (B,). deepinv gives numbers, lists and tensors."""
    levels = 2 * torch.as_tensor(sigma, dtype=images.dtype, device=images.device)
    shape = {1: (), len(images): (len(images),)}.get(levels.numel(), levels.shape)
    return levels.reshape(shape)
