# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Real photographs that ship inside scikit-learn and scikit-image: data for trying things without a download.

    python -m examples.photographs data/photographs
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


# Whole photographs are held out, so that no crop of the validation split shares a scene with one of training.
SPLITS = {
    "train": ("astronaut", "chelsea", "flower", "hubble_deep_field", "rocket", "stereo_motorcycle"),
    "validation": ("china", "coffee"),
}


def load_photograph(name: str) -> np.ndarray:
    """One of the photographs in [`SPLITS`]: uint8 array (height, width, 3)."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    from skimage import data

    photograph = getattr(data, name)()
    return photograph[0] if name == "stereo_motorcycle" else photograph


def write_photographs(folder: str | os.PathLike, reductions: Sequence[int] = (1,)) -> Path:
    """
    Writes the photographs as an image folder, `train/NAME.png` and `validation/NAME.png`.

    Args:
        folder: Where to.
        reductions: Factors by which each photograph is averaged down; by 2, say, to `NAME_2.png`. Crops of these show
            whole things, and the sharpness of images that were made small.

    Returns:
        The folder, for `datasets.load_dataset("imagefolder", data_dir=...)`.

    Raises:
        ValueError: for a factor below 1.
    """
    if min(reductions) < 1:
        raise ValueError(f"`reductions` must be whole numbers of at least 1, got {list(reductions)}.")
    folder = Path(folder)
    for split, names in SPLITS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            photograph = Image.fromarray(load_photograph(name))
            for factor in reductions:
                suffix = "" if factor == 1 else f"_{factor}"
                photograph.reduce(factor).save(folder / split / f"{name}{suffix}.png")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the photographs as an image folder.")
    parser.add_argument("folder")
    parser.add_argument(
        "--reductions", type=int, nargs="+", default=[1], help="factors to average photographs down by"
    )
    arguments = parser.parse_args()
    if min(arguments.reductions) < 1:
        parser.error(f"--reductions must be whole numbers of at least 1, got {arguments.reductions}")
    print(f"wrote {write_photographs(arguments.folder, arguments.reductions)}/train and /validation")
