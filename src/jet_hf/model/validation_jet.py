# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of the models' arguments, which raise ValueError with the argument, the expected and the given value."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real

import torch
from transformers.utils.generic import TransformersKwargs

from .configuration_jet import GUIDANCE_RULES, JetConfig, level_dtype


# Largest distance of a rounded value from its level, in gray levels: in float32, and in bfloat16, in which values of
# neighboring bytes still differ.
LEVEL_TOLERANCE = 1e-3
MAX_LEVEL_TOLERANCE = 0.25
# Largest relative error of a noise level, which covers the rounding of powers in float32.
NOISE_STD_TOLERANCE = 1e-5
NARROWER_DTYPES = {
    torch.float32: (torch.float16, torch.bfloat16),
    torch.float64: (torch.float16, torch.bfloat16, torch.float32),
}
# Mean and standard deviation per channel, on the scale [0, 1], with which other models normalize images.
KNOWN_STATISTICS = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}

_values_are_trusted = ContextVar("values_are_trusted", default=False)


@contextmanager
def trusted_values() -> Iterator[None]:
    """
    Skip the checks of values, but not those of shapes and dtypes, for inputs that the caller made itself, and the
    initialization of ActNorm, which the caller made before. On an accelerator, reading a value waits for all work that
    was queued before.
    """
    token = _values_are_trusted.set(True)
    try:
        yield
    finally:
        _values_are_trusted.reset(token)


def skips_values(values: torch.Tensor) -> bool:
    """Return whether no values are read: in recorded graphs, on "meta", and within [`trusted_values`]."""
    # Compiled, exported and traced graphs contain no checks, and tensors on "meta" have no values.
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return is_recorded or values.is_meta or _values_are_trusted.get()


def _describe(value: object) -> str:
    """Return shape and dtype of a tensor, or the type of any other value."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__


class _Extremes(torch.autograd.Function):
    """Smallest and largest value of a tensor. Under `torch.func.vmap` they are those of all samples together."""

    @staticmethod
    def forward(values: torch.Tensor) -> torch.Tensor:
        return torch.stack(torch.aminmax(values))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims: tuple, values: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Extremes.apply(values), None


def _extremes(values: torch.Tensor) -> list[float]:
    """Return the smallest and the largest value."""
    return _Extremes.apply(values.detach()).tolist()


def is_number(value: object, kind: type = Real) -> bool:
    """Return whether `value` is a number of Python or NumPy, but not a boolean."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_whole(name: str, value: int | None, low: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number of at least `low`."""
    if value is None or not is_number(value, Integral) or value < low:
        raise ValueError(f"`{name}` must be a whole number of at least {low}, got {value!r}.")


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be zero or a positive number, got {value!r}.")


def check_generator(generator: torch.Generator | None) -> None:
    """Raise ValueError unless `generator` is `None` or a `torch.Generator`."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            "`generator` must be a torch.Generator, such as torch.Generator().manual_seed(0), got "
            f"{type(generator).__name__}."
        )


def check_images(
    name: str,
    images: torch.Tensor,
    config: JetConfig,
    dtype: torch.dtype,
    also_accepted: tuple[torch.dtype, ...] = (),
) -> None:
    """Raise ValueError unless `images` is a tensor (B, C, S, S) of the flow's dtype, with B at least 1."""
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"`{name}` must be a torch.Tensor, got {type(images).__name__}.")
    expected = config.image_shape
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or images.shape[0] == 0:
        raise ValueError(
            f"`{name}` must have shape (batch_size, {', '.join(map(str, expected))}), got {tuple(images.shape)}."
        )
    if images.dtype != dtype and images.dtype not in also_accepted:
        raise ValueError(
            f"`{name}` must be {dtype}, got {images.dtype}. The flow's state is {dtype} for weights of any dtype: a "
            "narrower dtype would round away the dequantization noise, and bytes must be scaled to [-1, 1]."
        )


def check_values(name: str, values: torch.Tensor) -> None:
    """Raise ValueError for NaN or infinite values."""
    if not skips_values(values):
        _check_finite(name, *_extremes(values))


def _check_finite(name: str, smallest: float, largest: float) -> None:
    if not abs(smallest) + abs(largest) < float("inf"):
        raise ValueError(f"`{name}` must be finite, got NaN or infinite values.")


