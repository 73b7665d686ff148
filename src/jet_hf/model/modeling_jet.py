# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""PyTorch Jet: the bare bijection, and the density model made of it."""

import math

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_jet import JetConfig
from .coupling_jet import JetCoupling
from .dequantization_jet import JetDequantizationFlow
from .distribution_jet import JetDistribution
from .glow_jet import initialize_actnorm
from .likelihood_jet import bits_per_dim, dequantize, standard_normal_log_prob
from .pretrained_jet import JetDensityEstimationOutput, JetModelOutput, JetPreTrainedModel
from .splits_jet import patchify, unpatchify
from .validation_jet import (
    check_8bit_images,
    check_context,
    check_context_mask,
    check_generator,
    check_guidance_scale,
    check_images,
    check_labels,
    check_noise,
    check_temperature,
    check_values,
    check_whole,
)


class JetModel(JetPreTrainedModel):
    r"""
    The bare normalizing flow: an exact bijection between images and latents, with its log-determinant.

    Example:

    ```python
    >>> import torch
    >>> from jet_hf import JetConfig, JetModel

    >>> model = JetModel(JetConfig(image_size=16, num_coupling_layers=2, hidden_size=32, num_attention_heads=2))
    >>> pixel_values = 2 * torch.rand(1, 3, 16, 16) - 1
    >>> latents, log_det = model.encode(pixel_values)
    >>> reconstruction, inverse_log_det = model.decode(latents)
    ```"""

    def __init__(self, config: JetConfig):
        super().__init__(config)
        classes = config.num_classes
        self.label_embedding = nn.Embedding(classes, config.context_width) if classes is not None else None
        self.couplings = nn.ModuleList([JetCoupling(config, i) for i in range(config.num_coupling_layers)])
        self.post_init()

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of images, latents and log-determinants: float32, whatever narrower dtype the weights have."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def input_device(self) -> torch.device:
        """Device that images and latents start on; accelerate may offload the weights, but not the permutations."""
        return self.couplings[0].permutation.device

    def patchify(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) -> (B, N, D); the channel is the fastest axis of a patch, then its columns, then its rows."""
        return patchify(images, self.config)

    def unpatchify(self, state: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, C, S, S), the inverse of [`patchify`]."""
        return unpatchify(state, self.config)

    def condition(
        self,
        batch_size: int,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        What the coupling layers attend to, from what a user gives.

        Args:
            batch_size: Number of images B.
            context: Tensor (B, L, context_size), for a model whose configuration sets `context_size`.
            labels: int64 tensor (B,) of classes, for a model whose configuration sets `num_classes`. The number
                `num_classes` itself stands for no label: a context of zeros, as in the original's training.
            context_mask: Boolean tensor (B, L) for a `context` with padding, where it is False.

        Returns:
            The context (B, L, context_width) and its mask (B, L), or `None`.

        Raises:
            ValueError: for what is missing, unexpected, or of a wrong shape, dtype or range.
        """
        check_context(context, self.config, batch_size)
        check_labels(labels, self.config, batch_size)
        check_context_mask(context_mask, context)
        if labels is not None:
            num_classes = self.config.num_classes
            tokens = self.label_embedding(labels.clamp(max=num_classes - 1))
            context = (tokens * (labels < num_classes)[:, None])[:, None]
        return context, None if context_mask is None else context_mask.bool()

    def encode(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Maps images to latents.

        Args:
            pixel_values: float32 tensor (B, C, S, S), any finite values.
            context, labels, context_mask: What a conditional model needs, see [`condition`].

        Returns:
            latents: float32 tensor (B, C, S, S).
            log_det: Log-determinant of the Jacobian of this map, float32 tensor (B,), nats.

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values, or what [`condition`] refuses.
        """
        check_images("pixel_values", pixel_values, self.config, self.state_dtype)
        check_values("pixel_values", pixel_values)
        conditions = self.condition(pixel_values.shape[0], context, labels, context_mask)
        # A compiled or sharded model is initialised before its first step, by the trainer.
        if self.config.use_actnorm and self.training and not torch.compiler.is_compiling():
            self._initialize_actnorm_once(pixel_values, conditions)
        return self._transform(pixel_values, conditions, inverse=False)

    def decode(
        self,
        latents: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Maps latents to images: the inverse of [`encode`], at the same cost.

        Args:
            latents: float32 tensor (B, C, S, S), any finite values.
            context, labels, context_mask: What a conditional model needs, see [`condition`].
            guidance_scale: Strength of classifier-free guidance, at twice the cost: bias and raw scale of each
                coupling layer go from those without context (at 0) to those with it (1) and beyond, as TarFlow does
                (Zhai et al., 2024). What comes out is the map of another flow, exactly invertible as well, but its
                density is not that of `p(x | y) ** scale`, which no flow gives. `None`: no guidance, the same as 1.

        Returns:
            pixel_values: float32 tensor (B, C, S, S).
            log_det: Log-determinant of the Jacobian of this, the inverse, map, float32 tensor (B,), nats.

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values, what [`condition`] refuses, or guidance without
                a context.
        """
        check_images("latents", latents, self.config, self.state_dtype)
        check_values("latents", latents)
        conditions = self.condition(latents.shape[0], context, labels, context_mask)
        check_guidance_scale(guidance_scale, self.config)
        return self._transform(latents, conditions, inverse=True, guidance_scale=guidance_scale)

    def _transform(
        self,
        images: torch.Tensor,
        conditions: tuple[torch.Tensor | None, torch.Tensor | None],
        inverse: bool,
        guidance_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        context, context_mask = conditions
        state = self.patchify(images)
        if self.training and torch.is_grad_enabled() and self._follows_state():
            state.requires_grad_()
        log_det = torch.zeros(images.shape[0], dtype=images.dtype, device=images.device)
        for coupling in reversed(self.couplings) if inverse else self.couplings:
            state, layer_log_det = coupling(state, context, inverse, context_mask, guidance_scale)
            log_det = log_det.to(layer_log_det.device) + layer_log_det
        return self.unpatchify(state), log_det

    def _follows_state(self) -> bool:
        """
        Return whether the first layer's input must require gradients as those of the others do: reentrant
        checkpointing computes none for the weights of a layer whose input requires none, and compilation would make a
        second graph for it.
        """
        return not torch.compiler.is_compiling() and (
            self.couplings[0].gradient_checkpointing or self.couplings[0].affine.is_compiled
        )

    @property
    def actnorm_initialized(self) -> bool:
        """Whether there is activation normalisation, and it has seen its first batch."""
        return self.config.use_actnorm and bool(self.couplings[0].actnorm.initialized)

    @torch.no_grad()
    def initialize_actnorm(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> None:
        """
        Sets the activation normalisation of each layer from a first batch: dequantised images, and what belongs to
        them, as [`encode`] takes them. In training the first batch does this by itself; several processes must be
        given the same images here.
        """
        conditions = self.condition(pixel_values.shape[0], context, labels, context_mask)
        initialize_actnorm(self.couplings, self.patchify(pixel_values), *conditions)

    def _initialize_actnorm_once(self, pixel_values, conditions):
        if pixel_values.is_meta or self.actnorm_initialized:
            return
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "the activation normalisation has seen no batch, and each process would set it from its own: call "
                "`initialize_actnorm` with the same images on all of them before training."
            )
        initialize_actnorm(self.couplings, self.patchify(pixel_values), *conditions)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> JetModelOutput | tuple[torch.Tensor, ...]:
        """[`encode`] as a [`JetModelOutput`]; the decorator adds the hidden states that are asked for."""
        latents, log_det = self.encode(pixel_values, context, labels, context_mask)
        return JetModelOutput(latents=latents, log_det=log_det)


class JetForDensityEstimation(JetPreTrainedModel):
    r"""
    Jet as a density model of 8-bit images: scores them in bits per dimension, and samples.

    Example:

    ```python
    >>> import torch
    >>> from jet_hf import JetConfig, JetForDensityEstimation

    >>> config = JetConfig(image_size=16, num_coupling_layers=2, hidden_size=32, num_attention_heads=2)
    >>> model = JetForDensityEstimation(config).eval()
    >>> bytes_ = torch.randint(256, (4, 3, 16, 16))
    >>> model(bytes_ / 127.5 - 1).bits_per_dim.shape
    torch.Size([4])
    >>> model.sample(2, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 16, 16])
    ```"""

    def __init__(self, config: JetConfig):
        super().__init__(config)
        self.jet = JetModel(config)
        self.dequantizer = JetDequantizationFlow(config) if config.dequantization == "flow" else None
        self.post_init()

    def encode(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps images to `(latents, log_det)`: see [`JetModel.encode`]."""
        return self.jet.encode(pixel_values, context, labels, context_mask)

    def decode(
        self,
        latents: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps latents to `(pixel_values, log_det)`: see [`JetModel.decode`]."""
        return self.jet.decode(latents, context, labels, context_mask, guidance_scale)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> JetDensityEstimationOutput | tuple[torch.Tensor, ...]:
        """
        Scores 8-bit images, dequantised with uniform noise in training and evaluation alike (paper, section 2.2), or,
        where the configuration says so, with that of a flow: the variational bound of Ho et al. (2019).

        Args:
            pixel_values: Tensor (B, C, S, S) of 8-bit images: bytes `u` as `u / 127.5 - 1`, as [`JetImageProcessor`]
                makes them. float32; float16 and bfloat16 values become exactly those of the bytes that they stand for,
                so that `processor(...).to(model.device, model.dtype)` gives the float32 score. Continuous values go
                to [`encode`] or [`distribution`].
            context, labels, context_mask: What a conditional model needs, see [`JetModel.condition`].
            noise: Uniform noise, float32 tensor (B, C, S, S) in [0, 1): the dequantization noise itself, or the input
                of the dequantization flow. Drawn when not given.
            generator: Draws the noise; with the same seed, results repeat bit for bit.
            output_hidden_states: Whether to return the flow's state after each coupling layer.

        Raises:
            ValueError: for a wrong shape or dtype, values that are not those of bytes, a context or labels that are
                missing or unexpected, or both noise and a generator.
        """
        pixel_values = check_8bit_images(pixel_values, self.config, self.jet.state_dtype)
        check_generator(generator)
        if noise is None:
            noise = self._draw(torch.rand, pixel_values.shape, pixel_values.device, generator)
        elif generator is not None:
            raise ValueError("give `noise` or the `generator` that draws it, got both.")
        else:
            check_noise(noise, pixel_values)
        options = {} if output_hidden_states is None else {"output_hidden_states": output_hidden_states}
        noise_log_det = None
        if self.dequantizer is not None:
            noise, noise_log_det = self.dequantizer(pixel_values, noise)
        images = dequantize(pixel_values, noise)
        output = self.jet(images, context, labels, context_mask, return_dict=True, **options)
        log_prob = standard_normal_log_prob(output.latents) + output.log_det
        if noise_log_det is not None:
            log_prob = log_prob + noise_log_det.to(log_prob.device)
        bits = bits_per_dim(log_prob, self.config.num_dims)
        return JetDensityEstimationOutput(
            loss=bits.mean(),
            bits_per_dim=bits,
            log_likelihood=-bits * (self.config.num_dims * math.log(2)),
            latents=output.latents,
            log_det=output.log_det,
            dequantization_log_det=noise_log_det,
            hidden_states=output.hidden_states,
        )

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """
        Draws images: latents from `N(0, temperature ** 2)`, decoded (paper, section 2.3).

        Args:
            num_samples: Number of images B, at least 1.
            temperature: Standard deviation of the latents, at least 0. 1 samples the model's density.
            generator: Draws the latents; with the same seed, results repeat bit for bit.
            context, labels, context_mask: What a conditional model needs, see [`JetModel.condition`].
            guidance_scale: Strength of classifier-free guidance, see [`JetModel.decode`].

        Returns:
            pixel_values: float32 tensor (B, C, S, S), dequantised and not clipped:
            [`JetImageProcessor.post_process`] makes images of it.

        Raises:
            ValueError: for a number or temperature out of range, a context or labels that are missing or unexpected.
        """
        check_whole("num_samples", num_samples)
        check_temperature(temperature)
        check_generator(generator)
        shape = (num_samples, self.config.num_channels, self.config.image_size, self.config.image_size)
        latents = temperature * self._draw(torch.randn, shape, self.jet.input_device, generator)
        return self.decode(latents, context, labels, context_mask, guidance_scale)[0]

    def distribution(
        self,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> JetDistribution:
        """
        The model's density over scaled, dequantised images as a `torch.distributions.Distribution`.

        Args:
            context, labels, context_mask: Those of one image, with B = 1: see [`JetModel.condition`].
        """
        return JetDistribution(self, context, labels, context_mask)

    def _draw(self, draw, shape, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
        """Random numbers from the generator's own device, so that a CPU generator serves a model on a GPU too."""
        dtype = self.jet.state_dtype
        # torch.compile cannot trace a `generator=None` where the batch size is dynamic.
        if generator is None:
            return draw(shape, device=device, dtype=dtype)
        return draw(shape, generator=generator, device=generator.device, dtype=dtype).to(device)


JetModel.register_for_auto_class("AutoModel")
JetForDensityEstimation.register_for_auto_class("AutoModel")

__all__ = ["JetForDensityEstimation", "JetModel", "JetPreTrainedModel"]
