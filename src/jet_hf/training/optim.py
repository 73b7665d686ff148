# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The optimizer and the learning rate schedule of the paper's code, and other schedules."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..arguments import SCHEDULES


FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def build_optimizer(
    model: nn.Module,
    learning_rate: float = 3e-4,
    weight_decay: float = 1e-5,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """
    Build Adam with weight decay that is decoupled from the learning rate, for every trainable parameter.

    Args:
        model: Model whose parameters are optimized. As in the original code, biases and norms decay as well.
        learning_rate: Peak learning rate, scaled by the schedule; above 0.
        weight_decay: The paper's weight decay: a step subtracts `s(t) * weight_decay * p`, where `s(t)` is the
            schedule, whatever the learning rate.
        betas: Decay rates of Adam's moments.
        eps: Constant added to the denominator.
        fused: Whether one kernel does the whole update. By default it does if the device of every parameter has one.

    Raises:
        ValueError: if `learning_rate` is not above 0 or `weight_decay` is below 0.
    """
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be above 0, got {learning_rate}.")
    if not weight_decay >= 0:
        raise ValueError(f"`weight_decay` must be at least 0, got {weight_decay}.")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if fused is None:
        fused = all(parameter.device.type in FUSED_DEVICES for parameter in parameters)
    # torch's AdamW decays by lr * weight_decay.
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay / learning_rate, fused=fused
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    num_training_steps: int,
    warmup_ratio: float = 0.1,
    lr_scheduler_type: str = "cosine",
    cooldown_ratio: float = 0.2,
) -> LambdaLR:
    """
    Build a schedule of a linear warm-up from 0 and, by default, a half cosine that reaches 0 after
    `num_training_steps`.

    Args:
        optimizer: Optimizer whose learning rate is scaled. Step the schedule once after each of its steps.
        num_training_steps: Length of the schedule in optimizer steps; at least 1.
        warmup_ratio: Share of the steps in which the learning rate rises; in [0, 1).
        lr_scheduler_type: `cosine`, `constant` after the warm-up, or `wsd` (warm-up, stable, decay): constant until
            the last steps, in which the rate is scaled by `1 - sqrt(progress)` (Hägele et al., 2024).
        cooldown_ratio: Share of the steps of `wsd` in which the learning rate falls; in (0, 1].

    Raises:
        ValueError: if an argument is out of range.
    """
    if num_training_steps < 1:
        raise ValueError(f"`num_training_steps` must be at least 1, got {num_training_steps}.")
    if not 0 <= warmup_ratio < 1:
        raise ValueError(f"`warmup_ratio` must lie in [0, 1), got {warmup_ratio}.")
    warmup_steps = round(warmup_ratio * num_training_steps)
    if lr_scheduler_type == "cosine":
        return LambdaLR(optimizer, cosine_scale(num_training_steps, warmup_steps))
    # This module of transformers imports peft, if it is installed, which every start of a run would wait for.
    from transformers import get_constant_schedule_with_warmup, get_wsd_schedule

    if lr_scheduler_type == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup_steps)
    if lr_scheduler_type != "wsd":
        raise ValueError(f"`lr_scheduler_type` must be one of {', '.join(SCHEDULES)}, got {lr_scheduler_type}.")
    cooldown_steps = round(cooldown_ratio * num_training_steps)
    if not 0 < cooldown_ratio <= 1 or warmup_steps + cooldown_steps > num_training_steps:
        raise ValueError(
            "`cooldown_ratio` must be above 0 and leave room for the warm-up, got "
            f"{cooldown_ratio} beside {warmup_steps} of {num_training_steps} steps of warm-up."
        )
    return get_wsd_schedule(
        optimizer, warmup_steps, cooldown_steps, num_training_steps=num_training_steps, decay_type="1-sqrt"
    )


def cosine_scale(num_training_steps: int, warmup_steps: int) -> Callable[[int], float]:
    """Return the schedule of the original code, which computes in float32."""

    def scale(step: int) -> float:
        warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        progress = min(1.0, max(0.0, (step - warmup_steps) / (num_training_steps - warmup_steps)))
        # Close to the end, the rates in float32 differ from exact ones by more than rounding.
        cosine = np.cos(np.float32(np.pi) * np.float32(progress))
        return warmup * float(np.float32(0.5) * (np.float32(1) + cosine))

    return scale
