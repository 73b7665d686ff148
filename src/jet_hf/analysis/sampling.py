# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples, reconstructions, and interpolations in the latent space of a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..model.flow_jet import JetCoupling, steps
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation, dequantize
from ..model.validation_jet import (
    check_denoising,
    check_images,
    check_not_negative,
    check_quantized_images,
    check_values,
    check_whole,
    is_number,
)
from ..utils.noise import normal_noise


if TYPE_CHECKING:
    from accelerate import Accelerator

# Dequantized with this noise, a byte lies in the middle of its gray level, farthest from the neighboring levels.
MID_LEVEL = 0.5


def draw_latents(
    model: JetForDensityEstimation, num_images: int, seed: int, batch_size: int
) -> Iterator[torch.Tensor]:
    """
    Draw standard normal latents image by image, so that neither the batch size nor the number of images changes them.

    Yields:
        Batches (B, C, S, S) in the dtype of the flow's state, on the device of the model.

    Raises:
        ValueError: for a number of images or a batch size below 1, or a seed that is not a whole number.
    """
    check_whole("num_images", num_images)
    check_whole("batch_size", batch_size)
    check_whole("seed", seed, low=-(2**63))
    shape, generator = model.config.image_shape, torch.Generator().manual_seed(int(seed))
    for start in range(0, num_images, batch_size):
        latents = [
            torch.randn(shape, generator=generator, dtype=torch.float32)
            for _ in range(min(batch_size, num_images - start))
        ]
        yield torch.stack(latents).to(model.jet.input_device, model.jet.state_dtype)


@torch.no_grad()
def sample_images(
    model: JetForDensityEstimation,
    processor: JetImageProcessor,
    num_images: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    label: int | None = None,
    **options: Any,
) -> list[Image.Image]:
    """
    Sample a model, class-conditional or not.

    Args:
        model: Model in evaluation mode.
        processor: Image processor of the model.
        num_images: Number of images, at least 1.
        temperature: Standard deviation of the latents, at least 0.
        seed: Seed of the latents and of the noise of stochastic denoising. The same seed gives the same images in
            batches of any size.
        batch_size: Number of images to decode at a time, at least 1.
        label: Class of all images; by default the images cycle through the classes.
        options: Denoising and guidance, see [`decode_samples`].

    Raises:
        ValueError: for a number out of range, a label of a model without classes, denoising that the model cannot do,
            or a processor whose scale is not the model's.
    """
    processor.check_scale(model.config.num_levels)
    images: list[Image.Image] = []
    for latents in draw_latents(model, num_images, seed, batch_size):
        first = len(images)
        labels = sample_labels(model, range(first, first + len(latents)), label)
        decoded = decode_samples(model, latents, labels, seed, first, temperature, **options)
        images += processor.post_process(decoded, dequantized=model.config.noise_std is None)
    return images


def decode_samples(  # noqa: PLR0913
    model: JetForDensityEstimation,
    latents: torch.Tensor,
    labels: torch.Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    temperature: float = 1.0,
    denoise: bool | None = None,
    denoising_steps: int = 1,
    stochastic: bool = False,
    noise_std: float | None = None,
    **guidance: Any,
) -> torch.Tensor:
    """
    Decode latents to samples.

    Args:
        model: Model in evaluation mode.
        latents: Standard normal latents (B, C, S, S).
        labels: Classes (B,) of the samples of a class-conditional model.
        seed: Seed of the noise of stochastic denoising.
        first: Position of the first of these samples among all samples, which draw this noise by their positions.
        temperature: Standard deviation of the latents, at least 0.
        denoise, denoising_steps, stochastic, noise_std: Denoising, see [`JetForDensityEstimation.sample`].
        guidance: Arguments of classifier-free guidance, see [`JetModel.decode`].

    Returns:
        Tensor (B, C, S, S).

    Raises:
        ValueError: see [`sample_images`].
    """
    check_not_negative("temperature", temperature)
    denoise = model.denoises(denoise)
    check_denoising(model.config, denoise, denoising_steps, stochastic)
    if noise_std is None and model.config.noise_range is not None:
        noise_std = model.config.noise_range[1]
    decoded, _ = model.decode(temperature * latents, labels=labels, noise_std=noise_std, **guidance)
    if not denoise:
        return decoded
    noise = None
    if stochastic:
        places = torch.arange(first, first + len(latents), device=latents.device)
        noise = normal_noise(seed, places, (denoising_steps - 1, *latents.shape[1:]))
        noise = noise.to(latents.dtype).transpose(0, 1)
    return model.denoise(decoded, labels=labels, noise_std=noise_std, denoising_steps=denoising_steps, noise=noise)


