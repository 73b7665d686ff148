# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
PyTorch Jet: the bijection [`JetModel`] and the density model [`JetForDensityEstimation`].

Shapes: B batch, C channels, S image size, N patches, D dimensions of a patch, L context tokens. Images that are not
square are (B, C, H, W), with their height and width.
"""

import copy
import inspect
import itertools
import math
import os
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import nn
from torch.distributions import Distribution, constraints
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .conditioners_jet import (
    Conditioning,
    Guidance,
    JetAttention,
    JetNoiseEmbedding,
    JetStandardizedConv2d,
    JetViT,
    linear,
)
from .configuration_jet import JetConfig, image_sides, levels_per_unit
from .flow_jet import (
    JetActNorm,
    JetConditionalMap,
    JetCoupling,
    JetInvertibleDense,
    build_couplings,
    initialize_actnorm,
    patchify,
    transform,
    unpatchify,
)
from .positions_jet import resized_weights
from .validation_jet import (
    check_context,
    check_context_mask,
    check_denoising,
    check_generator,
    check_guidance,
    check_images,
    check_keywords,
    check_labels,
    check_levels,
    check_noise,
    check_noise_std,
    check_not_negative,
    check_quantized_images,
    check_step_noise,
    check_values,
    check_whole,
    skips_values,
)


# Likelihoods (paper, section 2.2)


def scale_bytes(pixels: torch.Tensor, num_levels: int = 256) -> torch.Tensor:
    """
    Scale bytes `u`, or levels of another number, to the model's range, `2 * u / (num_levels - 1) - 1`, float32.

    Raises:
        ValueError: for a dtype other than uint8 (uint16 for more than 256 levels), since its values may be scaled
            already, or for levels that the model does not have.
    """
    check_levels("pixels", pixels, num_levels)
    return pixels.float() / levels_per_unit(num_levels) - 1


def dequantize(pixel_values: torch.Tensor, noise: torch.Tensor | float, num_levels: int = 256) -> torch.Tensor:
    """Add noise in [0, 1), in units of a gray level, to images of gray levels (Theis et al., 2015)."""
    return pixel_values + noise / levels_per_unit(num_levels)


def standard_normal_log_prob(latents: torch.Tensor) -> torch.Tensor:
    """Return the log-density (B,) of latents (B, ...) under N(0, I), in nats."""
    latents = latents.flatten(1)
    return -0.5 * latents.square().sum(dim=1) - 0.5 * latents.shape[1] * math.log(2 * math.pi)


def bits_per_dim(log_prob: torch.Tensor, num_dims: int, num_levels: int = 256) -> torch.Tensor:
    """
    Return the bits per dimension (B,) of images of gray levels, given the log-density `log_prob` (B,), in nats, of the
    scaled, dequantized images. A model that is uniform over the levels gives `log2(num_levels)`: 8 for 8-bit images.
    """
    return -(log_prob - num_dims * math.log(levels_per_unit(num_levels))) / (num_dims * math.log(2))


# Outputs


@dataclass
class JetModelOutput(ModelOutput):
    """
    Output of [`JetModel`].

    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, num_channels, image_size, image_size)`):
            Latents of the images, whose density under the model is a standard normal.
        log_det (`torch.FloatTensor` of shape `(batch_size,)`):
            Log-determinant of the Jacobian of the map from image to latents, in nats.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            The flow's state after each coupling layer, each of shape `(batch_size, num_patches, patch_dim)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True` and eager attention):
            Self-attention weights of all transformer blocks, by coupling layer and block, each of shape
            `(batch_size, num_attention_heads, num_patches, num_patches)`.
    """

    latents: torch.Tensor | None = None
    log_det: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class JetDensityEstimationOutput(ModelOutput):
    """
    Output of [`JetForDensityEstimation`].

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean of `bits_per_dim` over the batch, or of `noisy_nats_per_dim` for a model with `noise_std`. If
            `noise_std` is a range, this is a weighted mean, see [`JetForDensityEstimation.loss_weights`].
        bits_per_dim (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, without `noise_std`):
            Bits per dimension of the 8-bit images, an upper bound estimated with one draw of the noise.
        log_likelihood (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, without `noise_std`):
            Lower bound on the log-probability of the 8-bit images, in nats: `-bits_per_dim * d * log(2)`.
        noisy_nats_per_dim (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, with `noise_std`):
            Negative log-density of the noisy images, in nats per dimension, without weights. It is no likelihood of
            the images, and may be negative.
        latents (`torch.FloatTensor` of shape `(batch_size, num_channels, image_size, image_size)`):
            Latents of the dequantized or noisy images.
        log_det (`torch.FloatTensor` of shape `(batch_size,)`):
            Log-determinant of the Jacobian of the map from dequantized or noisy image to latents, in nats.
        dequantization_log_det (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, with a dequantization flow):
            Minus the log-density of the dequantization noise, in nats, which is a term of `log_likelihood`.
        noise_std (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, with a range of `noise_std`):
            Noise levels of the images, given or drawn.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            As in [`JetModelOutput`].
        attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True` and eager attention):
            As in [`JetModelOutput`].
    """

    loss: torch.Tensor | None = None
    bits_per_dim: torch.Tensor | None = None
    log_likelihood: torch.Tensor | None = None
    noisy_nats_per_dim: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    log_det: torch.Tensor | None = None
    dequantization_log_det: torch.Tensor | None = None
    noise_std: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


# Initialization


# Standard deviation of a standard normal distribution truncated at two standard deviations.
TRUNCATED_STD = 0.87962566103423978


def initialize_linear(layer: nn.Linear, initialization: str) -> None:
    """Initialize a linear layer as the original does (paper, section 2.4, and its code)."""
    init.zeros_(layer.bias)
    if initialization == "zeros":  # with `scale_factor` 2 a new flow is the identity
        init.zeros_(layer.weight)
    elif initialization == "lecun_normal":
        # As in flax, truncated at two standard deviations. transformers' function of this name truncates at -2 and 2.
        std = layer.in_features**-0.5 / TRUNCATED_STD
        init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    elif initialization == "xavier_uniform_qkv":  # the bound of separate projections of query, key and value
        bound = math.sqrt(6 / (2 * layer.in_features))
        init.uniform_(layer.weight, -bound, bound)
    else:
        init.xavier_uniform_(layer.weight)
        if initialization == "xavier_uniform_mlp":
            init.normal_(layer.bias, std=1e-6)


# What transformers expects of a family of models


# Graphs of one compiled map: each direction, batch size and mode needs one. PyTorch stops compiling at 8 by default.
RECOMPILE_LIMIT = 64
# Fields that change the model of the weights but no tensor's shape, so that transformers would not notice a change.
FIELDS_OF_THE_WEIGHTS = (
    "coupling_kinds",
    "spatial_couplings",
    "coupling_mode",
    "coupling_transform",
    "permutation_seed",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "num_groups",
    "scale_factor",
    "dequantization_num_attention_heads",
    "num_levels",
    "noise_std",
)
# Fields that change the model of the weights, and the shapes of tensors unless their changes cancel out.
FIELDS_OF_SHAPES = ("num_channels", "patch_size", "image_size")
# Arguments of `from_pretrained` that locate the files of a repository.
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class JetPreTrainedModel(PreTrainedModel):
    """Base class that initializes, loads, saves and compiles Jet models."""

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
    # The loss is a mean over the batch, which transformers' Trainer divides by the accumulation steps itself.
    accepts_loss_kwargs = False
    _can_record_outputs = {
        # Negative indices in `output_hidden_states` count coupling layers, not the blocks of a conditioner.
        "hidden_states": OutputRecorder(JetCoupling, index=0, capture_initial_hidden_state=False),
        "attentions": OutputRecorder(JetAttention, index=1),
    }
    _can_record_outputs["hidden_states"].num_hidden_layers_key = "num_coupling_layers"

    def __init__(self, config: JetConfig, *inputs, **kwargs):
        super().__init__(config, *inputs, **kwargs)
        self._fields_at_construction = copy.deepcopy(config.own_fields())

    def save_pretrained(self, *args, **kwargs) -> None:
        """
        Save the model, as in transformers.

        Raises:
            ValueError: for a configuration that was changed after the model was built, or a split that cannot be
                inverted.
        """
        for name, value in self.config.own_fields().items():
            if value != self._fields_at_construction[name]:
                raise ValueError(
                    f"`config.{name}` must be {self._fields_at_construction[name]!r}, with which this model was "
                    f"built, got {value!r}. Build a new model to change it."
                )
        self._check_permutations()
        super().save_pretrained(*args, **kwargs)

    def _check_permutations(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, JetCoupling):
                module.check_permutation(name)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, interpolate_positions: bool = False, **kwargs
    ):
        """
        Load a model, as in transformers.

        Args:
            interpolate_positions (`bool`, *optional*, defaults to `False`):
                Whether `image_size`, given as an argument or in `config`, may differ from that of the saved model, for
                fine-tuning. See [`set_image_size`].

        Raises:
            ValueError: for a field that contradicts the saved configuration and changes no tensor's shape, such as
                `permutation_seed`, or for splits that cannot be inverted; with `interpolate_positions`, also for
                another `num_channels` or `patch_size`.
        """
        image_size = None
        if interpolate_positions:
            config, image_size = _at_saved_size(cls.config_class, pretrained_model_name_or_path, config, kwargs)
        if pretrained_model_name_or_path is not None:
            _check_fields_of_the_weights(cls.config_class, pretrained_model_name_or_path, config, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._check_permutations()
        model._copy_buffers()
        if image_size is not None:
            model.set_image_size(image_size)
        return loaded

    def _copy_buffers(self) -> None:
        """Copy the loaded buffers. Each is a view of a memory-mapped file, which it would keep mapped as a whole."""
        for module in self.modules():
            if isinstance(module, (JetCoupling, JetActNorm)):
                for name, buffer in list(module.named_buffers(recurse=False)):
                    setattr(module, name, buffer.clone())

    @torch.no_grad()
    def set_image_size(self, image_size: int | tuple[int, int] | list[int]) -> None:
        """
        Change the size of the images of a model in place, before it is fine-tuned.

        Position embeddings are interpolated bicubically to the new grid of patches, and spatial splits are made for
        it. All other weights are kept. Create the optimizer after this call, since the position embeddings become new
        parameters.

        Args:
            image_size: Height and width of the new images, or the side of squares.

        Raises:
            ValueError: for a size that the configuration does not allow, a model whose spatial splits are not those of
                its configuration, or offloaded weights.
        """
        config = JetConfig(**self.config.own_fields() | {"image_size": image_size})
        if config.image_size == self.config.image_size:
            return
        for name, tensor in resized_weights(self, config).items():
            owner, _, kind = name.rpartition(".")
            module = self.get_submodule(owner)
            old = getattr(module, kind)
            new = tensor.to(old.device)
            setattr(module, kind, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        for module in self.modules():
            if hasattr(module, "config"):
                module.config.image_size = config.image_size
            if isinstance(module, JetPreTrainedModel):
                module._fields_at_construction["image_size"] = config.image_size

    def set_attn_implementation(self, *args, **kwargs) -> None:
        """Set the attention implementation, as in transformers, also in the dequantization flow."""
        super().set_attn_implementation(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, JetDequantizationFlow):
                module.config._attn_implementation = self.config._attn_implementation

    def compile_couplings(self, **kwargs) -> None:
        """
        Compile the maps of the coupling layers and their conditioners in place. All layers share one graph, so that
        the time to compile does not depend on the depth of the flow. Temperatures of samples, seeds and strengths of
        guidance share graphs too, but each `attention_temperature` needs its own.

        Args:
            kwargs: Arguments of `torch.compile`, such as `mode="max-autotune-no-cudagraphs"`.
        """
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            kwargs = {"recompile_limit": RECOMPILE_LIMIT} | kwargs
        for module in self.modules():
            if isinstance(module, JetConditionalMap):
                module.compile(**kwargs)

    def get_input_embeddings(self) -> None:
        """Return `None`, since images are not embedded. accelerate asks for embeddings before it shards a model."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialization = getattr(module, "initialization", None)
        if isinstance(module, nn.Linear) and isinstance(initialization, str):
            initialize_linear(module, initialization)
        elif isinstance(module, (JetViT, JetDequantizationFlow)):
            init.normal_(module.position_embeddings, std=module.position_embeddings.shape[-1] ** -0.5)
        elif isinstance(module, JetStandardizedConv2d):
            init.kaiming_normal_(module.weight)
        elif isinstance(module, (JetActNorm, JetInvertibleDense)):
            for tensor in (*module.parameters(), *module.buffers()):
                init.zeros_(tensor)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)  # unit variance, which the projection of the context preserves
        elif isinstance(module, JetCoupling):
            init.copy_(module.permutation, module.make_permutation())
        else:
            super()._init_weights(module)


