# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""What the models share: outputs, initialisation, and what transformers asks of a family of models."""

import math
import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder

from .cnn_jet import JetCNN, JetStandardizedConv2d
from .configuration_jet import JetConfig
from .coupling_jet import JetAffine, JetCoupling
from .dequantization_jet import JetDequantizationFlow
from .glow_jet import JetActNorm, JetInvertibleDense
from .vit_jet import JetAttention, JetCrossAttention, JetMLP, JetViT


# Standard deviation of a standard normal that is truncated at two standard deviations.
TRUNCATED_STD = 0.87962566103423978
RECOMPILE_LIMIT = 64
# Fields that decide what the weights compute, but no tensor's shape, by which transformers would notice another value.
FIELDS_OF_THE_WEIGHTS = (
    "coupling_kinds",
    "spatial_couplings",
    "coupling_mode",
    "permutation_seed",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "num_groups",
    "scale_factor",
    "dequantization_num_attention_heads",
)
# Arguments of `from_pretrained` that say where a repository's files are.
PLACE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


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
        dequantization_log_det (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, with a dequantisation flow):
            Minus the log-density of the noise that dequantised the image, in nats; a term of `log_likelihood`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            The flow's state after each coupling layer, each of shape `(batch_size, num_patches, patch_dim)`.
    """

    loss: torch.FloatTensor | None = None
    bits_per_dim: torch.FloatTensor | None = None
    log_likelihood: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    log_det: torch.FloatTensor | None = None
    dequantization_log_det: torch.FloatTensor | None = None
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Load a model, as in transformers.

        Raises:
            ValueError: for a field given here that was saved with another value and that no tensor's shape shows, such
                as `permutation_seed`: the configuration would not be that of the weights. Also for weights with splits
                that cannot be inverted.
        """
        if pretrained_model_name_or_path is not None:
            _check_fields_of_the_weights(cls.config_class, pretrained_model_name_or_path, config, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        for name, module in (loaded[0] if isinstance(loaded, tuple) else loaded).named_modules():
            if isinstance(module, JetCoupling):
                module.check_permutation(name)
        return loaded

    def set_attn_implementation(self, *args, **kwargs):
        """As in transformers; the dequantisation flow follows, whose configuration is one of its own."""
        super().set_attn_implementation(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, JetDequantizationFlow):
                module.config._attn_implementation = self.config._attn_implementation

    def compile_couplings(self, **kwargs) -> None:
        """
        Compiles the affine maps of the coupling layers, conditioners included, in place and each by itself: those that
        are built alike share one graph, whatever their split, so that compiling takes as long for a deep flow as for a
        shallow one.

        Args:
            kwargs: For `torch.compile`, such as `mode="max-autotune-no-cudagraphs"`.
        """
        # Each direction and batch size, with gradients and without, has a graph of its own; those beyond the limit, 8
        # by default, would not be compiled at all.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        for module in self.modules():
            if isinstance(module, JetAffine):
                module.compile(**kwargs)

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
        if isinstance(module, (JetViT, JetCNN, JetDequantizationFlow)):
            lecun_normal_(module.in_proj.weight)
            init.zeros_(module.in_proj.bias)
            if not isinstance(module, JetCNN):
                init.normal_(module.position_embeddings, std=module.position_embeddings.shape[-1] ** -0.5)
            if not isinstance(module, JetDequantizationFlow):
                init.zeros_(module.out_proj.weight)
                init.zeros_(module.out_proj.bias)
        elif isinstance(module, JetAttention):
            # Query, key and value are E x E each: the bound of each alone, on the projection that fuses them.
            bound = math.sqrt(6 / (2 * module.config.hidden_size))
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
        elif isinstance(module, JetStandardizedConv2d):
            init.kaiming_normal_(module.weight)
        elif isinstance(module, JetActNorm):
            for tensor in (module.bias, module.log_scale, module.initialized):
                init.zeros_(tensor)
        elif isinstance(module, JetInvertibleDense):
            for tensor in (module.lower, module.upper, module.log_scale):
                init.zeros_(tensor)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)  # the context's projection keeps the variance of what comes in
        elif isinstance(module, JetCoupling):
            init.copy_(module.permutation, module.make_permutation())
        else:
            super()._init_weights(module)


def _check_fields_of_the_weights(config_class, name_or_path, config, arguments: dict) -> None:
    """Raise ValueError for fields of `config` or `arguments` that contradict the configuration saved with weights."""
    given = arguments if config is None or isinstance(config, str | os.PathLike) else config.to_dict()
    given = {name: given[name] for name in FIELDS_OF_THE_WEIGHTS if name in given}
    if not given:
        return
    try:
        place = {name: arguments[name] for name in PLACE_ARGUMENTS if name in arguments}
        saved, _ = config_class.get_config_dict(name_or_path, **place)
    except OSError:
        saved = {}
    if not saved:  # weights without a configuration
        return
    for name, value in given.items():
        expected = saved.get(name, getattr(config_class, name))
        if isinstance(expected, tuple | list):
            expected, value = list(expected), list(value)
        if value != expected:
            raise ValueError(
                f"`{name}` must be {expected!r}, with which the weights of {name_or_path} were made, got {value!r}. "
                "They would compute something else with another value."
            )
