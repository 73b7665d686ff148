# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Cost of a training run: operations, memory and time, measured on the model itself rather than derived from a formula.

Operations (FLOPs) are those of matrix products, where a multiplication and an addition count as two. Activation memory
is the peak of all tensors that are alive in a forward and backward pass, traced with fake tensors, which have shapes
but no contents. The peak of a real pass on a CPU with fused attention agrees to two percent. A GPU needs 10 to 20 %
more for its context, workspaces and the fragmentation of its allocator.
"""

import inspect
import json
import re
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ..model.configuration_jet import JetConfig
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import strict_json


# Peak of dense operations per second in bfloat16, or in float16 without bfloat16, from the manufacturers' data sheets.
# The first pattern found in the name of a device counts.
PEAK_FLOPS = {
    r"\bB200": 2250e12,
    r"H200": 989e12,
    r"H100.*PCIe": 756e12,
    r"H100.*NVL": 835e12,
    r"H100": 989e12,
    r"\bA100": 312e12,
    r"L40S": 362e12,
    r"\bL4\b": 121e12,
    r"RTX 4090(?! D)": 165e12,
    r"V100": 125e12,
    r"TPU v4": 275e12,
    r"TPU v5( lite|e)": 197e12,
    r"TPU v5(p|$)": 459e12,
    r"TPU v6( lite|e)": 918e12,
}
LISTED_DEVICES = {"A100": r"\bA100", "H100": "H100"}
UTILIZATION = 0.4
FLOAT32_BYTES = 4


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a device in operations per second, or `None` for an unknown device."""
    for pattern, peak in PEAK_FLOPS.items():
        if re.search(pattern, device_name, re.IGNORECASE):
            return peak
    return None


def count_parameters(config: JetConfig) -> int:
    """Return the number of parameters of a model."""
    return _count(config)[1]


def forward_flops(config: JetConfig) -> int:
    """Return the operations of one image's forward pass, as many as sampling takes; a context counts as one token."""
    return _count(config)[0]


def training_flops(config: JetConfig, gradient_checkpointing: bool = False) -> int:
    """
    Return the operations of one image in a training step.

    The backward pass takes two forward passes, for the gradients of inputs and of weights; gradient checkpointing
    takes one more.
    """
    return (4 if gradient_checkpointing else 3) * forward_flops(config)


def _count(config: JetConfig) -> tuple[int, ...]:
    """Return the operations of one image's forward pass, and the number of parameters."""
    return _extrapolate(config, lambda part: _count_whole(strict_json(_fields(part))))


@lru_cache(maxsize=256)  # the configurations of a sweep share most of their models of one and two layers
def _count_whole(fields: str) -> tuple[int, int]:
    config = JetConfig(**json.loads(fields))
    model = _empty_model(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**_inputs(config, 1, "meta"))
    return counter.get_total_flops(), model.num_parameters()


def _fields(config: JetConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in inspect.get_annotations(JetConfig)}


def _extrapolate(config: JetConfig, measure: Callable[[JetConfig], tuple[int, ...]]) -> tuple[int, ...]:
    """
    Extrapolate quantities that are linear in the number of coupling layers of each kind.

    Building all layers of a large model takes a minute, so `measure` gets models of one and of two layers.
    """

    def measure_layers(*kinds: str) -> tuple[int, ...]:
        fields = {"num_coupling_layers": len(kinds), "coupling_kinds": kinds}
        return measure(JetConfig(**_fields(config) | fields))

    kinds = [config.coupling_kinds[i % len(config.coupling_kinds)] for i in range(config.num_coupling_layers)]
    totals = one_layer = measure_layers(kinds[0])
    for kind, number in Counter(kinds[1:]).items():
        two_layers = measure_layers(kinds[0], kind)
        totals = tuple(
            total + number * (two - one) for total, one, two in zip(totals, one_layer, two_layers, strict=True)
        )
    return totals


def _empty_model(config: JetConfig, dtype: torch.dtype = torch.float32) -> JetForDensityEstimation:
    with torch.device("meta"):
        return JetForDensityEstimation._from_config(config, dtype=dtype).to("meta")  # permutations are made on the CPU


