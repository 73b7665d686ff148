# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Jet for users of torch.distributions."""

import torch
from torch.distributions import Distribution, constraints

from .likelihood_jet import standard_normal_log_prob


class JetDistribution(Distribution):
    """
    The density of a Jet model over scaled, dequantised images, as an event of shape (C, S, S).

    `log_prob` is in nats and is the density of `u / 127.5 - 1 + noise / 127.5`; `model(pixel_values)` gives the
    likelihood of the 8-bit images themselves.

    Args:
        model: A [`JetForDensityEstimation`].
        context, labels, context_mask: Those of one image, with B = 1: see [`JetModel.condition`].

    Raises:
        ValueError: for a context or labels that are wrong, missing or unexpected.

    Example:

    ```python
    >>> from jet_hf import JetConfig, JetForDensityEstimation

    >>> config = JetConfig(image_size=16, num_coupling_layers=2, hidden_size=32, num_attention_heads=2)
    >>> distribution = JetForDensityEstimation(config).distribution()
    >>> distribution.log_prob(distribution.sample((5,))).shape
    torch.Size([5])
    ```"""

    arg_constraints = {}
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self,
        model,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ):
        model.jet.condition(1, context, labels, context_mask)
        self.model = model
        self.conditions = (context, labels, context_mask)
        size = model.config.image_size
        super().__init__(event_shape=torch.Size([model.config.num_channels, size, size]), validate_args=False)

    def _expand_conditions(self, batch_size: int) -> list[torch.Tensor | None]:
        return [None if tensor is None else tensor.expand(batch_size, *tensor.shape[1:]) for tensor in self.conditions]

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """
        Log-density, in nats, of images `value` (*, C, S, S): a tensor (*).

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values, or a context that is missing or unexpected.
        """
        if not isinstance(value, torch.Tensor) or value.shape[-3:] != self.event_shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(f"`value` must be a tensor of shape (*, {expected}), got {got}.")
        images = value.reshape(-1, *self.event_shape)
        latents, log_det = self.model.encode(images, *self._expand_conditions(len(images)))
        return (standard_normal_log_prob(latents) + log_det).reshape(value.shape[:-3])

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """Images (*sample_shape, C, S, S), differentiable in the model's parameters."""
        shape = self._extended_shape(torch.Size(sample_shape))
        latents = torch.randn(shape, dtype=self.model.jet.state_dtype, device=self.model.jet.input_device)
        latents = latents.reshape(-1, *self.event_shape)
        return self.model.decode(latents, *self._expand_conditions(len(latents)))[0].reshape(shape)
