# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Minimization and Langevin sampling of an energy, the negative log-density of a posterior up to a constant."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


# Energies (B,) in nats and their gradients (B, C, H, W) at points (B, C, H, W).
Energy = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

BETAS = (0.9, 0.99)
# Inverse time in which the sampler's velocities are forgotten. Contrasts of images have the size of its inverse.
FRICTION = 5.0
# Number of times that velocities are forgotten before samples count, at least. The chain starts near the mode, where
# potential energy is missing, and gets it by friction only. R-hat does not see that, since oscillations are fast.
FORGOTTEN = 4.0
CONVERGED = 1e-2
# Parts of a chain that are compared, and the largest ratio for which they count as draws of one distribution.
NUM_PARTS = 4
MIXED = 1.1


@dataclass(frozen=True)
class Restoration:
    """
    Restored images and the course of the minimization.

    Args:
        images: Tensor (B, C, H, W) on the model's scale [-1, 1], not clipped.
        objective: Negative log-density of the posterior, up to a constant, before each step and at the end, tensor
            (num_steps + 1, B), in nats.
        gradient_norm: Norm of its gradient, tensor (num_steps + 1, B).
    """

    images: torch.Tensor
    objective: torch.Tensor
    gradient_norm: torch.Tensor

    @property
    def converged(self) -> torch.Tensor:
        """Return for each image whether the norm of the gradient fell below 1 % of its largest value, bool (B,)."""
        return self.gradient_norm[-1] <= CONVERGED * self.gradient_norm.amax(dim=0)


@dataclass(frozen=True)
class Posterior:
    """
    Samples of a posterior and their statistics.

    Args:
        mean: Mean of the images over the steps, tensor (B, C, H, W) on the model's scale.
        std: Standard deviation of each number, a map of the uncertainty, tensor (B, C, H, W).
        samples: Images of evenly spaced steps, tensor (num_samples, B, C, H, W).
        r_hat: Potential scale reduction of each chain, tensor (B,): the split R-hat (Gelman and Rubin, 1992; Vehtari
            et al., 2021) of its four quarters, of the sum of the variances of all numbers. It is 1 for independent
            samples. While it is much larger, the chain still wanders, and `std` is too small. NaN below 8 steps.
    """

    mean: torch.Tensor
    std: torch.Tensor
    samples: torch.Tensor
    r_hat: torch.Tensor

    @property
    def mixed(self) -> torch.Tensor:
        """Return for each chain whether `r_hat` is at most 1.1, bool (B,)."""
        return self.r_hat <= MIXED


