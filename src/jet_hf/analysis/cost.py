# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
What a training run takes: operations, memory and time, counted on the model itself rather than by a formula.

Operations are those of matrix products, a multiplication and an addition being two. Activations are all tensors that
are alive in a forward and backward pass, run with tensors that have shapes and no contents; real ones take the same on
a CPU with fused attention, to two percent. A GPU needs 10 to 20 % more for its context, workspaces and an allocator
that fragments.
"""

import inspect
import json
import re
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ..model.configuration_jet import JetConfig
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import strict_json


# Dense operations a second in bfloat16, or in float16 where a device has no bfloat16, from the makers' data sheets.
# The first pattern that is found in a device's name counts.
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
    r"TPU v5p": 459e12,
    r"TPU v6( lite|e)": 918e12,
}
LISTED_DEVICES = ("A100", "H100")
UTILIZATION = 0.4
FLOAT32_BYTES = 4


def peak_flops(device_name: str) -> float | None:
    """Peak of a device, in operations a second, by the name that it gives itself; `None` for an unknown one."""
    for pattern, peak in PEAK_FLOPS.items():
        if re.search(pattern, device_name, re.IGNORECASE):
            return peak
    return None


def count_parameters(config: JetConfig) -> int:
    """Number of parameters, from models of one and two coupling layers."""
    return _count(_fields(config))[1]


def forward_flops(config: JetConfig) -> int:
    """Operations of one image's forward pass (with a context of one token); sampling an image takes as many."""
    return _count(_fields(config))[0]


def training_flops(config: JetConfig, gradient_checkpointing: bool = False) -> int:
    """
    Operations of one image in a training step: backward takes two forward passes, for the gradients of inputs and of
    weights, and gradient checkpointing one more.
    """
    return (4 if gradient_checkpointing else 3) * forward_flops(config)


@lru_cache(maxsize=64)
def _count(fields: str) -> tuple[int, int]:
    """Operations of one image's forward pass, and number of parameters."""

    def measure(config: JetConfig) -> tuple[int, int]:
        model = _empty_model(config)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**_inputs(config, 1, "meta"))
        return counter.get_total_flops(), model.num_parameters()

    return tuple(_of_all_layers(fields, measure))


def _fields(config: JetConfig) -> str:
    """A configuration as a key of caches."""
    return strict_json({name: getattr(config, name) for name in inspect.get_annotations(JetConfig)})


def _of_all_layers(fields: str, measure: Callable[[JetConfig], tuple[int, ...]]) -> list[int]:
    """
    What `measure` gives for the model, from models of one coupling layer and of two, as each layer adds as much as the
    next of its kind: building all layers of a large model takes a minute.
    """

    def of_layers(*kinds: str) -> tuple[int, ...]:
        return measure(JetConfig(**json.loads(fields) | {"num_coupling_layers": len(kinds), "coupling_kinds": kinds}))

    config = JetConfig(**json.loads(fields))
    size = len(config.coupling_kinds)
    first, *others = [config.coupling_kinds[i % size] for i in range(config.num_coupling_layers)]
    totals = one = of_layers(first)
    for kind, number in Counter(others).items():
        two = of_layers(first, kind)
        totals = [total + number * (b - a) for total, a, b in zip(totals, one, two, strict=True)]
    return list(totals)


def _empty_model(config: JetConfig, dtype: torch.dtype = torch.float32) -> JetForDensityEstimation:
    with torch.device("meta"):
        return JetForDensityEstimation._from_config(config, dtype=dtype).to("meta")  # permutations come on the CPU


