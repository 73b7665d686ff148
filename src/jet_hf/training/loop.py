# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The training loop: batches of bytes in, a trained model and what was measured on the way out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from ..model.likelihood_jet import scale_bytes
from ..model.modeling_jet import JetForDensityEstimation
from .optim import build_optimizer, build_scheduler


@dataclass(frozen=True)
class StepMetrics:
    """
    What one optimiser step measured.

    Args:
        step: Number of optimiser steps done, this one included.
        loss: Mean bits per dimension of the batch, before the step.
        grad_norm: Norm of the gradient before clipping.
        learning_rate: Rate of the step.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became infinite or NaN; the message names the step."""


class Trainer:
    """
    The paper's update: mean bits per dimension, gradient norm clipped, Adam with its schedule.

    Args:
        model: Trained in place.
        num_training_steps: Length of the schedule, in optimiser steps.
        learning_rate, weight_decay, warmup_ratio: See [`build_optimizer`] and [`build_scheduler`].
        max_grad_norm: Global norm that gradients are clipped to.
        accelerator: Settles devices and precision; by default one process.
    """

    def __init__(
        self,
        model: JetForDensityEstimation,
        num_training_steps: int,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-5,
        warmup_ratio: float = 0.1,
        max_grad_norm: float = 1.0,
        accelerator: Accelerator | None = None,
    ):
        self.accelerator = accelerator or Accelerator()
        self.num_training_steps = num_training_steps
        self.max_grad_norm = max_grad_norm
        self.step_count = 0
        optimizer = build_optimizer(model, learning_rate, weight_decay)
        scheduler = build_scheduler(optimizer, num_training_steps, warmup_ratio)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = scheduler

    def step(self, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> StepMetrics:
        """
        One optimiser step.

        Args:
            pixels: uint8 tensor (B, C, S, S).
            noise: Dequantisation noise, float32 (B, C, S, S) in [0, 1); drawn when not given.

        Raises:
            NonFiniteLossError: before the weights are touched.
        """
        self.model.train()
        pixels = pixels.to(self.accelerator.device, non_blocking=True)
        loss = self.model(scale_bytes(pixels), noise=noise).loss
        self.accelerator.backward(loss)
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        metrics = StepMetrics(
            step=self.step_count + 1,
            loss=loss.item(),
            grad_norm=float(grad_norm),
            learning_rate=self.scheduler.get_last_lr()[0],
        )
        if not abs(metrics.loss) + metrics.grad_norm < float("inf"):
            raise NonFiniteLossError(
                f"step {metrics.step}: loss {metrics.loss}, gradient norm {metrics.grad_norm}; the weights are those "
                "after the step before."
            )
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step_count += 1
        return metrics

    def run(
        self, batches: Iterable[torch.Tensor], on_step: Callable[[StepMetrics], bool | None] | None = None
    ) -> None:
        """
        Steps until the end of the schedule.

        Args:
            batches: uint8 tensors (B, C, S, S); at least as many as there are steps left.
            on_step: Called after each step; stops the run by returning `True`.

        Raises:
            ValueError: if the batches run out before the schedule.
        """
        batches = iter(batches)
        while self.step_count < self.num_training_steps:
            pixels = next(batches, None)
            if pixels is None:
                raise ValueError(f"the batches ran out after {self.step_count} of {self.num_training_steps} steps.")
            metrics = self.step(pixels)
            if on_step is not None and on_step(metrics):
                break
