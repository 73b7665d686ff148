# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Photographs that ship with scikit-learn and scikit-image, as data that needs no download of its own.

    python -m examples.photographs data/photographs
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


# The splits differ in whole photographs, so that training and validation crops never show the same scene.
SPLITS = {
    "train": ("astronaut", "chelsea", "flower", "hubble_deep_field", "rocket", "stereo_motorcycle"),
    "validation": ("china", "coffee"),
}


def load_photograph(name: str) -> np.ndarray:
    """Return one of the photographs in `SPLITS`, as a uint8 array (height, width, 3)."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    from skimage import data

    photograph = getattr(data, name)()
    return photograph[0] if name == "stereo_motorcycle" else photograph  # the left image of the pair


def write_photographs(folder: str | os.PathLike, reductions: Sequence[int] = (1,)) -> Path:
    """
    Write the photographs to an image folder, as `train/NAME.png` and `validation/NAME.png`.

    Args:
        folder: Folder to write to.
        reductions: Factors by which copies of each photograph are reduced; a factor of 2 writes `NAME_2.png`. Crops of
            reduced copies show whole objects, with the sharpness of small images.

    Returns:
        The folder, for `datasets.load_dataset("imagefolder", data_dir=...)`.

    Raises:
        ValueError: If a factor is below 1.
    """
    if min(reductions) < 1:
        raise ValueError(f"`reductions` must contain only whole numbers of at least 1, got {list(reductions)}.")
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
    parser = argparse.ArgumentParser(description="Write the photographs to an image folder.")
    parser.add_argument("folder", help="folder to write to")
    parser.add_argument("--reductions", type=int, nargs="+", default=[1], help="factors to reduce photographs by")
    arguments = parser.parse_args()
    try:
        write_photographs(arguments.folder, arguments.reductions)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {arguments.folder}/train and {arguments.folder}/validation")
