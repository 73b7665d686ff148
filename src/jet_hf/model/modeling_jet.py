# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""PyTorch Jet: the bare bijection, and the density model made of it."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_jet import JetConfig
from .coupling_jet import JetCoupling
from .distribution_jet import JetDistribution
from .likelihood_jet import bits_per_dim, dequantize, standard_normal_log_prob
from .validation_jet import check_context, check_images, check_noise, check_temperature, check_values, check_whole
from .vit_jet import JetAttention, JetCrossAttention, JetMLP, JetViT


# Standard deviation of a standard normal that is truncated at two standard deviations.
TRUNCATED_STD = 0.87962566103423978


def lecun_normal_(weight: torch.Tensor):
    """
    flax's default for a Dense layer: variance 1 / fan_in, from a normal truncated at two of its standard deviations.
    (transformers' function of this name cuts at -2 and 2 whatever the deviation, so its variance is 29 % too large.)
    """
    std = weight.shape[1] ** -0.5 / TRUNCATED_STD
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


@dataclass
class JetModelOutput(ModelOutput):
    """
    Output of [`JetModel`].

    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, num_channels, image_size, image_size)`):
            The image, mapped to the space where the model's density is a standard normal.
        log_det (`torch.FloatTensor` of shape `(batch_size,)`):
            Log-determinant of the Jacobian of the map from image to latents, in nats.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            The flow's state after each coupling layer, each of shape `(batch_size, num_patches, patch_dim)`.
    """

    latents: torch.FloatTensor | None = None
    log_det: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class JetDensityEstimationOutput(ModelOutput):
    """
    Output of [`JetForDensityEstimation`].

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean of `bits_per_dim` over the batch.
        bits_per_dim (`torch.FloatTensor` of shape `(batch_size,)`):
            Bits per dimension of the 8-bit images: an upper bound, for one draw of the noise.
        log_likelihood (`torch.FloatTensor` of shape `(batch_size,)`):
            Lower bound on the log-probability of the 8-bit images, in nats: `-bits_per_dim * d * log(2)`.
        latents (`torch.FloatTensor` of shape `(batch_size, num_channels, image_size, image_size)`):
            Latents of the dequantised images.
        log_det (`torch.FloatTensor` of shape `(batch_size,)`):
            Log-determinant of the Jacobian of the map from dequantised image to latents, in nats.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            The flow's state after each coupling layer, each of shape `(batch_size, num_patches, patch_dim)`.
    """

    loss: torch.FloatTensor | None = None
    bits_per_dim: torch.FloatTensor | None = None
    log_likelihood: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    log_det: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class JetPreTrainedModel(PreTrainedModel):
    config: JetConfig
    config_class = JetConfig
    base_model_prefix = "jet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["JetCoupling"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(JetCoupling, index=0, capture_initial_hidden_state=False),
    }
    # A negative index in `output_hidden_states` counts coupling layers, not the blocks inside one.
    _can_record_outputs["hidden_states"].num_hidden_layers_key = "num_coupling_layers"

    def get_input_embeddings(self) -> None:
        """None: images enter as they are. accelerate asks before it shards; transformers' own answer is an error."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # In custom code transformers passes over modules without tensors of their own, such as an attention made of
        # linear layers, lest they write over loaded tensors. The functions of `initialization` never do.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """
        The original's initialisation (paper, section 2.4, and its code): Xavier-uniform in the blocks, LeCun-normal
        (flax's default) at their input, zero at the output, so that a new flow with `scale_factor` 2 is the identity.
        """
        if isinstance(module, JetViT):
            lecun_normal_(module.in_proj.weight)
            init.zeros_(module.in_proj.bias)
            init.normal_(module.position_embeddings, std=self.config.hidden_size**-0.5)
            init.zeros_(module.out_proj.weight)
            init.zeros_(module.out_proj.bias)
        elif isinstance(module, JetAttention):
            # Query, key and value are E x E each: the bound of each alone, on the projection that fuses them.
            bound = math.sqrt(6 / (2 * self.config.hidden_size))
            init.uniform_(module.qkv_proj.weight, -bound, bound)
            init.zeros_(module.qkv_proj.bias)
            init.xavier_uniform_(module.o_proj.weight)
            init.zeros_(module.o_proj.bias)
        elif isinstance(module, JetCrossAttention):
            for projection in (module.q_proj, module.kv_proj):
                lecun_normal_(projection.weight)
                init.zeros_(projection.bias)
            init.zeros_(module.o_proj.weight)
            init.zeros_(module.o_proj.bias)
        elif isinstance(module, JetMLP):
            for projection in (module.fc1, module.fc2):
                init.xavier_uniform_(projection.weight)
                init.normal_(projection.bias, std=1e-6)
        elif isinstance(module, JetCoupling):
            init.copy_(module.permutation, module.make_permutation())
        else:
            super()._init_weights(module)


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
        p, grid = self.config.patch_size, self.config.grid_size
        patches = images.reshape(-1, self.config.num_channels, grid, p, grid, p).permute(0, 2, 4, 3, 5, 1)
        return patches.reshape(-1, self.config.num_patches, self.config.patch_dim)

    def unpatchify(self, state: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, C, S, S), the inverse of [`patchify`]."""
        p, grid, size = self.config.patch_size, self.config.grid_size, self.config.image_size
        images = state.reshape(-1, grid, grid, p, p, self.config.num_channels).permute(0, 5, 1, 3, 2, 4)
        return images.reshape(-1, self.config.num_channels, size, size)

    def encode(
        self, pixel_values: torch.Tensor, context: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Maps images to latents.

        Args:
            pixel_values: float32 tensor (B, C, S, S), any finite values.
            context: Tensor (B, L, context_size), for a model whose configuration sets `context_size`.

        Returns:
            latents: float32 tensor (B, C, S, S).
            log_det: Log-determinant of the Jacobian of this map, float32 tensor (B,), nats.

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values, or a context that is missing or unexpected.
        """
        return self._transform(pixel_values, context, "pixel_values", inverse=False)

    def decode(self, latents: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Maps latents to images: the inverse of [`encode`], at the same cost.

        Args:
            latents: float32 tensor (B, C, S, S), any finite values.
            context: Tensor (B, L, context_size), for a model whose configuration sets `context_size`.

        Returns:
            pixel_values: float32 tensor (B, C, S, S).
            log_det: Log-determinant of the Jacobian of this, the inverse, map, float32 tensor (B,), nats.

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values, or a context that is missing or unexpected.
        """
        return self._transform(latents, context, "latents", inverse=True)

    def _transform(
        self, images: torch.Tensor, context: torch.Tensor | None, name: str, inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        check_images(name, images, self.config, self.state_dtype)
        check_values(name, images)
        check_context(context, self.config, batch_size=images.shape[0])
        state = self.patchify(images)
        checkpointing = self.training and any(coupling.gradient_checkpointing for coupling in self.couplings)
        if checkpointing and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Reentrant checkpointing gives no gradients to the weights of a layer whose inputs need none.
            state.requires_grad_()
        log_det = torch.zeros(images.shape[0], dtype=images.dtype, device=images.device)
        for coupling in reversed(self.couplings) if inverse else self.couplings:
            state, layer_log_det = coupling(state, context, inverse)
            log_det = log_det.to(layer_log_det.device) + layer_log_det
        return self.unpatchify(state), log_det

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> JetModelOutput | tuple[torch.Tensor, ...]:
        """[`encode`] as a [`JetModelOutput`]; the decorator adds the hidden states that are asked for."""
        latents, log_det = self.encode(pixel_values, context)
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
        self.post_init()

    def encode(self, pixel_values: torch.Tensor, context: torch.Tensor | None = None):
        """Maps images to `(latents, log_det)`: see [`JetModel.encode`]."""
        return self.jet.encode(pixel_values, context)

    def decode(self, latents: torch.Tensor, context: torch.Tensor | None = None):
        """Maps latents to `(pixel_values, log_det)`: see [`JetModel.decode`]."""
        return self.jet.decode(latents, context)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
    ) -> JetDensityEstimationOutput | tuple[torch.Tensor, ...]:
        """
        Scores 8-bit images, dequantised with uniform noise in training and evaluation alike (paper, section 2.2).

        Args:
            pixel_values: float32 tensor (B, C, S, S) in [-1, 1]: 8-bit values `u` as `u / 127.5 - 1`, as
                [`JetImageProcessor`] makes them.
            context: Tensor (B, L, context_size), for a model whose configuration sets `context_size`.
            labels: Classes, for a class-conditional model; this model has none.
            noise: Dequantisation noise, of the shape and dtype of `pixel_values`, in [0, 1). Drawn when not given.
            generator: Draws the noise; with the same seed, results repeat bit for bit.
            output_hidden_states: Whether to return the flow's state after each coupling layer.

        Raises:
            ValueError: for a wrong shape, dtype, range or non-finite values, a context that is missing or unexpected,
                labels, or both noise and a generator.
        """
        check_images("pixel_values", pixel_values, self.config, self.jet.state_dtype)
        check_values("pixel_values", pixel_values, low=-1, high=1)
        self._check_labels(labels)
        if noise is None:
            noise = self._draw(torch.rand, pixel_values.shape, pixel_values.device, generator)
        elif generator is not None:
            raise ValueError("give `noise` or the `generator` that draws it, got both.")
        else:
            check_noise(noise, pixel_values)
        options = {} if output_hidden_states is None else {"output_hidden_states": output_hidden_states}
        output = self.jet(dequantize(pixel_values, noise), context, return_dict=True, **options)
        log_prob = standard_normal_log_prob(output.latents) + output.log_det
        bits = bits_per_dim(log_prob, self.config.num_dims)
        return JetDensityEstimationOutput(
            loss=bits.mean(),
            bits_per_dim=bits,
            log_likelihood=-bits * (self.config.num_dims * math.log(2)),
            latents=output.latents,
            log_det=output.log_det,
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
    ) -> torch.Tensor:
        """
        Draws images: latents from `N(0, temperature ** 2)`, decoded (paper, section 2.3).

        Args:
            num_samples: Number of images B, at least 1.
            temperature: Standard deviation of the latents, at least 0. 1 samples the model's density.
            generator: Draws the latents; with the same seed, results repeat bit for bit.
            context: Tensor (B, L, context_size), for a model whose configuration sets `context_size`.
            labels: Classes, for a class-conditional model; this model has none.

        Returns:
            pixel_values: float32 tensor (B, C, S, S), dequantised and not clipped:
            [`JetImageProcessor.post_process`] makes images of it.

        Raises:
            ValueError: for a number or temperature out of range, a context that is missing or unexpected, or labels.
        """
        check_whole("num_samples", num_samples)
        check_temperature(temperature)
        self._check_labels(labels)
        shape = (num_samples, self.config.num_channels, self.config.image_size, self.config.image_size)
        latents = temperature * self._draw(torch.randn, shape, self.jet.input_device, generator)
        return self.decode(latents, context)[0]

    def distribution(self, context: torch.Tensor | None = None) -> JetDistribution:
        """
        The model's density over scaled, dequantised images as a `torch.distributions.Distribution`.

        Args:
            context: Tensor (1, L, context_size), for a model whose configuration sets `context_size`.
        """
        return JetDistribution(self, context)

    def _draw(self, draw, shape, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
        """Random numbers from the generator's own device, so that a CPU generator serves a model on a GPU too."""
        dtype = self.jet.state_dtype
        # torch.compile cannot trace a `generator=None` where the batch size is dynamic.
        if generator is None:
            return draw(shape, device=device, dtype=dtype)
        return draw(shape, generator=generator, device=generator.device, dtype=dtype).to(device)

    def _check_labels(self, labels: torch.Tensor | None):
        if labels is not None:
            raise ValueError("`labels` were given, but this model is not class-conditional; expected None.")


JetModel.register_for_auto_class("AutoModel")
JetForDensityEstimation.register_for_auto_class("AutoModel")

__all__ = ["JetForDensityEstimation", "JetModel", "JetPreTrainedModel"]
