# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""From `datasets` to batches of bytes. Pixels stay uint8 until they reach the device."""

import os
from collections.abc import Iterator

import datasets
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from .model.image_processing_jet import JetImageProcessor


PIXELS = "pixels"
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")


def load_image_folder(path: str | os.PathLike, split: str, cache_dir: str | os.PathLike | None = None):
    """
    A folder of images as a map-style dataset with an `image` column.

    Args:
        path: Folder with the images in one subfolder a split, such as `train/` and `validation/`.
        split: Name of the split.
        cache_dir: Where `datasets` keeps its Arrow files; its own place by default.
    """
    return datasets.load_dataset(
        "imagefolder", data_dir=str(path), split=split, cache_dir=str(cache_dir) if cache_dir else None
    )


def find_image_column(features: datasets.Features) -> str:
    """
    The column that holds the images: the only one of type Image or a three-dimensional array of bytes, or the one of
    them with a usual name.

    Raises:
        ValueError: if there is none, or several and none of them has a usual name.
    """
    candidates = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, datasets.Array3D) and feature.dtype == "uint8")
    ]
    if len(candidates) == 1:
        return candidates[0]
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    if not named:
        raise ValueError(f"expected one column of images, got {candidates or 'none'} among {list(features)}.")
    return named[0]


def _pixel_features(image_size: int, num_channels: int) -> datasets.Features:
    return datasets.Features({PIXELS: datasets.Array3D((num_channels, image_size, image_size), "uint8")})


def to_pixels(dataset: datasets.Dataset, processor: JetImageProcessor, num_proc: int | None = None):
    """
    Decodes, crops and resizes every image once, as the processor is configured.

    Returns:
        Dataset with one column, `pixels`: uint8 arrays (C, S, S).
    """
    column = find_image_column(dataset.features)
    return dataset.map(
        lambda batch: {PIXELS: [processor.to_uint8(image) for image in batch[column]]},
        batched=True,
        batch_size=100,
        remove_columns=dataset.column_names,
        features=_pixel_features(processor.size["height"], processor.num_channels),
        num_proc=num_proc,
    )


def to_random_crops(dataset: datasets.Dataset, image_size: int, crops_per_image: int, seed: int):
    """
    Cuts crops of full resolution at random places out of every image.

    Args:
        dataset: Images of at least `image_size` pixels a side.
        image_size: Height and width of a crop.
        crops_per_image: Number of crops of each image.
        seed: Draws the places, for each image on its own.

    Returns:
        Dataset with one column, `pixels`: uint8 arrays (3, S, S), image by image.
    """
    column = find_image_column(dataset.features)

    def cut(batch: dict, indices: list[int]) -> dict:
        crops = []
        for image, index in zip(batch[column], indices, strict=True):
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            if min(pixels.shape[1:]) < image_size:
                raise ValueError(f"image {index} has {pixels.shape[1:]} pixels, fewer than the crop's {image_size}.")
            rng = np.random.default_rng([seed, index])
            places = rng.integers(0, np.array(pixels.shape[1:]) - image_size + 1, size=(crops_per_image, 2))
            crops += [pixels[:, y : y + image_size, x : x + image_size] for y, x in places]
        return {PIXELS: crops}

    return dataset.map(
        cut,
        batched=True,
        batch_size=1,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_pixel_features(image_size, 3),
    )


def pixel_batches(dataset: datasets.Dataset, batch_size: int, seed: int | None = None) -> DataLoader:
    """
    Batches of a dataset of pixels, read from Arrow a batch at a time.

    Args:
        dataset: As [`to_pixels`] or [`to_random_crops`] make it.
        batch_size: Images in a batch. The last one may be smaller; in random order it is left out.
        seed: Draws a new order each epoch; `None` keeps the dataset's order.

    Returns:
        DataLoader of uint8 tensors (B, C, S, S).
    """
    if seed is None:
        sampler = SequentialSampler(dataset)
    else:
        sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    return DataLoader(
        dataset.with_format("numpy", dtype=np.uint8),
        sampler=BatchSampler(sampler, batch_size, drop_last=seed is not None),
        batch_size=None,
        collate_fn=lambda batch: torch.from_numpy(batch[PIXELS]),
    )


def repeat(loader: DataLoader) -> Iterator[torch.Tensor]:
    """Epoch after epoch of a loader, without end."""
    while True:
        yield from loader
