# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of what users hand to the models; each raises a ValueError that names the argument, expected and given."""

import torch

from .configuration_jet import JetConfig


# Scaling bytes in float32 may overshoot [-1, 1] by rounding; a grey level is 8 times wider than this.
RANGE_TOLERANCE = 1e-3


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
    if torch.compiler.is_compiling() or values.is_meta:
        return
    smallest, largest = torch.stack(torch.aminmax(values.detach())).tolist()
    if not abs(smallest) + abs(largest) < float("inf"):
        raise ValueError(f"`{name}` must be finite, got NaN or infinite values.")
    if low is not None and (smallest < low - RANGE_TOLERANCE or largest > high + RANGE_TOLERANCE):
        raise ValueError(f"`{name}` must lie in [{low}, {high}], got values from {smallest:g} to {largest:g}.")


def check_noise(noise: torch.Tensor, pixel_values: torch.Tensor) -> None:
    """`noise` must match `pixel_values` in shape and dtype and lie in [0, 1)."""
    if not isinstance(noise, torch.Tensor) or noise.shape != pixel_values.shape or noise.dtype != pixel_values.dtype:
        got = f"{tuple(noise.shape)} {noise.dtype}" if isinstance(noise, torch.Tensor) else type(noise).__name__
        raise ValueError(
            f"`noise` must have the shape and dtype of `pixel_values`, {tuple(pixel_values.shape)} "
            f"{pixel_values.dtype}, got {got}."
        )
    if torch.compiler.is_compiling():
        return
    smallest, largest = torch.stack(torch.aminmax(noise.detach())).tolist()
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
        got = (
            f"{tuple(context.shape)} {context.dtype}" if isinstance(context, torch.Tensor) else type(context).__name__
        )
        raise ValueError(f"`context` must be {expected}, got {got}.")
    check_values("context", context)