def _check_fields_of_the_weights(config_class, name_or_path, config, arguments: dict) -> None:
    """Raise ValueError for fields of `config` or `arguments` that contradict the configuration saved with weights."""
    location = {name: arguments[name] for name in LOCATION_ARGUMENTS if name in arguments}
    given = _given_fields(config_class, config, arguments, location)
    given = {name: given[name] for name in (*FIELDS_OF_THE_WEIGHTS, *FIELDS_OF_SHAPES) if name in given}
    if not given:
        return
    try:
        saved, _ = config_class.get_config_dict(name_or_path, **location)
    except OSError:
        return
    if saved:
        _check_same_fields(config_class, name_or_path, saved, given)


def _given_fields(config_class, config, arguments: dict, location: dict) -> dict:
    """Return the fields that `config` or the arguments of `from_pretrained` give, among other arguments."""
    if config is None:
        return arguments
    if isinstance(config, str | os.PathLike):
        return config_class.get_config_dict(config, **location)[0] | arguments
    if isinstance(config, PreTrainedConfig):
        return config.to_dict()
    raise ValueError(f"`config` must be a {config_class.__name__} or its path, got {type(config).__name__}.")


def _check_same_fields(config_class, name_or_path, saved: dict, given: dict) -> None:
    def value_of(fields: dict, name: str):
        value = fields.get(name, getattr(config_class, name))
        if name == "image_size":
            return image_sides(value)
        return list(value) if isinstance(value, tuple) else value

    def shape(fields: dict) -> tuple[int, int]:
        (height, width), patch_size = value_of(fields, "image_size"), value_of(fields, "patch_size")
        return (height * width) // patch_size**2, value_of(fields, "num_channels") * patch_size**2

    changes_shapes = shape(saved) != shape(saved | given)
    for name in given:
        value, expected = value_of(given, name), value_of(saved, name)
        if value != expected and not (changes_shapes and name in FIELDS_OF_SHAPES):
            raise ValueError(
                f"`{name}` must be {expected!r}, with which the weights of {name_or_path} were made, got {value!r}: "
                "the model would compute different numbers."
            )


