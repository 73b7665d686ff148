# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluation mode, and faster inference on CPUs.

PyTorch's tanh GELU takes a good part of a flow's time on a CPU. With AVX-512, oneDNN applies it to a matrix product
while the result is in the cache. Without AVX-512, oneDNN multiplies more slowly than PyTorch, and not in bfloat16;
there, the sigmoid gives the same function in half the time. These layers exist at run time only: nothing of them is
saved or travels to the Hub.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from ..model.conditioners_jet import JetMLP
from ..model.flow_jet import JetConditionalMap
from ..model.modeling_jet import JetPreTrainedModel


DTYPES = (torch.float32, torch.bfloat16)


class PreparedMLP(JetMLP):
    """[`JetMLP`] with a faster activation: in one kernel with the first product, or by the sigmoid."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        problem = _problem_of_layer(self.fc1)
        if self.training or torch.is_grad_enabled():
            problem = "must run in evaluation mode and without gradients"
        elif torch.compiler.is_compiling() or torch.jit.is_tracing():
            problem = "cannot be compiled, exported or traced"
        if problem is not None:
            raise RuntimeError(f"a model that is prepared for inference {problem}: call `undo_preparation` first.")
        if torch.is_autocast_enabled("cpu"):
            return super().forward(hidden_states)
        if has_fused_kernel():
            weight, bias = self.fc1.weight, self.fc1.bias
            return self.fc2(torch.ops.mkldnn._linear_pointwise(hidden_states, weight, bias, "gelu", [], "tanh"))
        if hidden_states.dtype != torch.float32:  # in bfloat16, each step of the formula would be rounded
            return super().forward(hidden_states)
        return self.fc2(tanh_gelu(self.fc1(hidden_states)))


@cache
def has_fused_kernel() -> bool:
    """Return whether oneDNN has a fast kernel of a matrix product and its activation for this processor."""
    # The operator is not part of PyTorch's public interface.
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability() == "AVX512"


def tanh_gelu(inputs: torch.Tensor) -> torch.Tensor:
    """Return the tanh approximation of GELU, as `x * sigmoid(2 y)` is `x * (1 + tanh(y)) / 2`."""
    slope = 2 * math.sqrt(2 / math.pi)
    return torch.square(inputs).mul_(0.044715 * slope).add_(slope).mul_(inputs).sigmoid_().mul_(inputs)


def check_density_model(name: str, model: object) -> None:
    """
    Check that a model has a density and weights.

    Args:
        name: Name of the argument, for messages.
        model: Model, possibly adapted or wrapped by another package.

    Raises:
        ValueError: for anything but a density model, and for one on the device meta.
    """
    jet = getattr(model, "jet", None)
    if jet is None:
        raise ValueError(f"`{name}` must be a JetForDensityEstimation, got {type(model).__name__}.")
    if jet.input_device.type == "meta":
        raise ValueError(f"`{name}` must have weights, got one on the device meta: load it with `from_pretrained`.")


def prepare_for_inference(model: JetPreTrainedModel) -> None:
    """
    Replace the MLPs of a model on the CPU, in place, by [`PreparedMLP`]. Weights and saved files stay the same;
    results change by rounding. Models without tanh GELU are not changed.

    Raises:
        ValueError: for a model in training mode, on another device, with compiled couplings, or with quantized,
            adapted or hooked layers.
    """
    if problem := _problem_of(model):
        raise ValueError(f"`model` {problem}.")
    for mlp in _mlps(model):
        mlp.__class__ = PreparedMLP


def can_prepare(model: nn.Module) -> bool:
    """Return whether [`prepare_for_inference`] accepts a model."""
    return isinstance(model, JetPreTrainedModel) and _problem_of(model) is None


def undo_preparation(model: nn.Module) -> None:
    """Undo [`prepare_for_inference`] in place."""
    for module in model.modules():
        if type(module) is PreparedMLP:
            module.__class__ = JetMLP  # type: ignore[assignment]


@contextmanager
def prepared_for_inference(model: nn.Module) -> Iterator[None]:
    """Prepare a model within this context if [`can_prepare`], and undo it afterwards."""
    try:
        if can_prepare(model):
            prepare_for_inference(model)  # type: ignore[arg-type]
        yield
    finally:
        undo_preparation(model)


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode within this context. Afterwards each of their modules has its earlier mode."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _mlps(model: JetPreTrainedModel) -> list[JetMLP]:
    if model.config.hidden_act != "gelu_pytorch_tanh":
        return []
    return [module for module in model.modules() if type(module) is JetMLP]


def _problem_of(model: JetPreTrainedModel) -> str | None:
    """Return why a model cannot be prepared, or `None` if it can."""
    if model.training:
        return "must be in evaluation mode: call `model.eval()` first"
    if any(isinstance(module, JetConditionalMap) and module.is_compiled for module in model.modules()):
        return "must not be compiled, which is the other way to faster inference"
    return next(filter(None, (_problem_of_layer(mlp.fc1) for mlp in _mlps(model))), None)


def _problem_of_layer(layer: nn.Module) -> str | None:
    if type(layer) is not nn.Linear:
        return f"must have plain linear layers, got {type(layer).__name__}"
    if not layer.weight.is_cpu or layer.weight.dtype not in DTYPES:
        return (
            f"must have weights of float32 or bfloat16 on the CPU, got {layer.weight.dtype} on {layer.weight.device}"
        )
    # accelerate replaces the method `forward` of layers whose weights it offloads.
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return "must have linear layers without hooks"
    return None