def check_quantized_images(
    pixel_values: torch.Tensor, config: JetConfig, dtype: torch.dtype, name: str = "pixel_values"
) -> torch.Tensor:
    """
    Return images on the grid of the model's gray levels in the flow's dtype. Half precision distinguishes all bytes,
    so that values of a narrower dtype become exactly those of their levels.

    Args:
        pixel_values: Tensor (B, C, S, S) of the values `2 * u / (num_levels - 1) - 1` of levels `u`, in the flow's
            dtype, or in a narrower dtype that distinguishes all levels.
        config: Configuration of the model.
        dtype: Dtype of the flow.
        name: Name of the argument in messages.

    Raises:
        ValueError: for a wrong shape or dtype, or values that are not those of levels. The message names the likely
            reason. Compiled graphs do not check values.
    """
    scale = config.levels_per_unit
    narrower = (other for other in NARROWER_DTYPES.get(dtype, ()) if scale * torch.finfo(other).eps <= 1)
    check_images(name, pixel_values, config, dtype, tuple(narrower))
    values = pixel_values.to(dtype)
    if not skips_values(values):
        tolerance = scale * torch.finfo(pixel_values.dtype).eps
        tolerance = min(max(LEVEL_TOLERANCE, tolerance), MAX_LEVEL_TOLERANCE)
        _check_grid(name, values.detach(), config.num_levels, tolerance)
    if pixel_values.dtype == dtype:
        return values
    exact = ((values.detach() + 1) * scale).round() / scale - 1
    return values + (exact - values.detach())  # differentiable in the values


def check_levels(name: str, pixels: torch.Tensor, num_levels: int) -> None:
    """Raise ValueError unless `pixels` are integers (uint8, or uint16 for more than 256 levels) below `num_levels`."""
    dtype = getattr(torch, level_dtype(num_levels))
    if pixels.dtype != dtype:
        kind = "bytes" if num_levels == 256 else f"gray levels of a model with `num_levels` {num_levels}"
        raise ValueError(f"`{name}` must be {kind} ({dtype}), got {pixels.dtype}.")
    # Also where values are trusted: data of another number of levels would train a model of something else.
    if num_levels <= torch.iinfo(dtype).max and pixels.numel() and not pixels.is_meta:
        highest = int(pixels.to(torch.int32).max())
        if highest >= num_levels:
            raise ValueError(
                f"`{name}` must be gray levels from 0 to {num_levels - 1} (`num_levels` {num_levels}), got {highest}."
            )


def _distance_from_levels(levels: torch.Tensor) -> float:
    """Return the largest distance from a whole number of gray levels."""
    return _extremes((levels - levels.round()).abs())[1]


def _check_grid(name: str, values: torch.Tensor, num_levels: int, tolerance: float) -> None:
    """Raise ValueError unless `values` are those of gray levels on the scale [-1, 1], to `tolerance` levels."""
    smallest, largest = _extremes(values)
    _check_finite(name, smallest, largest)
    last = num_levels - 1
    levels_outside = max(-1 - smallest, largest - 1) * last / 2
    if levels_outside <= tolerance and _distance_from_levels((values + 1) * (last / 2)) <= tolerance:
        return
    kind = "8-bit images" if num_levels == 256 else f"images of {num_levels} levels"
    # In bfloat16 the distance from the grid does not show how values were scaled.
    is_coarse = tolerance == MAX_LEVEL_TOLERANCE
    scale = f"values from {smallest:g} to {largest:g}"
    continuous = "Continuous values go to `encode` or `distribution().log_prob`."
    if smallest >= 0 and largest <= 1 and (is_coarse or _distance_from_levels(last * values) <= 2 * tolerance):
        reason = f"got values `u / {last}` in [0, 1]: scale them to [-1, 1] by `2 * x - 1`. {continuous}"
    elif smallest >= 0 and largest > 1 and _distance_from_levels(values) <= tolerance:
        units = "bytes" if num_levels == 256 else "levels"
        reason = f"got whole numbers from {smallest:g} to {largest:g}: scale {units} by `u / {last / 2:g} - 1`."
    elif statistics := None if is_coarse else _normalized_with(values, last, tolerance):
        reason = (
            f"got {scale}, normalized with {statistics} mean and standard deviation: use JetImageProcessor, which "
            "normalizes images as the model expects them."
        )
    elif num_levels < 256 and levels_outside <= 0 and _distance_from_levels((values + 1) * 127.5) <= LEVEL_TOLERANCE:
        reason = "got 8-bit images: reduce them to the model's levels, or set `num_levels` to 256."
    elif levels_outside < 1:
        units = "bytes" if num_levels == 256 else "levels"
        reason = (
            "got values between the gray levels, as dequantization, or resizing without rounding, gives them: round "
            f"images to {units} before scaling. {continuous}"
        )
    else:
        reason = f"which lie in [-1, 1], got {scale}: they seem to be scaled or normalized differently. {continuous}"
    raise ValueError(f"`{name}` must be {kind} `u / {last / 2:g} - 1`, {reason}")


