# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf sample`."""

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from ..analysis.inference import can_prepare, prepare_for_inference
from ..analysis.sampling import image_grid, interpolate, reconstruct, sample_images
from ..arguments import SampleArguments
from ..hub import load_config
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import new_folder


EXPECTED_ERRORS = (StrictDataclassError,)


def run(arguments: SampleArguments) -> None:
    """Write samples, reconstructions or an interpolation, and a grid of them, to a new folder."""
    with new_folder(arguments.output_dir) as folder:
        images = make_images(arguments)
        image_grid(images, arguments.columns).save(folder / "grid.png")
        for i, image in enumerate(images):
            image.save(folder / f"{i:05d}.png")
    print(f"wrote {len(images)} image(s) and grid.png to {arguments.output_dir}")


def make_images(arguments: SampleArguments) -> list[Image.Image]:
    """Return the requested images, in the size of the model."""
    paths = arguments.interpolate or arguments.reconstruct or []
    inputs = {path: open_image(path) for path in paths}
    load_config(arguments.model, "model")
    model = JetForDensityEstimation.from_pretrained(arguments.model).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    # The layers of prepared models have no gradients, which denoising takes.
    if can_prepare(model) and not (model.denoises(arguments.denoise) and not inputs):
        prepare_for_inference(model)
    processor = JetImageProcessor.from_pretrained(arguments.model)
    if not inputs:
        settings = {name: getattr(arguments, name) for name in ("num_images", "seed", "batch_size", "label")}
        return sample_images(model, processor, **settings, **arguments.sampling_options())
    pixel_values = read_images(inputs, processor).to(model.device)
    if arguments.interpolate:
        first, second = pixel_values
        return processor.post_process(interpolate(model, first, second, arguments.num_images))
    result = reconstruct(model, pixel_values)
    print(f"largest error {result.max_abs_error:.1e} of [-1, 1]; bytes equal: {result.bytes_equal}")
    return processor.post_process(result.pixel_values)


def read_images(inputs: dict[str, Image.Image], processor: JetImageProcessor) -> torch.Tensor:
    """Return the pixel values of images by their paths, (B, C, S, S); name the file that cannot be converted."""
    pixel_values = []
    for path, image in inputs.items():
        try:
            pixel_values.append(processor(image, return_tensors="pt").pixel_values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return torch.cat(pixel_values)


def open_image(path: str) -> Image.Image:
    """
    Open an image file.

    Raises:
        OSError: for a file that is missing or no image.
        ValueError: for an image of more pixels than Pillow opens, a sign of a decompression bomb.
    """
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
