#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Draws images from a Jet, reconstructs images, or goes from one image to another through the latent space.

    python scripts/sample.py --model demo/model --num_images 16 --output_dir samples
    python scripts/sample.py --model demo/model --reconstruct a.png b.png --output_dir reconstructions
    python scripts/sample.py --model demo/model --interpolate a.png b.png --output_dir interpolation
"""

from dataclasses import dataclass, field

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import HfArgumentParser

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.sampling import image_grid, interpolate, reconstruct, sample_images
from jet_hf.utils.console import console
from jet_hf.utils.files import check_is_free, new_folder


@dataclass
class SampleArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the Hub."})
    output_dir: str = field(default="samples", metadata={"help": "Folder to make: grid.png, and a PNG an image."})
    num_images: int = field(default=16, metadata={"help": "Number of samples, or of steps with --interpolate."})
    temperature: float = field(default=1.0, metadata={"help": "Standard deviation of the latents; 1 is the model's."})
    seed: int = field(default=0, metadata={"help": "Draws the latents, in batches of any size alike."})
    batch_size: int = field(default=64, metadata={"help": "Images decoded at a time."})
    label: int | None = field(default=None, metadata={"help": "Class of the samples; by default all in turn."})
    guidance_scale: float | None = field(default=None, metadata={"help": "Classifier-free guidance; 1 is none."})
    columns: int = field(default=8, metadata={"help": "Images in a row of the grid."})
    reconstruct: list[str] | None = field(default=None, metadata={"help": "Images to encode and decode again."})
    interpolate: list[str] | None = field(default=None, metadata={"help": "Two images to go between."})


def make_images(arguments: SampleArguments) -> list[Image.Image]:
    model = JetForDensityEstimation.from_pretrained(arguments.model).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = JetImageProcessor.from_pretrained(arguments.model)
    paths = arguments.interpolate or arguments.reconstruct
    if not paths:
        names = ("num_images", "temperature", "seed", "batch_size", "label", "guidance_scale")
        return sample_images(model, processor, **{name: getattr(arguments, name) for name in names})
    pixel_values = processor([Image.open(path) for path in paths], return_tensors="pt").pixel_values.to(model.device)
    if arguments.interpolate:
        if len(paths) != 2:
            raise ValueError(f"--interpolate takes two images, got {len(paths)}.")
        return processor.post_process(interpolate(model, *pixel_values, arguments.num_images))
    result = reconstruct(model, pixel_values)
    print(f"largest error {result.max_abs_error:.1e} of [-1, 1]; bytes equal: {result.bytes_equal}")
    return processor.post_process(result.pixel_values)


def main() -> None:
    (arguments,) = HfArgumentParser(SampleArguments, description=__doc__).parse_args_into_dataclasses()
    check_is_free(arguments.output_dir)
    images = make_images(arguments)
    with new_folder(arguments.output_dir) as folder:
        image_grid(images, arguments.columns).save(folder / "grid.png")
        for i, image in enumerate(images):
            image.save(folder / f"{i:05d}.png")
    print(f"wrote {len(images)} images and grid.png to {arguments.output_dir}")


if __name__ == "__main__":
    with console(ValueError, OSError, StrictDataclassError):
        main()