def _inputs(config: JetConfig, batch_size: int, device: str) -> dict[str, torch.Tensor]:
    inputs = {"pixel_values": torch.zeros(batch_size, *config.image_shape, device=device)}
    if config.context_size is not None:
        inputs["context"] = torch.zeros(batch_size, 1, config.context_size, device=device)
    if config.num_classes is not None:
        inputs["labels"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
    return inputs


class LiveMemory(TorchDispatchMode):
    """
    Track the live tensor memory of the operations run under this mode.

    `live` is the number of bytes alive, and `peak` its largest value since `peak` was last set.

    Args:
        model: Model whose parameters and buffers, and views of them, do not count.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three calls, and slow
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0  # the model checks values, which fake tensors do not have
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, result)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def activation_bytes(
    config: JetConfig,
    micro_batch_size: int,
    mixed_precision: str | None = None,
    gradient_checkpointing: bool = False,
    sharded: bool = False,
) -> int:
    """
    Return the peak memory of a forward and backward pass beside weights and gradients, in bytes.

    Args:
        config: Configuration of the model.
        micro_batch_size: Number of images that a process computes at a time.
        mixed_precision: `bf16`, or `no` or `None`.
        gradient_checkpointing: Whether the backward pass recomputes the activations of the coupling layers.
        sharded: Whether weights are cast before they reach the model (FSDP2), rather than where they are used
            (autocast, which keeps the cast weights until the backward pass).
    """
    bf16 = mixed_precision == "bf16"

    def measure(config: JetConfig) -> tuple[int, int]:
        model = _empty_model(config, torch.bfloat16 if bf16 and sharded else torch.float32)
        # Autocast ignores tensors on "meta", but not fake tensors on the CPU.
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = model.to_empty(device="cpu").train()
            inputs = _inputs(config, micro_batch_size, "cpu")
            return measure_peaks(model, inputs, bf16 and not sharded, gradient_checkpointing)

    return max(_extrapolate(config, measure))


def measure_peaks(
    model: JetForDensityEstimation, inputs: dict[str, torch.Tensor], autocast: bool, gradient_checkpointing: bool
) -> tuple[int, int]:
    """
    Run a forward and a backward pass, and return the peak memory of each beside weights and gradients, in bytes.

    Each gradient is released as soon as it is complete.
    """
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    memory = LiveMemory(model)
    with memory, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**inputs).loss
    forward, memory.peak = memory.peak, memory.live
    with memory:
        loss.backward()
    return forward, memory.peak


@dataclass(frozen=True)
class CostEstimate:
    """
    Estimated cost of a training run.

    Args:
        config: Configuration of the model.
        num_parameters: Number of parameters of the model.
        batch_size: Images per optimizer step, over all processes and accumulation steps.
        micro_batch_size: Images that a process computes at a time.
        num_steps: Optimizer steps of the run.
        num_shards: Processes that share one model (FSDP2); 1 if each process holds the whole model.
        flops_per_image: Operations of one image in training, including those that gradient checkpointing repeats.
        memory: Bytes of one process by part: `weight`, `gradient`, `optimizer` (the two moments of Adam) and `ema` in
            float32, `gathered` (weights and gradients of the layers that FSDP2 works on), and `activation`.
    """

    config: JetConfig
    num_parameters: int
    batch_size: int
    micro_batch_size: int
    num_steps: int
    num_shards: int
    flops_per_image: int
    memory: dict[str, int]

    @property
    def flops_per_step(self) -> int:
        """Operations of an optimizer step, over all processes."""
        return self.batch_size * self.flops_per_image

    @property
    def total_flops(self) -> int:
        """Operations of the whole run, without evaluations and samples."""
        return self.num_steps * self.flops_per_step

    @property
    def total_bytes(self) -> int:
        """Memory of one process, in bytes."""
        return sum(self.memory.values())

    def hours(self, peak: float, utilization: float = UTILIZATION) -> float:
        """Return the hours of the whole run on one device, at a fraction of its peak in operations per second."""
        return self.total_flops / (peak * utilization) / 3600


def estimate_cost(
    config: JetConfig,
    batch_size: int,
    micro_batch_size: int,
    num_steps: int,
    mixed_precision: str | None = None,
    gradient_checkpointing: bool = False,
    use_ema: bool = False,
    num_shards: int = 1,
) -> CostEstimate:
    """
    Estimate the cost of a training run.

    Args:
        config, batch_size, micro_batch_size, num_steps, num_shards: See [`CostEstimate`].
        mixed_precision, gradient_checkpointing: See [`activation_bytes`].
        use_ema: Whether the run keeps a moving average of the weights.
    """
    num_parameters = count_parameters(config)
    states = FLOAT32_BYTES * -(-num_parameters // num_shards)
    sharded = num_shards > 1
    layer = num_parameters // config.num_coupling_layers * (2 if mixed_precision == "bf16" else FLOAT32_BYTES)
    return CostEstimate(
        config=config,
        num_parameters=num_parameters,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        num_steps=num_steps,
        num_shards=num_shards,
        flops_per_image=training_flops(config, gradient_checkpointing),
        memory={
            "weight": states,
            "gradient": states,
            "optimizer": 2 * states,
            "ema": states if use_ema else 0,
            # Weights and gradients of the current layer, and of the layer that is fetched or sent meanwhile.
            "gathered": 4 * layer if sharded else 0,
            "activation": activation_bytes(config, micro_batch_size, mixed_precision, gradient_checkpointing, sharded),
        },
    )


def format_estimate(estimate: CostEstimate) -> str:
    """Format an estimate as a table, with the hours of the whole run on one device of each listed kind."""
    config = estimate.config
    shards = f", one model on {estimate.num_shards}" if estimate.num_shards > 1 else ""
    rows = [
        ("parameters", f"{estimate.num_parameters:,}"),
        ("image", f"{config.num_dims:,} dimensions, {config.num_patches} tokens"),
        ("FLOPs an image", f"{estimate.flops_per_image / 1e12:,.4g} TFLOP, forward and backward"),
        ("FLOPs a step", f"{estimate.flops_per_step / 1e12:,.6g} TFLOP, {estimate.batch_size:,} images"),
        ("FLOPs in all", f"{estimate.total_flops / 1e18:,.4g} EFLOP, {estimate.num_steps:,} steps"),
        *(
            (f"{device}-hours", f"{estimate.hours(PEAK_FLOPS[pattern]):,.3g} at {UTILIZATION:.0%} of its peak")
            for device, pattern in LISTED_DEVICES.items()
        ),
        (
            "memory",
            f"{estimate.total_bytes / 2**30:,.3g} GiB a process, {estimate.micro_batch_size} images at a time{shards}",
        ),
        *((f"  {part}", f"{size / 2**30:,.3g} GiB") for part, size in estimate.memory.items() if size),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)