@torch.no_grad()
def sample_levels(
    model: JetForDensityEstimation,
    processor: JetImageProcessor,
    num_images: int,
    labels: torch.Tensor | None = None,
    seed: int = 0,
    batch_size: int = 64,
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
    **options: Any,
) -> np.ndarray:
    """
    Sample the gray levels of images. All processes call it, and all get the result, whose batches they divide.

    Args:
        model, processor, num_images, seed, batch_size: See [`sample_images`].
        labels: Classes (num_images,) of the samples of a class-conditional model.
        accelerator: Accelerator of all processes; by default this process works alone.
        progress: Whether the main process shows a progress bar on stderr.
        options: Further arguments of [`decode_samples`].

    Returns:
        int32 (num_images, C, S, S), the same for any number of processes.

    Raises:
        ValueError: see [`sample_images`]; also for samples that are not finite.
    """
    processor.check_scale(model.config.num_levels)
    index, count = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    batches = draw_latents(model, num_images, seed, batch_size)
    num_batches = -(-num_images // batch_size)
    parts = []
    for i, latents in enumerate(tqdm(batches, total=num_batches, unit="batch", disable=not progress or index > 0)):
        levels = np.zeros(latents.shape, np.int32)
        if i % count == index:
            places = slice(i * batch_size, i * batch_size + len(latents))
            of_batch = None if labels is None else labels[places].to(latents.device)
            decoded = decode_samples(model, latents, of_batch, seed, places.start, **options)
            if not decoded.isfinite().all():
                raise ValueError(
                    "the samples must be finite, got NaN or infinite values: the model has diverged, or the "
                    "temperature or the guidance is too strong."
                )
            levels += processor.to_levels(decoded, dequantized=model.config.noise_std is None)
        parts.append(levels)
    levels = np.concatenate(parts)
    if accelerator is None or count == 1:
        return levels
    return accelerator.reduce(torch.from_numpy(levels).to(accelerator.device), "sum").cpu().numpy()


@torch.no_grad()
def decode_steps(
    model: JetForDensityEstimation,
    latents: torch.Tensor,
    num_steps: int,
    context: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    context_mask: torch.Tensor | None = None,
    noise_std: float | torch.Tensor | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    Decode latents and show the intermediate states of the flow.

    Args:
        model: Model in evaluation mode.
        latents: float32 tensor (B, C, S, S).
        num_steps: Number of states to show after the latents, spread evenly over the coupling layers; at least 1.
        context, labels, context_mask, noise_std: Inputs of a conditional model, see [`JetModel.condition`].

    Yields:
        The number of coupling layers inverted so far, and the state in the shape of images, float32 (B, C, S, S): at
            first 0 and the latents, at last the result of [`JetModel.decode`].

    Raises:
        ValueError: if `num_steps` is below 1, or for latents that [`JetModel.decode`] refuses.
    """
    check_whole("num_steps", num_steps)
    jet, num_layers = model.jet, model.config.num_coupling_layers
    shown = {-(-num_layers * step // num_steps) for step in range(1, num_steps + 1)}
    check_images("latents", latents, jet.config, jet.state_dtype)
    check_values("latents", latents)
    conditioning = jet.condition(len(latents), context, labels, context_mask, noise_std)
    couplings = cast(Sequence[JetCoupling], jet.couplings)
    yield 0, latents
    for done, step in enumerate(steps(couplings, jet.patchify(latents), conditioning, inverse=True), start=1):
        if done in shown:
            yield done, jet.unpatchify(step.state)


def sample_labels(model: JetForDensityEstimation, places: range, label: int | None = None) -> torch.Tensor | None:
    """
    Return the labels (B,) of samples from a class-conditional model, or `None` for another model.

    Args:
        model: Model to sample.
        places: Positions of the samples among all samples, which cycle through the classes without a `label`.
        label: Class of all samples.

    Raises:
        ValueError: for a label that the model does not have.
    """
    num_classes = model.config.num_classes
    is_class = label is None or (num_classes and is_number(label, Integral) and 0 <= label < num_classes)
    if not is_class:
        raise ValueError(f"`label` must be a class of the model, which has {num_classes or 'none'}, got {label!r}.")
    if num_classes is None:
        return None
    classes = [place % num_classes if label is None else label for place in places]
    return torch.tensor(classes, device=model.jet.input_device)


def no_labels(model: JetForDensityEstimation, num_images: int) -> torch.Tensor | None:
    """Return the labels (num_images,) of images without a class, or `None` for a model without classes."""
    if model.config.num_classes is None:
        return None
    return torch.full((num_images,), model.config.num_classes, device=model.jet.input_device)


def _plain_conditions(model: JetForDensityEstimation, num_images: int) -> dict[str, Any]:
    """Return the conditional inputs of images without a class, at the smallest noise level."""
    conditions: dict[str, Any] = {}
    if model.config.num_classes is not None:
        conditions["labels"] = no_labels(model, num_images)
    if model.config.noise_range is not None:
        conditions["noise_std"] = model.config.noise_range[0]
    return conditions


@dataclass(frozen=True)
class Reconstruction:
    """
    Result of encoding images and decoding their latents.

    Args:
        latents: float32 tensor (B, C, S, S).
        pixel_values: Decoded, dequantized images, float32 (B, C, S, S).
        max_abs_error: Largest difference from the dequantized originals, on the scale [-1, 1].
        bytes_equal: Whether all 8-bit values equal those of the originals.
    """

    latents: torch.Tensor
    pixel_values: torch.Tensor
    max_abs_error: float
    bytes_equal: bool


@torch.no_grad()
def reconstruct(model: JetForDensityEstimation, pixel_values: torch.Tensor) -> Reconstruction:
    """
    Encode 8-bit images (B, C, S, S), scaled by the image processor, and decode their latents, without labels and at
    the smallest noise level.

    Raises:
        ValueError: for a wrong shape or dtype, or values that are not those of bytes.
    """
    config = model.config
    pixel_values = check_quantized_images(pixel_values, config, model.jet.state_dtype)
    dequantized = dequantize(pixel_values, MID_LEVEL, config.num_levels)
    conditions = _plain_conditions(model, len(pixel_values))
    latents, _ = model.encode(dequantized, **conditions)
    decoded, _ = model.decode(latents, **conditions)
    levels, originals = (torch.floor((values + 1) * config.levels_per_unit) for values in (decoded, dequantized))
    return Reconstruction(latents, decoded, (decoded - dequantized).abs().max().item(), torch.equal(levels, originals))


def latent_path(start: torch.Tensor, end: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Interpolate between two latents along their great circle, on which norms stay typical of latents.

    Args:
        start, end: Latents (C, S, S).
        weights: Positions on the path (K,), from 0 for the start to 1 for the end.

    Returns:
        Latents (K, C, S, S), whose norm changes linearly.
    """
    shape, dtype = start.shape, start.dtype
    start, end, weights = (values.double().flatten() for values in (start, end, weights))
    weights = weights.to(start.device)[:, None]
    lengths = start.norm(), end.norm()
    angle = torch.arccos(torch.clamp(start @ end / (lengths[0] * lengths[1]), -1, 1))
    if not (angle >= 1e-6 and torch.pi - angle >= 1e-6):  # the great circle is not defined
        path = (1 - weights) * start + weights * end
    else:
        directions = (
            torch.sin((1 - weights) * angle) * start / lengths[0] + torch.sin(weights * angle) * end / lengths[1]
        )
        path = directions / torch.sin(angle) * ((1 - weights) * lengths[0] + weights * lengths[1])
    return path.reshape(-1, *shape).to(dtype)


@torch.no_grad()
def interpolate(
    model: JetForDensityEstimation, first: torch.Tensor, second: torch.Tensor, num_steps: int
) -> torch.Tensor:
    """
    Interpolate between two images along the great circle of their latents, see [`latent_path`], at the smallest noise
    level.

    Args:
        model: Model in evaluation mode.
        first, second: 8-bit images (C, S, S), scaled by the image processor.
        num_steps: Number of images, both ends included; at least 2.

    Returns:
        Dequantized pixel values, float32 (num_steps, C, S, S).

    Raises:
        ValueError: if `num_steps` is below 2, or for values that are not those of bytes.
    """
    check_whole("num_steps", num_steps, low=2)
    images = check_quantized_images(torch.stack([first, second]), model.config, model.jet.state_dtype, "images")
    dequantized = dequantize(images, MID_LEVEL, model.config.num_levels)
    (start, end), _ = model.encode(dequantized, **_plain_conditions(model, 2))
    path = latent_path(start, end, torch.linspace(0, 1, num_steps, dtype=torch.float64))
    return model.decode(path, **_plain_conditions(model, num_steps))[0]


def image_grid(images: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """
    Arrange images of one size on white, in rows of `columns`, with `gap` pixels between them. The grid has 8 bits.

    Raises:
        ValueError: without images, for less than one column, or for a negative gap.
    """
    check_whole("columns", columns)
    check_whole("gap", gap, low=0)
    if not images:
        raise ValueError("`images` must hold at least one image, got none.")
    width, height = images[0].size
    columns, rows = min(columns, len(images)), -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        if image.mode == "I;16":
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grid.paste(image, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return grid
