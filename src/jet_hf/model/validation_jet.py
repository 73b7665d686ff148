# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of what users hand to the models; each raises a ValueError that names the argument, expected and given."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from .configuration_jet import JetConfig


# Scaling bytes in float32 may overshoot [-1, 1] by rounding; a grey level is 8 times wider than this.
RANGE_TOLERANCE = 1e-3

_values_are_trusted = ContextVar("values_are_trusted", default=False)


@contextmanager
def trusted_values() -> Iterator[None]:
    """
    Leaves out the checks that look at values, though not those of shapes and dtypes: for images, noise and labels that
    the caller made itself. On an accelerator a look at values waits for all that was queued before.
    """
    token = _values_are_trusted.set(True)
    try:
        yield
    finally:
        _values_are_trusted.reset(token)


def _skips_values(values: torch.Tensor) -> bool:
    # Compiled graphs have no checks, and tensors on "meta" no values.
    return torch.compiler.is_compiling() or values.is_meta or _values_are_trusted.get()


def _describe(value: object) -> str:
    """Shape and dtype of a tensor, or the type of anything else."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__


def _extremes(values: torch.Tensor) -> list[float]:
    """Smallest and largest of the values."""
    return torch.stack(torch.aminmax(values.detach())).tolist()


def check_whole(name: str, value: int | None) -> None:
    """`value` must be a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


def check_temperature(temperature: float) -> None:
    """`temperature` must be a finite number of at least 0."""
    if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
        raise ValueError(f"`temperature` must be zero or a positive number, got {temperature!r}.")


def check_images(name: str, images: torch.Tensor, config: JetConfig, dtype: torch.dtype) -> None:
    """`images` must be a tensor (B, C, S, S) of the flow's dtype, with B at least 1."""
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"`{name}` must be a torch.Tensor, got {type(images).__name__}.")
    expected = (config.num_channels, config.image_size, config.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or images.shape[0] == 0:
        raise ValueError(
            f"`{name}` must have shape (batch_size, {', '.join(map(str, expected))}), got {tuple(images.shape)}."
        )
    if images.dtype != dtype:
        raise ValueError(
            f"`{name}` must be {dtype}, got {images.dtype}. The flow's state stays {dtype} whatever dtype the weights "
            "have: a narrower dtype would round away the dequantisation noise, and bytes must be scaled to [-1, 1]."
        )


def check_values(name: str, values: torch.Tensor, low: float | None = None, high: float | None = None) -> None:
    """`values` must be finite and, where `low` and `high` are given, within them. Compiled graphs skip this check."""
    if _skips_values(values):
        return
    smallest, largest = _extremes(values)
    if not abs(smallest) + abs(largest) < float("inf"):
        raise ValueError(f"`{name}` must be finite, got NaN or infinite values.")
    if low is not None and (smallest < low - RANGE_TOLERANCE or largest > high + RANGE_TOLERANCE):
        raise ValueError(f"`{name}` must lie in [{low}, {high}], got values from {smallest:g} to {largest:g}.")


def check_noise(noise: torch.Tensor, pixel_values: torch.Tensor) -> None:
    """`noise` must match `pixel_values` in shape and dtype and lie in [0, 1)."""
    if not isinstance(noise, torch.Tensor) or noise.shape != pixel_values.shape or noise.dtype != pixel_values.dtype:
        raise ValueError(
            f"`noise` must have the shape and dtype of `pixel_values`, {tuple(pixel_values.shape)} "
            f"{pixel_values.dtype}, got {_describe(noise)}."
        )
    if _skips_values(noise):
        return
    smallest, largest = _extremes(noise)
    if not (smallest >= 0 and largest < 1):
        raise ValueError(f"`noise` must lie in [0, 1), got values from {smallest:g} to {largest:g}.")


def check_context(context: torch.Tensor | None, config: JetConfig, batch_size: int) -> None:
    """`context` must be there exactly where `config.context_size` is set, as a finite tensor (B, L, context_size)."""
    if config.context_size is None:
        if context is not None:
            raise ValueError("`context` was given, but `config.context_size` is None: this model takes no context.")
        return
    expected = f"a floating-point tensor of shape ({batch_size}, sequence_length, {config.context_size})"
    if context is None:
        raise ValueError(f"`context` is missing: `config.context_size` is set, so it must be {expected}.")
    if (
        not isinstance(context, torch.Tensor)
        or not context.is_floating_point()
        or context.ndim != 3
        or context.shape[0] != batch_size
        or context.shape[1] == 0
        or context.shape[2] != config.context_size
    ):
        raise ValueError(f"`context` must be {expected}, got {_describe(context)}.")
    check_values("context", context)


def check_context_mask(context_mask: torch.Tensor | None, context: torch.Tensor | None) -> None:
    """`context_mask` must be a boolean (or 0 and 1) tensor (B, L) beside a context, with a token for each image."""
    if context_mask is None:
        return
    if context is None:
        raise ValueError("`context_mask` was given without a `context`.")
    kinds = (torch.bool, torch.int64, torch.int32)
    if (
        not isinstance(context_mask, torch.Tensor)
        or context_mask.shape != context.shape[:2]
        or context_mask.dtype not in kinds
    ):
        expected = f"a boolean tensor of shape {tuple(context.shape[:2])}"
        raise ValueError(f"`context_mask` must be {expected}, got {_describe(context_mask)}.")
    if _skips_values(context_mask):
        return
    if not context_mask.bool().any(dim=1).all():
        raise ValueError("`context_mask` must leave each image at least one token of its context, got none for some.")


def check_labels(labels: torch.Tensor | None, config: JetConfig, batch_size: int) -> None:
    """`labels` must be there exactly where `config.num_classes` is set, as an int64 tensor (B,) of classes."""
    if config.num_classes is None:
        if labels is not None:
            raise ValueError("`labels` were given, but `config.num_classes` is None: this model has no classes.")
        return
    expected = f"an int64 tensor of shape ({batch_size},)"
    if labels is None:
        raise ValueError(
            f"`labels` are missing: `config.num_classes` is set, so they must be {expected}, with the number "
            f"{config.num_classes} where there is no label."
        )
    if not isinstance(labels, torch.Tensor) or labels.shape != (batch_size,) or labels.dtype != torch.int64:
        raise ValueError(f"`labels` must be {expected}, got {_describe(labels)}.")
    if _skips_values(labels):
        return
    smallest, largest = _extremes(labels)
    if not 0 <= smallest <= largest <= config.num_classes:
        raise ValueError(
            f"`labels` must lie in [0, {config.num_classes}], the last for no label, got {smallest} to {largest}."
        )


def check_guidance_scale(guidance_scale: float | None, config: JetConfig) -> None:
    """`guidance_scale` must be a finite number of at least 0, and there must be a context to guide."""
    if guidance_scale is None:
        return
    if not isinstance(guidance_scale, int | float) or not 0 <= guidance_scale < float("inf"):
        raise ValueError(f"`guidance_scale` must be zero or a positive number, got {guidance_scale!r}.")
    if config.context_width is None:
        raise ValueError("`guidance_scale` was given, but this model has neither classes nor a context to guide by.")
