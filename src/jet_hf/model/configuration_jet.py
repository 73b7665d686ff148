# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Jet, the transformer-based normalizing flow."""

import itertools
import math
from typing import Any

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

# The allowed values of each field of names. Fields of several names are lists.
CHOICES = {
    "coupling_kinds": COUPLING_KINDS,
    "spatial_couplings": SPATIAL_COUPLINGS,
    "coupling_mode": COUPLING_MODES,
    "coupling_transform": COUPLING_TRANSFORMS,
    "backbone": BACKBONES,
    "dequantization": DEQUANTIZATIONS,
}
GUIDANCE_RULES = ("linear", "variance_aware")
MAX_NUM_LEVELS = 2**16


def image_sides(image_size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return height and width, given one number for both or a pair, or raise ValueError for another list."""
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise ValueError(f"`image_size` must be one number, or height and width, got {list(sides)}.")
    return sides


def level_dtype(num_levels: int) -> str:
    """Return the name of the dtype that holds gray levels: `"uint8"`, or `"uint16"` for more than 256 levels."""
    return "uint8" if num_levels <= 256 else "uint16"


def levels_per_unit(num_levels: int) -> float:
    """Return the number of gray levels in one unit of the model's scale [-1, 1]."""
    return (num_levels - 1) / 2


@strict
class JetConfig(PreTrainedConfig):
    r"""
    Configuration of a [`JetModel`]. The defaults are the base model of the paper "Jet: A Modern Transformer-Based
    Normalizing Flow" for 64 x 64 images: 32 coupling layers over 256 patches, with ViTs of depth 2 and width 512.

    Args:
        image_size (`int | tuple[int, int]`, *optional*, defaults to 64):
            Side S of square images, or height and width, in pixels.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels C.
        patch_size (`int`, *optional*, defaults to 4):
            Side p of a patch, in pixels. An image of H x W pixels becomes `N = (H / p) * (W / p)` tokens of
            `D = C * p * p` numbers.
        num_coupling_layers (`int`, *optional*, defaults to 32):
            Number of coupling layers T.
        coupling_kinds (`tuple[str, ...]`, *optional*, defaults to four `"channels"`, then `"spatial"`):
            Kinds of split, cycled over the coupling layers (paper, section 3.2.1).
        spatial_couplings (`tuple[str, ...]`, *optional*, defaults to all six, each before its inverse):
            Patterns of the spatial splits, cycled on their own, one step per spatial coupling layer.
        coupling_mode (`str`, *optional*, defaults to `"pairing"`):
            Input of the conditioner at a spatial split (paper, section 3.2.4). `"pairing"`: the tokens of the first
            half, each of which predicts the transform of its partner in the second half. `"masking"`: all tokens, with
            the second half set to zero; the outputs are read at the positions of the second half.
        coupling_transform (`str`, *optional*, defaults to `"affine"`):
            Transform of the second half of a split (paper, section 2.1): `"affine"`.
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
            Number of groups of the group norms of the CNN.
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
            Whether a learned linear map of each patch, initialized to the permutation, replaces the fixed permutation
            of channel couplings (paper, section 3.2.5).
        dequantization (`str`, *optional*, defaults to `"uniform"`):
            Distribution of the dequantization noise: `"uniform"`, or `"flow"`, which is learned and conditional on the
            image (paper, section 3.2.6).
        dequantization_num_coupling_layers (`int`, *optional*, defaults to 16):
            Number of coupling layers of the dequantization flow.
        dequantization_hidden_size (`int`, *optional*, defaults to `hidden_size`):
            Width of its conditioners and of the image tokens that they attend to.
        dequantization_num_hidden_layers (`int`, *optional*, defaults to `num_hidden_layers`):
            Number of blocks of its conditioners.
        dequantization_num_attention_heads (`int`, *optional*, defaults to `num_attention_heads`):
            Number of their attention heads.
        num_levels (`int`, *optional*, defaults to 256):
            Number of gray levels of the images, from 2 to 65,536. A level u becomes `2 * u / (num_levels - 1) - 1`.
        noise_std (`float | tuple[float, float]`, *optional*):
            Standard deviation of the Gaussian noise that is added to the scaled images instead of dequantization
            noise, as in TarFlow (Zhai et al., 2024). The model is then the density of noisy images, which has no bits
            per dimension of images, and its samples are denoised. Two numbers are the smallest and the largest of a
            range, as in iTARFlow (Chen et al., 2026): each image draws its own, and the model is conditioned on it.
        permutation_seed (`int`, *optional*, defaults to 0):
            Seed of the channel permutations. The same seed gives the same permutations on every machine.

    Raises:
        StrictDataclassFieldValidationError, StrictDataclassClassValidationError: for a field of the wrong type, or
            an invalid value. The message names the field and the value.

    Example:

    ```python
    >>> from jet_hf import JetConfig, JetForDensityEstimation

    >>> config = JetConfig(image_size=32, num_coupling_layers=2, hidden_size=64, num_attention_heads=2)
    >>> config.num_patches, config.patch_dim
    (64, 48)
    >>> model = JetForDensityEstimation(config)
    ```"""

    model_type = "jet"

    image_size: int | tuple[int, int] | list[int] = 64
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
    num_levels: int = 256
    noise_std: float | int | tuple[float | int, ...] | list[float | int] | None = None
    permutation_seed: int = 0

    def __post_init__(self, **kwargs) -> None:
        # JSON has no tuples: with lists a loaded configuration equals the saved one. A square has one notation.
        if isinstance(self.image_size, tuple | list):
            is_square = len(self.image_size) == 2 and self.image_size[0] == self.image_size[1]
            self.image_size = self.image_size[0] if is_square else list(self.image_size)
        self.coupling_kinds = list(self.coupling_kinds)
        self.spatial_couplings = list(self.spatial_couplings)
        if isinstance(self.noise_std, tuple):
            self.noise_std = list(self.noise_std)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        known = {*dir(self), "_commit_hash", "auto_map", "custom_pipelines", "quantization_config"}
        super().__post_init__(**kwargs)
        # transformers stores any keyword argument as a field, so that a misspelled one would go unnoticed.
        if unknown := sorted(name for name in kwargs if name in vars(self) and name not in known):
            logger.warning(f"JetConfig ignores the unknown fields {', '.join(unknown)}.")

    def own_fields(self) -> dict[str, Any]:
        """Return the values of the fields by name, without those of transformers."""
        return {name: getattr(self, name) for name in JetConfig.__annotations__}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Number of channels, height and width of an image."""
        height, width = image_sides(self.image_size)
        return self.num_channels, height, width

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Numbers of rows and columns of patches."""
        _, height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """Number of tokens N of an image."""
        return math.prod(self.grid_shape)

    @property
    def patch_dim(self) -> int:
        """Number of dimensions D of a patch."""
        return self.num_channels * self.patch_size**2

    @property
    def num_dims(self) -> int:
        """Number of dimensions d of an image, `C * H * W`."""
        return math.prod(self.image_shape)

    @property
    def levels_per_unit(self) -> float:
        """Number of gray levels in one unit of the model's scale, 127.5 for 8-bit images."""
        return levels_per_unit(self.num_levels)

    @property
    def context_width(self) -> int | None:
        """Width of the context tokens, given or embedded from labels and noise levels; `None` without a context."""
        is_embedded = self.num_classes is not None or self.noise_range is not None
        return self.hidden_size if self.context_size is None and is_embedded else self.context_size

    @property
    def noise_levels(self) -> tuple[float, float] | None:
        """Smallest and largest standard deviation of the noise, or `None` for a model without noise."""
        if self.noise_std is None:
            return None
        levels = self.noise_std if isinstance(self.noise_std, list | tuple) else [self.noise_std]
        return levels[0], levels[-1]

    @property
    def noise_range(self) -> tuple[float, float] | None:
        """The `noise_levels` of a model that is conditioned on them, or `None` for another model."""
        return self.noise_levels if isinstance(self.noise_std, list) else None

    @property
    def dequantization_config(self) -> "JetConfig":
        """Configuration of the dequantization flow, whose context is the image."""
        sizes = {}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            size = getattr(self, f"dequantization_{name}")
            sizes[name] = getattr(self, name) if size is None else size
        shared = ["image_size", "num_channels", "patch_size", "coupling_kinds", "spatial_couplings", "coupling_mode"]
        shared += ["coupling_transform", "backbone", "hidden_act", "layer_norm_eps", "num_groups", "scale_factor"]
        return JetConfig(
            **{name: getattr(self, name) for name in shared},
            **sizes,
            num_coupling_layers=self.dequantization_num_coupling_layers,
            context_size=sizes["hidden_size"],
            permutation_seed=self.permutation_seed + 1,
            attn_implementation=self._attn_implementation,
        )

    @property
    def layer_splits(self) -> list[str]:
        """Split of each coupling layer: `"channels"` or the name of a spatial pattern."""
        kinds = itertools.islice(itertools.cycle(self.coupling_kinds), self.num_coupling_layers)
        patterns = itertools.cycle(self.spatial_couplings)
        return [next(patterns) if kind == "spatial" else kind for kind in kinds]

    def check_bits_per_dim(self) -> None:
        """Raise ValueError for a model of noisy images, whose density gives no bits per dimension of images."""
        if self.noise_std is not None:
            raise ValueError(
                f"this model was trained with Gaussian noise (`noise_std` {self.noise_std}): it is the density of "
                "noisy images and has no bits per dimension of images."
            )

    def validate_fields(self) -> None:
        """Raise ValueError for invalid values. `@strict` calls every method whose name starts with `validate_`."""
        self._check_names()
        self._check_numbers()
        self._check_image_size()
        self._check_noise_std()
        self._check_combinations()

    def _check_names(self) -> None:
        for field, choices in CHOICES.items():
            value = getattr(self, field)
            if isinstance(value, str):
                if value not in choices:
                    raise ValueError(f"`{field}` must be one of {list(choices)}, got {value!r}.")
            elif not value:
                raise ValueError(f"`{field}` must name at least one of {list(choices)}, got {value}.")
            elif unknown := [name for name in value if name not in choices]:
                raise ValueError(f"`{field}` must contain only {list(choices)}, got {unknown[0]!r}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}.")

    def _check_image_size(self) -> None:
        for side in image_sides(self.image_size):
            if side < 1:
                raise ValueError(f"`image_size` must be at least 1, got {self.image_size}.")
            if side % self.patch_size:
                raise ValueError(
                    "`image_size` must be divisible by `patch_size`, got "
                    f"{self._describe('image_size', 'patch_size')}."
                )

    def _check_numbers(self) -> None:
        for field, kind in JetConfig.__annotations__.items():
            value, minimum = getattr(self, field), 0 if field.endswith("num_hidden_layers") else 1
            is_size = kind in (int, int | None) and field not in ("permutation_seed", "num_levels")
            if is_size and value is not None and value < minimum:
                raise ValueError(f"`{field}` must be at least {minimum}, got {value}.")
        if not (math.isfinite(self.scale_factor) and self.scale_factor > 0):
            raise ValueError(f"`scale_factor` must be a positive number, got {self.scale_factor}.")
        if not 2 <= self.num_levels <= MAX_NUM_LEVELS:
            raise ValueError(f"`num_levels` must be from 2 to {MAX_NUM_LEVELS}, got {self.num_levels}.")
        if not (math.isfinite(self.layer_norm_eps) and self.layer_norm_eps >= 0):
            raise ValueError(f"`layer_norm_eps` must be zero or a positive number, got {self.layer_norm_eps}.")
        if self.hidden_size % self.num_attention_heads:
            fields = self._describe("hidden_size", "num_attention_heads")
            raise ValueError(f"`hidden_size` must be divisible by `num_attention_heads`, got {fields}.")

    def _check_noise_std(self) -> None:
        if self.noise_std is None:
            return
        is_range = isinstance(self.noise_std, list | tuple)
        levels = list(self.noise_std) if isinstance(self.noise_std, list | tuple) else [self.noise_std]
        if not all(math.isfinite(level) and level > 0 for level in levels):
            kind = "a pair of positive numbers" if is_range else "a positive number or None"
            raise ValueError(f"`noise_std` must be {kind}, got {self.noise_std}.")
        if is_range and not (len(levels) == 2 and levels[0] < levels[1]):
            raise ValueError(
                f"`noise_std` must be one number, or the smallest and the largest of a range, got {levels}."
            )

    def _check_combinations(self) -> None:
        if self.num_classes is not None and self.context_size is not None:
            raise ValueError(
                "`num_classes` makes the label's embedding the context, so it excludes `context_size`, got "
                f"{self._describe('num_classes', 'context_size')}."
            )
        if self.backbone == "cnn" and self.hidden_size % (4 * self.num_groups):
            raise ValueError(
                "`num_groups` must divide `hidden_size` / 4, the width of the CNN's bottlenecks, got "
                f"{self._describe('hidden_size', 'num_groups')}."
            )
        if self.patch_dim % 2:
            raise ValueError(
                "`num_channels` * `patch_size` ** 2 must be even, because a coupling layer halves a patch, got "
                f"{self._describe('num_channels', 'patch_size')}, which is {self.patch_dim}."
            )
        if "spatial" in self.coupling_kinds and self.num_patches % 2:
            raise ValueError(
                "the number of patches must be even, because spatial `coupling_kinds` halve them, got "
                f"{self._describe('image_size', 'patch_size')}, which is {self.num_patches} patches."
            )
        if "spatial" in self.coupling_kinds:
            self._check_halves()
        if self.dequantization == "flow" and self.noise_std is not None:
            raise ValueError(
                "`noise_std` replaces the dequantization noise, so it excludes the dequantization flow, got "
                f"{self._describe('dequantization', 'noise_std')}."
            )
        if self.dequantization == "flow":
            try:
                _ = self.dequantization_config
            except StrictDataclassError as error:
                raise ValueError(f"invalid fields `dequantization_*` of the dequantization flow: {error}") from None

    def _check_halves(self) -> None:
        """Raise ValueError for a spatial split into unequal halves, or one that a CNN cannot arrange in a grid."""
        (rows, columns), is_cnn = self.grid_shape, self.backbone == "cnn"
        for pattern in self.spatial_couplings:
            if pattern.startswith("hstripes") and rows % 2:
                side = "rows"
            elif (pattern.startswith("vstripes") or is_cnn) and columns % 2 and not pattern.startswith("hstripes"):
                side = "columns"
            else:
                continue
            raise ValueError(
                f"the number of {side} of patches must be even for the spatial coupling {pattern!r}"
                f"{' of a CNN' if is_cnn else ''}, got {self._describe('image_size', 'patch_size')}, which is "
                f"{rows} x {columns} patches: choose another size, or other `spatial_couplings`."
            )

    def _describe(self, *fields: str) -> str:
        return " and ".join(f"{field}={getattr(self, field)}" for field in fields)


JetConfig.register_for_auto_class()

__all__ = ["JetConfig"]