def minimize(energy: Energy, start: torch.Tensor, num_steps: int, step_size: torch.Tensor) -> Restoration:
    """
    Minimize an energy with Adam, whose step falls to zero along a cosine.

    Args:
        energy: Function to minimize.
        start: First point (B, ...).
        num_steps: Number of steps, of one gradient each.
        step_size: Size of the first steps (B, 1, 1, 1), in units of the points.

    Raises:
        ValueError: if the energy or its gradient becomes NaN or infinite.
    """
    # Adam's steps do not depend on the scale of gradients, so that each image can have its own step size.
    offset = torch.zeros_like(start, memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam([offset], lr=1.0, betas=BETAS)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    objectives, norms = [], []
    for step in range(num_steps + 1):
        point = start + step_size * offset
        value, gradient, norm = _evaluate(energy, point, step)
        objectives.append(value)
        norms.append(norm)
        if step < num_steps:
            offset.grad = step_size * gradient
            optimizer.step()
            scheduler.step()
    return Restoration(point, torch.stack(objectives), torch.stack(norms))


def sample(
    energy: Energy,
    start: torch.Tensor,
    num_steps: int,
    step_size: torch.Tensor,
    num_samples: int = 0,
    generator: torch.Generator | None = None,
) -> Posterior:
    """
    Sample `exp(-energy)` by Langevin dynamics, in the splitting BAOAB (Leimkuhler and Matthews, 2013), which has no
    discretization bias in a normal distribution.

    Args:
        energy: Negative log-density, in nats.
        start: First point (B, ...).
        num_steps: Number of steps, of one gradient each, of which the first quarter is left out of the statistics.
        step_size: Step (B, 1, 1, 1) of the dynamics, whose velocities are standard normal.
        num_samples: Number of samples to keep, at most the number of steps that count.
        generator: Generator of the noise.

    Raises:
        ValueError: if the energy or its gradient becomes NaN or infinite.
    """

    def draw() -> torch.Tensor:
        device = start.device if generator is None else generator.device
        return torch.randn(start.shape, generator=generator, device=device, dtype=start.dtype).to(start.device)

    num_burn_in = num_steps // 4
    num_counted = num_steps - num_burn_in
    kept = {num_burn_in + (index + 1) * num_counted // num_samples - 1 for index in range(num_samples)}
    decay = torch.exp(-(FRICTION * step_size).clamp(min=FORGOTTEN / max(num_burn_in, 1)))
    spread = (1 - decay**2).sqrt()
    point, velocity = start, draw()
    parts, samples = [_Moments(start) for _ in range(NUM_PARTS)], []
    _, gradient, _ = _evaluate(energy, point, 0)
    for step in range(num_steps):
        velocity = velocity - step_size / 2 * gradient
        point = point + step_size / 2 * velocity
        velocity = decay * velocity + spread * draw()
        point = point + step_size / 2 * velocity
        _, gradient, _ = _evaluate(energy, point, step + 1)
        velocity = velocity - step_size / 2 * gradient
        if step >= num_burn_in:
            parts[(step - num_burn_in) * NUM_PARTS // num_counted].add(point)
        if step in kept:
            samples.append(point)
    return _summarize(parts, torch.stack(samples) if samples else start.new_empty(0, *start.shape))


class _Moments:
    """Number, mean and sum of squared deviations of points, by Welford's updates."""

    def __init__(self, like: torch.Tensor):
        self.count = 0
        self.mean, self.squares = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, point: torch.Tensor) -> None:
        """Count a point."""
        self.count += 1
        deviation = point - self.mean
        self.mean = self.mean + deviation / self.count
        self.squares = self.squares + deviation * (point - self.mean)


def _summarize(parts: list[_Moments], samples: torch.Tensor) -> Posterior:
    """Return the statistics of a chain from those of its parts."""
    count = sum(part.count for part in parts)
    mean = torch.stack([part.count / count * part.mean for part in parts]).sum(dim=0)
    within = torch.stack([part.squares for part in parts]).sum(dim=0)
    between = torch.stack([part.count * (part.mean - mean) ** 2 for part in parts]).sum(dim=0)
    std = ((within + between) / max(count - 1, 1)).sqrt()
    return Posterior(mean, std, samples, _reduction(within, between, count, len(parts)))


def _reduction(within: torch.Tensor, between: torch.Tensor, count: int, num_parts: int) -> torch.Tensor:
    """Return R-hat (B,) by the sums of squares (B, C, H, W) within and between the parts of chains."""
    length = count / num_parts
    if length < 2:
        return within.new_full((len(within),), math.nan)
    variance = within.flatten(1).sum(dim=1) / (count - num_parts)
    variance_of_means = between.flatten(1).sum(dim=1) / (num_parts - 1) / length
    return (1 - 1 / length + variance_of_means / variance).sqrt()


def _evaluate(energy: Energy, point: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the energies, their gradients, and the norms (B,) of these, whose squares Adam needs too."""
    value, gradient = energy(point)
    norm = gradient.flatten(1).norm(dim=1)
    if not math.isfinite(float(value.sum() + norm.sum())):
        if step == 0:
            raise ValueError(
                "the objective and the square of its gradient must be finite at the first images, got NaN or "
                "infinity: `sigma` may be too small for the dtype."
            )
        raise ValueError(
            f"`step_size` must be smaller: the objective or its gradient became NaN or infinite at step {step}."
        )
    return value, gradient, norm
