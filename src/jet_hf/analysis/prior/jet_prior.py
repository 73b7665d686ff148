# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A model as the prior of images: density, score, denoising, restoration and posterior samples."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from ...model.configuration_jet import JetConfig
from ...model.modeling_jet import JetForDensityEstimation, standard_normal_log_prob
from ...model.validation_jet import (
    NOISE_STD_TOLERANCE,
    check_generator,
    check_labels,
    check_not_negative,
    check_values,
    check_whole,
    is_number,
)
from ..inference import check_density_model
from ..sampling import no_labels
from .inference import Energy, Posterior, Restoration, minimize, sample
from .operators import LinearOperator, fit_smoothest, identity, operator_norms
from .tiling import Tiling


METHODS = ("tweedie", "map")
SPACES = ("image", "latent")
# Steps of the optimizer, in units of the model's scale: a part of the noise, but at least four gray levels, because
# pixels that are not measured move as far however small the noise is, and at most a quarter of a unit, because the
# noise of measurements on a larger scale, such as sums of many pixels, says little about the scale of images.
STEP_PER_SIGMA = 0.25
SMALLEST_STEP, LARGEST_STEP = 4 / 127.5, 0.25
LATENT_STEP = 0.1

P = ParamSpec("P")
T = TypeVar("T")


def _outside_of_graphs(method: Callable[P, T]) -> Callable[P, T]:
    """
    Let a method compute its own gradients within `torch.inference_mode`, and give results without a graph, which would
    hold every step of a minimization, and gradients that leave out the density.
    """

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return wrapped


