# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Images out of a model: samples, reconstructions, and the way between two images through the latent space."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from ..model.configuration_jet import LEVELS_PER_UNIT
from ..model.flow_jet import steps
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation, dequantize
from ..model.validation_jet import check_8bit_images, check_images, check_temperature, check_values, check_whole


# Dequantised with this noise, a byte lies in the middle of its grey level, farthest from those beside it.
MID_LEVEL = 0.5


def draw_latents(
    model: JetForDensityEstimation, num_images: int, seed: int, batch_size: int
) -> Iterator[torch.Tensor]:
    """
    Standard normal latents in batches (B, C, S, S), drawn image by image from one seed: neither the batch size nor the
    number of images changes those before.
    """
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shape = (config.num_channels, config.image_size, config.image_size)
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
    guidance_scale: float | None = None,
) -> list[Image.Image]:
    """
    Samples a model, class-conditional or not.

    Args:
        model: In evaluation mode.
        processor: The model's.
        num_images: Number of images, at least 1.
        temperature: Standard deviation of the latents, at least 0.
        seed: The same seed gives the same images, in batches of any size.
        batch_size: Images decoded at a time, at least 1.
        label: Class of the images; by default they go through all classes in turn.
        guidance_scale: Strength of classifier-free guidance, see [`JetModel.decode`].

    Raises:
        ValueError: for a number out of range, a label for a model that has no classes, or a processor with another
            scale than the model's.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        check_whole(name, value)
    check_temperature(temperature)
    processor.check_scale()
    images = []
    for latents in draw_latents(model, num_images, seed, batch_size):
        labels = sample_labels(model, range(len(images), len(images) + len(latents)), label)
        decoded, _ = model.decode(temperature * latents, labels=labels, guidance_scale=guidance_scale)
        images += processor.post_process(decoded)
    return images


@torch.no_grad()
def decode_steps(
    model: JetForDensityEstimation,
    latents: torch.Tensor,
    num_steps: int,
    context: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    context_mask: torch.Tensor | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    Decodes, and shows how latents become images.

    Args:
        model: In evaluation mode.
        latents: float32 tensor (B, C, S, S).
        num_steps: Number of looks on the way, evenly spread over the coupling layers, the images included; at least 1.
        context, labels, context_mask: What a conditional model needs, see [`JetModel.condition`].

    Yields:
        The number of coupling layers undone so far, and the flow's state as images, float32 (B, C, S, S): first the
        latents, with 0, last what [`JetModel.decode`] gives.

    Raises:
        ValueError: if `num_steps` is below 1, or for latents that [`JetModel.decode`] refuses.
    """
    check_whole("num_steps", num_steps)
    jet, num_layers = model.jet, model.config.num_coupling_layers
    looks = {-(-num_layers * step // num_steps) for step in range(1, num_steps + 1)}
    check_images("latents", latents, jet.config, jet.state_dtype)
    check_values("latents", latents)
    conditioning = jet.condition(len(latents), context, labels, context_mask)
    yield 0, latents
    for done, step in enumerate(steps(jet.couplings, jet.patchify(latents), conditioning, inverse=True), start=1):
        if done in looks:
            yield done, jet.unpatchify(step.state)


def sample_labels(model: JetForDensityEstimation, places: range, label: int | None = None) -> torch.Tensor | None:
    """
    Classes for samples, as a class-conditional model takes them; `None` for another.

    Args:
        model: The model.
        places: Of the samples in the row of all: without a `label` they go through all classes in turn.
        label: Class of all of them.

    Raises:
        ValueError: for a label that the model does not have.
    """
    num_classes = model.config.num_classes
    if label is not None and not (num_classes and 0 <= label < num_classes):
        raise ValueError(f"`label` must be a class of the model, which has {num_classes or 'none'}, got {label}.")
    if num_classes is None:
        return None
    classes = [place % num_classes if label is None else label for place in places]
    return torch.tensor(classes, device=model.jet.input_device)


def no_labels(model: JetForDensityEstimation, num_images: int) -> torch.Tensor | None:
    """Labels for images without one (num_images,), as a class-conditional model takes them; `None` for another."""
    if model.config.num_classes is None:
        return None
    return torch.full((num_images,), model.config.num_classes, device=model.jet.input_device)


@dataclass(frozen=True)
class Reconstruction:
    """
    What came back of images that were encoded and decoded.

    Args:
        latents: float32 tensor (B, C, S, S).
        pixel_values: The decoded, dequantised images, float32 (B, C, S, S).
        max_abs_error: Largest difference from the dequantised originals, on the scale [-1, 1].
        bytes_equal: Whether each 8-bit value is that of the original.
    """

    latents: torch.Tensor
    pixel_values: torch.Tensor
    max_abs_error: float
    bytes_equal: bool


@torch.no_grad()
def reconstruct(model: JetForDensityEstimation, pixel_values: torch.Tensor) -> Reconstruction:
    """
    Encodes 8-bit images (B, C, S, S), as the image processor scales them, and decodes them again; with a
    class-conditional model without labels.

    Raises:
        ValueError: for a wrong shape or dtype, or values that are not those of bytes.
    """
    pixel_values = check_8bit_images(pixel_values, model.config, model.jet.state_dtype)
    dequantized = dequantize(pixel_values, MID_LEVEL)
    labels = no_labels(model, len(pixel_values))
    latents, _ = model.encode(dequantized, labels=labels)
    decoded, _ = model.decode(latents, labels=labels)
    levels, originals = (torch.floor((values + 1) * LEVELS_PER_UNIT) for values in (decoded, dequantized))
    return Reconstruction(latents, decoded, (decoded - dequantized).abs().max().item(), torch.equal(levels, originals))


def latent_path(start: torch.Tensor, end: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Points on the great circle from one latent to another, which keeps to the norms that latents have; the length
    changes evenly from the one to the other.

    Args:
        start, end: Latents (C, S, S).
        weights: Places on the way, (K,), from 0, the start, to 1, the end.

    Returns:
        Latents (K, C, S, S).
    """
    shape, dtype = start.shape, start.dtype
    start, end, weights = (values.double().flatten() for values in (start, end, weights))
    weights = weights.to(start.device)[:, None]
    lengths = start.norm(), end.norm()
    angle = torch.arccos(torch.clamp(start @ end / (lengths[0] * lengths[1]), -1, 1))
    if not (angle >= 1e-6 and torch.pi - angle >= 1e-6):  # no great circle, or no single one
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
    The way from one image to another along the great circle between their latents, see [`latent_path`].

    Args:
        model: In evaluation mode.
        first, second: 8-bit images (C, S, S), as the image processor scales them.
        num_steps: Number of images, both ends included; at least 2.

    Returns:
        pixel_values: float32 tensor (num_steps, C, S, S), dequantised.

    Raises:
        ValueError: if `num_steps` is below 2, or for values that are not those of bytes.
    """
    check_whole("num_steps", num_steps, low=2)
    pixel_values = check_8bit_images(torch.stack([first, second]), model.config, model.jet.state_dtype, "images")
    ends, _ = model.encode(dequantize(pixel_values, MID_LEVEL), labels=no_labels(model, 2))
    path = latent_path(*ends, torch.linspace(0, 1, num_steps, dtype=torch.float64))
    return model.decode(path, labels=no_labels(model, num_steps))[0]


def image_grid(images: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Images of one size side by side on white, in rows of `columns`."""
    width, height = images[0].size
    columns, rows = min(columns, len(images)), -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        grid.paste(image, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return grid
