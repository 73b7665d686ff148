# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Score the pictures of a folder, from the most to the least likely.

    python -m examples.score_folder space/examples --model space/model

Bits per dimension say how well a model predicts a picture: the fewer, the better. They do not say whether it resembles
the training data, see `examples/odd_products.py`. `jet-hf evaluate` scores whole datasets, in batches, with a mean and
its standard error; this is what it does to a picture.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from jet_hf import JetForDensityEstimation, JetImageProcessor


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@torch.no_grad()
def main(folder: str, model: str = "space/model", seed: int = 0) -> dict[str, float]:
    """Print and return the bits per dimension of each picture, by its name."""
    jet = JetForDensityEstimation.from_pretrained(model).eval()
    processor = JetImageProcessor.from_pretrained(model)
    bits = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            name = str(path.relative_to(folder))
            # The processor takes the central square and averages it down to the model's size.
            try:
                with Image.open(path) as image:
                    pixel_values = processor(image, return_tensors="pt").pixel_values
            except OSError as error:
                print(f"skipped {name}: {error}", file=sys.stderr)
                continue
            # The same noise between the gray levels for each picture.
            generator = torch.Generator().manual_seed(seed)
            bits[name] = jet(pixel_values, generator=generator).bits_per_dim.item()
    if not bits:
        raise ValueError(f"{folder} must hold pictures ({', '.join(SUFFIXES)}), got none.")
    for name, value in sorted(bits.items(), key=lambda item: item[1]):
        print(f"{value:6.3f}  {name}")
    return bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score the pictures of a folder.")
    parser.add_argument("folder", help="folder of pictures")
    parser.add_argument("--model", default="space/model", help="folder of a saved model, or its name on the Hub")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise between gray levels")
    main(**vars(parser.parse_args()))
