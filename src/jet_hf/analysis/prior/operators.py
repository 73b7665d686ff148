# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear operators of measurements: inpainting, reduced resolution, blur, or any pair of functions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ...model.validation_jet import check_values, check_whole


# Largest difference of the two inner products, relative to the norms and to the precision of the dtype.
ADJOINT_TOLERANCE = 10
# Weight of the squared differences of neighboring pixels in the smoothest images, and steps to find these.
SMOOTHNESS = 1e-2
FIT_STEPS = 60
NORM_STEPS = 20


@dataclass(frozen=True)
class LinearOperator:
    """
    Linear map A from images to measurements.

    Args:
        forward: Function from images (B, C, H, W) to measurements (B, ...).
        adjoint: Function from measurements to images, the transpose of `forward`: `<A x, y> = <x, A^T y>`.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    adjoint: Callable[[torch.Tensor], torch.Tensor]

    def check_adjoint(self, measurements: torch.Tensor) -> None:
        """
        Check by one random dot product that `adjoint` is the adjoint of `forward`.

        Args:
            measurements: Tensor (B, ...), of which only shape, dtype and device matter.

        Raises:
            ValueError: if the inner products differ, or if the measurements do not have the shape of `forward`, or if
                a function returns anything but tensors of their dtype or changes its argument.
        """
        generator = torch.Generator().manual_seed(0)

        def draw(like: torch.Tensor) -> torch.Tensor:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

        left = draw(measurements)

        def apply(name: str, values: torch.Tensor) -> torch.Tensor:
            result = getattr(self, name)(argument := values.clone())
            if not isinstance(result, torch.Tensor) or result.dtype != values.dtype:
                got = result.dtype if isinstance(result, torch.Tensor) else type(result).__name__
                raise ValueError(f"`{name}` must return a tensor of {values.dtype}, got {got}.")
            if not torch.equal(argument, values):
                raise ValueError(f"`{name}` must not change its argument in place.")
            return result

        backward = apply("adjoint", left)
        right = draw(backward)
        forward = apply("forward", right)
        if forward.shape != left.shape:
            raise ValueError(
                f"`measurements` must have the shape {tuple(forward.shape)} that `forward` gives images of shape "
                f"{tuple(right.shape)}, got {tuple(left.shape)}."
            )
        products = float((forward * left).sum()), float((right * backward).sum())
        scale = float(forward.norm() * left.norm() + right.norm() * backward.norm())
        if not abs(products[0] - products[1]) <= ADJOINT_TOLERANCE * torch.finfo(left.dtype).eps * scale:
            raise ValueError(
                "`adjoint` must be the adjoint of `forward`, got <A x, y> = "
                f"{products[0]:.6g} and <x, A^T y> = {products[1]:.6g} for random x and y."
            )


def identity() -> LinearOperator:
    """Return the operator that measures the image itself, for denoising."""
    return LinearOperator(lambda images: images, lambda measurements: measurements)


def mask(kept: torch.Tensor) -> LinearOperator:
    """
    Return the operator that sets pixels to zero, for inpainting.

    Args:
        kept: Boolean tensor that broadcasts to images, such as (H, W), true where a pixel is measured.

    Raises:
        ValueError: for a tensor that is not boolean, and in the operator for images of another shape.
    """
    if not isinstance(kept, torch.Tensor) or kept.dtype != torch.bool:
        got = kept.dtype if isinstance(kept, torch.Tensor) else type(kept).__name__
        raise ValueError(f"`kept` must be a boolean tensor, true where a pixel is measured, got {got}.")

    def select(images: torch.Tensor) -> torch.Tensor:
        sizes = zip(reversed(kept.shape), reversed(images.shape), strict=False)
        if kept.ndim > images.ndim or any(size not in (1, expected) for size, expected in sizes):
            raise ValueError(
                f"`kept` must broadcast to images of shape {tuple(images.shape)}, got shape {tuple(kept.shape)}."
            )
        return images * kept.to(images.device)

    return LinearOperator(select, select)


def downsample(factor: int) -> LinearOperator:
    """
    Return the operator that averages squares of `factor` x `factor` pixels, for super-resolution.

    Raises:
        ValueError: for a factor below 1.
    """
    check_whole("factor", factor)

    def adjoint(measurements: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(measurements, scale_factor=factor, mode="nearest") / factor**2

    return LinearOperator(lambda images: functional.avg_pool2d(images, factor), adjoint)


def blur(kernel: torch.Tensor) -> LinearOperator:
    """
    Return the operator that correlates each channel with a kernel, for deblurring. Measurements are smaller than the
    image, since only pixels whose whole neighborhood is known are measured.

    Args:
        kernel: Floating-point tensor (h, w), with the sum 1 for a blur.

    Raises:
        ValueError: for a tensor of another shape or dtype, an empty one, or non-finite values.
    """
    if not isinstance(kernel, torch.Tensor) or kernel.ndim != 2 or 0 in kernel.shape or not kernel.is_floating_point():
        got = f"{tuple(kernel.shape)} {kernel.dtype}" if isinstance(kernel, torch.Tensor) else type(kernel).__name__
        raise ValueError(f"`kernel` must be a floating-point tensor (h, w), got {got}.")
    check_values("kernel", kernel)

    def weights(images: torch.Tensor) -> torch.Tensor:
        return kernel.to(images).expand(images.shape[1], 1, *kernel.shape)

    return LinearOperator(
        lambda images: functional.conv2d(images, weights(images), groups=images.shape[1]),
        lambda measurements: functional.conv_transpose2d(
            measurements, weights(measurements), groups=measurements.shape[1]
        ),
    )


def fit_smoothest(measurements: torch.Tensor, operator: LinearOperator) -> torch.Tensor:
    """
    Return images (B, C, H, W) that fit measurements and are smooth where these say nothing: the minimum of
    `|A x - y|^2 + SMOOTHNESS * |differences of neighboring pixels|^2`, by conjugate gradients.
    """

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left * right).flatten(1).sum(dim=1)[:, None, None, None]

    residual = operator.adjoint(measurements)
    images, direction, size = torch.zeros_like(residual), residual, product(residual, residual)
    tiny = torch.finfo(residual.dtype).tiny
    for _ in range(FIT_STEPS):
        curved = operator.adjoint(operator.forward(direction)) + SMOOTHNESS * _laplacian(direction)
        length = size / product(direction, curved).clamp(min=tiny)
        images = images + length * direction
        residual = residual - length * curved
        size, last_size = product(residual, residual), size
        direction = residual + size / last_size.clamp(min=tiny) * direction
    return images


def operator_norms(operator: LinearOperator, images: torch.Tensor) -> torch.Tensor:
    """
    Return the largest factor (B,) by which A stretches each image, by the power method, which finds slightly less.

    Args:
        operator: Operator A.
        images: Tensor (B, C, H, W), of which only shape, dtype and device matter.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    for _ in range(NORM_STEPS):
        direction = direction / _norms(direction).clamp(min=torch.finfo(images.dtype).tiny)
        direction = operator.adjoint(operator.forward(direction))
    return _norms(direction).flatten().sqrt()


def _norms(images: torch.Tensor) -> torch.Tensor:
    """Return the norms (B, 1, 1, 1) of images."""
    return images.flatten(1).norm(dim=1)[:, None, None, None]


def _laplacian(images: torch.Tensor) -> torch.Tensor:
    """Return the gradient of half of the squared differences of neighboring pixels."""
    result = torch.zeros_like(images)
    for dim in (2, 3):
        steps = images.diff(dim=dim)
        first, last = steps.narrow(dim, 0, 1), steps.narrow(dim, steps.shape[dim] - 1, 1)
        result -= torch.cat([first, steps.diff(dim=dim), -last], dim=dim)
    return result