class JetPrior:
    """
    Prior of images (B, C, H, W) on the model's scale, in which gray levels are `u / 127.5 - 1`.

    Noise levels `sigma` are standard deviations on this scale: noise of 25 gray levels is `25 / 127.5`. They are
    numbers, or tensors (B,) of one for each image. No gradients flow through the results, except for [`log_prob`].

    Images of the model's size have the model's log-density. Larger ones have the sum of the weighted log-densities of
    overlapping tiles, see [`Tiling`], as in EPLL (Zoran and Weiss, 2011). No more than `tile_batch_size` tiles are in
    memory at a time. A model with a range of `noise_std` has the density at the smallest level.

    Args:
        model: Density model in evaluation mode.
        labels: Classes (B,) of the images, for a class-conditional model; by default unknown, which models
            learn by `label_dropout`.
        weight: Factor of the log-density in a posterior; less than 1 trusts the model less.
        stride: Largest distance of neighboring tiles in pixels, at most the tile's size, by default half of it.
        tile_batch_size: Number of tiles that the model takes at a time.

    Raises:
        ValueError: for a model in training mode or with a `context_size`, or a number out of its range.

    Example:

    ```python
    >>> import torch
    >>> from jet_hf import JetConfig, JetForDensityEstimation
    >>> from jet_hf.prior import JetPrior, mask

    >>> config = JetConfig(image_size=16, num_coupling_layers=2, hidden_size=32, num_attention_heads=2)
    >>> prior = JetPrior(JetForDensityEstimation(config).eval())
    >>> noisy = torch.randn(1, 3, 24, 40)
    >>> prior.denoise(noisy, sigma=50 / 127.5).shape
    torch.Size([1, 3, 24, 40])
    >>> kept = torch.rand(24, 40) < 0.5
    >>> restored = prior.restore(noisy * kept, mask(kept), sigma=5 / 127.5)
    >>> restored.images.shape, restored.objective.shape
    (torch.Size([1, 3, 24, 40]), torch.Size([101, 1]))
    ```"""

    def __init__(
        self,
        model: JetForDensityEstimation,
        labels: torch.Tensor | None = None,
        weight: float = 1.0,
        stride: int | None = None,
        tile_batch_size: int = 32,
    ):
        check_density_model("model", model)
        config = model.config
        _, *tile_shape = config.image_shape
        if model.training:
            raise ValueError("`model` must be in evaluation mode: call `model.eval()` first.")
        if config.context_size is not None:
            raise ValueError(f"`context_size` must be None for a prior, got {config.context_size}.")
        check_not_negative("weight", weight)
        check_whole("tile_batch_size", tile_batch_size)
        if stride is not None:
            check_whole("stride", stride)
            if stride > min(tile_shape):
                raise ValueError(f"`stride` must be at most {min(tile_shape)}, the size of a tile, got {stride}.")
        if labels is not None:
            check_labels(labels, config, labels.numel() if isinstance(labels, torch.Tensor) else 1)
        self.model = model
        self.labels = labels
        self.weight = weight
        self.tile_batch_size = tile_batch_size
        self.tile_shape = (tile_shape[0], tile_shape[1])
        halves = (max(tile_shape[0] // 2, 1), max(tile_shape[1] // 2, 1))
        self.stride = halves if stride is None else (stride, stride)

    @property
    def config(self) -> JetConfig:
        """Configuration of the model."""
        return self.model.config

    def log_prob(self, images: torch.Tensor) -> torch.Tensor:
        """
        Return the log-density of images, differentiable. With gradients enabled, all tiles stay in memory: [`score`]
        returns the gradient without that.

        Args:
            images: float32 tensor (B, C, H, W), at least of the model's size.

        Returns:
            float32 tensor (B,), in nats. For larger images than the model's it is not normalized.

        Raises:
            ValueError: for a wrong shape or dtype, or non-finite values.
        """
        self._check_images("images", images)
        total, tiling = images.new_zeros(len(images)), self._tiling(images)
        for indices, places in tiling.batches(len(images), self.tile_batch_size):
            values = self._tile_log_prob(tiling.cut(images, indices, places), indices)
            weights = images.new_tensor([place.weight for place in places])
            total = total.index_add(0, _index(indices, images), weights * values)
        return total

    @_outside_of_graphs
    def score(self, images: torch.Tensor) -> torch.Tensor:
        """
        Return the gradient of [`log_prob`] with respect to the images.

        Args:
            images: float32 tensor (B, C, H, W), at least of the model's size.

        Returns:
            float32 tensor (B, C, H, W), in nats per unit of the model's scale.

        Raises:
            ValueError: for a wrong shape or dtype, or non-finite values.
        """
        self._check_images("images", images)
        return self._log_prob_and_score(images)[1]

    @_outside_of_graphs
    def denoise(
        self, noisy: torch.Tensor, sigma: float | torch.Tensor, method: str | None = None, **options
    ) -> torch.Tensor:
        """
        Remove Gaussian noise from images.

        `method="tweedie"` returns the expected image under a model that was trained with noise of this level,
        [`JetForDensityEstimation.denoise`]; in larger images, the weighted mean of the tiles. `method="map"` returns
        the most probable image, for noise of any level, see [`restore`].

        Args:
            noisy: Noisy images, float32 tensor (B, C, H, W), at least of the model's size.
            sigma: Standard deviation of the noise.
            method: `"tweedie"` or `"map"`. By default `"tweedie"` for the noise levels of the model, else `"map"`.
            options: Arguments of [`restore`] for `"map"`.

        Returns:
            float32 tensor (B, C, H, W), not clipped.

        Raises:
            ValueError: for a method that the model does not have at this level, or inputs that [`restore`] refuses.
        """
        self._check_images("noisy", noisy)
        levels = _check_sigma(sigma, noisy)
        if method not in (None, *METHODS):
            raise ValueError(f"`method` must be one of {list(METHODS)}, got {method!r}.")
        if method is None:
            method = "tweedie" if self._has_levels(levels) else "map"
        if method == "map":
            return self.restore(noisy, identity(), sigma, **options).images
        if options:
            raise TypeError(f"denoise() got arguments that only method 'map' takes: {sorted(options)}")
        if not self._has_levels(levels):
            raise ValueError(
                f"`sigma` must be a noise level of the model for method 'tweedie', got {_describe(levels)}, but "
                f"`config.noise_std` is {self.config.noise_std}: method 'map' takes any level."
            )
        _, score = self._log_prob_and_score(noisy, levels)
        return noisy + _per_image(levels) ** 2 * score / self._tiling(noisy).coverage(noisy)

    @_outside_of_graphs
    def restore(
        self,
        measurements: torch.Tensor,
        operator: LinearOperator,
        sigma: float | torch.Tensor,
        space: str = "image",
        num_steps: int = 100,
        step_size: float | None = None,
        start: torch.Tensor | None = None,
    ) -> Restoration:
        """
        Return the most probable images, given measurements `A x + sigma * noise`.

        In the space of images it minimizes `|A x - y|^2 / (2 sigma^2) - weight * log p(x)`. In the space of latents it
        minimizes `|A x - y|^2 / (2 sigma^2) + weight * |z|^2 / 2` with `x = decode(z)`. The two are different
        estimates, because the mode of a density depends on its coordinates: the latter cannot end in the narrow peaks
        that a flow has at smooth images, but starts far from the measurements.

        Args:
            measurements: Tensor (B, ...), in float32.
            operator: Operator A, whose adjoint is tested.
            sigma: Standard deviation of the noise of the measurements.
            space: `"image"`, or `"latent"` for images of the model's size.
            num_steps: Number of Adam's steps, of one gradient each. Their size falls to zero along a cosine.
            step_size: Size of the first steps; by default a quarter of `sigma`, at least 4 gray levels and at most a
                quarter of a unit, in the space of images, and 0.1 in that of latents.
            start: First images (B, C, H, W). By default, the smoothest ones that fit the measurements in the space of
                images, see [`fit_smoothest`], and the image of the latent 0 in that of latents.

        Raises:
            ValueError: for an adjoint that is none, a sigma that is not positive or too small for the dtype, wrong
                shapes, non-finite values, images smaller than the model's, or a step size with which the objective
                becomes NaN.
        """
        if space not in SPACES:
            raise ValueError(f"`space` must be one of {list(SPACES)}, got {space!r}.")
        check_whole("num_steps", num_steps)
        levels = self._check_measurements(measurements, operator, sigma)
        start_image = self._start(measurements, operator, start)
        if space == "image":
            sizes = _step_sizes(step_size, (STEP_PER_SIGMA * levels).clamp(SMALLEST_STEP, LARGEST_STEP))
            return minimize(self._image_energy(measurements, operator, levels), start_image, num_steps, sizes)
        if tuple(start_image.shape[2:]) != self.tile_shape:
            raise ValueError(
                f"`space` must be 'image' for images larger than the model's {self.tile_shape}, got 'latent' for "
                f"{tuple(start_image.shape[2:])}: overlapping tiles have no common latent."
            )
        latents = torch.zeros_like(start_image) if start is None else self.model.encode(start, **self._given(start))[0]
        sizes = _step_sizes(step_size, torch.full_like(levels, LATENT_STEP))
        found = minimize(self._latent_energy(measurements, operator, levels), latents, num_steps, sizes)
        images, _ = self.model.decode(found.images, **self._given(latents))
        return Restoration(images, found.objective, found.gradient_norm)

    @_outside_of_graphs
    def sample_posterior(
        self,
        measurements: torch.Tensor,
        operator: LinearOperator,
        sigma: float | torch.Tensor,
        num_steps: int = 400,
        step_size: float | None = None,
        start: torch.Tensor | None = None,
        num_samples: int = 0,
        generator: torch.Generator | None = None,
    ) -> Posterior:
        """
        Sample images given measurements `A x + sigma * noise` by Langevin dynamics with momentum, and return their
        mean and standard deviation.

        One chain for each image takes one gradient a step. Repeat the measurements along the batch for several chains,
        whose means tell how far a chain has mixed.

        Args:
            measurements, operator, sigma: See [`restore`].
            num_steps: Number of steps, of which the first quarter is left out of the statistics.
            step_size: Step of the dynamics, whose velocities are standard normal, so that a step moves each number by
                about this much. By default half of the finest scale of the density, which is a gray level, or the
                smallest noise of a model with `noise_std`, and at most half of `sigma`, or of `sigma` over the norm of
                the operator if that is greater than 1.
            start: First images (B, C, H, W), by default those of [`restore`].
            num_samples: Number of evenly spaced samples to return.
            generator: Generator of the noise; the same state gives the same samples.

        Raises:
            ValueError: for inputs that [`restore`] refuses, or more samples than steps that count.
        """
        check_whole("num_steps", num_steps)
        check_whole("num_samples", num_samples, low=0)
        if num_samples > num_steps - num_steps // 4:
            raise ValueError(
                f"`num_samples` must be at most {num_steps - num_steps // 4}, the steps that count, got {num_samples}."
            )
        check_generator(generator)
        levels = self._check_measurements(measurements, operator, sigma)
        if start is None:
            start = self.restore(measurements, operator, sigma).images
        start = self._start(measurements, operator, start)
        finest = 1 / self.config.levels_per_unit if self.config.noise_levels is None else self.config.noise_levels[0]
        # The dynamics is unstable, and its samples too wide, with a step of twice the narrowest scale or more.
        narrowest = levels / operator_norms(operator, start).clamp(min=1)
        sizes = _step_sizes(step_size, narrowest.clamp(max=finest) / 2)
        energy = self._image_energy(measurements, operator, levels)
        return sample(energy, start, num_steps, sizes, num_samples, generator)

    # Energies

    def _image_energy(self, measurements: torch.Tensor, operator: LinearOperator, levels: torch.Tensor) -> Energy:
        def energy(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            misfit, gradient = _misfit(images, measurements, operator, levels)
            log_prob, score = self._log_prob_and_score(images)
            return misfit - self.weight * log_prob, gradient - self.weight * score

        return energy

    def _latent_energy(self, measurements: torch.Tensor, operator: LinearOperator, levels: torch.Tensor) -> Energy:
        def energy(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                latents = latents.detach().requires_grad_()
                images, _ = self.model.decode(latents, **self._given(latents))
            misfit, image_gradient = _misfit(images.detach(), measurements, operator, levels)
            (gradient,) = torch.autograd.grad(images, latents, image_gradient)
            latents = latents.detach()
            return misfit + self.weight / 2 * latents.square().flatten(1).sum(dim=1), gradient + self.weight * latents

        return energy

    def _log_prob_and_score(
        self, images: torch.Tensor, levels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-densities (B,) and their gradient (B, C, H, W), a batch of tiles at a time."""
        log_prob, score = images.new_zeros(len(images)), torch.zeros_like(images)
        tiling = self._tiling(images)
        for indices, places in tiling.batches(len(images), self.tile_batch_size):
            values, gradients = self._tile_gradients(tiling.cut(images.detach(), indices, places), indices, levels)
            for index, place, value, gradient in zip(indices, places, values, gradients, strict=True):
                log_prob[index] += place.weight * value
                tiling.view(score[index], place).add_(gradient, alpha=place.weight)
        return log_prob, score

    def _tile_gradients(
        self, tiles: torch.Tensor, indices: list[int], levels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-densities (b,) of tiles and their gradients (b, C, h, w)."""
        with torch.enable_grad():
            values = self._tile_log_prob(tiles.requires_grad_(), indices, levels)
            (gradients,) = torch.autograd.grad(values.sum(), tiles)
        return values.detach(), gradients

    def _tile_log_prob(
        self, tiles: torch.Tensor, indices: list[int], levels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the log-densities (b,) of tiles of the images `indices`, which have the noise levels (B,)."""
        latents, log_det = self.model.encode(tiles, **self._given(tiles, indices, levels))
        return standard_normal_log_prob(latents) + log_det

    def _given(
        self, tiles: torch.Tensor, indices: list[int] | None = None, levels: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Return the conditional inputs of the model for tiles of these images, by default one tile of each."""
        where = _index(list(range(len(tiles))) if indices is None else indices, tiles)
        labels = no_labels(self.model, len(tiles)) if self.labels is None else self.labels[where]
        noise_std: torch.Tensor | float | None = None
        if self.config.noise_range is not None:
            noise_std = self.config.noise_range[0] if levels is None else levels[where]
        return {"labels": labels, "noise_std": noise_std}

    def _tiling(self, images: torch.Tensor) -> Tiling:
        height, width = images.shape[2:]
        return Tiling((height, width), self.tile_shape, self.stride)

    # Checks

    def _has_levels(self, levels: torch.Tensor) -> bool:
        """Return whether the model was trained with noise of these levels."""
        if self.config.noise_levels is None:
            return False
        low, high = self.config.noise_levels
        low, high = low * (1 - NOISE_STD_TOLERANCE), high * (1 + NOISE_STD_TOLERANCE)
        return low <= float(levels.min()) and float(levels.max()) <= high

    def _check_images(self, name: str, images: torch.Tensor) -> None:
        channels, dtype = self.config.num_channels, self.model.jet.state_dtype
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != channels or not len(images):
            got = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
            raise ValueError(f"`{name}` must be a tensor (batch_size, {channels}, height, width), got {got}.")
        if images.dtype != dtype:
            raise ValueError(f"`{name}` must be {dtype} on the scale [-1, 1], got {images.dtype}.")
        if images.shape[2] < self.tile_shape[0] or images.shape[3] < self.tile_shape[1]:
            raise ValueError(
                f"`{name}` must be at least as large as the model's images, {self.tile_shape}, got "
                f"{tuple(images.shape[2:])}."
            )
        if self.labels is not None and len(self.labels) != len(images):
            raise ValueError(f"`{name}` must be as many as `labels`, {len(self.labels)}, got {len(images)}.")
        check_values(name, images)

    def _check_measurements(
        self, measurements: torch.Tensor, operator: LinearOperator, sigma: float | torch.Tensor
    ) -> torch.Tensor:
        """Return the noise levels (B,) of the measurements."""
        if not isinstance(measurements, torch.Tensor) or measurements.dtype != self.model.jet.state_dtype:
            got = measurements.dtype if isinstance(measurements, torch.Tensor) else type(measurements).__name__
            raise ValueError(f"`measurements` must be a tensor of {self.model.jet.state_dtype}, got {got}.")
        if measurements.ndim == 0 or not measurements.numel():
            raise ValueError(f"`measurements` must be a tensor (batch_size, ...), got {tuple(measurements.shape)}.")
        check_values("measurements", measurements)
        if not isinstance(operator, LinearOperator):
            raise ValueError(f"`operator` must be a LinearOperator, got {type(operator).__name__}.")
        levels = _check_sigma(sigma, measurements)
        operator.check_adjoint(measurements)
        return levels

    def _start(self, measurements: torch.Tensor, operator: LinearOperator, start: torch.Tensor | None) -> torch.Tensor:
        """Return the given first images, or the smoothest ones that fit the measurements."""
        backward = operator.adjoint(measurements)
        self._check_images("operator.adjoint(measurements)", backward)
        if len(backward) != len(measurements):
            raise ValueError(
                f"`measurements` must be those of as many images, {len(measurements)}, got {len(backward)} of "
                "`operator.adjoint(measurements)`."
            )
        if start is None:
            found = fit_smoothest(measurements, operator)
            if not bool(found.isfinite().all()):
                raise ValueError(
                    "the images that fit `measurements` must be finite, got NaN or infinity: their values or those of "
                    "`operator` are too large."
                )
            return found
        self._check_images("start", start)
        if start.shape != backward.shape:
            raise ValueError(f"`start` must have shape {tuple(backward.shape)}, got {tuple(start.shape)}.")
        return start.detach()


def _misfit(
    images: torch.Tensor, measurements: torch.Tensor, operator: LinearOperator, levels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `|A x - y|^2 / (2 sigma^2)` (B,) and its gradient (B, C, H, W)."""
    residual = operator.forward(images) - measurements
    value = residual.square().reshape(len(residual), -1).sum(dim=1) / (2 * levels**2)
    return value, operator.adjoint(residual) / _per_image(levels) ** 2


def _check_sigma(sigma: float | torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return noise levels (B,) in the dtype of the images; raise ValueError unless they are positive numbers."""
    values = sigma if isinstance(sigma, torch.Tensor) else torch.tensor(sigma if is_number(sigma) else float("nan"))
    is_valid = not values.is_complex() and (values.ndim == 0 or values.shape == (len(images),))
    levels = values.detach().to(images) if is_valid else images.new_zeros(())
    # Below this, squares are not normal numbers.
    if not bool(((levels > torch.finfo(images.dtype).tiny ** 0.5) & (levels < float("inf"))).all()):
        expected = f"a positive number or a tensor ({len(images)},) of them"
        raise ValueError(f"`sigma` must be {expected}, got {sigma!r}.")
    return levels.expand(len(images))


def _step_sizes(step_size: float | None, default: torch.Tensor) -> torch.Tensor:
    """Return step sizes (B, 1, 1, 1): the given one, or the default (B,) of each image."""
    if step_size is None:
        return _per_image(default)
    if not is_number(step_size) or not 0 < step_size < float("inf"):
        raise ValueError(f"`step_size` must be a positive number, got {step_size!r}.")
    return _per_image(torch.full_like(default, step_size))


def _per_image(values: torch.Tensor) -> torch.Tensor:
    """Return numbers of images (B,) as a tensor (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _index(indices: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(indices, device=like.device)


def _describe(levels: torch.Tensor) -> str:
    return f"{float(levels.min()):g}" if levels.min() == levels.max() else f"{levels.tolist()}"
