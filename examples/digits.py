# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Handwritten digits that ship with scikit-learn, as data that needs no download of its own.

    python -m examples.digits data/digits
"""

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image


NUM_LEVELS, NUM_CLASSES = 17, 10
HELD_OUT_SHARE = 0.2


def write_digits(folder: str | os.PathLike, seed: int = 0) -> Path:
    """
    Write the digits to an image folder, as `train/DIGIT/INDEX.png` and `test/DIGIT/INDEX.png`.

    The files are gray images of 8 x 8 pixels that hold the gray levels themselves, from 0 to 16. A fifth of each class
    is the test split.

    Args:
        folder: Folder to write to.
        seed: Seed of the split.

    Returns:
        The folder, for `jet-hf train --dataset_path FOLDER --num_levels 17 --num_channels 1 --num_classes 10`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits, folder = load_digits(), Path(folder)
    rows = np.arange(len(digits.target))
    parts = train_test_split(rows, test_size=HELD_OUT_SHARE, random_state=seed, stratify=digits.target)
    for split, part in zip(("train", "test"), parts, strict=True):
        for digit in range(NUM_CLASSES):
            (folder / split / str(digit)).mkdir(parents=True, exist_ok=True)
        for row in part:
            path = folder / split / str(digits.target[row]) / f"{row:04}.png"
            Image.fromarray(digits.images[row].astype(np.uint8)).save(path)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits to an image folder.")
    parser.add_argument("folder", help="folder to write to")
    arguments = parser.parse_args()
    write_digits(arguments.folder)
    print(f"wrote {arguments.folder}/train and {arguments.folder}/test")
