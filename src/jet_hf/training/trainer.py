# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's update: batches of bytes in, better weights and what was measured on the way out."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..data import Batch
from ..model.modeling_jet import JetForDensityEstimation, dequantize, scale_bytes
from ..model.validation_jet import trusted_values
from ..utils.noise import uniform_noise
from .optim import FUSED_DEVICES, build_optimizer, build_scheduler


@dataclass(frozen=True)
class StepMetrics:
    """
    What one optimiser step measured.

    Args:
        step: Number of optimiser steps done, this one included.
        loss: Mean bits per dimension of the whole batch, before the step.
        grad_norm: Norm of the whole batch's gradient before clipping.
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
        ema_decay: Decay of an exponential moving average of the weights; `None` keeps none.
        seed: Draws the dequantisation noise of each image by its index, and the steps without labels.
        label_dropout: Probability that a step of a class-conditional model goes without labels, as in the original's
            training, so that it learns the density of all classes together as well.
        accelerator: Settles devices, processes, precision and accumulation; by default one process.
    """

    def __init__(
        self,
        model: JetForDensityEstimation,
        num_training_steps: int,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-5,
        warmup_ratio: float = 0.1,
        max_grad_norm: float = 1.0,
        ema_decay: float | None = None,
        seed: int = 0,
        label_dropout: float = 0.1,
        accelerator: Accelerator | None = None,
    ):
        self.accelerator = accelerator or Accelerator()
        self.num_training_steps = num_training_steps
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.label_dropout = label_dropout
        self.step_count = 0
        self.base_model = model
        if model.config.use_actnorm and self.accelerator.is_fsdp2:
            raise ValueError("`use_actnorm` cannot be combined with FSDP2: its first batch sets whole tensors.")
        # The parameters get to the device only when they are prepared.
        fused = self.accelerator.device.type in FUSED_DEVICES
        optimizer = build_optimizer(model, learning_rate, weight_decay, fused=fused)
        self.scheduler = build_scheduler(optimizer, num_training_steps, warmup_ratio)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        for name in ("encode", "decode"):
            # Sharded weights are gathered by hooks of `forward`; nothing happens where they are whole.
            register_fsdp_forward_method(model, name)
        self._average = ema_decay and get_ema_multi_avg_fn(ema_decay)
        self.ema = {name: p.detach().clone() for name, p in self.base_model.named_parameters()} if ema_decay else {}

    def step(self, batches: Sequence[Batch], noise: Sequence[torch.Tensor] | None = None) -> StepMetrics:
        """
        One optimiser step.

        Args:
            batches: This process's share, as many batches as the accelerator has gradient accumulation steps.
            noise: Dequantisation noise of each batch, float32 (B, C, S, S) in [0, 1); drawn from the seed and the
                images' indices when not given.

        Raises:
            NonFiniteLossError: before the weights are touched.
        """
        self.model.train()
        if self.base_model.config.use_actnorm and not self.base_model.jet.actnorm_initialized:
            self._initialize_actnorm(batches)
        losses = []
        for i, batch in enumerate(batches):
            pixels, indices, labels = self._to_device(batch)
            drawn = uniform_noise(self.seed, indices, tuple(pixels.shape[1:])) if noise is None else noise[i]
            with self.accelerator.accumulate(self.model), trusted_values():
                loss = self.model(scale_bytes(pixels), labels=labels, noise=drawn).loss
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
        # The only time that the host waits for the device in a step: no update without a look at both.
        loss, grad_norm = torch.stack([loss, _whole(grad_norm).to(loss)]).tolist()
        metrics = StepMetrics(
            step=self.step_count + 1,
            loss=loss,
            grad_norm=grad_norm,
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
        if self._average:
            self._average(list(self.ema.values()), list(self.base_model.parameters()), self.step_count)
        self.step_count += 1
        return metrics

    def _to_device(self, batch: Batch) -> Batch:
        """The batch where the model is; a step without labels has the number of classes in their place."""
        if batch.labels is not None:
            # Of the step alone, so that all processes and micro-batches agree.
            generator = torch.Generator().manual_seed((self.seed << 32) + self.step_count)
            if torch.rand((), generator=generator) < self.label_dropout:
                batch = batch._replace(labels=torch.full_like(batch.labels, self.base_model.config.num_classes))
        return batch.to(self.accelerator.device, non_blocking=True)

    @torch.no_grad()
    def _initialize_actnorm(self, batches: Sequence[Batch]) -> None:
        """From all images of the first step, so that it does not depend on the number of processes."""
        images, labels = [], []
        for batch in batches:
            pixels, indices, batch_labels = self._to_device(batch)
            drawn = uniform_noise(self.seed, indices, tuple(pixels.shape[1:]))
            images.append(self.accelerator.gather(dequantize(scale_bytes(pixels), drawn)))
            if batch_labels is not None:
                labels.append(self.accelerator.gather(batch_labels))
        self.base_model.jet.initialize_actnorm(torch.cat(images), labels=torch.cat(labels) if labels else None)
        for name, parameter in self.base_model.named_parameters():
            if name in self.ema:
                self.ema[name].copy_(parameter)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the moving average, if there is one, in the place of the weights."""
        if not self.ema:
            yield
            return
        parameters = dict(self.base_model.named_parameters())
        with torch.no_grad():
            kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, parameter in parameters.items():
                parameter.copy_(self.ema[name])
            try:
                yield
            finally:
                for name, parameter in parameters.items():
                    parameter.copy_(kept[name])

    def save_model(self, folder: str | os.PathLike) -> None:
        """Writes the weights for `from_pretrained`, gathered where they are sharded; all processes call it."""
        state_dict = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            # Sharding gives the model a class of torch's, whose name and code would be saved with it.
            with torch.device("meta"):
                model = JetForDensityEstimation(self.base_model.config)
            model.save_pretrained(folder, state_dict=state_dict)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A number that FSDP2 may have given as a distributed tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