def _inputs(config: JetConfig, batch_size: int, device: str) -> dict[str, torch.Tensor]:
    shape = (config.num_channels, config.image_size, config.image_size)
    inputs = {"pixel_values": torch.zeros(batch_size, *shape, device=device)}
    if config.context_size is not None:
        inputs["context"] = torch.zeros(batch_size, 1, config.context_size, device=device)
    if config.num_classes is not None:
        inputs["labels"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
    return inputs


class LiveMemory(TorchDispatchMode):
    """
    Follows the tensors that operations make, from their making to their end: `live` bytes now, and the `peak` of them
    since it was last set.

    Args:
        model: Its parameters and buffers, and views of them, do not count.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0  # the model's checks look at values, which these tensors do not have
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._follow, result)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def activation_bytes(
    config: JetConfig,
    micro_batch_size: int,
    mixed_precision: str | None = None,
    gradient_checkpointing: bool = False,
    sharded: bool = False,
) -> int:
    """
    Largest number of bytes alive in a forward and backward pass beside weights and gradients.

    Args:
        config: The model's.
        micro_batch_size: Images that a process works on at a time.
        mixed_precision: `bf16`, or `no` or `None`.
        gradient_checkpointing: Whether coupling layers compute their activations anew in the backward pass.
        sharded: Whether weights are cast before they get to the model (FSDP2) rather than beside their use (autocast,
            which keeps the cast ones until the backward pass).
    """
    return _activation_bytes(
        _fields(config), micro_batch_size, mixed_precision == "bf16", gradient_checkpointing, sharded
    )


@lru_cache(maxsize=64)
def _activation_bytes(
    fields: str, micro_batch_size: int, bf16: bool, gradient_checkpointing: bool, sharded: bool
) -> int:
    dtype = torch.bfloat16 if bf16 and sharded else torch.float32

    def measure(config: JetConfig) -> tuple[int, int]:
        model = _empty_model(config, dtype)
        # Autocast does nothing for tensors on "meta": shapes without contents on the CPU it is.
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = model.to_empty(device="cpu").train()
            inputs = _inputs(config, micro_batch_size, "cpu")
            return measure_peaks(model, inputs, bf16 and not sharded, gradient_checkpointing)

    return max(_of_all_layers(fields, measure))


def measure_peaks(
    model: JetForDensityEstimation, inputs: dict[str, torch.Tensor], autocast: bool, gradient_checkpointing: bool
) -> tuple[int, int]:
    """Runs a forward and a backward pass; the peak of each in bytes, beside weights and their summed gradients."""
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
    What a run takes. Memory is that of one process.

    Args:
        num_parameters: Of the model.
        num_dims, num_tokens: Numbers of an image, and tokens that it becomes.
        batch_size, micro_batch_size: Images of an optimiser step, and those that a process works on at a time.
        num_steps: Optimiser steps of the run.
        num_shards: Processes that share one model.
        flops_per_image: Operations of one image in training, those that gradient checkpointing does anew included.
        weight_bytes, gradient_bytes, optimizer_bytes, ema_bytes: Weights, their gradients, Adam's two moments and the
            moving average, in float32.
        gathered_bytes: Weights and gradients of the coupling layers at work, where a process holds a part of each.
        activation_bytes: See [`activation_bytes`].
    """

    num_parameters: int
    num_dims: int
    num_tokens: int
    batch_size: int
    micro_batch_size: int
    num_steps: int
    num_shards: int
    flops_per_image: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    gathered_bytes: int
    activation_bytes: int

    @property
    def flops_per_step(self) -> int:
        """Operations of an optimiser step, over all processes."""
        return self.batch_size * self.flops_per_image

    @property
    def total_flops(self) -> int:
        """Operations of the whole run, without evaluations and samples."""
        return self.num_steps * self.flops_per_step

    @property
    def total_bytes(self) -> int:
        """All of a process's memory."""
        states = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.ema_bytes
        return states + self.gathered_bytes + self.activation_bytes

    def hours(self, peak: float, utilization: float = UTILIZATION) -> float:
        """Hours of one device for the whole run, at a share of its peak in operations a second."""
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
    Estimates a run.

    Args:
        config: The model's.
        batch_size: Images of an optimiser step, over all processes and accumulation steps.
        micro_batch_size: Images that a process works on at a time.
        num_steps: Optimiser steps.
        mixed_precision: `bf16`, or `no` or `None`.
        gradient_checkpointing, use_ema: As in training.
        num_shards: Processes that share one model (FSDP2); 1 where each has all of it.
    """
    num_parameters = count_parameters(config)
    share = FLOAT32_BYTES * -(-num_parameters // num_shards)
    sharded = num_shards > 1
    layer = num_parameters // config.num_coupling_layers * (2 if mixed_precision == "bf16" else FLOAT32_BYTES)
    return CostEstimate(
        num_parameters=num_parameters,
        num_dims=config.num_dims,
        num_tokens=config.num_patches,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        num_steps=num_steps,
        num_shards=num_shards,
        flops_per_image=training_flops(config, gradient_checkpointing),
        weight_bytes=share,
        gradient_bytes=share,
        optimizer_bytes=2 * share,
        ema_bytes=share if use_ema else 0,
        # Of the layer at work, and of the one that is fetched or sent meanwhile.
        gathered_bytes=4 * layer if sharded else 0,
        activation_bytes=activation_bytes(config, micro_batch_size, mixed_precision, gradient_checkpointing, sharded),
    )


def format_estimate(estimate: CostEstimate) -> str:
    """An estimate as a table, with the hours of the whole run on one of each of a few devices."""
    shares = f", one model on {estimate.num_shards}" if estimate.num_shards > 1 else ""
    parts = ("weight", "gradient", "optimizer", "ema", "gathered", "activation")
    sizes = {part: getattr(estimate, f"{part}_bytes") / 2**30 for part in parts}
    rows = [
        ("parameters", f"{estimate.num_parameters:,}"),
        ("image", f"{estimate.num_dims:,} dimensions, {estimate.num_tokens} tokens"),
        ("FLOPs an image", f"{estimate.flops_per_image / 1e12:,.4g} TFLOP, forward and backward"),
        ("FLOPs a step", f"{estimate.flops_per_step / 1e12:,.6g} TFLOP, {estimate.batch_size:,} images"),
        ("FLOPs in all", f"{estimate.total_flops / 1e18:,.4g} EFLOP, {estimate.num_steps:,} steps"),
        *(
            (f"{device}-hours", f"{estimate.hours(peak_flops(device)):,.3g} at {UTILIZATION:.0%} of its peak")
            for device in LISTED_DEVICES
        ),
        (
            "memory",
            f"{estimate.total_bytes / 2**30:,.3g} GiB a process, {estimate.micro_batch_size} images at a time{shares}",
        ),
        *((f"  {part}", f"{size:,.3g} GiB") for part, size in sizes.items() if size),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)
