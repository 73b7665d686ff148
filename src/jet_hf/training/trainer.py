# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's optimizer step, from batches of bytes to updated weights and metrics."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..data import Batch
from ..model.configuration_jet import JetConfig, levels_per_unit
from ..model.modeling_jet import (
    JetDensityEstimationOutput,
    JetForDensityEstimation,
    dequantize,
    scale_bytes,
    standard_normal_log_prob,
)
from ..model.validation_jet import check_not_negative, trusted_values
from ..utils.noise import noise_levels, normal_noise, uniform_noise
from ..utils.xla import run_recorded, to_host
from .optim import FUSED_DEVICES, build_optimizer, build_scheduler, cosine_scale


# Number of updates that the running mean of gradient norms covers, and before which no gradient counts as a spike.
SPIKE_HISTORY = 100
# Draw of the noise of the curriculum, which is independent of the dequantization noise.
CURRICULUM_STREAM = 1
# Draw that decides which images are mirrored.
FLIP_STREAM = 2
# Draw of the noise levels of images.
LEVEL_STREAM = 3
# Draws that decide which numbers of an image are replaced, and by which levels.
MUTATION_STREAM, MUTATED_LEVEL_STREAM = 4, 5


@dataclass(frozen=True)
class StepMetrics:
    """
    Metrics of one optimizer step.

    Args:
        step: Number of optimizer steps completed, this one included.
        loss: Mean bits per dimension of the whole batch, before the update: `loss_prior + loss_log_det + log2(127.5)`
            for 8-bit images. With `noise_std`, all three are nats per dimension without a constant, and with a range
            of it they are weighted, see [`JetForDensityEstimation.loss_weights`]. With a `noise_scale` above 0, they
            are those of the noisy images.
        grad_norm: Norm of the gradient of the whole batch, before clipping.
        learning_rate: Learning rate of the step.
        noise_scale: Standard deviation of the noise of the curriculum, in gray levels of 8-bit images.
        loss_prior: Part of the loss due to the density of the latents, in bits per dimension.
        loss_log_det: Part of the loss due to the log-determinant, in bits per dimension. With a dequantization flow,
            it includes the density of that flow's noise.
        clipped: Whether the gradient was clipped.
        skipped: Whether the step left the weights as they were.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    noise_scale: float
    loss_prior: float
    loss_log_det: float
    clipped: bool
    skipped: bool


class DivergenceError(RuntimeError):
    """More steps in a row than allowed had to be skipped; the message names the step."""


class NonFiniteLossError(DivergenceError):
    """The loss or its gradient became infinite or NaN; the message names the step."""


@dataclass
class UpdateGuard:
    """
    Rule that decides which steps update the weights, from numbers that are the same in all processes.

    Args:
        max_skipped_steps: Number of steps in a row that may be skipped.
        spike_factor: Multiple of the running mean of gradient norms above which a step is skipped; `None` accepts
            every finite gradient.
        num_updates, mean_grad_norm, num_skipped: State: the number of updates, the running mean of their gradient
            norms, and the number of steps skipped since the last one.
    """

    max_skipped_steps: int = 0
    spike_factor: float | None = None
    num_updates: int = 0
    mean_grad_norm: float = 0.0
    num_skipped: int = 0

    def accept(self, step: int, loss: float, grad_norm: float) -> bool:
        """
        Return whether a step may update the weights.

        Raises:
            NonFiniteLossError, DivergenceError: if it may not, and `max_skipped_steps` steps before it were skipped.
        """
        is_finite = abs(loss) + grad_norm < math.inf
        if is_finite and not self._is_spike(grad_norm):
            self.num_updates, self.num_skipped = self.num_updates + 1, 0
            self.mean_grad_norm += (grad_norm - self.mean_grad_norm) / min(self.num_updates, SPIKE_HISTORY)
            return True
        self.num_skipped += 1
        if self.num_skipped > self.max_skipped_steps:
            mean = "" if self.spike_factor is None else f" (the running mean is {self.mean_grad_norm})"
            raise (DivergenceError if is_finite else NonFiniteLossError)(
                f"step {step} has the loss {loss} and the gradient norm {grad_norm}{mean}; the weights are still "
                f"those of step {step - self.num_skipped}. Resume with `max_skipped_steps` above "
                f"{self.max_skipped_steps} to skip more steps in a row."
            )
        return False

    def _is_spike(self, grad_norm: float) -> bool:
        if self.spike_factor is None or self.num_updates < SPIKE_HISTORY:
            return False
        return grad_norm > self.spike_factor * self.mean_grad_norm

    def state_dict(self) -> dict:
        """Return the state, ready for JSON."""
        return {name: getattr(self, name) for name in ("num_updates", "mean_grad_norm", "num_skipped")}


def check_noise_curriculum(noise_curriculum: float, config: JetConfig) -> None:
    """
    Check the noise of a curriculum, in gray levels of 8-bit images.

    Raises:
        ValueError: if it is negative, not finite, so small that it is rounded away, or for a model with `noise_std`.
    """
    check_not_negative("noise_curriculum", noise_curriculum)
    if 0 < noise_curriculum < (least := 25.5 / (config.num_levels - 1)):  # a tenth of a level
        raise ValueError(
            f"`noise_curriculum` must be 0 or at least {least:g} gray levels of 8-bit images, since less noise is "
            f"rounded away with `num_levels` {config.num_levels}, got {noise_curriculum:g}."
        )
    if noise_curriculum and config.noise_std is not None:
        raise ValueError(
            f"`noise_curriculum` must be 0 for a model with `noise_std` ({config.noise_std}), which is trained with "
            f"noise of its own, got {noise_curriculum:g}."
        )


class Trainer:
    """
    Minimize the mean bits per dimension with clipped gradients and the paper's optimizer and schedule.

    Args:
        model: Model, trained in place.
        num_training_steps: Length of the schedule in optimizer steps.
        learning_rate, weight_decay, warmup_ratio, lr_scheduler_type, cooldown_ratio: See [`build_optimizer`] and
            [`build_scheduler`].
        max_grad_norm: Global norm to which gradients are clipped.
        ema_decay: Decay of an exponential moving average of the weights; `None` keeps no average.
        seed: Seed of the noise and of its levels, which each image draws by its index, and of the label dropout.
        label_dropout: Probability that a step of a class-conditional model drops all labels. As in the original code,
            the model then also learns the unconditional density, which guidance needs.
        accelerator: Devices, processes, precision and gradient accumulation; by default those of one process.
        guard: Rule that skips steps; by default the first loss or gradient that is not finite raises.
        noise_curriculum: Noise of the training images at step 0 (Tschannen et al., JetFormer, 2024), see
            [`noise_scale`].
        noise_curriculum_ratio: Fraction of steps after which no noise is left; in (0, 1].
        random_flip: Whether to mirror each image horizontally with probability 1/2, drawn anew in each epoch by the
            index of the image.
        mutation_rate: Probability with which each number of an image is replaced by a random gray level, drawn anew in
            each epoch, for the background model of a likelihood ratio (Ren et al., 2019); in [0, 1].

    Raises:
        ValueError: for ActNorm under FSDP2, and for the arguments that [`check_noise_curriculum`],
            [`build_optimizer`] and [`build_scheduler`] refuse.
    """

    def __init__(  # noqa: PLR0913
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
        lr_scheduler_type: str = "cosine",
        cooldown_ratio: float = 0.2,
        guard: UpdateGuard | None = None,
        noise_curriculum: float = 0.0,
        noise_curriculum_ratio: float = 1.0,
        random_flip: bool = False,
        mutation_rate: float = 0.0,
    ):
        check_noise_curriculum(noise_curriculum, model.config)
        if not 0 < noise_curriculum_ratio <= 1:
            raise ValueError(f"`noise_curriculum_ratio` must lie in (0, 1], got {noise_curriculum_ratio}.")
        if not 0 <= mutation_rate <= 1:
            raise ValueError(f"`mutation_rate` must lie in [0, 1], got {mutation_rate}.")
        self.accelerator = accelerator or Accelerator()
        self.num_training_steps = num_training_steps
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.label_dropout = label_dropout
        self.noise_curriculum = noise_curriculum
        self.random_flip = random_flip
        self.mutation_rate = mutation_rate
        self._fall = cosine_scale(max(1, round(noise_curriculum_ratio * num_training_steps)), warmup_steps=0)
        self.step_count = 0
        self._may_need_initialization = model.config.use_actnorm
        self.guard = guard or UpdateGuard()
        self.base_model = model
        if model.config.use_actnorm and self.accelerator.is_fsdp2:
            raise ValueError("`use_actnorm` cannot be combined with FSDP2: its first batch sets whole tensors.")
        # The parameters move to the device only in `prepare`.
        fused = self.accelerator.device.type in FUSED_DEVICES
        optimizer = build_optimizer(model, learning_rate, weight_decay, fused=fused)
        self.scheduler = build_scheduler(
            optimizer, num_training_steps, warmup_ratio, lr_scheduler_type, cooldown_ratio
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if isinstance(self.model, DistributedDataParallel):
            # The only buffers are permutations, which never change.
            self.model.broadcast_buffers = False
        for name in ("encode", "decode"):
            # FSDP gathers sharded weights in hooks of `forward` alone; without FSDP this does nothing.
            register_fsdp_forward_method(model, name)
        self._update_average = get_ema_multi_avg_fn(ema_decay) if ema_decay else None
        self.ema = {name: p.detach().clone() for name, p in model.named_parameters()} if ema_decay else {}

    def step(self, batches: Sequence[Batch], noise: Sequence[torch.Tensor] | None = None) -> StepMetrics:
        """
        Take one optimizer step.

        Args:
            batches: Micro-batches of this process, as many as the accelerator has gradient accumulation steps.
            noise: Noise of each micro-batch, as the model takes it, float32 (B, C, S, S). By default it is drawn from
                the seed and the indices of the images.

        Raises:
            NonFiniteLossError, DivergenceError: before the weights are updated, see [`UpdateGuard`].
        """
        self.model.train()
        noise_scale = self.noise_scale
        batches = [self._prepare_batch(batch) for batch in batches]
        if self._may_need_initialization:
            if not self.base_model.jet.actnorm_initialized:
                self._initialize_actnorm(batches)
            self._may_need_initialization = False
        losses = []
        for i, batch in enumerate(batches):
            drawn = self._draw_noise(batch) if noise is None else noise[i]
            with self.accelerator.accumulate(self.model), trusted_values():
                output = self.model(
                    self._scale(batch), labels=batch.labels, noise=drawn, noise_std=self._draw_noise_levels(batch)
                )
                self.accelerator.backward(output.loss)
            losses.append(self._loss_and_terms(output))
            # All micro-batches run the same graph under torch_xla, instead of being unrolled into one.
            run_recorded(self.accelerator.device)
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if isinstance(grad_norm, DTensor):  # under FSDP2
            grad_norm = grad_norm.full_tensor()
        means = torch.stack(losses).mean(dim=0)
        # All processes continue with the same numbers, and skip the same steps.
        reduced = self.accelerator.reduce(torch.cat([means, grad_norm.to(means)[None]]), "mean")
        run_recorded(self.accelerator.device)
        # This is the only time in a step that the host waits for the device.
        loss, loss_prior, loss_log_det, norm = reduced.tolist()
        accepted = self.guard.accept(self.step_count + 1, loss, norm)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        if accepted:
            self.optimizer.step()
        else:
            # Otherwise, accelerate would not reduce the next gradient on a TPU.
            self.accelerator.gradient_state.is_xla_gradients_synced = False
        self.scheduler.step()
        self.optimizer.zero_grad()
        if accepted and self._update_average is not None:
            self._update_average(list(self.ema.values()), list(self.base_model.parameters()), self.step_count)
        run_recorded(self.accelerator.device)
        self.step_count += 1
        return StepMetrics(
            step=self.step_count,
            loss=loss,
            grad_norm=norm,
            learning_rate=learning_rate,
            noise_scale=noise_scale,
            loss_prior=loss_prior,
            loss_log_det=loss_log_det,
            clipped=norm > self.max_grad_norm,
            skipped=not accepted,
        )

    @property
    def noise_scale(self) -> float:
        """
        Standard deviation of the noise on the images of the next step, in gray levels of 8-bit images. From
        `noise_curriculum` it falls to 0 by a half cosine.
        """
        return self.noise_curriculum * self._fall(self.step_count)

    def restart_schedule(self) -> None:
        """Set the learning rate of the next step, after loading a checkpoint of another schedule."""
        self.scheduler.last_epoch -= 1
        self.scheduler.step()

    @torch.no_grad()
    def _loss_and_terms(self, output: JetDensityEstimationOutput) -> torch.Tensor:
        """Return the loss of a micro-batch, and its terms of the prior and the log-determinant: float32 (3,)."""
        assert output.loss is not None and output.latents is not None and output.log_det is not None
        log_prior, log_det = standard_normal_log_prob(output.latents), output.log_det
        if output.dequantization_log_det is not None:
            log_det = log_det + output.dequantization_log_det.to(log_det.device)
        config = self.base_model.config
        unit = config.num_dims * (math.log(2) if config.noise_std is None else 1)
        if output.noise_std is not None:
            weights = self.base_model.loss_weights(output.noise_std)
            log_prior, log_det = weights * log_prior, weights * log_det
        return torch.stack([output.loss, -log_prior.mean() / unit, -log_det.mean() / unit])

    def _prepare_batch(self, batch: Batch) -> Batch:
        """Move a batch to the device; if its labels are dropped, replace them by the number of classes."""
        num_classes = self.base_model.config.num_classes
        if batch.labels is not None and num_classes is not None:
            # The draw depends on the step alone, so that all processes and micro-batches agree.
            generator = torch.Generator().manual_seed((self.seed << 32) + self.step_count)
            if torch.rand((), generator=generator) < self.label_dropout:
                batch = batch._replace(labels=torch.full_like(batch.labels, num_classes))
        return batch.to(self.accelerator.device, non_blocking=True)

    def _draw_noise(self, batch: Batch) -> torch.Tensor:
        draw = uniform_noise if self.base_model.config.noise_std is None else normal_noise
        return draw(self.seed, batch.indices, tuple(batch.pixels.shape[1:]))

    def _draw_noise_levels(self, batch: Batch) -> torch.Tensor | None:
        return noise_levels(self.seed, batch.indices, self.base_model.config.noise_range, LEVEL_STREAM)

    def _scale(self, batch: Batch) -> torch.Tensor:
        """
        Scale images to the model's range, some of them mirrored, with random levels at the mutation rate and with the
        noise of the curriculum, which may leave that range.
        """
        num_levels = self.base_model.config.num_levels
        pixel_values, noise_scale = scale_bytes(batch.pixels, num_levels), self.noise_scale
        if self.random_flip:
            is_flipped = uniform_noise(self.seed, batch.indices, (1, 1, 1), FLIP_STREAM) < 0.5
            pixel_values = torch.where(is_flipped, pixel_values.flip(3), pixel_values)
        if self.mutation_rate:
            draw = partial(uniform_noise, self.seed, batch.indices, tuple(batch.pixels.shape[1:]))
            levels = (num_levels * draw(MUTATED_LEVEL_STREAM)).floor()
            is_mutated = draw(MUTATION_STREAM) < self.mutation_rate
            pixel_values = torch.where(is_mutated, levels / levels_per_unit(num_levels) - 1, pixel_values)
        if noise_scale == 0:
            return pixel_values
        noise = normal_noise(self.seed, batch.indices, tuple(batch.pixels.shape[1:]), CURRICULUM_STREAM)
        # Whole levels, so that dequantization follows as for images without noise.
        return dequantize(pixel_values, (noise_scale * (num_levels - 1) / 255 * noise).round(), num_levels)

    @torch.no_grad()
    def _initialize_actnorm(self, batches: Sequence[Batch]) -> None:
        """Initialize ActNorm from all images of the first step, whatever the number of processes."""
        model, gather = self.base_model, self.accelerator.gather
        levels = [self._draw_noise_levels(batch) for batch in batches]
        images = [
            gather(model.add_noise(self._scale(batch), self._draw_noise(batch), level))
            for batch, level in zip(batches, levels, strict=True)
        ]
        labels = [gather(batch.labels) for batch in batches if batch.labels is not None]
        gathered = [gather(level) for level in levels if level is not None]
        model.jet.initialize_actnorm(
            torch.cat(images),
            labels=torch.cat(labels) if labels else None,
            noise_std=torch.cat(gathered) if gathered else None,
        )
        for name, parameter in self.base_model.named_parameters():
            if name in self.ema:
                self.ema[name].copy_(parameter)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Replace the weights by their moving average, if there is one, within the context."""
        parameters = dict(self.base_model.named_parameters())
        with torch.no_grad():
            weights = {name: parameters[name].detach().clone() for name in self.ema}
            try:
                for name, average in self.ema.items():
                    parameters[name].copy_(average)
                yield
            finally:
                for name, weight in weights.items():
                    parameters[name].copy_(weight)

    def save_model(self, folder: str | os.PathLike) -> None:
        """Write the weights for `from_pretrained`, gathered if they are sharded; all processes call it."""
        state_dict = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            # FSDP changes the class of the model, whose name and code would be saved with it.
            with torch.device("meta"):
                model = JetForDensityEstimation(self.base_model.config)
            model.save_pretrained(folder, state_dict=to_host(state_dict))