def _normalized_with(values: torch.Tensor, last: int, tolerance: float) -> str | None:
    """Return the owner of the mean and standard deviation that levels (B, 3, S, S) were normalized with, if known."""
    if values.shape[-3] != 3:
        return None
    for owner, statistics in KNOWN_STATISTICS.items():
        mean, std = (torch.tensor(channels, device=values.device)[:, None, None] for channels in statistics)
        if _distance_from_levels(last * (values * std + mean)) <= 2 * tolerance:
            return owner
    return None


def check_keywords(keywords: dict) -> None:
    """Raise TypeError for a keyword argument that models of transformers do not take, such as a misspelled one."""
    if unknown := sorted(keywords.keys() - TransformersKwargs.__annotations__.keys() - {"return_dict"}):
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")


def check_noise(noise: torch.Tensor, pixel_values: torch.Tensor, is_normal: bool = False) -> torch.Tensor:
    """
    Return the noise in the dtype of `pixel_values`.

    Raises:
        ValueError: for uniform noise outside of [0, 1), normal noise that is not finite, noise of another shape, or
            of a dtype other than float32 and that of the images.
    """
    dtypes = (pixel_values.dtype, torch.float32)
    if not isinstance(noise, torch.Tensor) or noise.shape != pixel_values.shape or noise.dtype not in dtypes:
        raise ValueError(
            f"`noise` must have the shape and dtype of `pixel_values`, {tuple(pixel_values.shape)} "
            f"{pixel_values.dtype}, got {_describe(noise)}."
        )
    if is_normal:
        check_values("noise", noise)
    elif not skips_values(noise):
        smallest, largest = _extremes(noise)
        if not (smallest >= 0 and largest < 1):
            raise ValueError(f"`noise` must lie in [0, 1), got values from {smallest:g} to {largest:g}.")
    return noise.to(pixel_values.dtype)


def check_context(context: torch.Tensor | None, config: JetConfig, batch_size: int) -> None:
    """Raise ValueError unless `context` is a finite tensor (B, L, context_size), or `None` for a model without one."""
    if config.context_size is None:
        if context is not None:
            raise ValueError("`context` was given, but `config.context_size` is None: this model takes no context.")
        return
    expected = f"a floating-point tensor of shape ({batch_size}, sequence_length, {config.context_size})"
    if context is None:
        raise ValueError(f"`context` is missing: `config.context_size` is set, so it must be {expected}.")
    is_valid = isinstance(context, torch.Tensor) and context.is_floating_point() and context.ndim == 3
    if not is_valid or context.shape[::2] != (batch_size, config.context_size) or context.shape[1] == 0:
        raise ValueError(f"`context` must be {expected}, got {_describe(context)}.")
    check_values("context", context)


def check_context_mask(context_mask: torch.Tensor | None, context: torch.Tensor | None) -> None:
    """Raise ValueError unless `context_mask` is `None`, or a tensor (B, L) of booleans that keeps some of each row."""
    if context_mask is None:
        return
    if context is None:
        raise ValueError("`context_mask` was given without a `context`.")
    kinds = (torch.bool, torch.int64, torch.int32)  # tokenizers give integers 0 and 1
    is_valid = isinstance(context_mask, torch.Tensor) and context_mask.dtype in kinds
    if not is_valid or context_mask.shape != context.shape[:2]:
        expected = f"a boolean tensor of shape {tuple(context.shape[:2])}"
        raise ValueError(f"`context_mask` must be {expected}, got {_describe(context_mask)}.")
    if not skips_values(context_mask) and not _extremes(context_mask.int().amax(dim=1))[0]:
        raise ValueError("`context_mask` must keep at least one token of the context of each image.")


def check_labels(labels: torch.Tensor | None, config: JetConfig, batch_size: int) -> None:
    """Raise ValueError unless `labels` is an int64 tensor (B,) of classes, or `None` for a model without classes."""
    if config.num_classes is None:
        if labels is not None:
            raise ValueError("`labels` were given, but `config.num_classes` is None: this model has no classes.")
        return
    expected = f"an int64 tensor of shape ({batch_size},)"
    if labels is None:
        raise ValueError(
            f"`labels` are missing: `config.num_classes` is set, so they must be {expected}, in which "
            f"{config.num_classes} stands for no label."
        )
    if not isinstance(labels, torch.Tensor) or labels.shape != (batch_size,) or labels.dtype != torch.int64:
        raise ValueError(f"`labels` must be {expected}, got {_describe(labels)}.")
    if not skips_values(labels):
        smallest, largest = _extremes(labels)
        if not 0 <= smallest <= largest <= config.num_classes:
            raise ValueError(
                f"`labels` must lie in [0, {config.num_classes}], where {config.num_classes} stands for no label, got "
                f"{smallest} to {largest}."
            )


