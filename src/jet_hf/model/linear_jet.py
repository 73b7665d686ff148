# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear layers and GELU, where most of a flow's time and memory goes (docs/performance.md)."""

import math

import torch
from torch import nn
from torch.nn.functional import gelu, linear


# 0.5 * (1 + tanh(u)) is sigmoid(2 * u), here with 2 * u = x * (LINEAR + CUBIC * x ** 2).
LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR
PIECE = 2**16  # elements that are worked on together: 256 KiB
SMALL_PRODUCT = 2**24  # multiplications, below which oneDNN's start is a good part of a product's time
PLAIN = (torch.Tensor, nn.Parameter)  # no subclass, such as a quantised or a distributed tensor


class JetLinear(nn.Linear):
    """
    Linear layer. In evaluation mode without gradients on a CPU oneDNN does it, which adds the bias and, where it is
    asked for, applies GELU while the product is in the cache; small products without GELU are not worth it. Results
    are those of other kernels to rounding. In training mode checkpointed layers are run without gradients and then
    with them, and must come out the same.
    """

    def forward(self, x: torch.Tensor, with_gelu: bool = False) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if not self.training and _suits_onednn(x, weight, with_gelu):
            activation, algorithm = ("gelu", "tanh") if with_gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
        product = linear(x, weight, bias)
        return gelu_tanh(product) if with_gelu else product


def _suits_onednn(x: torch.Tensor, weight: torch.Tensor, with_gelu: bool) -> bool:
    """Whether oneDNN is to do a product that no gradients are needed of: if it can, and it is worth its start."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and _is_plain_on_cpu(x)
        and _is_plain_on_cpu(weight)
        and x.dtype == weight.dtype
        and (with_gelu or x.numel() * weight.shape[0] >= SMALL_PRODUCT)
        and not torch.is_autocast_enabled("cpu")
        and not _is_transformed()
        and torch.backends.mkldnn.is_available()
    )


def _is_transformed() -> bool:
    """Return whether a transform of torch.func, forward-mode differentiation or tracing is at work."""
    differentiates = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return differentiates or torch.jit.is_tracing()


def is_bare(layer: nn.Module) -> bool:
    """Whether calling a layer gives the product with its weight and does nothing else: no adapter, hook, transform."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return (
        type(layer) is JetLinear
        and "forward" not in vars(layer)  # accelerate's hooks, which fetch offloaded weights
        and not any(hooks)
        and not torch.compiler.is_compiling()
        and not _is_transformed()
    )


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation of GELU; on CPUs by way of a sigmoid, as torch's tanh is slow there."""
    if torch.compiler.is_compiling():
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return x * torch.sigmoid(x * (LINEAR + CUBIC * x * x))
    elif _is_plain_on_cpu(x) and not torch.is_grad_enabled() and not _is_transformed():
        return _gelu_in_pieces(x)
    return gelu(x, approximate="tanh")


def _is_plain_on_cpu(x: torch.Tensor) -> bool:
    """Whether a tensor is one that the CPU's own ways here are made for."""
    return type(x) in PLAIN and x.is_cpu and x.dtype in (torch.float32, torch.bfloat16)


def _gelu_in_pieces(x: torch.Tensor, grad: torch.Tensor | None = None) -> torch.Tensor:
    """
    GELU, computed in float32 piece by piece, so that what is between its operations stays in the cache.

    Args:
        x: float32 or bfloat16 tensor on the CPU.
        grad: Of the same shape, contiguous; the gradient for the result, which becomes that for `x`.
    """
    x = x.contiguous()
    result = torch.empty_like(x)
    linear_part, one = torch.tensor(LINEAR, dtype=torch.float32), torch.ones((), dtype=torch.float32)
    pieces = [part.view(-1).split(PIECE) for part in (x, result, x if grad is None else grad)]
    for x_piece, result_piece, grad_piece in zip(*pieces, strict=True):
        x_piece = x_piece.float()
        sigmoid = torch.addcmul(linear_part, x_piece, x_piece, value=CUBIC).mul_(x_piece).sigmoid_()
        torch.mul(x_piece, sigmoid, out=result_piece)
        if grad is not None:
            # The derivative is sigmoid + (1 - sigmoid) * gelu * (LINEAR + 3 * CUBIC * x ** 2).
            derivative = torch.addcmul(linear_part, x_piece, x_piece, value=3 * CUBIC).mul_(result_piece)
            grad_piece.mul_(derivative.lerp_(one, sigmoid))
    return result


class GELULinear(torch.autograd.Function):
    """
    `linear(gelu(x))` that keeps `x` alone and takes GELU anew in the backward pass, at a few hundredths of the
    products' time: a fifth less memory for a training step.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return linear(gelu_tanh(x), weight, bias)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        in_pieces = _is_plain_on_cpu(x) and grad.dtype == x.dtype and not torch.is_grad_enabled()
        if in_pieces:
            grad_x = grad @ weight.to(grad.dtype)
            activated = _gelu_in_pieces(x, grad_x)
        else:
            activated = gelu(x, approximate="tanh")
        rows = grad.reshape(-1, grad.shape[-1])
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_weight = (rows.t() @ activated.reshape(-1, activated.shape[-1])).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0).to(weight.dtype)
        if not in_pieces:
            del activated  # as large as what comes next
            grad_x = grad @ weight.to(grad.dtype)
            if torch.is_grad_enabled():  # as with create_graph=True
                grad_x = torch.ops.aten.gelu_backward(grad_x, x, approximate="tanh")
            else:
                torch.ops.aten.gelu_backward.grad_input(grad_x, x, approximate="tanh", grad_input=grad_x)
        return grad_x, grad_weight, grad_bias