def _at_saved_size(config_class, name_or_path, config, arguments: dict) -> tuple[Any, Any]:
    """
    Return `config` with the image size of the saved weights, which also replaces the one of the arguments, and the
    image size that they asked for.
    """
    if name_or_path is None:
        raise ValueError("`interpolate_positions` must be False without saved weights, got True.")
    location = {name: arguments[name] for name in LOCATION_ARGUMENTS if name in arguments}
    saved = config_class.from_pretrained(name_or_path, **location)
    given = _given_fields(config_class, config, arguments, location)
    for name in FIELDS_OF_SHAPES:
        expected = getattr(saved, name)
        if name != "image_size" and given.get(name, expected) != expected:
            raise ValueError(
                f"`{name}` must be {expected!r}, as in {name_or_path}, got {given[name]!r}: `interpolate_positions` "
                "lets only `image_size` change."
            )
    image_size = given.get("image_size", saved.image_size)
    if isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
        config.image_size = saved.image_size
    else:
        arguments["image_size"] = saved.image_size
    return config, image_size


# The flow over dequantization noise (Ho et al., 2019; paper, section 3.2.6)


# Smallest distance of noise from 0 and 1, at which the quantiles of the normal distribution are infinite.
MARGIN = 2.0**-24


class JetDequantizationFlow(nn.Module):
    """
    Map from uniform noise to dequantization noise that depends on the image: the quantile function of the normal
    distribution, coupling layers that attend to the image tokens, and the cumulative distribution function.

    Flow++ ends its dequantization flow with a sigmoid. The distribution function makes a new flow the identity, so
    that training starts from uniform dequantization.

    Args:
        config: Configuration of the model.
    """

    def __init__(self, config: JetConfig):
        super().__init__()
        self.config = config.dequantization_config
        self.in_proj = linear(config.patch_dim, self.config.hidden_size, "lecun_normal")
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches, self.config.hidden_size))
        self.couplings = build_couplings(self.config)

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Map uniform noise to the dequantization noise of images.

        Args:
            pixel_values: 8-bit images on the model's scale, float32 (B, C, S, S).
            noise: Uniform noise in [0, 1), of the same shape.

        Returns:
            The noise (B, C, S, S) in (0, 1), and the log-determinant of the map (B,), in nats, which is minus the
            log-density of the noise.
        """
        start, conditioning = self.embed(pixel_values, noise)
        state, log_det = transform(self.couplings, start, conditioning)
        log_det = log_det - standard_normal_log_prob(start).to(log_det.device)
        return self.to_noise(state), log_det + standard_normal_log_prob(state)

    def embed(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Conditioning]:
        """Return the input of the coupling layers: normal noise (B, N, D), and the image tokens as their context."""
        tokens = patchify(pixel_values, self.config)
        context = self.in_proj(tokens.to(self.position_embeddings.dtype)) + self.position_embeddings
        start = torch.special.ndtri(noise.clamp(MARGIN, 1 - MARGIN))
        return patchify(start, self.config), Conditioning(context)

    def to_noise(self, state: torch.Tensor) -> torch.Tensor:
        """Map the output (B, N, D) of the coupling layers to noise (B, C, S, S) in (0, 1)."""
        return torch.special.ndtr(unpatchify(state, self.config)).clamp(MARGIN, 1 - MARGIN)


# The models


class GuidanceKwargs(TypedDict, total=False):
    """Rule of the guidance, see [`JetModel.decode`]."""

    guidance: str
    attention_temperature: float | None


class JetModel(JetPreTrainedModel):
    r"""
    Bare normalizing flow: a bijection between images and latents, with its log-determinant.

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
        self.label_embedding = nn.Embedding(classes, config.hidden_size) if classes is not None else None
        self.noise_embedding = JetNoiseEmbedding(config) if config.noise_range is not None else None
        self.couplings = build_couplings(config)
        self.post_init()

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of images, latents and log-determinants: float32 for weights of float32 or a narrower dtype."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def input_device(self) -> torch.device:
        """Device of images and latents. accelerate offloads weights, but not permutations."""
        return self.couplings[0].permutation.device

    def patchify(self, images: torch.Tensor) -> torch.Tensor:
        """Cut images (B, C, S, S) into patches (B, N, D), whose fastest axis is the channel, then column, then row."""
        return patchify(images, self.config)

    def unpatchify(self, state: torch.Tensor) -> torch.Tensor:
        """Assemble images (B, C, S, S) from patches (B, N, D), the inverse of [`patchify`]."""
        return unpatchify(state, self.config)

    def condition(
        self,
        batch_size: int,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
    ) -> Conditioning:
        """
        Validate the conditional inputs and combine them into a [`Conditioning`].

        Args:
            batch_size: Number of images B.
            context: Tensor (B, L, context_size), for a model whose configuration sets `context_size`.
            labels: int64 tensor (B,) of classes, for a model whose configuration sets `num_classes`. The value
                `num_classes` stands for no label, which gives a context of zeros.
            context_mask: Boolean tensor (B, L), False for padding of the `context`.
            noise_std: Noise level of the images, as a number or a tensor (B,), for a model whose `config.noise_std` is
                a range, in which it must lie. Other models accept only their own level.

        Raises:
            ValueError: for arguments that are missing or unexpected, or have a wrong shape, dtype or range.
        """
        check_context(context, self.config, batch_size)
        check_labels(labels, self.config, batch_size)
        check_context_mask(context_mask, context)
        check_noise_std(noise_std, self.config, batch_size)
        if labels is not None:
            assert self.label_embedding is not None
            num_classes = self.label_embedding.num_embeddings
            tokens = self.label_embedding(labels.clamp(max=num_classes - 1))
            context = (tokens * (labels < num_classes)[:, None])[:, None]
        noise_token = None
        if self.noise_embedding is not None:
            levels = torch.as_tensor(noise_std, dtype=self.state_dtype, device=self.input_device).expand(batch_size)
            noise_token = self.noise_embedding(levels)
        return Conditioning(context, None if context_mask is None else context_mask.bool(), noise_token=noise_token)

    def encode(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Map images to latents.

        Args:
            pixel_values: float32 tensor (B, C, S, S), any finite values.
            context, labels, context_mask, noise_std: Inputs of a conditional model, see [`condition`].

        Returns:
            latents: float32 tensor (B, C, S, S).
            log_det: Log-determinant of the map's Jacobian, float32 tensor (B,), in nats.

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values, or inputs that [`condition`] refuses.
        """
        check_images("pixel_values", pixel_values, self.config, self.state_dtype)
        check_values("pixel_values", pixel_values)
        conditioning = self.condition(pixel_values.shape[0], context, labels, context_mask, noise_std)
        # The trainer initializes a model before its first step.
        if self.config.use_actnorm and self.training and not skips_values(pixel_values):
            self._initialize_actnorm_once(pixel_values, conditioning)
        return self._transform(pixel_values, conditioning, inverse=False)

    def decode(
        self,
        latents: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        guidance: str = "linear",
        attention_temperature: float | None = None,
        noise_std: float | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Map latents to images. This is the inverse of [`encode`], at the same cost.

        Args:
            latents: float32 tensor (B, C, S, S), any finite values.
            context, labels, context_mask, noise_std: Inputs of a conditional model, see [`condition`].
            guidance_scale: Strength of classifier-free guidance, at twice the cost: in each coupling layer, 0 stands
                for the prediction without context, 1 for that with context, and more extrapolates. Two numbers are
                the strengths at the layers next to the latents and next to the image, between which the others are
                interpolated. The result is another invertible flow, whose density is not proportional to
                `p(x | y) ** scale`. `None` means no guidance and gives the same as 1.
            guidance: Rule of the guidance: `"linear"` extrapolates the parameters of the couplings, as TarFlow does
                (Zhai et al., 2024); `"variance_aware"` extrapolates the densities that they stand for, as STARFlow
                does (Gu et al., 2025), and never widens them.
            attention_temperature: Temperature of self-attention in the prediction without context, as in TarFlow. It
                guides models that have no context. `None` stands for 1.

        Returns:
            pixel_values: float32 tensor (B, C, S, S).
            log_det: Log-determinant of the inverse map's Jacobian, float32 tensor (B,), in nats.

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values, inputs that [`condition`] refuses, or guidance
                without a context.
        """
        check_images("latents", latents, self.config, self.state_dtype)
        check_values("latents", latents)
        check_guidance(guidance_scale, guidance, attention_temperature, self.config)
        conditioning = self.condition(latents.shape[0], context, labels, context_mask, noise_std)
        if guidance_scale is not None:
            scales = guidance_scale if isinstance(guidance_scale, tuple | list) else (guidance_scale,)
            temperature = 1.0 if attention_temperature is None else attention_temperature
            conditioning = conditioning._replace(guidance=Guidance((scales[0], scales[-1]), guidance, temperature))
        return self._transform(latents, conditioning, inverse=True)

    def _transform(
        self, images: torch.Tensor, conditioning: Conditioning, inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.patchify(images)
        if self.training and torch.is_grad_enabled() and self._needs_input_gradients():
            state.requires_grad_()
        state, log_det = transform(self.couplings, state, conditioning, inverse)
        return self.unpatchify(state), log_det

    def _needs_input_gradients(self) -> bool:
        """
        Return whether the input of the first layer must require gradients like that of the other layers. Reentrant
        checkpointing computes no gradients of a layer whose input requires none, and compilation would need a second
        graph.
        """
        return not torch.compiler.is_compiling() and (
            self.couplings[0].gradient_checkpointing or self.couplings[0].map.is_compiled
        )

    @property
    def actnorm_initialized(self) -> bool:
        """Whether the model has activation normalization and its first batch has initialized it."""
        actnorm = self.couplings[0].actnorm
        return actnorm is not None and bool(actnorm.initialized)

    @torch.no_grad()
    def initialize_actnorm(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
    ) -> None:
        """
        Initialize the activation normalization from a batch of dequantized images, with the arguments of [`encode`].
        The first batch in training mode does this automatically. Several processes must call this method with the same
        images.

        Raises:
            ValueError: for a model without activation normalization, or inputs that [`encode`] refuses.
        """
        if not self.config.use_actnorm:
            raise ValueError("`config.use_actnorm` is False: this model has no activation normalization.")
        check_images("pixel_values", pixel_values, self.config, self.state_dtype)
        check_values("pixel_values", pixel_values)
        conditioning = self.condition(pixel_values.shape[0], context, labels, context_mask, noise_std)
        initialize_actnorm(self.couplings, self.patchify(pixel_values), conditioning)

    def _initialize_actnorm_once(self, pixel_values: torch.Tensor, conditioning: Conditioning) -> None:
        if self.actnorm_initialized:
            return
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "the activation normalization is not initialized, and each process would initialize it from another "
                "batch: call `initialize_actnorm` with the same images in all processes before training."
            )
        try:
            initialize_actnorm(self.couplings, self.patchify(pixel_values), conditioning)
        except RuntimeError as error:
            raise RuntimeError(
                "the activation normalization is not initialized, and transforms of torch.func cannot initialize it: "
                "call `initialize_actnorm` before."
            ) from error

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> JetModelOutput | tuple[torch.Tensor, ...]:
        """Encode images, see [`encode`], and return hidden states and attentions on request."""
        check_keywords(kwargs)
        latents, log_det = self.encode(pixel_values, context, labels, context_mask, noise_std)
        return JetModelOutput(latents=latents, log_det=log_det)


class JetForDensityEstimation(JetPreTrainedModel):
    r"""
    Jet as a density model of 8-bit images, which it scores in bits per dimension and samples.

    With `config.noise_std` it is a density model of noisy images `y = x + noise_std * eps` instead, where x are the
    scaled images `u / 127.5 - 1` and eps is standard normal noise. Such a model denoises images, by default also its
    own samples, but it has no bits per dimension of images. If `config.noise_std` is a range, the noise level is an
    input of the model: each image of a training draws its own, and samples start at the largest.

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
        noise_std: float | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images to latents, see [`JetModel.encode`]."""
        return self.jet.encode(pixel_values, context, labels, context_mask, noise_std)

    def decode(
        self,
        latents: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        noise_std: float | torch.Tensor | None = None,
        **guidance: Unpack[GuidanceKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map latents to images, see [`JetModel.decode`]."""
        return self.jet.decode(latents, context, labels, context_mask, guidance_scale, noise_std=noise_std, **guidance)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> JetDensityEstimationOutput | tuple[torch.Tensor, ...]:
        """
        Score 8-bit images, dequantized with uniform noise in training and evaluation (paper, section 2.2) or with the
        noise of a dequantization flow, which gives the variational bound of Ho et al. (2019). A model with `noise_std`
        scores noisy images instead, see [`JetDensityEstimationOutput`].

        Args:
            pixel_values: Tensor (B, C, S, S) of bytes `u` as `u / 127.5 - 1`, the output of [`JetImageProcessor`], in
                float32; levels of another `num_levels` as `2 * u / (num_levels - 1) - 1`. Values in float16 and
                bfloat16 are replaced by those of their bytes, so that `processor(...).to(model.device, model.dtype)`
                gives the float32 score. [`encode`] and [`distribution`] take continuous values.
            context, labels, context_mask: Inputs of a conditional model, see [`JetModel.condition`].
            noise: Uniform noise, float32 tensor (B, C, S, S) in [0, 1), which is the dequantization noise or the input
                of the dequantization flow; standard normal noise for a model with `noise_std`. Drawn if not given.
            generator: Generator of the noise. Results with the same seed are bit-identical.
            noise_std: Noise levels of a model with a range of `noise_std`, see [`JetModel.condition`]. Drawn from the
                uniform distribution over this range if not given, as in iTARFlow (Chen et al., 2026).
            kwargs: `output_hidden_states` and `output_attentions`, as in transformers.

        Raises:
            ValueError: for a wrong shape or dtype, values that are not those of bytes, conditional inputs that are
                missing or unexpected, or both noise and a generator.
        """
        config, is_noisy = self.config, self.config.noise_std is not None
        pixel_values = check_quantized_images(pixel_values, config, self.jet.state_dtype)
        check_keywords(kwargs)
        check_generator(generator)
        if noise is None:
            draw = torch.randn if is_noisy else torch.rand
            noise = self._draw(draw, pixel_values.shape, pixel_values.device, generator)
        elif generator is not None:
            raise ValueError("`noise` and `generator` exclude each other, got both.")
        else:
            noise = check_noise(noise, pixel_values, is_normal=is_noisy)
        if noise_std is None and config.noise_range is not None:
            noise_std = self._draw_noise_std(pixel_values.shape[0], pixel_values.device, generator)
        noise_log_det = None
        if self.dequantizer is not None:
            noise, noise_log_det = self.dequantizer(pixel_values, noise)
        images = self.add_noise(pixel_values, noise, noise_std)
        output = self.jet(images, context, labels, context_mask, noise_std, return_dict=True, **kwargs)
        log_prob = standard_normal_log_prob(output.latents) + output.log_det
        if noise_log_det is not None:
            log_prob = log_prob + noise_log_det.to(log_prob.device)
        bits = noisy_nats = levels = None
        if is_noisy:
            loss = noisy_nats = -log_prob / config.num_dims
        else:
            loss = bits = bits_per_dim(log_prob, config.num_dims, config.num_levels)
        if config.noise_range is not None:
            levels = torch.as_tensor(noise_std, dtype=images.dtype, device=images.device).expand(images.shape[0])
            loss = self.loss_weights(levels) * loss
        return JetDensityEstimationOutput(
            loss=loss.mean(),
            bits_per_dim=bits,
            log_likelihood=None if bits is None else -bits * (config.num_dims * math.log(2)),
            noisy_nats_per_dim=noisy_nats,
            latents=output.latents,
            log_det=output.log_det,
            dequantization_log_det=noise_log_det,
            noise_std=levels,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @torch.no_grad()
    def sample(  # noqa: PLR0913
        self,
        num_samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        denoise: bool | None = None,
        denoising_steps: int = 1,
        stochastic: bool = False,
        noise_std: float | torch.Tensor | None = None,
        **guidance: Unpack[GuidanceKwargs],
    ) -> torch.Tensor:
        """
        Draw images by decoding latents from `N(0, temperature ** 2)` (paper, section 2.3).

        Args:
            num_samples: Number of images B, at least 1.
            temperature: Standard deviation of the latents, at least 0. The value 1 samples the model's density.
            generator: Generator of the latents, and of the noise of stochastic denoising. Results with the same seed
                are bit-identical.
            context, labels, context_mask: Inputs of a conditional model, see [`JetModel.condition`].
            guidance_scale, guidance: Strength and rule of classifier-free guidance, see [`JetModel.decode`].
            denoise: Whether to remove the noise of the samples, see [`denoise`], at the cost of an encoding and its
                gradient for each step. By default models with `noise_std` do.
            denoising_steps: Number K of steps, at least 1. More than one needs a model with a range of `noise_std`.
            stochastic: Whether each step but the last adds new noise, rather than following the score alone.
            noise_std: Noise level of the samples before denoising, for a model with a range of `noise_std`, see
                [`JetModel.condition`]. By default the largest.

        Returns:
            pixel_values: float32 tensor (B, C, S, S), dequantized (unless denoised) and not clipped, for
            [`JetImageProcessor.post_process`].

        Raises:
            ValueError: for a number or temperature out of range, conditional inputs that are missing or unexpected, or
                denoising without `noise_std`, or in several steps without a range of it.
        """
        denoise = self.denoises(denoise)
        check_denoising(self.config, denoise, denoising_steps, stochastic)
        check_whole("num_samples", num_samples)
        check_not_negative("temperature", temperature)
        check_generator(generator)
        shape = (num_samples, *self.config.image_shape)
        latents = temperature * self._draw(torch.randn, shape, self.jet.input_device, generator)
        if noise_std is None and self.config.noise_range is not None:
            noise_std = self.config.noise_range[1]
        images, _ = self.decode(
            latents, context, labels, context_mask, guidance_scale, noise_std=noise_std, **guidance
        )
        if not denoise:
            return images
        noise = None
        if stochastic:
            noise = self._draw(torch.randn, (denoising_steps - 1, *shape), self.jet.input_device, generator)
        return self.denoise(images, context, labels, context_mask, noise_std, denoising_steps, noise)

    def score(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Return the score, the gradient of the log-density of continuous images with respect to the images.

        The result is differentiable if gradients are enabled, which needs `attn_implementation="eager"`. No gradients
        of parameters are accumulated.

        Args:
            pixel_values: float32 tensor (B, C, S, S), any finite values.
            context, labels, context_mask, noise_std: Inputs of a conditional model, see [`JetModel.condition`].

        Returns:
            float32 tensor (B, C, S, S), in nats per unit of the model's scale.

        Raises:
            ValueError: for inputs that [`JetModel.encode`] refuses.
        """
        check_images("pixel_values", pixel_values, self.config, self.jet.state_dtype)

        def log_prob(images: torch.Tensor, *conditions) -> torch.Tensor:
            latents, log_det = self.encode(images, *conditions)
            return (standard_normal_log_prob(latents) + log_det).sum()

        conditions = [context, labels, context_mask, noise_std]
        # Compilation and transforms of torch.func follow each other, but not `torch.autograd.grad`.
        if torch.compiler.is_compiling() or _is_transformed(pixel_values):
            return torch.func.grad(log_prob)(pixel_values, *conditions)
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors of inference mode take no part in gradients.
            images = pixel_values.clone() if pixel_values.is_inference() else pixel_values
            conditions = [
                tensor.clone() if isinstance(tensor, torch.Tensor) and tensor.is_inference() else tensor
                for tensor in conditions
            ]
            if not (differentiable and images.requires_grad):
                images = images.detach().requires_grad_()
            (score,) = torch.autograd.grad(log_prob(images, *conditions), images, create_graph=differentiable)
        return score

    def denoise(
        self,
        pixel_values: torch.Tensor,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
        denoising_steps: int = 1,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Remove noise of the standard deviation `noise_std` from images by Tweedie's formula: return the expected image
        `y + noise_std ** 2 * score(y)` under the model, given the noisy image y.

        A model with a range of `noise_std` denoises in K steps, as iTARFlow does (Chen et al., 2026). The noise levels
        are a geometric sequence of K numbers from `noise_std` to the smallest one. Each step from a level s to the
        next one t estimates the image x by the formula. Without `noise` it moves straight towards x,
        `x + t / s * (y - x)`, a step of the probability flow. With `noise` it draws from the distribution at the level
        t given x and y, `x + (t / s) ** 2 * (y - x) + t * sqrt(1 - (t / s) ** 2) * noise`. The last step is the
        formula itself.

        Args:
            pixel_values: Noisy images, float32 tensor (B, C, S, S), any finite values.
            context, labels, context_mask, noise_std: Inputs of a conditional model, see [`JetModel.condition`].
            denoising_steps: Number K of steps, at least 1.
            noise: Standard normal noise of the steps but the last, float32 tensor (K - 1, B, C, S, S), for the
                stochastic form; `None` for the deterministic one.

        Returns:
            float32 tensor (B, C, S, S).

        Raises:
            ValueError: for a model without `noise_std`, several steps of a model without a range of it, noise of a
                wrong shape or dtype, or inputs that [`JetModel.encode`] refuses.
        """
        self.denoises(True)
        check_denoising(self.config, True, denoising_steps)
        check_images("pixel_values", pixel_values, self.config, self.jet.state_dtype)
        check_noise_std(noise_std, self.config, pixel_values.shape[0])
        check_step_noise(noise, (denoising_steps - 1, *pixel_values.shape), pixel_values.dtype)
        conditions = {"context": context, "labels": labels, "context_mask": context_mask}
        levels = self._denoising_levels(noise_std, denoising_steps)
        for step, (level, following) in enumerate(itertools.pairwise(levels)):
            clean = self._expected_images(pixel_values, level, **conditions)
            ratio = _per_image(following / level)
            if noise is None:
                pixel_values = clean + ratio * (pixel_values - clean)
            else:  # rounding may make the ratio of equal levels larger than 1
                new_noise = _per_image(following) * abs(1 - ratio**2) ** 0.5 * noise[step]
                pixel_values = clean + ratio**2 * (pixel_values - clean) + new_noise
        return self._expected_images(pixel_values, levels[-1], **conditions)

    def _level(self, noise_std: float | torch.Tensor | None) -> float | torch.Tensor:
        """Return the given noise level, or the only one of the model."""
        assert self.config.noise_levels is not None
        return self.config.noise_levels[0] if noise_std is None else noise_std

    def _denoising_levels(self, noise_std: float | torch.Tensor | None, num_steps: int) -> list[Any]:
        """Return the noise levels of denoising steps, numbers or tensors (B,), from the first to the smallest."""
        if num_steps == 1 or self.config.noise_range is None:
            return [self._level(noise_std)]
        smallest, _ = self.config.noise_range
        assert noise_std is not None
        return [noise_std * (smallest / noise_std) ** (step / (num_steps - 1)) for step in range(num_steps)]

    def _expected_images(self, images: torch.Tensor, level: float | torch.Tensor, **conditions) -> torch.Tensor:
        """Return the images (B, C, S, S) that Tweedie's formula expects behind noisy ones."""
        return images + _per_image(level) ** 2 * self.score(images, noise_std=level, **conditions)

    def add_noise(
        self, pixel_values: torch.Tensor, noise: torch.Tensor, noise_std: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Add dequantization noise, or Gaussian noise of the level `noise_std`, to images."""
        check_noise_std(noise_std, self.config, pixel_values.shape[0])
        if self.config.noise_std is None:
            return dequantize(pixel_values, noise, self.config.num_levels)
        return pixel_values + _per_image(self._level(noise_std)) * noise

    def loss_weights(self, noise_std: torch.Tensor) -> torch.Tensor:
        """
        Return the weights (B,) of images in the loss of a model with a range of `noise_std`: their noise levels, as in
        iTARFlow (Chen et al., 2026), divided by the mean level.

        The gradients of a log-density grow as the noise falls, so that without weights the smallest levels would
        dominate. The division gives the loss the size of a mean, for which gradients are clipped.

        Args:
            noise_std: Noise levels of the images, tensor (B,).
        """
        assert self.config.noise_range is not None
        return noise_std * (2 / sum(self.config.noise_range))

    def denoises(self, denoise: bool | None = None) -> bool:
        """
        Return whether samples are denoised: as asked, or by default whether the model has a `noise_std`.

        Raises:
            ValueError: for denoising without `noise_std`.
        """
        if denoise and self.config.noise_std is None:
            raise ValueError(
                "`denoise` needs a model that was trained with Gaussian noise, but `config.noise_std` is None."
            )
        return self.config.noise_std is not None if denoise is None else denoise

    def distribution(
        self,
        context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        noise_std: float | torch.Tensor | None = None,
    ) -> "JetDistribution":
        """
        Return the model's density over scaled, dequantized or noisy images as a `torch.distributions.Distribution`.

        Args:
            context, labels, context_mask, noise_std: Inputs of a conditional model with B = 1, see
                [`JetModel.condition`].
        """
        return JetDistribution(self, context, labels, context_mask, noise_std)

    def _draw_noise_std(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Draw noise levels (B,) from the uniform distribution over the model's range."""
        assert self.config.noise_range is not None
        smallest, largest = self.config.noise_range
        return smallest + (largest - smallest) * self._draw(torch.rand, (batch_size,), device, generator)

    def _draw(self, draw, shape, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
        """Draw on the generator's device and move the result, so that a CPU generator serves a model on a GPU."""
        dtype = self.jet.state_dtype
        # torch.compile cannot trace a `generator=None` where the batch size is dynamic.
        if generator is None:
            return draw(shape, device=device, dtype=dtype)
        return draw(shape, generator=generator, device=generator.device, dtype=dtype).to(device)


def _per_image(level: Any) -> Any:
    """Return a noise level as a number, or those of images (B,) as a tensor (B, 1, 1, 1)."""
    return level[:, None, None, None] if isinstance(level, torch.Tensor) else level


def _is_transformed(tensor: torch.Tensor) -> bool:
    """Return whether a transform of torch.func, such as `vmap`, is at work: they refuse `requires_grad_`."""
    try:
        tensor.detach().requires_grad_()
    except RuntimeError:
        return not tensor.is_inference()
    return False


class JetDistribution(Distribution):
    """
    Density of a Jet model over scaled, dequantized images `u / 127.5 - 1 + noise / 127.5`, with event shape (C, S, S),
    or over noisy images for a model with `noise_std`. Samples of this density are not denoised.
    [`JetForDensityEstimation.forward`] gives the likelihood of the 8-bit images themselves.

    Args:
        model: A [`JetForDensityEstimation`].
        context, labels, context_mask, noise_std: Inputs of a conditional model for one image, with B = 1, see
            [`JetModel.condition`].

    Raises:
        ValueError: for conditional inputs that are invalid, missing or unexpected.

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
        noise_std: float | torch.Tensor | None = None,
    ):
        model.jet.condition(1, context, labels, context_mask, noise_std)
        self.model = model
        self.conditions = {"context": context, "labels": labels, "context_mask": context_mask, "noise_std": noise_std}
        super().__init__(event_shape=torch.Size(model.config.image_shape), validate_args=False)

    def _expand_conditions(self, batch_size: int) -> dict[str, Any]:
        return {
            name: value.expand(batch_size, *value.shape[1:]) if isinstance(value, torch.Tensor) else value
            for name, value in self.conditions.items()
        }

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """
        Return the log-density (*), in nats, of images `value` (*, C, S, S).

        Raises:
            ValueError: for a wrong shape, dtype or non-finite values.
        """
        if not isinstance(value, torch.Tensor) or value.shape[-3:] != self.event_shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(f"`value` must be a tensor of shape (*, {expected}), got {got}.")
        images = value.reshape(-1, *self.event_shape)
        latents, log_det = self.model.encode(images, **self._expand_conditions(len(images)))
        return (standard_normal_log_prob(latents) + log_det).reshape(value.shape[:-3])

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        """Draw images (*sample_shape, C, S, S), differentiable in the model's parameters."""
        shape = self._extended_shape(torch.Size(sample_shape))
        latents = torch.randn(shape, dtype=self.model.jet.state_dtype, device=self.model.jet.input_device)
        latents = latents.reshape(-1, *self.event_shape)
        return self.model.decode(latents, **self._expand_conditions(len(latents)))[0].reshape(shape)


JetModel.register_for_auto_class("AutoModel")
JetForDensityEstimation.register_for_auto_class("AutoModel")

__all__ = [
    "JetDensityEstimationOutput",
    "JetDistribution",
    "JetForDensityEstimation",
    "JetModel",
    "JetModelOutput",
    "JetPreTrainedModel",
]