def check_noise_std(noise_std: float | torch.Tensor | None, config: JetConfig, batch_size: int) -> None:
    """
    Raise ValueError unless `noise_std` is a number or a tensor (B,) in the range of a model that is conditioned on the
    noise level, or `None` or the only level of another model.
    """
    if config.noise_levels is None:
        if noise_std is not None:
            raise ValueError("`noise_std` was given, but `config.noise_std` is None: this model was trained without.")
        return
    if noise_std is None:
        if config.noise_range is not None:
            raise ValueError(f"`noise_std` is missing: it must be {_expected_levels(config, batch_size)}.")
        return
    if not isinstance(noise_std, torch.Tensor):
        smallest = largest = noise_std if is_number(noise_std) else float("nan")
    elif not noise_std.is_floating_point() or noise_std.shape != (batch_size,):
        raise ValueError(f"`noise_std` must be {_expected_levels(config, batch_size)}, got {_describe(noise_std)}.")
    elif skips_values(noise_std):
        return
    else:
        smallest, largest = _extremes(noise_std)
    low, high = config.noise_levels
    if not low * (1 - NOISE_STD_TOLERANCE) <= smallest <= largest <= high * (1 + NOISE_STD_TOLERANCE):
        got = f"{smallest:g} to {largest:g}" if isinstance(noise_std, torch.Tensor) else repr(noise_std)
        raise ValueError(f"`noise_std` must be {_expected_levels(config, batch_size)}, got {got}.")


def _expected_levels(config: JetConfig, batch_size: int) -> str:
    """Return the noise levels of a model in words."""
    if config.noise_range is None:
        return f"{config.noise_std}, the only noise level of this model"
    low, high = config.noise_range
    return f"a number or a floating-point tensor ({batch_size},) from {low} to {high}, the range of this model"


def check_step_noise(noise: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise ValueError unless `noise` is `None`, or a finite tensor of this shape and dtype."""
    if noise is None:
        return
    if not isinstance(noise, torch.Tensor) or noise.shape != shape or noise.dtype != dtype:
        raise ValueError(
            f"`noise` must be a tensor (denoising_steps - 1, *pixel_values.shape), which is {shape} {dtype}, got "
            f"{_describe(noise)}."
        )
    if noise.numel():
        check_values("noise", noise)


def check_denoising(config: JetConfig, denoise: bool, denoising_steps: int, stochastic: bool = False) -> None:
    """
    Check the denoising of images, see `JetForDensityEstimation.sample`.

    Raises:
        ValueError: for a number of steps below 1, several steps of a model that is not conditioned on the noise level,
            or steps of samples that are not denoised.
    """
    check_whole("denoising_steps", denoising_steps)
    if denoising_steps > 1 and config.noise_range is None:
        raise ValueError(
            "`denoising_steps` above 1 need a model that was trained with a range of noise levels, but "
            f"`config.noise_std` is {config.noise_std}."
        )
    if not denoise and (denoising_steps > 1 or stochastic):
        raise ValueError("`denoising_steps` and `stochastic` need `denoise`, got False.")


def check_guidance(
    guidance_scale: float | tuple[float, float] | None,
    rule: str,
    attention_temperature: float | None,
    config: JetConfig,
) -> None:
    """
    Check the guidance of a decoding, see `JetModel.decode`.

    Raises:
        ValueError: for a scale below 0, an unknown rule, a temperature that is not positive, guidance of a model
            without classes or context by anything but its attention, or a choice of guidance without a scale.
    """
    if rule not in GUIDANCE_RULES:
        raise ValueError(f"`guidance` must be one of {list(GUIDANCE_RULES)}, got {rule!r}.")
    if guidance_scale is None:
        if rule != GUIDANCE_RULES[0] or attention_temperature is not None:
            raise ValueError("`guidance` and `attention_temperature` need a `guidance_scale`, got None.")
        return
    scales = guidance_scale if isinstance(guidance_scale, tuple | list) else [guidance_scale]
    if len(scales) not in (1, 2):
        raise ValueError(f"`guidance_scale` must be one number, or the two of the end layers, got {guidance_scale!r}.")
    for scale in scales:
        check_not_negative("guidance_scale", scale)
    if attention_temperature is None:
        if config.num_classes is None and config.context_size is None:
            raise ValueError(
                "`guidance_scale` was given, but this model has neither classes nor a context: guide it by an "
                "`attention_temperature`."
            )
        return
    if not is_number(attention_temperature) or not 0 < attention_temperature < float("inf"):
        raise ValueError(f"`attention_temperature` must be a positive number, got {attention_temperature!r}.")
    if config.backbone != "vit":
        raise ValueError(f"`attention_temperature` needs the backbone 'vit', got {config.backbone!r}.")
