# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Jet, the transformer-based normalizing flow."""

import math

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)


COUPLING_KINDS = ("channels", "spatial")
COUPLING_MODES = ("pairing", "masking")
BACKBONES = ("vit", "cnn")
DEQUANTIZATIONS = ("uniform", "flow")
COUPLING_TRANSFORMS = ("affine",)
SPATIAL_COUPLINGS = ("checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv")

# An 8-bit value u becomes u / 127.5 - 1, so that one grey level is 1 / 127.5 wide.
LEVELS_PER_UNIT = 127.5


@strict
class JetConfig(PreTrainedConfig):
    r"""
    Configuration of a [`JetModel`]. The defaults are the base model of "Jet: A Modern Transformer-Based Normalizing
    Flow" at 64 x 64: 32 coupling layers, each with a ViT of depth 2 and width 512, over 256 patches.

    Args:
        image_size (`int`, *optional*, defaults to 64):
            Height and width S of the (square) images, in pixels.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels C.
        patch_size (`int`, *optional*, defaults to 4):
            Side p of a patch, in pixels. An image becomes `N = (S / p) ** 2` tokens of `D = C * p * p` numbers.
        num_coupling_layers (`int`, *optional*, defaults to 32):
            Number of affine coupling layers T.
        coupling_kinds (`tuple[str, ...]`, *optional*, defaults to four `"channels"`, then `"spatial"`):
            Kinds of split, cycled over the coupling layers (paper, section 3.2.1).
        spatial_couplings (`tuple[str, ...]`, *optional*, defaults to all six, each before its inverse):
            Patterns of the spatial splits, cycled on their own, one step per spatial coupling layer.
        coupling_mode (`str`, *optional*, defaults to `"pairing"`):
            How a spatial split meets its conditioner (paper, section 3.2.4). `"pairing"`: the tokens of the half that
            stays give the map of those of the other half. `"masking"`: all patches enter, those of the half that is
            mapped zeroed, and the output is read at their own places.
        coupling_transform (`str`, *optional*, defaults to `"affine"`):
            Transform of the half that a coupling layer maps (paper, section 2.1): `"affine"`.
        backbone (`str`, *optional*, defaults to `"vit"`):
            Conditioner of the coupling layers: `"vit"`, or `"cnn"`, BiT's residual bottleneck blocks (paper, section
            3.2.3).
        hidden_size (`int`, *optional*, defaults to 512):
            Width E of the conditioner inside a coupling layer.
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Number of blocks of the conditioner inside a coupling layer.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of attention heads.
        intermediate_size (`int`, *optional*, defaults to `4 * hidden_size`):
            Width of the MLP in a transformer block.
        hidden_act (`str`, *optional*, defaults to `"gelu_pytorch_tanh"`):
            Activation of the MLP. The original code uses the tanh approximation of GELU.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the layer norms.
        num_groups (`int`, *optional*, defaults to 32):
            Number of groups of the CNN's group norms; the ViT has none.
        scale_factor (`float`, *optional*, defaults to 2.0):
            Upper bound m of the scales, `m * sigmoid(raw)`. With 2.0 a new model is the identity (paper, section 2.4).
        context_size (`int`, *optional*):
            Width of the context tokens that the couplings attend to. `None`: no context.
        num_classes (`int`, *optional*):
            Number of classes of a class-conditional model, whose context is one token of width `hidden_size`: the
            learned embedding of the label. Excludes `context_size`.
        use_actnorm (`bool`, *optional*, defaults to `False`):
            Whether each coupling layer starts with Glow's activation normalization (paper, section 3.2.5).
        use_invertible_dense (`bool`, *optional*, defaults to `False`):
            Whether a learned linear map of a patch, which starts as the permutation, takes the place of the fixed
            permutation of channel couplings (paper, section 3.2.5).
        dequantization (`str`, *optional*, defaults to `"uniform"`):
            Distribution of the noise that spreads a byte over its grey level: `"uniform"`, or `"flow"`, learned and
            conditional on the image (paper, section 3.2.6).
        dequantization_num_coupling_layers (`int`, *optional*, defaults to 16):
            Number of coupling layers of the dequantization flow.
        dequantization_hidden_size (`int`, *optional*, defaults to `hidden_size`):
            Width of its conditioners, and of the image's tokens that they attend to.
        dequantization_num_hidden_layers (`int`, *optional*, defaults to `num_hidden_layers`):
            Number of blocks of its conditioners.
        dequantization_num_attention_heads (`int`, *optional*, defaults to `num_attention_heads`):
            Number of their attention heads.
        permutation_seed (`int`, *optional*, defaults to 0):
            Draws the channel permutations; the same seed gives the same permutations on every machine.

    Raises:
        `StrictDataclassFieldValidationError`, `StrictDataclassClassValidationError`: for a field of the wrong type, or
            a value that cannot work; the message names the field and the value.

    Example:

    ```python
    >>> from jet_hf import JetConfig, JetForDensityEstimation

    >>> config = JetConfig(image_size=32, num_coupling_layers=2, hidden_size=64, num_attention_heads=2)
    >>> config.num_patches, config.patch_dim
    (64, 48)
    >>> model = JetForDensityEstimation(config)
    ```"""

    model_type = "jet"

    image_size: int = 64
    num_channels: int = 3
    patch_size: int = 4
    num_coupling_layers: int = 32
    coupling_kinds: tuple[str, ...] | list[str] = ("channels", "channels", "channels", "channels", "spatial")
    spatial_couplings: tuple[str, ...] | list[str] = SPATIAL_COUPLINGS
    coupling_mode: str = "pairing"
    coupling_transform: str = "affine"
    backbone: str = "vit"
    hidden_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    num_groups: int = 32
    scale_factor: float | int = 2.0
    context_size: int | None = None
    num_classes: int | None = None
    use_actnorm: bool = False
    use_invertible_dense: bool = False
    dequantization: str = "uniform"
    dequantization_num_coupling_layers: int = 16
    dequantization_hidden_size: int | None = None
    dequantization_num_hidden_layers: int | None = None
    dequantization_num_attention_heads: int | None = None
    permutation_seed: int = 0

    def __post_init__(self, **kwargs):
        # JSON knows no tuples; lists keep a saved and loaded configuration equal to the one it came from.
        self.coupling_kinds = list(self.coupling_kinds)
        self.spatial_couplings = list(self.spatial_couplings)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        known = {*dir(self), "_commit_hash", "auto_map", "custom_pipelines", "quantization_config"}
        super().__post_init__(**kwargs)
        # As every configuration of transformers, this one takes any field; a misspelt one must not pass unseen.
        if unknown := sorted(name for name in kwargs if name in vars(self) and name not in known):
            logger.warning(f"JetConfig has no field {', '.join(unknown)}: the model does not use what was given.")

    @property
    def grid_size(self) -> int:
        """Number of patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Number of tokens N of an image."""
        return self.grid_size**2

    @property
    def patch_dim(self) -> int:
        """Number of dimensions D of a patch."""
        return self.num_channels * self.patch_size**2

    @property
    def num_dims(self) -> int:
        """Number of dimensions d of an image, `C * S * S`."""
        return self.num_channels * self.image_size**2

    @property
    def context_width(self) -> int | None:
        """Width of the context tokens that the couplings attend to: outside ones, or the label's embedding."""
        return self.hidden_size if self.num_classes is not None else self.context_size

    @property
    def dequantization_config(self) -> "JetConfig":
        """Configuration of the dequantization flow: this one, with its own sizes, and the image as its context."""
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        given = {name: getattr(self, f"dequantization_{name}") for name in sizes}
        given = {name: getattr(self, name) if value is None else value for name, value in given.items()}
        shared = ("image_size", "num_channels", "patch_size", "coupling_kinds", "spatial_couplings", "coupling_mode")
        shared += ("coupling_transform", "backbone", "hidden_act", "layer_norm_eps", "num_groups", "scale_factor")
        return JetConfig(
            **{name: getattr(self, name) for name in shared},
            **given,
            num_coupling_layers=self.dequantization_num_coupling_layers,
            context_size=given["hidden_size"],
            permutation_seed=self.permutation_seed + 1,
            attn_implementation=self._attn_implementation,
        )

    @property
    def layer_splits(self) -> list[str]:
        """The split of each coupling layer in turn: `"channels"`, or the name of a spatial pattern."""
        kinds = [self.coupling_kinds[i % len(self.coupling_kinds)] for i in range(self.num_coupling_layers)]
        splits, num_spatial = [], 0
        for kind in kinds:
            if kind == "spatial":
                kind = self.spatial_couplings[num_spatial % len(self.spatial_couplings)]
                num_spatial += 1
            splits.append(kind)
        return splits

    def validate_sizes(self):
        """Part of `@strict` validation: sizes that are positive and divide each other."""
        for field in (
            "image_size",
            "num_channels",
            "patch_size",
            "num_coupling_layers",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "num_groups",
            "dequantization_num_coupling_layers",
            "dequantization_hidden_size",
            "dequantization_num_attention_heads",
        ):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1, got {getattr(self, field)}.")
        for field in ("num_hidden_layers", "dequantization_num_hidden_layers"):
            if getattr(self, field) is not None and getattr(self, field) < 0:
                raise ValueError(f"`{field}` must be at least 0, got {getattr(self, field)}.")
        if self.context_size is not None and self.context_size < 1:
            raise ValueError(f"`context_size` must be at least 1, or None for no context, got {self.context_size}.")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, or None for no classes, got {self.num_classes}.")
        if self.num_classes is not None and self.context_size is not None:
            raise ValueError(
                "`num_classes` makes the label's embedding the context, which excludes `context_size`, got "
                f"num_classes={self.num_classes} and context_size={self.context_size}."
            )
        if self.backbone == "cnn" and self.hidden_size % (4 * self.num_groups):
            raise ValueError(
                "the CNN's bottlenecks have `hidden_size` / 4 channels, which `num_groups` must divide, got "
                f"hidden_size={self.hidden_size} and num_groups={self.num_groups}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be divisible by `patch_size`, got image_size={self.image_size} and "
                f"patch_size={self.patch_size}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be divisible by `num_attention_heads`, got hidden_size={self.hidden_size} and "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.patch_dim % 2:
            raise ValueError(
                "a coupling layer halves a patch, so `num_channels` * `patch_size` ** 2 must be even, got "
                f"num_channels={self.num_channels} and patch_size={self.patch_size}, which is {self.patch_dim}."
            )
        if "spatial" in self.coupling_kinds and self.num_patches % 2:
            raise ValueError(
                "spatial `coupling_kinds` halve the patches, so their number must be even, got "
                f"image_size={self.image_size} and patch_size={self.patch_size}, which is {self.num_patches} patches."
            )

    def validate_couplings(self):
        """Part of `@strict` validation: known kinds and patterns of couplings."""
        for field, known in (("coupling_kinds", COUPLING_KINDS), ("spatial_couplings", SPATIAL_COUPLINGS)):
            values = getattr(self, field)
            if not values:
                raise ValueError(f"`{field}` must name at least one of {list(known)}, got {values}.")
            for value in values:
                if value not in known:
                    raise ValueError(f"`{field}` must contain only {list(known)}, got {value!r}.")
        for field, known in (
            ("coupling_mode", COUPLING_MODES),
            ("coupling_transform", COUPLING_TRANSFORMS),
            ("backbone", BACKBONES),
            ("dequantization", DEQUANTIZATIONS),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"`{field}` must be one of {list(known)}, got {getattr(self, field)!r}.")

    def validate_dequantization(self):
        """Part of `@strict` validation: the sizes of the dequantization flow go together, as those of any flow."""
        if self.dequantization == "flow":
            try:
                _ = self.dequantization_config
            except StrictDataclassError as error:
                raise ValueError(
                    f"the dequantization flow, with `dequantization_` before its sizes: {error}"
                ) from None

    def validate_numbers(self):
        """Part of `@strict` validation: constants of the formulas."""
        if not (math.isfinite(self.scale_factor) and self.scale_factor > 0):
            raise ValueError(f"`scale_factor` must be a positive number, got {self.scale_factor}.")
        if not (math.isfinite(self.layer_norm_eps) and self.layer_norm_eps >= 0):
            raise ValueError(f"`layer_norm_eps` must be zero or a positive number, got {self.layer_norm_eps}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}.")


JetConfig.register_for_auto_class()

__all__ = ["JetConfig"]
